/*
 * Softmax, cross-entropy and its gradient where the logits lie, a block a row. The row is read from memory
 * once: on the way to its largest logit and sum of exponentials (Milakov and Gimelshein, 2018) it is kept in
 * shared memory, and becomes its gradient from there. What does not fit is read again.
 */
#include "base/checked.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/numbers.cuh"

namespace {

enum { THREADS = 512, WARPS = THREADS / WARP };

template <typename T> struct args {
    T *logits;
    const int32_t *targets;
    float *losses;
    const float *loss_scale;
    float gradient_scale;
    size_t columns, vocabulary;
    size_t cached; /* groups of W numbers that shared memory holds */
    bool write_gradient;
};

/* Largest value and sum of exp(x - top) of two sets; an empty set has top -infinity. */
__device__ inline void merge(float &top, float &sum, float other_top, float other_sum) {
    const float larger = fmaxf(top, other_top);
    const float a = top == larger ? sum : sum * __expf(top - larger);
    const float b = other_top == larger ? other_sum : other_sum * __expf(other_top - larger);
    sum = other_top == -INFINITY ? sum : top == -INFINITY ? other_sum : a + b;
    top = larger;
}

/* Sets of all threads in a fixed order; every thread receives the whole. */
__device__ inline void block_merge(float &top, float &sum) {
    __shared__ float tops[WARPS], sums[WARPS];
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) {
        const float other_top = __shfl_xor_sync(~0u, top, step);
        const float other_sum = __shfl_xor_sync(~0u, sum, step);
        merge(top, sum, other_top, other_sum);
    }
    if (threadIdx.x % WARP == 0) {
        tops[threadIdx.x / WARP] = top;
        sums[threadIdx.x / WARP] = sum;
    }
    __syncthreads();
    top = tops[0];
    sum = sums[0];
    for (int w = 1; w < WARPS; w++) merge(top, sum, tops[w], sums[w]);
}

template <typename T, int W> __global__ void __launch_bounds__(THREADS, 2) kernel(const args<T> a) {
    extern __shared__ uint4 shared_memory[];
    Numbers<T, W> *cache = reinterpret_cast<Numbers<T, W> *>(shared_memory);
    T *row = a.logits + (size_t)blockIdx.x * a.columns;
    const size_t groups = a.columns / W;
    const int32_t target = a.targets[blockIdx.x];
    if (target < 0) { /* the whole block: nothing to learn here */
        if (threadIdx.x == 0) a.losses[blockIdx.x] = 0.0f;
        Numbers<T, W> zero;
        for (int i = 0; i < W; i++) zero.at[i] = narrow<T>(0.0f);
        for (size_t g = threadIdx.x; a.write_gradient && g < groups; g += THREADS) store(row + g * W, zero);
        return;
    }
    const float target_logit = widen(row[target]); /* before any thread may have written there */
    float top = -INFINITY, sum = 0.0f;
#pragma unroll 4
    for (size_t g = threadIdx.x; g < groups; g += THREADS) {
        const Numbers<T, W> n = load_once<T, W>(row + g * W);
        float x[W], here = -INFINITY, part = 0.0f;
        if (g < a.cached) cache[g] = n;
        unpack(x, n);
#pragma unroll
        for (int i = 0; i < W; i++) {
            if (g * W + (size_t)i >= a.vocabulary) x[i] = -INFINITY;
            here = fmaxf(here, x[i]);
        }
        if (here > top) { /* false for a NaN: fmaxf drops it, the sum does not */
            sum *= __expf(top - here);
            top = here;
        }
#pragma unroll
        for (int i = 0; i < W; i++) part += __expf(x[i] - top);
        sum += g * W < a.vocabulary ? part : 0.0f;
    }
    block_merge(top, sum);
    if (threadIdx.x == 0) a.losses[blockIdx.x] = logf(sum) + (top - target_logit);
    if (!a.write_gradient) return;
    const float scale = a.gradient_scale * *a.loss_scale, softmax_scale = scale / sum;
#pragma unroll 4
    for (size_t g = threadIdx.x; g < groups; g += THREADS) {
        float x[W];
        unpack(x, g < a.cached ? cache[g] : load<T, W>(row + g * W));
#pragma unroll
        for (int i = 0; i < W; i++) {
            const size_t column = g * W + (size_t)i;
            x[i] = column < a.vocabulary ? __expf(x[i] - top) * softmax_scale : 0.0f;
            if (column == (size_t)target) x[i] -= scale;
        }
        store(row + g * W, pack<T, W>(x));
    }
}

} /* namespace */

extern "C" enum status cuda_cross_entropy(struct device *device, const struct cross_entropy *op) {
    const char *const name = "cross_entropy";
    const size_t rows = op->logits.rows, columns = op->logits.columns;
    const struct cuda_backend *backend = backend_of(device);
    if (op->vocabulary == 0 || op->vocabulary > columns) {
        return status_set(STATUS_INTERNAL, "%s: vocabulary of %zu in rows of %zu logits", name,
                          op->vocabulary, columns);
    }
    FOR_DTYPE(op->logits.dtype, FOR_WIDTH(columns, {
        const size_t group = sizeof(Numbers<T, W>), room = backend->shared_bytes - 1024;
        args<T> a = {};
        a.logits = (T *)op->logits.data;
        a.targets = op->targets;
        a.losses = op->losses;
        a.loss_scale = op->loss_scale;
        a.gradient_scale = op->gradient_scale;
        a.columns = columns;
        a.vocabulary = op->vocabulary;
        a.cached = op->write_gradient ? size_min(columns / W, room / group) : 0;
        a.write_gradient = op->write_gradient;
        CUDA_TRY(cudaFuncSetAttribute(kernel<T, W>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)room));
        kernel<T, W><<<(unsigned)rows, THREADS, a.cached * group, backend->stream>>>(a);
    }))
    return cuda_launched(name);
}

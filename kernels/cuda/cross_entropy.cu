/*
 * Softmax, cross-entropy and its gradient where the logits lie, a block a row. The row is read
 * from memory once: on the way to its largest logit and sum of exponentials (Milakov and
 * Gimelshein, 2018) it is kept in shared memory, and becomes its gradient from there. What does
 * not fit is read again.
 *
 * Quantised copies of the gradient need many rows at once, more than shared memory holds: a first
 * kernel leaves each row's sum, a second one reads the logits again and writes the copies by tiles
 * (quantise.cuh): 6 bytes a logit in all, where a stored gradient and `quantise` move 8.
 */
#include "base/checked.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/quantise.cuh"
#include "kernels/cuda/quantise.h"

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
    struct scale_state *amax; /* of the gradient as it is stored, or NULL */
    float *shifts;            /* the gradient is left to softmax_source; NULL: it is not */
};

/* Exponentials are taken to base 2, with what would be added or multiplied folded into the
 * exponent. */
constexpr float LOG2_E = 1.44269504f;
constexpr double LN_2 = 0.693147180559945309;

/* Columns from `first` on: those beyond the vocabulary count for nothing. */
template <int W>
__device__ inline void cut_padding(float (&x)[W], size_t first, size_t vocabulary) {
#pragma unroll
    for (int i = 0; i < W; i++) {
        if (first + (size_t)i >= vocabulary) x[i] = -INFINITY;
    }
}

/* Largest value and sum of 2^(x - top) of two sets; an empty set has top -infinity. */
__device__ inline void merge(float &top, float &sum, float other_top, float other_sum) {
    const float larger = fmaxf(top, other_top);
    const float a = top == larger ? sum : sum * fast_exp2(top - larger);
    const float b = other_top == larger ? other_sum : other_sum * fast_exp2(other_top - larger);
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
        if (a.shifts != nullptr) return;
        Numbers<T, W> zero;
        for (int i = 0; i < W; i++) zero.at[i] = narrow<T>(0.0f);
        for (size_t g = threadIdx.x; a.write_gradient && g < groups; g += THREADS)
            store(row + g * W, zero);
        return;
    }
    const float target_logit = widen(row[target]); /* before any thread may have written there */
    const size_t whole = a.vocabulary / W;         /* groups without padding */
    float top = -INFINITY, sum = 0.0f;
#pragma unroll 4
    for (size_t g = threadIdx.x; g < groups; g += THREADS) {
        const Numbers<T, W> n = load_once<T, W>(row + g * W);
        float x[W], here, part = 0.0f;
        if (g < a.cached) cache[g] = n;
        unpack(x, n);
        if (g >= whole) cut_padding(x, g * W, a.vocabulary);
        here = x[0];
#pragma unroll
        for (int i = 1; i < W; i++) here = fmaxf(here, x[i]);
        here *= LOG2_E;
        if (here > top) { /* false for a NaN: fmaxf drops it, the sum does not */
            sum *= fast_exp2(top - here);
            top = here;
        }
#pragma unroll
        for (int i = 0; i < W; i++) part += fast_exp2(fmaf(x[i], LOG2_E, -top));
        sum += g * W < a.vocabulary ? part : 0.0f;
    }
    block_merge(top, sum);
    if (threadIdx.x == 0) {
        a.losses[blockIdx.x] = (float)((log2((double)sum) + (double)top) * LN_2 -
                                       (double)target_logit);
    }
    if (!a.write_gradient) return;
    const float scale = a.gradient_scale * *a.loss_scale, shift = log2f(scale / sum) - top;
    if (a.shifts != nullptr) {
        if (threadIdx.x == 0) a.shifts[blockIdx.x] = shift;
        return;
    }
    const size_t target_group = (size_t)target / W;
    float amax = 0.0f;
#pragma unroll 4
    for (size_t g = threadIdx.x; g < groups; g += THREADS) {
        float x[W];
        unpack(x, g < a.cached ? cache[g] : load<T, W>(row + g * W));
        if (g >= whole) cut_padding(x, g * W, a.vocabulary);
#pragma unroll
        for (int i = 0; i < W; i++) x[i] = fast_exp2(fmaf(x[i], LOG2_E, shift));
        if (g == target_group) {
#pragma unroll
            for (int i = 0; i < W; i++) x[i] -= i == target % W ? scale : 0.0f;
        }
        if (a.amax != nullptr) {
#pragma unroll
            for (int i = 0; i < W; i++) amax = larger_size(amax, x[i]);
        }
        store(row + g * W, pack<T, W>(x));
    }
    if (a.amax != nullptr) raise_amax(a.amax, as_stored<T>(amax));
}

/* What the kernel above leaves in `shifts`, made the gradient. */
struct softmax_source {
    using type = __nv_bfloat16;
    enum { WORDS = 1 };
    const type *logits;
    const int32_t *targets;
    const float *shifts, *loss_scale;
    float gradient_scale;
    int vocabulary;
    int first; /* of the thread's columns */
    float scale;
    __device__ void column(size_t c) {
        first = (int)c;
        scale = gradient_scale * *loss_scale;
    }
    __device__ const void *word(int, size_t at) const { return logits + at; }
    __device__ void compute(float (&out)[8], const uint4 *words, size_t row) const {
        const float shift = shifts[row];
        const int any = targets[row], target = any - first;
        unpack(out, tile_numbers<type>(words));
        if (first + 8 > vocabulary) cut_padding(out, (size_t)first, (size_t)vocabulary);
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = fast_exp2(fmaf(out[i], LOG2_E, shift));
        if (target >= 0 && target < 8) {
#pragma unroll
            for (int i = 0; i < 8; i++) out[i] -= i == target ? scale : 0.0f;
        }
        if (any >= 0) return;
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = 0.0f; /* shift was not set */
    }
};

__global__ void __launch_bounds__(TILE_THREADS, 4)
    softmax_tiles_kernel(const softmax_source source, const __grid_constant__ tile_job job) {
    tile_run<softmax_source, false, true>(source, job, blockIdx.x);
}

enum status write_copies(struct device *device, const struct cross_entropy *op,
                         const float *shifts) {
    softmax_source source = {};
    source.logits = (const __nv_bfloat16 *)op->logits.data;
    source.targets = op->targets;
    source.shifts = shifts;
    source.loss_scale = op->loss_scale;
    source.gradient_scale = op->gradient_scale;
    source.vocabulary = (int)op->vocabulary;
    const size_t rows = op->logits.rows;
    const tile_job job = tile_job_of(device, copies_args_of(&op->quantise, rows), rows,
                                     op->logits.columns);
    softmax_tiles_kernel<<<job.across * job.down, TILE_THREADS, 0, backend_of(device)->stream>>>(
        source, job);
    return cuda_launched("cross_entropy");
}

} /* namespace */

extern "C" size_t cuda_cross_entropy_scratch_bytes(const struct op_limits *limits) {
    return limits->tokens * sizeof(float); /* a shift of each row */
}

extern "C" enum status cuda_cross_entropy(struct device *device, const struct cross_entropy *op) {
    const char *const name = "cross_entropy";
    const size_t rows = op->logits.rows, columns = op->logits.columns;
    const struct cuda_backend *backend = backend_of(device);
    if (op->vocabulary == 0 || op->vocabulary > columns) {
        return status_set(STATUS_INTERNAL, "%s: vocabulary of %zu in rows of %zu logits", name,
                          op->vocabulary, columns);
    }
    TRY(cuda_output_check(name, &op->quantise, false, op->logits.dtype, rows, columns));
    const bool copies = op->write_gradient && op->quantise.copies != NULL;
    float *shifts = copies ? (float *)device->scratch : NULL;
    if (copies) TRY(cuda_scratch(device, name, rows * sizeof *shifts));
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
                  a.amax = op->quantise.amax;
                  a.shifts = shifts;
                  a.cached = op->write_gradient && !copies ? size_min(columns / W, room / group)
                                                           : 0;
                  a.write_gradient = op->write_gradient;
                  CUDA_TRY(cudaFuncSetAttribute(kernel<T, W>,
                                                cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                (int)room));
                  kernel<T, W><<<(unsigned)rows, THREADS, a.cached * group, backend->stream>>>(a);
              }))
    TRY(cuda_launched(name));
    return copies ? write_copies(device, op, shifts) : STATUS_OK;
}

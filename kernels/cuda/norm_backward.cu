/*
 * Backward of the layer norm: a block works on BACK_ROWS rows at a time, and each thread owns W
 * columns of them, so that column sums stay in the thread that owns the column until all rows are
 * done. Where quantised copies are wanted, a block takes rows that follow each other, collects
 * their codes in strips in shared memory, and writes both copies from there when a strip is full
 * (quantise.cuh).
 */
#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/quantise.cuh"
#include "kernels/cuda/quantise.h"

namespace {

using bf16 = __nv_bfloat16;

enum {
    BACK_ROWS = 2,
    NARROW = 128,
    COPIES_MIDDLE = 224, /* the codes take registers too */
    MIDDLE = 256,
    SUMS = 3,
    STRIP_ROWS = 32
};

template <typename T> struct backward_args {
    T *residual_gradient;
    const T *out_gradient, *residual, *weight;
    const float *mean, *rstd;
    float *partials; /* (blocks, SUMS, columns) */
    size_t rows;
    int columns;
    bool overwrite, delta_bias;
    copies_args to; /* COPIES: strips of `height` rows, `range` rows a block */
    int height;
    size_t range;
};

/* Blocks of that many threads at once on a multiprocessor, by the registers that are left to each.
 * */
constexpr int resident_blocks(int block, bool copies) {
    return block == NARROW          ? (copies ? 4 : 5)
           : block == COPIES_MIDDLE ? 3
           : block == MIDDLE        ? (copies ? 2 : 3)
                                    : 1;
}

/* BLOCK: the most threads a block may have; narrow rows leave registers for several such blocks. */
template <typename T, int W, int BLOCK, bool COPIES>
__global__ void __launch_bounds__(BLOCK, resident_blocks(BLOCK, COPIES))
    norm_backward_kernel(const backward_args<T> a) {
    extern __shared__ uint4 strip_memory[];
    uint32_t *strip = reinterpret_cast<uint32_t *>(strip_memory);
    __shared__ float shared[2][BLOCK / WARP * 2 * BACK_ROWS];
    const int column = (int)threadIdx.x * W;
    const bool mine = column < a.columns;
    const float share = 1.0f / (float)a.columns;
    Numbers<T, W> weight = {}; /* as it lies in memory: registers are short here */
    float weight_sum[W] = {}, bias_sum[W] = {}, delta_sum[W] = {};
    const float scale = COPIES && !a.to.stored ? a.to.state->scale : 1.0f;
    float amax = 0.0f;
    int turn = 0;
    if (mine) weight = load<T, W>(a.weight + column);
    const size_t begin = (size_t)blockIdx.x * (COPIES ? a.range : BACK_ROWS);
    const size_t end = COPIES && begin + a.range < a.rows ? begin + a.range : a.rows;
    const size_t stride = COPIES ? BACK_ROWS : (size_t)gridDim.x * BACK_ROWS;
    for (size_t first = begin; first < end; first += stride) {
        Numbers<T, W> residual[BACK_ROWS], gradient[BACK_ROWS], past[BACK_ROWS];
        float rstd[BACK_ROWS], mean[BACK_ROWS], sums[2 * BACK_ROWS] = {};
#pragma unroll
        for (int r = 0; r < BACK_ROWS; r++) {
            const bool here = mine && first + r < a.rows;
            const size_t at = (first + r) * (size_t)a.columns + (size_t)column;
            if (here) {
                residual[r] = load_once<T, W>(a.residual + at);
                gradient[r] = load_once<T, W>(a.out_gradient + at);
                if (!a.overwrite) past[r] = load_once<T, W>(a.residual_gradient + at);
            }
            mean[r] = here ? a.mean[first + r] : 0.0f;
            rstd[r] = here ? a.rstd[first + r] : 0.0f;
        }
#pragma unroll
        for (int r = 0; r < BACK_ROWS; r++) {
            if (!mine || first + r >= a.rows) continue;
            float x[W], g[W];
            unpack(x, residual[r]);
            unpack(g, gradient[r]);
#pragma unroll
            for (int i = 0; i < W; i++) {
                const float xhat = (x[i] - mean[r]) * rstd[r];
                weight_sum[i] += g[i] * xhat;
                bias_sum[i] += g[i];
                g[i] *= widen(weight.at[i]);
                sums[2 * r] += g[i];
                sums[2 * r + 1] += g[i] * xhat;
            }
        }
        block_sums(sums, shared[turn]);
        turn ^= 1;
#pragma unroll
        for (int r = 0; r < BACK_ROWS; r++) {
            if (!mine || first + r >= a.rows) continue;
            float x[W], g[W], out[W] = {};
            unpack(x, residual[r]);
            unpack(g, gradient[r]);
            if (!a.overwrite) unpack(out, past[r]);
#pragma unroll
            for (int i = 0; i < W; i++) {
                const float xhat = (x[i] - mean[r]) * rstd[r];
                out[i] += rstd[r] * (g[i] * widen(weight.at[i]) - sums[2 * r] * share -
                                     xhat * (sums[2 * r + 1] * share));
                delta_sum[i] += out[i];
            }
            store(a.residual_gradient + (first + r) * (size_t)a.columns + (size_t)column,
                  pack<T, W>(out));
            if constexpr (COPIES) {
                const int strip_row = ((int)first + r - (int)begin) & (a.height - 1);
                amax = larger_size8(amax, out);
                *reinterpret_cast<uint2 *>(strip + strip_at(a.height, a.columns, strip_row,
                                                            column / 4)) = encode8(a.to.e5m2, out,
                                                                                   scale);
            }
        }
        if constexpr (COPIES) {
            const size_t next = first + BACK_ROWS;
            const size_t full = (next - begin - 1) & ~(size_t)(a.height - 1);
            if (next < end && next - begin != full + (size_t)a.height) continue;
            __syncthreads(); /* the next one that writes codes comes behind block_sums' barrier */
            if (a.to.row != nullptr)
                strip_store_rows(strip, a.height, a.columns, a.to, begin + full);
            if (a.to.transposed != nullptr)
                strip_store(strip, a.height, a.columns, a.to, begin + full);
        }
    }
    if (COPIES) raise_amax(a.to.state, a.to.stored ? as_stored<T>(amax) : amax);
    if (!mine) return;
    float *partials = a.partials + (size_t)blockIdx.x * SUMS * (size_t)a.columns + (size_t)column;
    store(partials, pack<float, W>(weight_sum));
    store(partials + a.columns, pack<float, W>(bias_sum));
    if (a.delta_bias) store(partials + 2 * a.columns, pack<float, W>(delta_sum));
}

/* Blocks, and the rows of each where they keep strips: as many as the multiprocessors hold at once,
 * so one wave and the fewest partial sums, and all of the same length. */
template <typename T>
size_t plan_backward(const struct device *device, backward_args<T> *a, int resident) {
    const size_t most = size_min((size_t)backend_of(device)->multiprocessors *
                                     size_max(1, (size_t)resident),
                                 COLUMN_PARTS_MAX);
    if (a->height == 0) return size_min(ceil_div(a->rows, BACK_ROWS), most);
    const size_t strips = ceil_div(a->rows, (size_t)a->height), each = ceil_div(strips, most);
    a->range = each * (size_t)a->height;
    return ceil_div(strips, each);
}

template <typename T, int W, int BLOCK, bool COPIES>
enum status run_backward(struct device *device, backward_args<T> a, int threads,
                         const struct norm_backward *op) {
    const char *const name = "norm_backward";
    const size_t columns = (size_t)a.columns;
    size_t strip = 0;
    int resident = 0;
    if (COPIES) {
        a.to = copies_args_of(&op->quantise, a.rows);
        a.height = strip_height(STRIP_ROWS, a.columns, backend_of(device)->shared_bytes * 2 / 3);
        strip = strip_bytes(a.height, a.columns);
        CUDA_TRY(cudaFuncSetAttribute(norm_backward_kernel<T, W, BLOCK, COPIES>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, (int)strip));
        if (a.height == 0) return refuse_width("norm_backward with copies", columns);
    }
    CUDA_TRY(
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident,
                                                      norm_backward_kernel<T, W, BLOCK, COPIES>,
                                                      threads, strip));
    float *const outs[SUMS] = {op->weight_gradient, op->bias_gradient, op->delta_bias_gradient};
    const size_t blocks = plan_backward(device, &a, resident);
    TRY(cuda_scratch(device, name, blocks * SUMS * columns * sizeof(float)));
    a.partials = (float *)device->scratch;
    norm_backward_kernel<T, W, BLOCK, COPIES>
        <<<(unsigned)blocks, threads, strip, backend_of(device)->stream>>>(a);
    TRY(cuda_launched(name));
    return cuda_column_sums(device, outs, SUMS, a.partials, blocks, columns, op->accumulate);
}

template <typename T, int W, bool COPIES>
enum status choose_backward(struct device *device, const backward_args<T> &a, int threads,
                            const struct norm_backward *op) {
    if (threads <= NARROW) return run_backward<T, W, NARROW, COPIES>(device, a, threads, op);
    if (COPIES && threads <= COPIES_MIDDLE)
        return run_backward<T, W, COPIES_MIDDLE, COPIES>(device, a, threads, op);
    if (threads <= MIDDLE) return run_backward<T, W, MIDDLE, COPIES>(device, a, threads, op);
    return run_backward<T, W, NORM_THREADS_MAX, COPIES>(device, a, threads, op);
}

template <typename T> backward_args<T> backward_args_of(const struct norm_backward *op) {
    backward_args<T> a = {};
    a.residual_gradient = (T *)op->residual_gradient.data;
    a.out_gradient = (const T *)op->out_gradient.data;
    a.residual = (const T *)op->residual.data;
    a.weight = (const T *)op->weight.data;
    a.mean = op->mean;
    a.rstd = op->rstd;
    a.rows = op->residual.rows;
    a.columns = (int)op->residual.columns;
    a.overwrite = op->overwrite_residual_gradient;
    a.delta_bias = op->delta_bias_gradient != NULL;
    return a;
}

} /* namespace */

extern "C" enum status cuda_norm_backward(struct device *device, const struct norm_backward *op) {
    const char *const name = "norm_backward";
    const size_t rows = op->residual.rows, columns = op->residual.columns;
    const enum dtype dtype = op->residual.dtype;
    const int threads = norm_threads(columns);
    if (threads == 0) return refuse_width(name, columns);
    TRY(cuda_output_check(name, &op->quantise, false, dtype, rows, columns));
    TRY(cuda_shape(name, "residual_gradient", op->residual_gradient, dtype, rows, columns));
    TRY(cuda_shape(name, "out_gradient", op->out_gradient, dtype, rows, columns));
    TRY(cuda_shape(name, "weight", op->weight, dtype, 1, columns));
    if (quantise_output_set(&op->quantise)) {
        return choose_backward<bf16, 8, true>(device, backward_args_of<bf16>(op), threads, op);
    }
    enum status status = STATUS_OK;
    FOR_DTYPE(dtype, FOR_WIDTH(columns, {
                  status = choose_backward<T, W, false>(device, backward_args_of<T>(op), threads,
                                                        op);
              }))
    return status;
}

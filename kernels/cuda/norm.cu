/*
 * Layer norm fused with the residual addition before it (Ba et al., 2016). A block works on ROWS rows at a
 * time and each thread owns W columns of them, so that a row is read once, kept in registers, and written
 * once, and backward's column sums stay in the thread that owns the column until all rows are done.
 */
#include "base/checked.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/numbers.cuh"

namespace {

enum { ROWS = 4, THREADS_MAX = 1024, SUMS = 3 };

constexpr float EPSILON = 1e-5f;

/* Threads of a block: one for each W columns, in whole warps; 0: the row is too wide. */
int norm_threads(size_t columns) {
    const size_t owners = columns % 8 == 0 ? columns / 8 : columns;
    return owners > THREADS_MAX ? 0 : (int)align_up(owners, WARP);
}

/* As many as the multiprocessors hold at once, a function of the shape alone. */
unsigned norm_blocks(const struct device *device, size_t rows, int threads) {
    const size_t resident = size_max(1, 512 / (size_t)threads);
    const size_t most = (size_t)backend_of(device)->multiprocessors * resident;
    return (unsigned)size_min(size_min(ceil_div(rows, ROWS), most), COLUMN_PARTS_MAX);
}

enum status refuse_width(const char *operation, size_t columns) {
    return status_set(STATUS_INTERNAL, "%s: expected a width that is a multiple of 8 up to 8192, or any up "
                      "to 1024; found %zu", operation, columns);
}

template <typename T> struct forward_args {
    T *out, *residual;
    const T *residual_in, *delta, *delta_bias, *weight, *bias;
    float *mean, *rstd;
    size_t rows;
    int columns;
};

/* residual_in [+ delta [+ bias]], rounded as it is stored. */
template <typename T, int W>
__device__ inline void residual_sum(float (&x)[W], const forward_args<T> &a, size_t at, int column) {
    unpack(x, load_once<T, W>(a.residual_in + at));
    if (a.delta == nullptr) return;
    float delta[W], bias[W] = {};
    unpack(delta, load_once<T, W>(a.delta + at));
    if (a.delta_bias != nullptr) unpack(bias, load<T, W>(a.delta_bias + column));
#pragma unroll
    for (int i = 0; i < W; i++) x[i] += delta[i] + bias[i];
    const Numbers<T, W> stored = pack<T, W>(x);
    store(a.residual + at, stored);
    unpack(x, stored);
}

template <typename T, int W> __global__ void norm_forward_kernel(const forward_args<T> a) {
    __shared__ float shared[2][THREADS_MAX / WARP * ROWS];
    const int column = (int)threadIdx.x * W;
    const bool mine = column < a.columns;
    const float share = 1.0f / (float)a.columns;
    for (size_t first = (size_t)blockIdx.x * ROWS; first < a.rows; first += (size_t)gridDim.x * ROWS) {
        float x[ROWS][W] = {}, mean[ROWS] = {}, variance[ROWS] = {};
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (mine && first + r < a.rows) {
                residual_sum<T, W>(x[r], a, (first + r) * (size_t)a.columns + (size_t)column, column);
            }
#pragma unroll
            for (int i = 0; i < W; i++) mean[r] += x[r][i];
        }
        block_sums(mean, shared[0]);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            mean[r] *= share;
#pragma unroll
            for (int i = 0; i < W; i++) {
                x[r][i] -= mean[r];
                variance[r] += mine ? x[r][i] * x[r][i] : 0.0f;
            }
        }
        block_sums(variance, shared[1]);
        float weight[W] = {}, bias[W] = {};
        if (mine) {
            unpack(weight, load<T, W>(a.weight + column));
            unpack(bias, load<T, W>(a.bias + column));
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (first + r >= a.rows) break;
            const float rstd = 1.0f / sqrtf(variance[r] * share + EPSILON);
            if (threadIdx.x == 0) {
                a.mean[first + r] = mean[r];
                a.rstd[first + r] = rstd;
            }
            if (!mine) continue;
#pragma unroll
            for (int i = 0; i < W; i++) x[r][i] = x[r][i] * rstd * weight[i] + bias[i];
            store(a.out + (first + r) * (size_t)a.columns + (size_t)column, pack<T, W>(x[r]));
        }
    }
}

template <typename T> struct backward_args {
    T *residual_gradient;
    const T *out_gradient, *residual, *weight;
    const float *mean, *rstd;
    float *partials; /* (blocks, SUMS, columns) */
    size_t rows;
    int columns;
    bool overwrite, delta_bias;
};

template <typename T, int W> __global__ void norm_backward_kernel(const backward_args<T> a) {
    __shared__ float shared[2][THREADS_MAX / WARP * 2 * ROWS];
    const int column = (int)threadIdx.x * W;
    const bool mine = column < a.columns;
    const float share = 1.0f / (float)a.columns;
    float weight[W] = {}, weight_sum[W] = {}, bias_sum[W] = {}, delta_sum[W] = {};
    int turn = 0;
    if (mine) unpack(weight, load<T, W>(a.weight + column));
    for (size_t first = (size_t)blockIdx.x * ROWS; first < a.rows; first += (size_t)gridDim.x * ROWS) {
        Numbers<T, W> residual[ROWS], gradient[ROWS], past[ROWS];
        float rstd[ROWS], mean[ROWS], sums[2 * ROWS] = {};
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
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
        for (int r = 0; r < ROWS; r++) {
            if (!mine || first + r >= a.rows) continue;
            float x[W], g[W];
            unpack(x, residual[r]);
            unpack(g, gradient[r]);
#pragma unroll
            for (int i = 0; i < W; i++) {
                const float xhat = (x[i] - mean[r]) * rstd[r];
                weight_sum[i] += g[i] * xhat;
                bias_sum[i] += g[i];
                sums[2 * r] += g[i] * weight[i];
                sums[2 * r + 1] += g[i] * weight[i] * xhat;
            }
        }
        block_sums(sums, shared[turn]);
        turn ^= 1;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (!mine || first + r >= a.rows) continue;
            float x[W], g[W], out[W] = {};
            unpack(x, residual[r]);
            unpack(g, gradient[r]);
            if (!a.overwrite) unpack(out, past[r]);
#pragma unroll
            for (int i = 0; i < W; i++) {
                const float xhat = (x[i] - mean[r]) * rstd[r];
                out[i] += rstd[r] * (g[i] * weight[i] - sums[2 * r] * share -
                                     xhat * (sums[2 * r + 1] * share));
                delta_sum[i] += out[i];
            }
            store(a.residual_gradient + (first + r) * (size_t)a.columns + (size_t)column,
                  pack<T, W>(out));
        }
    }
    if (!mine) return;
    float *partials = a.partials + (size_t)blockIdx.x * SUMS * (size_t)a.columns + (size_t)column;
    store(partials, pack<float, W>(weight_sum));
    store(partials + a.columns, pack<float, W>(bias_sum));
    if (a.delta_bias) store(partials + 2 * a.columns, pack<float, W>(delta_sum));
}

} /* namespace */

extern "C" enum status cuda_norm_forward(struct device *device, const struct norm_forward *op) {
    const char *const name = "norm_forward";
    const size_t rows = op->out.rows, columns = op->out.columns;
    const enum dtype dtype = op->out.dtype;
    const int threads = norm_threads(columns);
    if (threads == 0) return refuse_width(name, columns);
    TRY(cuda_shape(name, "residual_in", op->residual_in, dtype, rows, columns));
    TRY(cuda_shape(name, "weight", op->weight, dtype, 1, columns));
    TRY(cuda_shape(name, "bias", op->bias, dtype, 1, columns));
    if (op->delta != NULL) {
        TRY(cuda_shape(name, "delta", *op->delta, dtype, rows, columns));
        TRY(cuda_shape(name, "residual", op->residual, dtype, rows, columns));
    }
    if (op->delta_bias != NULL) TRY(cuda_shape(name, "delta_bias", *op->delta_bias, dtype, 1, columns));
    FOR_DTYPE(dtype, FOR_WIDTH(columns, {
        forward_args<T> a = {};
        a.out = (T *)op->out.data;
        a.residual = (T *)op->residual.data;
        a.residual_in = (const T *)op->residual_in.data;
        a.delta = op->delta == NULL ? nullptr : (const T *)op->delta->data;
        a.delta_bias = op->delta_bias == NULL ? nullptr : (const T *)op->delta_bias->data;
        a.weight = (const T *)op->weight.data;
        a.bias = (const T *)op->bias.data;
        a.mean = op->mean;
        a.rstd = op->rstd;
        a.rows = rows;
        a.columns = (int)columns;
        const unsigned blocks = blocks_for(rows, ROWS);
        norm_forward_kernel<T, W><<<blocks, threads, 0, backend_of(device)->stream>>>(a);
    }))
    return cuda_launched(name);
}

extern "C" enum status cuda_norm_backward(struct device *device, const struct norm_backward *op) {
    const char *const name = "norm_backward";
    const size_t rows = op->residual.rows, columns = op->residual.columns;
    const enum dtype dtype = op->residual.dtype;
    const int threads = norm_threads(columns);
    if (threads == 0) return refuse_width(name, columns);
    const unsigned blocks = norm_blocks(device, rows, threads);
    TRY(cuda_shape(name, "residual_gradient", op->residual_gradient, dtype, rows, columns));
    TRY(cuda_shape(name, "out_gradient", op->out_gradient, dtype, rows, columns));
    TRY(cuda_shape(name, "weight", op->weight, dtype, 1, columns));
    TRY(cuda_scratch(device, name, (size_t)blocks * SUMS * columns * sizeof(float)));
    float *partials = (float *)device->scratch;
    FOR_DTYPE(dtype, FOR_WIDTH(columns, {
        backward_args<T> a = {};
        a.residual_gradient = (T *)op->residual_gradient.data;
        a.out_gradient = (const T *)op->out_gradient.data;
        a.residual = (const T *)op->residual.data;
        a.weight = (const T *)op->weight.data;
        a.mean = op->mean;
        a.rstd = op->rstd;
        a.partials = partials;
        a.rows = rows;
        a.columns = (int)columns;
        a.overwrite = op->overwrite_residual_gradient;
        a.delta_bias = op->delta_bias_gradient != NULL;
        norm_backward_kernel<T, W><<<blocks, threads, 0, backend_of(device)->stream>>>(a);
    }))
    TRY(cuda_launched(name));
    float *const outs[SUMS] = {op->weight_gradient, op->bias_gradient, op->delta_bias_gradient};
    for (size_t i = 0; i < SUMS; i++) {
        if (outs[i] == NULL) continue;
        TRY(cuda_column_sums(device, outs[i], partials + i * columns, blocks, SUMS * columns, columns,
                               op->accumulate));
    }
    return STATUS_OK;
}

/*
 * Layer norm fused with the residual addition before it (Ba et al., 2016). A row is read once,
 * kept in registers, and written once. Forward gives rows of up to 2048 to a warp each.
 * Otherwise, and in backward, a block works on ROWS rows at a time and each thread owns W
 * columns of them, so that backward's column sums stay in the thread that owns the column until
 * all rows are done.
 */
#include "base/checked.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/numbers.cuh"

namespace {

enum {
    ROWS = 4,
    BACK_ROWS = 2,
    NARROW = 128,
    MIDDLE = 256,
    THREADS_MAX = 1024,
    SUMS = 3,
    WARP_THREADS = 128
};

constexpr float EPSILON = 1e-5f;

/* Threads of a block: one for each W columns, in whole warps; 0: the row is too wide. */
int norm_threads(size_t columns) {
    const size_t owners = columns % 8 == 0 ? columns / 8 : columns;
    return owners > THREADS_MAX ? 0 : (int)align_up(owners, WARP);
}

enum status refuse_width(const char *operation, size_t columns) {
    return status_set(STATUS_INTERNAL,
                      "%s: expected a width that is a multiple of 8 up to 8192, or any up "
                      "to 1024; found %zu",
                      operation, columns);
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
__device__ inline void residual_sum(float (&x)[W], const forward_args<T> &a, size_t at,
                                    int column) {
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
    for (size_t first = (size_t)blockIdx.x * ROWS; first < a.rows;
         first += (size_t)gridDim.x * ROWS) {
        float x[ROWS][W] = {}, mean[ROWS] = {}, variance[ROWS] = {};
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (mine && first + r < a.rows) {
                residual_sum<T, W>(x[r], a, (first + r) * (size_t)a.columns + (size_t)column,
                                   column);
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

/* A warp a row, the row in its registers: no barrier. V groups of 8 numbers a lane, rows of up
 * to V * 256. */
template <typename T, int V>
__global__ void __launch_bounds__(WARP_THREADS) norm_forward_warp_kernel(const forward_args<T> a) {
    const size_t row = (size_t)blockIdx.x * (WARP_THREADS / WARP) + threadIdx.x / WARP;
    const int lane = (int)threadIdx.x % WARP;
    const float share = 1.0f / (float)a.columns;
    if (row >= a.rows) return;
    float x[V][8] = {}, mean = 0.0f, variance = 0.0f;
#pragma unroll
    for (int k = 0; k < V; k++) {
        const int column = (k * WARP + lane) * 8;
        if (column < a.columns) {
            residual_sum<T, 8>(x[k], a, row * (size_t)a.columns + (size_t)column, column);
        }
    }
#pragma unroll
    for (int k = 0; k < V; k++) {
#pragma unroll
        for (int i = 0; i < 8; i++) mean += x[k][i];
    }
    mean = warp_sum(mean) * share;
#pragma unroll
    for (int k = 0; k < V; k++) {
        const bool mine = (k * WARP + lane) * 8 < a.columns;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            x[k][i] -= mean;
            variance += mine ? x[k][i] * x[k][i] : 0.0f;
        }
    }
    const float rstd = 1.0f / sqrtf(warp_sum(variance) * share + EPSILON);
    if (lane == 0) {
        a.mean[row] = mean;
        a.rstd[row] = rstd;
    }
#pragma unroll
    for (int k = 0; k < V; k++) {
        const int column = (k * WARP + lane) * 8;
        if (column >= a.columns) break;
        float weight[8], bias[8];
        unpack(weight, load<T, 8>(a.weight + column));
        unpack(bias, load<T, 8>(a.bias + column));
#pragma unroll
        for (int i = 0; i < 8; i++) x[k][i] = x[k][i] * rstd * weight[i] + bias[i];
        store(a.out + row * (size_t)a.columns + (size_t)column, pack<T, 8>(x[k]));
    }
}

template <typename T>
void launch_forward(const forward_args<T> &a, int threads, cudaStream_t stream) {
    const unsigned blocks = blocks_for(a.rows, ROWS),
                   warps = blocks_for(a.rows, WARP_THREADS / WARP);
    const int groups = a.columns % 8 == 0 ? (a.columns + 255) / 256 : 0;
    switch (groups) {
    case 1:
        norm_forward_warp_kernel<T, 1><<<warps, WARP_THREADS, 0, stream>>>(a);
        break;
    case 2:
        norm_forward_warp_kernel<T, 2><<<warps, WARP_THREADS, 0, stream>>>(a);
        break;
    case 3:
        norm_forward_warp_kernel<T, 3><<<warps, WARP_THREADS, 0, stream>>>(a);
        break;
    case 4:
        norm_forward_warp_kernel<T, 4><<<warps, WARP_THREADS, 0, stream>>>(a);
        break;
    case 5:
        norm_forward_warp_kernel<T, 5><<<warps, WARP_THREADS, 0, stream>>>(a);
        break;
    case 6:
    case 7:
        norm_forward_warp_kernel<T, 7><<<warps, WARP_THREADS, 0, stream>>>(a);
        break;
    case 8:
        norm_forward_warp_kernel<T, 8><<<warps, WARP_THREADS, 0, stream>>>(a);
        break;
    case 0:
        norm_forward_kernel<T, 1><<<blocks, threads, 0, stream>>>(a);
        break;
    default:
        norm_forward_kernel<T, 8><<<blocks, threads, 0, stream>>>(a);
        break;
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

/* BLOCK: the most threads a block may have; narrow rows leave registers for several such blocks. */
template <typename T, int W, int BLOCK>
__global__ void __launch_bounds__(BLOCK, BLOCK == NARROW   ? 5
                                         : BLOCK == MIDDLE ? 3
                                                           : 1)
    norm_backward_kernel(const backward_args<T> a) {
    __shared__ float shared[2][BLOCK / WARP * 2 * BACK_ROWS];
    const int column = (int)threadIdx.x * W;
    const bool mine = column < a.columns;
    const float share = 1.0f / (float)a.columns;
    Numbers<T, W> weight = {}; /* as it lies in memory: registers are short here */
    float weight_sum[W] = {}, bias_sum[W] = {}, delta_sum[W] = {};
    int turn = 0;
    if (mine) weight = load<T, W>(a.weight + column);
    for (size_t first = (size_t)blockIdx.x * BACK_ROWS; first < a.rows;
         first += (size_t)gridDim.x * BACK_ROWS) {
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
        }
    }
    if (!mine) return;
    float *partials = a.partials + (size_t)blockIdx.x * SUMS * (size_t)a.columns + (size_t)column;
    store(partials, pack<float, W>(weight_sum));
    store(partials + a.columns, pack<float, W>(bias_sum));
    if (a.delta_bias) store(partials + 2 * a.columns, pack<float, W>(delta_sum));
}

template <typename T, int W, int BLOCK>
enum status run_backward(struct device *device, backward_args<T> a, int threads,
                         const struct norm_backward *op) {
    const char *const name = "norm_backward";
    const size_t columns = (size_t)a.columns;
    int resident = 0;
    CUDA_TRY(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident,
                                                           norm_backward_kernel<T, W, BLOCK>,
                                                           threads, 0));
    /* as many as the multiprocessors hold at once: one wave, and the fewest partial sums */
    const size_t most = (size_t)backend_of(device)->multiprocessors * size_max(1, (size_t)resident);
    const size_t blocks = size_min(size_min(ceil_div(a.rows, BACK_ROWS), most), COLUMN_PARTS_MAX);
    float *const outs[SUMS] = {op->weight_gradient, op->bias_gradient, op->delta_bias_gradient};
    TRY(cuda_scratch(device, name, blocks * SUMS * columns * sizeof(float)));
    a.partials = (float *)device->scratch;
    norm_backward_kernel<T, W, BLOCK>
        <<<(unsigned)blocks, threads, 0, backend_of(device)->stream>>>(a);
    TRY(cuda_launched(name));
    return cuda_column_sums(device, outs, SUMS, a.partials, blocks, columns, op->accumulate);
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
    if (op->delta_bias != NULL)
        TRY(cuda_shape(name, "delta_bias", *op->delta_bias, dtype, 1, columns));
    FOR_DTYPE(dtype, {
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
        launch_forward(a, threads, backend_of(device)->stream);
    })
    return cuda_launched(name);
}

extern "C" enum status cuda_norm_backward(struct device *device, const struct norm_backward *op) {
    const char *const name = "norm_backward";
    const size_t rows = op->residual.rows, columns = op->residual.columns;
    const enum dtype dtype = op->residual.dtype;
    const int threads = norm_threads(columns);
    if (threads == 0) return refuse_width(name, columns);
    TRY(cuda_shape(name, "residual_gradient", op->residual_gradient, dtype, rows, columns));
    TRY(cuda_shape(name, "out_gradient", op->out_gradient, dtype, rows, columns));
    TRY(cuda_shape(name, "weight", op->weight, dtype, 1, columns));
    enum status status = STATUS_OK;
    FOR_DTYPE(dtype, FOR_WIDTH(columns, {
                  backward_args<T> a = {};
                  a.residual_gradient = (T *)op->residual_gradient.data;
                  a.out_gradient = (const T *)op->out_gradient.data;
                  a.residual = (const T *)op->residual.data;
                  a.weight = (const T *)op->weight.data;
                  a.mean = op->mean;
                  a.rstd = op->rstd;
                  a.rows = rows;
                  a.columns = (int)columns;
                  a.overwrite = op->overwrite_residual_gradient;
                  a.delta_bias = op->delta_bias_gradient != NULL;
                  status = threads <= NARROW ? run_backward<T, W, NARROW>(device, a, threads, op)
                           : threads <= MIDDLE
                               ? run_backward<T, W, MIDDLE>(device, a, threads, op)
                               : run_backward<T, W, THREADS_MAX>(device, a, threads, op);
              }))
    return status;
}

/*
 * GELU with the bias before it, and gradients of biases. A warp covers WARP * W columns of a
 * row; each thread keeps its columns' bias and sums while the block walks down its rows. Where
 * quantised copies or the largest magnitude are wanted, the tiles of quantise.cuh do the same.
 */
#include "base/checked.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/quantise.cuh"
#include "kernels/cuda/quantise.h"

namespace {

enum {
    LANES = 8,
    UNROLL = 4,
    RESIDENT = 3,
    RESIDENT_FORWARD = 8,
    FINISH_LANES = 32,
    COLUMN_SUMS_MAX = 3
};

/* 2 z log2(e) = u (LINEAR + CUBIC u^2): the exponent of e^(2 z) to base 2. */
constexpr double TWO_SQRT_2_OVER_PI = 1.5957691216057308, LOG2_E = 1.4426950408889634;
constexpr float LINEAR = (float)(TWO_SQRT_2_OVER_PI * LOG2_E);
constexpr float CUBIC = (float)(0.044715 * TWO_SQRT_2_OVER_PI * LOG2_E);
constexpr float SLOPE_LINEAR = (float)TWO_SQRT_2_OVER_PI;
constexpr float SLOPE_CUBIC = (float)(3.0 * 0.044715 * TWO_SQRT_2_OVER_PI);

/* gelu(u) = u / (1 + exp(-2 z)), as in kernels/cpu/gelu.c. An overflowing exponential gives 0. */
__device__ inline float gelu(float u) {
    const float exponent = u * fmaf(u * u, CUBIC, LINEAR);
    return u * fast_reciprocal(1.0f + fast_exp2(-exponent));
}

/* s + u s (1 - s) d(2 z)/du with t = exp(-|2 z|): no cancellation (kernels/cpu/gelu.c). */
__device__ inline float gelu_slope(float u) {
    const float square = u * u, exponent = u * fmaf(square, CUBIC, LINEAR);
    const float t = fast_exp2(-fabsf(exponent)), r = fast_reciprocal(1.0f + t), tr = t * r;
    const float s = exponent < 0.0f ? tr : r;
    return fmaf(u * (tr * r), fmaf(square, SLOPE_CUBIC, SLOPE_LINEAR), s);
}

/* A grid that fills the GPU once, with what every multiprocessor holds at least: columns in x,
 * rows in y. */
dim3 column_grid(const struct device *device, size_t rows, size_t columns, int width,
                 int resident) {
    const size_t x = ceil_div(columns, WARP * (size_t)width);
    const size_t wanted = size_max(1, (size_t)backend_of(device)->multiprocessors *
                                          (size_t)resident / x);
    const size_t y = size_min(size_min(wanted, ceil_div(rows, LANES * UNROLL)), COLUMN_PARTS_MAX);
    return dim3((unsigned)x, (unsigned)size_max(y, 1));
}

/* Many threads with one load each, side by side, are faster here than fewer with several: 210
 * against 227 to 360 us for 65536 x 3072 in BF16 on an H200, where several loads of a thread lay
 * some megabytes apart. */
template <typename T, int W>
__global__ void __launch_bounds__(WARP *LANES, RESIDENT_FORWARD)
    gelu_forward_kernel(T *out, const T *x, const T *bias, size_t rows, size_t columns) {
    const size_t column = ((size_t)blockIdx.x * WARP + threadIdx.x) * W;
    if (column >= columns) return;
    float b[W];
    unpack(b, load<T, W>(bias + column));
    const size_t stride = (size_t)gridDim.y * LANES;
    for (size_t row = (size_t)blockIdx.y * LANES + threadIdx.y; row < rows; row += stride) {
        float u[W];
        unpack(u, load_once<T, W>(x + row * columns + column));
#pragma unroll
        for (int i = 0; i < W; i++) u[i] = gelu(u[i] + b[i]);
        store(out + row * columns + column, pack<T, W>(u));
    }
}

/* Sums of the block's LANES rows of sums, in order, into one row of partials. */
template <int W>
__device__ inline void store_partials(float *partials, const float (&sums)[W], size_t column,
                                      size_t columns) {
    __shared__ float shared[LANES][WARP * W];
#pragma unroll
    for (int i = 0; i < W; i++) shared[threadIdx.y][i * WARP + (int)threadIdx.x] = sums[i];
    __syncthreads();
    if (threadIdx.y > 0 || column >= columns) return;
    float total[W] = {};
    for (int lane = 0; lane < LANES; lane++) {
#pragma unroll
        for (int i = 0; i < W; i++) total[i] += shared[lane][i * WARP + (int)threadIdx.x];
    }
    store(partials + (size_t)blockIdx.y * columns + column, pack<float, W>(total));
}

/* GELU: x_gradient = out_gradient gelu'(x + bias) and its column sums; else sums of out_gradient
 * alone. */
template <typename T, int W, bool GELU>
__global__ void __launch_bounds__(WARP *LANES, RESIDENT)
    column_sums_kernel(T *x_gradient, const T *out_gradient, const T *x, const T *bias,
                       float *partials, size_t rows, size_t columns) {
    const size_t column = ((size_t)blockIdx.x * WARP + threadIdx.x) * W;
    const size_t stride = (size_t)gridDim.y * LANES;
    float sums[W] = {}, b[W] = {};
    if (column < columns) {
        if (GELU) unpack(b, load<T, W>(bias + column));
        for (size_t row = (size_t)blockIdx.y * LANES + threadIdx.y; row < rows;
             row += UNROLL * stride) {
            Numbers<T, W> in[UNROLL], gradient[UNROLL];
#pragma unroll
            for (int j = 0; j < UNROLL; j++) {
                const size_t r = row + (size_t)j * stride;
                if (r >= rows) continue;
                gradient[j] = load_once<T, W>(out_gradient + r * columns + column);
                if (GELU) in[j] = load_once<T, W>(x + r * columns + column);
            }
#pragma unroll
            for (int j = 0; j < UNROLL; j++) {
                const size_t r = row + (size_t)j * stride;
                if (r >= rows) continue;
                float g[W], u[W];
                unpack(g, gradient[j]);
                if (GELU) {
                    unpack(u, in[j]);
#pragma unroll
                    for (int i = 0; i < W; i++) g[i] *= gelu_slope(u[i] + b[i]);
                    store(x_gradient + r * columns + column, pack<T, W>(g));
                }
#pragma unroll
                for (int i = 0; i < W; i++) sums[i] += g[i];
            }
        }
    }
    store_partials<W>(partials, sums, column, columns);
}

using bf16 = __nv_bfloat16;

struct gelu_source {
    using type = bf16;
    enum { WORDS = 1 };
    const bf16 *x, *bias;
    Numbers<bf16, 8> b;
    __device__ void column(size_t c) { b = load<bf16, 8>(bias + c); }
    __device__ const void *word(int, size_t at) const { return x + at; }
    __device__ void compute(float (&out)[8], const uint4 *words, size_t) const {
        float u[8], shift[8];
        unpack(u, tile_numbers<bf16>(words));
        unpack(shift, b);
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = gelu(u[i] + shift[i]);
    }
};

struct gelu_gradient_source {
    using type = bf16;
    enum { WORDS = 2 };
    const bf16 *out_gradient, *x, *bias;
    Numbers<bf16, 8> b;
    __device__ void column(size_t c) { b = load<bf16, 8>(bias + c); }
    __device__ const void *word(int w, size_t at) const { return (w == 0 ? x : out_gradient) + at; }
    __device__ void compute(float (&out)[8], const uint4 *words, size_t) const {
        float u[8], shift[8];
        unpack(u, tile_numbers<bf16>(words));
        unpack(out, tile_numbers<bf16>(words + 1));
        unpack(shift, b);
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] *= gelu_slope(u[i] + shift[i]);
    }
};

template <bool CODES>
__global__ void __launch_bounds__(TILE_THREADS, 4)
    gelu_forward_tiles_kernel(const gelu_source source, const __grid_constant__ tile_job job) {
    tile_run<gelu_source, false, CODES>(source, job, blockIdx.x);
}

template <bool CODES>
__global__ void __launch_bounds__(TILE_THREADS, 3)
    gelu_backward_tiles_kernel(const gelu_gradient_source source,
                               const __grid_constant__ tile_job job) {
    tile_run<gelu_gradient_source, true, CODES>(source, job, blockIdx.x);
}

/* That stores the numbers themselves too. */
tile_job storing_job(const struct device *device, const struct quantise_output *output,
                     const struct tensor &values) {
    tile_job job = tile_job_of(device, copies_args_of(output, values.rows), values.rows,
                               values.columns);
    job.values = values.data;
    return job;
}

enum status gelu_forward_tiles(struct device *device, const struct gelu_forward *op) {
    const tile_job job = storing_job(device, &op->quantise, op->out);
    const gelu_source source = {(const bf16 *)op->x.data, (const bf16 *)op->bias.data, {}};
    const auto kernel = op->quantise.copies != NULL ? gelu_forward_tiles_kernel<true>
                                                    : gelu_forward_tiles_kernel<false>;
    kernel<<<job.across * job.down, TILE_THREADS, 0, backend_of(device)->stream>>>(source, job);
    return cuda_launched("gelu_forward");
}

enum status gelu_backward_tiles(struct device *device, const struct gelu_backward *op) {
    const char *const name = "gelu_backward";
    struct tensor values = op->x;
    values.data = op->x_gradient.data;
    tile_job job = storing_job(device, &op->quantise, values);
    TRY(tile_job_sum(device, name, &job));
    const gelu_gradient_source source = {(const bf16 *)op->out_gradient.data,
                                         (const bf16 *)op->x.data,
                                         (const bf16 *)op->bias.data,
                                         {}};
    const auto kernel = op->quantise.copies != NULL ? gelu_backward_tiles_kernel<true>
                                                    : gelu_backward_tiles_kernel<false>;
    kernel<<<job.across * job.down, TILE_THREADS, 0, backend_of(device)->stream>>>(source, job);
    TRY(cuda_launched(name));
    return cuda_column_sums(device, &op->bias_gradient, 1, job.partials, job.down, job.columns,
                            op->accumulate);
}

struct outputs {
    float *at[COLUMN_SUMS_MAX];
};

__global__ void column_finish_kernel(const outputs outs, const float *partials, size_t parts,
                                     size_t columns, bool accumulate) {
    __shared__ float shared[FINISH_LANES][WARP + 1];
    const size_t column = (size_t)blockIdx.x * WARP + threadIdx.x, stride = gridDim.y * columns;
    float *out = outs.at[blockIdx.y];
    float sum = 0.0f;
    if (out == nullptr) return;
    if (column < columns) {
        partials += blockIdx.y * columns + column;
#pragma unroll 8
        for (size_t part = threadIdx.y; part < parts; part += FINISH_LANES)
            sum += partials[part * stride];
    }
    shared[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= columns) return;
    float total = accumulate ? out[column] : 0.0f;
    for (int lane = 0; lane < FINISH_LANES; lane++) total += shared[lane][threadIdx.x];
    out[column] = total;
}

__global__ void probe_kernel() {}

} /* namespace */

extern "C" cudaError_t cuda_code_probe(void) {
    cudaFuncAttributes attributes;
    return cudaFuncGetAttributes(&attributes, probe_kernel);
}

/* Of tiles, `down` rows of at most 64 `across` numbers, where down is below blocks / across + 1: 64
 * (blocks + across). column_grid()'s rows are fewer: at most max(resident blocks, x) rows of 256
 * numbers, of which a row of x is no more than a row of tiles and 192. */
extern "C" size_t cuda_column_scratch_bytes(const struct device *device,
                                            const struct op_limits *limits) {
    static_assert(WARP * 8 * RESIDENT <= TILE_BLOCKS_EACH * TILE_COLUMNS, "tiles have the most");
    const size_t across = ceil_div(limits->width, TILE_COLUMNS);
    return (tile_blocks(device) + across) * TILE_COLUMNS * sizeof(float);
}

extern "C" enum status cuda_column_sums(struct device *device, float *const *outs, size_t out_count,
                                        const float *partials, size_t parts, size_t columns,
                                        bool accumulate) {
    const dim3 threads(WARP, FINISH_LANES), grid(blocks_for(columns, WARP), (unsigned)out_count);
    outputs list = {};
    for (size_t i = 0; i < out_count; i++) list.at[i] = outs[i];
    column_finish_kernel<<<grid, threads, 0, backend_of(device)->stream>>>(list, partials, parts,
                                                                           columns, accumulate);
    return cuda_launched("column sums");
}

extern "C" enum status cuda_gelu_forward(struct device *device, const struct gelu_forward *op) {
    const char *const name = "gelu_forward";
    const size_t rows = op->out.rows, columns = op->out.columns;
    const enum dtype dtype = op->out.dtype;
    const bool only = op->out.data == NULL;
    TRY(cuda_shape(name, "x", op->x, dtype, rows, columns));
    TRY(cuda_shape(name, "bias", op->bias, dtype, 1, columns));
    TRY(cuda_output_check(name, &op->quantise, only, dtype, rows, columns));
    if (quantise_output_set(&op->quantise)) return gelu_forward_tiles(device, op);
    FOR_DTYPE(dtype, FOR_WIDTH(columns, {
                  const dim3 grid = column_grid(device, rows, columns, W, RESIDENT_FORWARD);
                  gelu_forward_kernel<T, W>
                      <<<grid, dim3(WARP, LANES), 0, backend_of(device)->stream>>>(
                          (T *)op->out.data, (const T *)op->x.data, (const T *)op->bias.data, rows,
                          columns);
              }))
    return cuda_launched(name);
}

extern "C" enum status cuda_gelu_backward(struct device *device, const struct gelu_backward *op) {
    const char *const name = "gelu_backward";
    const size_t rows = op->x.rows, columns = op->x.columns;
    const enum dtype dtype = op->x.dtype;
    const bool only = op->x_gradient.data == NULL;
    dim3 grid;
    if (!only) TRY(cuda_shape(name, "x_gradient", op->x_gradient, dtype, rows, columns));
    TRY(cuda_shape(name, "out_gradient", op->out_gradient, dtype, rows, columns));
    TRY(cuda_shape(name, "bias", op->bias, dtype, 1, columns));
    TRY(cuda_output_check(name, &op->quantise, only, dtype, rows, columns));
    if (quantise_output_set(&op->quantise)) return gelu_backward_tiles(device, op);
    FOR_WIDTH(columns, { grid = column_grid(device, rows, columns, W, RESIDENT); })
    TRY(cuda_scratch(device, name, grid.y * columns * sizeof(float)));
    float *partials = (float *)device->scratch;
    FOR_DTYPE(dtype, FOR_WIDTH(columns, {
                  column_sums_kernel<T, W, true>
                      <<<grid, dim3(WARP, LANES), 0, backend_of(device)->stream>>>(
                          (T *)op->x_gradient.data, (const T *)op->out_gradient.data,
                          (const T *)op->x.data, (const T *)op->bias.data, partials, rows, columns);
              }))
    TRY(cuda_launched(name));
    return cuda_column_sums(device, &op->bias_gradient, 1, partials, grid.y, columns,
                            op->accumulate);
}

extern "C" enum status cuda_bias_backward(struct device *device, const struct bias_backward *op) {
    const char *const name = "bias_backward";
    const size_t rows = op->out_gradient.rows, columns = op->out_gradient.columns;
    dim3 grid;
    FOR_WIDTH(columns, { grid = column_grid(device, rows, columns, W, RESIDENT); })
    TRY(cuda_scratch(device, name, grid.y * columns * sizeof(float)));
    float *partials = (float *)device->scratch;
    FOR_DTYPE(op->out_gradient.dtype, FOR_WIDTH(columns, {
                  column_sums_kernel<T, W, false>
                      <<<grid, dim3(WARP, LANES), 0, backend_of(device)->stream>>>(
                          nullptr, (const T *)op->out_gradient.data, nullptr, nullptr, partials,
                          rows, columns);
              }))
    TRY(cuda_launched(name));
    return cuda_column_sums(device, &op->bias_gradient, 1, partials, grid.y, columns,
                            op->accumulate);
}

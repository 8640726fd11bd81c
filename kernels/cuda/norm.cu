/*
 * Layer norm fused with the residual addition before it (Ba et al., 2016). A row is read once,
 * kept in registers, and written once. Forward: rows of up to 2048 belong to a warp each;
 * otherwise a block works on ROWS rows at a time and each thread owns W columns of them. Backward
 * is in norm_backward.cu.
 *
 * Where quantised copies are wanted, a block collects the codes of a strip of rows in shared memory
 * and writes them transposed when the strip is full (quantise.cuh).
 */
#include <utility>

#include "kernels/cuda/ahead.cuh"
#include "kernels/cuda/norm.cuh"
#include "kernels/cuda/quantise.cuh"
#include "kernels/cuda/quantise.h"

namespace {

using bf16 = __nv_bfloat16;

enum {
    ROWS = 4,
    WARP_THREADS = 128,
    STRIP_THREADS = 256,
    WARP_WIDTH_MAX = 2048,
    STRIP_WIDTH_MAX = 4096 /* a row in a warp's registers */
};

constexpr float EPSILON = 1e-5f;

template <typename T> struct forward_args {
    T *out, *residual;
    const T *residual_in, *delta, *delta_bias, *weight, *bias;
    float *mean, *rstd;
    size_t rows;
    int columns;
};

/* x becomes x + delta [+ bias], rounded as it is stored. */
template <typename T, int W>
__device__ inline void add_delta(float (&x)[W], const Numbers<T, W> &stored_delta,
                                 const forward_args<T> &a, size_t at, int column) {
    float delta[W], bias[W] = {};
    unpack(delta, stored_delta);
    if (a.delta_bias != nullptr) unpack(bias, load_constant<T, W>(a.delta_bias + column));
#pragma unroll
    for (int i = 0; i < W; i++) x[i] += delta[i] + bias[i];
    const Numbers<T, W> stored = pack<T, W>(x);
    store(a.residual + at, stored);
    unpack(x, stored);
}

/* Bound to 64 registers by blocks for the widest rows; with eight columns a thread, 12 to 24 bytes
 * of them spill (ptxas warns of each such kernel). */
template <typename T, int W>
__global__ void __launch_bounds__(NORM_THREADS_MAX) norm_forward_kernel(const forward_args<T> a) {
    __shared__ float shared[2][NORM_THREADS_MAX / WARP * ROWS];
    const int column = (int)threadIdx.x * W;
    const bool mine = column < a.columns;
    const float share = 1.0f / (float)a.columns;
    for (size_t first = (size_t)blockIdx.x * ROWS; first < a.rows;
         first += (size_t)gridDim.x * ROWS) {
        float x[ROWS][W] = {}, mean[ROWS] = {}, variance[ROWS] = {};
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const size_t at = (first + r) * (size_t)a.columns + (size_t)column;
            if (mine && first + r < a.rows) {
                unpack(x[r], load_once<T, W>(a.residual_in + at));
                if (a.delta != nullptr)
                    add_delta<T, W>(x[r], load_once<T, W>(a.delta + at), a, at, column);
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

/* A warp makes a row in its registers, V groups of 8 numbers a lane, rows of up to V * 256: no
 * barrier. These are a lane's own numbers of a row. */
template <typename T, int V> struct row_numbers {
    Numbers<T, 8> residuals[V], deltas[V];

    __device__ inline Numbers<T, 8> residual(int k) const { return residuals[k]; }
    __device__ inline Numbers<T, 8> delta(int k) const { return deltas[k]; }
};

/* All of the row is asked for before any of it is waited for. */
template <typename T, int V>
__device__ inline void row_load(row_numbers<T, V> &row, const forward_args<T> &a, size_t at,
                                int lane) {
#pragma unroll
    for (int k = 0; k < V; k++) {
        const int column = (k * WARP + lane) * 8;
        if (column >= a.columns) continue;
        row.residuals[k] = load_once<T, 8>(a.residual_in + at + (size_t)column);
        if (a.delta != nullptr) row.deltas[k] = load_once<T, 8>(a.delta + at + (size_t)column);
    }
}

/* x becomes the row, with what is added to it stored. Returns the lane's sum. */
template <typename T, int V, class Row>
__device__ inline float row_add(float (&x)[V][8], const Row &row, const forward_args<T> &a,
                                size_t at, int lane) {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < V; k++) {
        const int column = (k * WARP + lane) * 8;
        if (column >= a.columns) continue;
        unpack(x[k], row.residual(k));
        if (a.delta != nullptr) add_delta<T, 8>(x[k], row.delta(k), a, at + (size_t)column, column);
#pragma unroll
        for (int i = 0; i < 8; i++) sum += x[k][i];
    }
    return sum;
}

/* x becomes the norm's result; mean and rstd are stored. */
template <typename T, int V>
__device__ inline void row_norm(float (&x)[V][8], float sum, const forward_args<T> &a, size_t row,
                                int lane) {
    const float share = 1.0f / (float)a.columns, mean = warp_sum(sum) * share;
    float variance = 0.0f;
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
        unpack(weight, load_constant<T, 8>(a.weight + column));
        unpack(bias, load_constant<T, 8>(a.bias + column));
#pragma unroll
        for (int i = 0; i < 8; i++) x[k][i] = x[k][i] * rstd * weight[i] + bias[i];
    }
}

template <typename T, int V>
__global__ void __launch_bounds__(WARP_THREADS) norm_forward_warp_kernel(const forward_args<T> a) {
    const size_t row = (size_t)blockIdx.x * (WARP_THREADS / WARP) + threadIdx.x / WARP;
    const int lane = (int)threadIdx.x % WARP;
    if (row >= a.rows) return;
    row_numbers<T, V> numbers;
    float x[V][8] = {};
    row_load<T, V>(numbers, a, row * (size_t)a.columns, lane);
    const float sum = row_add<T, V>(x, numbers, a, row * (size_t)a.columns, lane);
    row_norm<T, V>(x, sum, a, row, lane);
#pragma unroll
    for (int k = 0; k < V; k++) {
        const int column = (k * WARP + lane) * 8;
        if (column >= a.columns) break;
        store(a.out + row * (size_t)a.columns + (size_t)column, pack<T, 8>(x[k]));
    }
}

/* A row's slot in shared memory: each lane's numbers where it asked for them itself. */
template <int V> struct row_slot {
    static constexpr size_t WORDS = 2 * V * WARP; /* of a warp */
    uint4 *lane_words;

    __device__ inline Numbers<bf16, 8> residual(int k) const { return at(k * WARP); }
    __device__ inline Numbers<bf16, 8> delta(int k) const { return at((V + k) * WARP); }

    __device__ inline Numbers<bf16, 8> at(int word) const {
        Numbers<bf16, 8> numbers;
        *reinterpret_cast<uint4 *>(&numbers) = lane_words[word];
        return numbers;
    }
};

template <int V>
__device__ inline void row_ask(const row_slot<V> &slot, const forward_args<bf16> &a, size_t row,
                               int lane) {
    const size_t at = row * (size_t)a.columns;
#pragma unroll
    for (int k = 0; k < V; k++) {
        const int column = (k * WARP + lane) * 8;
        if (column >= a.columns) continue;
        copy_16(slot.lane_words + k * WARP, a.residual_in + at + (size_t)column);
        if (a.delta != nullptr)
            copy_16(slot.lane_words + (V + k) * WARP, a.delta + at + (size_t)column);
    }
}

/* Codes of a row into the row copy and the strip, its numbers to `out` if they are wanted. */
template <int V>
__device__ inline float row_codes(const float (&x)[V][8], const forward_args<bf16> &a,
                                  const copies_args &to, size_t at, uint32_t *strip, int height,
                                  int r, float scale, float amax, int lane) {
#pragma unroll
    for (int k = 0; k < V; k++) {
        const int column = (k * WARP + lane) * 8;
        if (column >= a.columns) break;
        amax = larger_size8(amax, x[k]);
        if (a.out != nullptr) store(a.out + at + (size_t)column, pack<bf16, 8>(x[k]));
        if (to.row == nullptr) continue;
        const uint2 codes = encode8(to.e5m2, x[k], scale);
        *reinterpret_cast<uint2 *>(to.row + at + (size_t)column) = codes;
        *reinterpret_cast<uint2 *>(strip + strip_at(height, a.columns, r, column / 4)) = codes;
    }
    return amax;
}

/* Blocks on a multiprocessor, by the registers of V groups. */
constexpr int strip_residents(int groups) {
    return groups <= 2 ? 4 : groups <= 3 ? 3 : groups <= 8 ? 2 : 1;
}

/* The same with copies: blocks make strips of `height` rows in turns, so that strips beside each
 * other leave at about the same time and their short runs meet in the L2 cache. Each warp asks for
 * its next row once it has the last in its registers: loads are under way while a strip leaves. */
template <int V>
__global__ void __launch_bounds__(STRIP_THREADS, strip_residents(V))
    norm_forward_strip_kernel(const forward_args<bf16> a, const copies_args to, const int height) {
    extern __shared__ uint4 strip_memory[];
    enum { WARPS = STRIP_THREADS / WARP };
    const int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP;
    const row_slot<V> slot = {strip_memory + (size_t)warp * row_slot<V>::WORDS + lane};
    uint32_t *strip = reinterpret_cast<uint32_t *>(strip_memory + WARPS * row_slot<V>::WORDS);
    const size_t stride = (size_t)gridDim.x * (size_t)height;
    const float scale = to.stored ? 1.0f : to.state->scale;
    float amax = 0.0f;
    size_t row = (size_t)blockIdx.x * (size_t)height + (size_t)warp;
    if (row < a.rows) row_ask<V>(slot, a, row, lane);
    copies_commit();
    for (size_t first = (size_t)blockIdx.x * (size_t)height; first < a.rows; first += stride) {
        for (int r = warp; r < height && first + r < a.rows; r += WARPS) {
            const size_t at = row * (size_t)a.columns;
            const size_t next = r + WARPS < height ? row + WARPS : first + stride + (size_t)warp;
            float x[V][8] = {};
            copies_wait(1);
            const float sum = row_add<bf16, V>(x, slot, a, at, lane);
            if (next < a.rows) row_ask<V>(slot, a, next, lane);
            copies_commit();
            row_norm<bf16, V>(x, sum, a, row, lane);
            amax = row_codes<V>(x, a, to, at, strip, height, r, scale, amax, lane);
            row = next;
        }
        if (to.transposed == nullptr) continue;
        __syncthreads();
        strip_store(strip, height, a.columns, to, first);
        __syncthreads();
    }
    raise_amax(to.state, to.stored ? as_stored<bf16>(amax) : amax);
}

constexpr size_t slots_bytes(int groups) {
    return (size_t)2 * groups * WARP * sizeof(uint4) * (STRIP_THREADS / WARP);
}

/* Strips as high as leave room for the blocks that registers allow, or for fewer, and one wave of
 * blocks. */
template <int V>
enum status run_strips(struct device *device, const forward_args<bf16> &a, const copies_args &to) {
    const size_t most_bytes = backend_of(device)->shared_bytes;
    int height = 0, residents = strip_residents(V) + 1;
    while (height == 0 && residents > 1) {
        const size_t each = most_bytes / --residents - BLOCK_SYSTEM_BYTES;
        height = slots_bytes(V) < each ? strip_height(64, a.columns, each - slots_bytes(V)) : 0;
    }
    if (height == 0) return refuse_width("norm_forward with copies", (size_t)a.columns);
    const size_t bytes = slots_bytes(V) + strip_bytes(height, a.columns);
    const size_t most = (size_t)backend_of(device)->multiprocessors * residents;
    const size_t blocks = size_min(most, ceil_div(a.rows, (size_t)height));
    CUDA_TRY(cudaFuncSetAttribute(norm_forward_strip_kernel<V>,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
    norm_forward_strip_kernel<V>
        <<<(unsigned)blocks, STRIP_THREADS, bytes, backend_of(device)->stream>>>(a, to, height);
    return cuda_launched("norm_forward");
}

/* run(V), V the fewest groups of 256 numbers that hold a row, as integral_constant: registers are
 * compiled for few of them. False: none is enough. */
template <int... GROUPS, class Run>
bool choose_groups(std::integer_sequence<int, GROUPS...>, size_t columns, const Run &run) {
    const auto fits = [&](auto groups) {
        if (columns > (size_t)groups.value * 256) return false;
        run(groups);
        return true;
    };
    return (fits(std::integral_constant<int, GROUPS>{}) || ...);
}

template <class Run> bool choose_groups(size_t columns, const Run &run) {
    return choose_groups(std::integer_sequence<int, 1, 2, 3, 4, 5, 7, 8, STRIP_WIDTH_MAX / 256>{},
                         columns, run);
}

enum status launch_strips(struct device *device, const forward_args<bf16> &a,
                          const copies_args &to) {
    enum status status = STATUS_OK;
    const bool fits = choose_groups((size_t)a.columns, [&](auto groups) {
        status = run_strips<groups.value>(device, a, to);
    });
    return fits ? status : refuse_width("norm_forward with copies", (size_t)a.columns);
}

template <typename T>
void launch_forward(const forward_args<T> &a, int threads, cudaStream_t stream) {
    const unsigned blocks = blocks_for(a.rows, ROWS),
                   warps = blocks_for(a.rows, WARP_THREADS / WARP);
    if (a.columns % 8 != 0) {
        norm_forward_kernel<T, 1><<<blocks, threads, 0, stream>>>(a);
    } else if (a.columns > WARP_WIDTH_MAX) {
        norm_forward_kernel<T, 8><<<blocks, threads, 0, stream>>>(a);
    } else {
        choose_groups((size_t)a.columns, [&](auto groups) {
            if constexpr (groups.value * 256 <= WARP_WIDTH_MAX)
                norm_forward_warp_kernel<T, groups.value><<<warps, WARP_THREADS, 0, stream>>>(a);
        });
    }
}

template <typename T> forward_args<T> forward_args_of(const struct norm_forward *op) {
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
    a.rows = op->out.rows;
    a.columns = (int)op->out.columns;
    return a;
}

} /* namespace */

/* Forward, which holds rows ahead for each of its warps, takes more shared memory than backward. */
static enum status check_copies(const struct device *device, size_t width) {
    const size_t there = backend_of(device)->shared_bytes - BLOCK_SYSTEM_BYTES;
    size_t least = strip_bytes(COPY_UNIT, (int)width);
    const bool fits = choose_groups(width,
                                    [&](auto groups) { least += slots_bytes(groups.value); });
    if (fits && least <= there) return STATUS_OK;
    if (fits) {
        return status_set(STATUS_DEVICE,
                          "norms of width %zu that quantise (recipe fp8) need %zu bytes of shared "
                          "memory a block, %s has %zu: lower model.width, or set precision.recipe "
                          "= bf16 or fp8_block",
                          width, least, device->name, there);
    }
    return status_set(STATUS_DEVICE,
                      "expected a width of at most %d for norms that quantise on a GPU (recipe "
                      "fp8), found %zu: change model.width, or set precision.recipe = bf16 or "
                      "fp8_block",
                      STRIP_WIDTH_MAX, width);
}

extern "C" enum status cuda_norm_check(const struct device *device, size_t width,
                                       bool tensor_scales) {
    if (tensor_scales) TRY(check_copies(device, width));
    if (norm_threads(width) > 0) return STATUS_OK;
    return status_set(STATUS_DEVICE,
                      "expected a width that is a multiple of 8 up to 8192, or any up to 1024, for "
                      "norms on a GPU, found %zu: change model.width, or use device = cpu",
                      width);
}

extern "C" enum status cuda_norm_forward(struct device *device, const struct norm_forward *op) {
    const char *const name = "norm_forward";
    const size_t rows = op->out.rows, columns = op->out.columns;
    const enum dtype dtype = op->out.dtype;
    const int threads = norm_threads(columns);
    if (threads == 0) return refuse_width(name, columns);
    TRY(cuda_output_check(name, &op->quantise, op->out.data == NULL, dtype, rows, columns));
    TRY(cuda_shape(name, "residual_in", op->residual_in, dtype, rows, columns));
    TRY(cuda_shape(name, "weight", op->weight, dtype, 1, columns));
    TRY(cuda_shape(name, "bias", op->bias, dtype, 1, columns));
    if (op->delta != NULL) {
        TRY(cuda_shape(name, "delta", *op->delta, dtype, rows, columns));
        TRY(cuda_shape(name, "residual", op->residual, dtype, rows, columns));
    }
    if (op->delta_bias != NULL)
        TRY(cuda_shape(name, "delta_bias", *op->delta_bias, dtype, 1, columns));
    if (quantise_output_set(&op->quantise)) {
        return launch_strips(device, forward_args_of<bf16>(op),
                             copies_args_of(&op->quantise, rows));
    }
    FOR_DTYPE(dtype,
              { launch_forward(forward_args_of<T>(op), threads, backend_of(device)->stream); })
    return cuda_launched(name);
}

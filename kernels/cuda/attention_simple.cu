/*
 * Attention without cuDNN: for FP32, while generating, and where a test asks for it.
 * Online softmax over tiles of TILE keys in shared memory (Milakov and Gimelshein, 2018; Dao et
 * al., 2022); FP32 sums, no atomics. A warp owns QUERIES rows: its lanes are the tile's keys
 * while scores are made, and the columns of the head while values are added. Written to be right
 * and readable; cuDNN is ten times faster.
 */
#include "base/checked.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/numbers.cuh"

namespace {

enum {
    TILE = 32,
    WARPS = 8,
    THREADS = WARPS * WARP,
    QUERIES = 4,
    LANE_COLUMNS = ATTENTION_WIDTH_MAX / WARP
};

/* Rows of heads: row r of head (b, h) begins at data + (b * rows + r) * stride + h * width. */
template <typename T> struct heads_view {
    T *data;
    size_t rows, stride;
    __device__ T *row(size_t b, size_t r, size_t h, int width) const {
        return data + (b * rows + r) * stride + h * (size_t)width;
    }
};

template <typename T> struct forward_args {
    heads_view<const T> query, key, value;
    heads_view<T> out;
    float *log_sum_exp; /* (B, H, queries) or nullptr */
    size_t heads, queries, past;
    int width;
    float scale;
};

/* Rows [first, first + TILE) of a head in FP32, padded by one against bank conflicts; zeros
 * beyond `end`. */
template <typename T>
__device__ inline void load_tile(float *tile, const heads_view<const T> &view, size_t b, size_t h,
                                 size_t first, size_t end, int width, float scale) {
    for (int i = (int)threadIdx.x; i < TILE * width; i += THREADS) {
        const int r = i / width, column = i % width;
        const bool there = first + (size_t)r < end;
        tile[r * (width + 1) + column] = there ? widen(view.row(b, first + (size_t)r, h,
                                                                width)[column]) *
                                                     scale
                                               : 0.0f;
    }
}

__device__ inline float dot(const float *a, const float *b, int width) {
    float sum = 0.0f;
    for (int i = 0; i < width; i++) sum += a[i] * b[i];
    return sum;
}

/* The warp's QUERIES rows of queries in shared memory, scaled; zeros beyond the last. */
template <typename T>
__device__ inline void load_rows(float *rows, const heads_view<const T> &view, size_t b, size_t h,
                                 size_t first, size_t end, int width, float scale) {
    const int lane = (int)threadIdx.x % WARP;
    for (int q = 0; q < QUERIES; q++) {
        for (int i = lane; i < width; i += WARP) {
            const bool there = first + (size_t)q < end;
            rows[q * width + i] = there ? widen(view.row(b, first + (size_t)q, h, width)[i]) * scale
                                        : 0.0f;
        }
    }
    __syncwarp();
}

/* sums[c] += sum over the tile's rows j of p_j tile[j][lane + 32 c], p_j held by lane j. */
__device__ inline void add_rows(float (&sums)[LANE_COLUMNS], const float *tile, float p,
                                int width) {
    const int lane = (int)threadIdx.x % WARP;
    for (int j = 0; j < TILE; j++) {
        const float pj = __shfl_sync(~0u, p, j);
#pragma unroll
        for (int c = 0; c < LANE_COLUMNS; c++) {
            const int column = lane + c * WARP;
            if (column < width) sums[c] += pj * tile[j * (width + 1) + column];
        }
    }
}

template <typename T>
__device__ inline void store_row(T *row, const float (&sums)[LANE_COLUMNS], float scale,
                                 int width) {
    const int lane = (int)threadIdx.x % WARP;
#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; c++) {
        const int column = lane + c * WARP;
        if (column < width) row[column] = narrow<T>(sums[c] * scale);
    }
}

template <typename T>
__global__ void __launch_bounds__(THREADS) forward_kernel(const forward_args<T> a) {
    extern __shared__ float shared[];
    const int width = a.width, warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    const size_t b = blockIdx.y / a.heads, h = blockIdx.y % a.heads;
    const size_t block_first = (size_t)blockIdx.x * WARPS * QUERIES;
    const size_t first = block_first + (size_t)warp * QUERIES;
    float *keys = shared, *values = keys + TILE * (width + 1);
    float *queries = values + TILE * (width + 1) + warp * QUERIES * width;
    float sums[QUERIES][LANE_COLUMNS] = {}, top[QUERIES], total[QUERIES] = {};
    for (int q = 0; q < QUERIES; q++) top[q] = -INFINITY;
    load_rows(queries, a.query, b, h, first, a.queries, width, a.scale);
    const size_t keys_end = a.past + min(a.queries, block_first + WARPS * QUERIES);
    for (size_t key = 0; key < keys_end; key += TILE) {
        __syncthreads();
        load_tile(keys, a.key, b, h, key, keys_end, width, 1.0f);
        load_tile(values, a.value, b, h, key, keys_end, width, 1.0f);
        __syncthreads();
#pragma unroll
        for (int q = 0; q < QUERIES; q++) {
            const size_t position = a.past + first + (size_t)q;
            if (first + (size_t)q >= a.queries || key > position) continue;
            const bool seen = key + (size_t)lane <= position;
            const float score = seen ? dot(queries + q * width, keys + lane * (width + 1), width)
                                     : -INFINITY;
            const float larger = fmaxf(top[q], warp_max(score));
            const float p = seen ? expf(score - larger) : 0.0f, keep = expf(top[q] - larger);
            total[q] = total[q] * keep + warp_sum(p);
            top[q] = larger;
#pragma unroll
            for (int c = 0; c < LANE_COLUMNS; c++) sums[q][c] *= keep;
            add_rows(sums[q], values, p, width);
        }
    }
#pragma unroll
    for (int q = 0; q < QUERIES; q++) {
        const size_t query = first + (size_t)q;
        if (query >= a.queries) break;
        store_row(a.out.row(b, query, h, width), sums[q], 1.0f / total[q], width);
        if (a.log_sum_exp != nullptr && lane == 0) {
            a.log_sum_exp[(b * a.heads + h) * a.queries + query] = top[q] + logf(total[q]);
        }
    }
}

template <typename T> struct backward_args {
    heads_view<const T> query, key, value, out, out_gradient;
    heads_view<T> query_gradient, key_gradient, value_gradient;
    const float *log_sum_exp;
    float *means; /* (B, H, T): sum over keys of p d loss / d p = d_out . out */
    size_t heads, length;
    int width;
    float scale;
};

template <typename T>
__global__ void __launch_bounds__(THREADS) means_kernel(const backward_args<T> a) {
    const size_t row = (size_t)blockIdx.x * WARPS + threadIdx.x / WARP;
    if (row >= a.length) return;
    const size_t b = blockIdx.y / a.heads, h = blockIdx.y % a.heads;
    const T *out = a.out.row(b, row, h, a.width),
            *gradient = a.out_gradient.row(b, row, h, a.width);
    float sum = 0.0f;
    for (int i = (int)threadIdx.x % WARP; i < a.width; i += WARP)
        sum += widen(out[i]) * widen(gradient[i]);
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) a.means[blockIdx.y * a.length + row] = sum;
}

/* d loss / d query: as forward, with probabilities from log_sum_exp. */
template <typename T>
__global__ void __launch_bounds__(THREADS) query_kernel(const backward_args<T> a) {
    extern __shared__ float shared[];
    const int width = a.width, warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    const size_t b = blockIdx.y / a.heads, h = blockIdx.y % a.heads;
    const size_t block_first = (size_t)blockIdx.x * WARPS * QUERIES;
    const size_t first = block_first + (size_t)warp * QUERIES, statistics = blockIdx.y * a.length;
    float *keys = shared, *values = keys + TILE * (width + 1);
    float *queries = values + TILE * (width + 1) + 2 * warp * QUERIES * width;
    float *gradients = queries + QUERIES * width;
    float sums[QUERIES][LANE_COLUMNS] = {};
    load_rows(queries, a.query, b, h, first, a.length, width, a.scale);
    load_rows(gradients, a.out_gradient, b, h, first, a.length, width, 1.0f);
    const size_t keys_end = min(a.length, block_first + WARPS * QUERIES);
    for (size_t key = 0; key < keys_end; key += TILE) {
        __syncthreads();
        load_tile(keys, a.key, b, h, key, keys_end, width, 1.0f);
        load_tile(values, a.value, b, h, key, keys_end, width, 1.0f);
        __syncthreads();
#pragma unroll
        for (int q = 0; q < QUERIES; q++) {
            const size_t query = first + (size_t)q;
            if (query >= a.length || key > query) continue;
            float ds = 0.0f;
            if (key + (size_t)lane <= query) {
                const float score = dot(queries + q * width, keys + lane * (width + 1), width);
                const float p = expf(score - a.log_sum_exp[statistics + query]);
                const float dp = dot(gradients + q * width, values + lane * (width + 1), width);
                ds = p * (dp - a.means[statistics + query]);
            }
            add_rows(sums[q], keys, ds, width);
        }
    }
#pragma unroll
    for (int q = 0; q < QUERIES; q++) {
        if (first + (size_t)q >= a.length) break;
        store_row(a.query_gradient.row(b, first + (size_t)q, h, width), sums[q], a.scale, width);
    }
}

/* d loss / d key and value: the warp's rows are keys, the tile's are queries. */
template <typename T>
__global__ void __launch_bounds__(THREADS) key_kernel(const backward_args<T> a) {
    extern __shared__ float shared[];
    const int width = a.width, warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    const size_t b = blockIdx.y / a.heads, h = blockIdx.y % a.heads;
    const size_t block_first = (size_t)blockIdx.x * WARPS * QUERIES;
    const size_t first = block_first + (size_t)warp * QUERIES, statistics = blockIdx.y * a.length;
    float *queries = shared, *gradients = queries + TILE * (width + 1);
    float *keys = gradients + TILE * (width + 1) + 2 * warp * QUERIES * width;
    float *values = keys + QUERIES * width;
    float key_sums[QUERIES][LANE_COLUMNS] = {}, value_sums[QUERIES][LANE_COLUMNS] = {};
    load_rows(keys, a.key, b, h, first, a.length, width, 1.0f);
    load_rows(values, a.value, b, h, first, a.length, width, 1.0f);
    for (size_t query = block_first / TILE * TILE; query < a.length; query += TILE) {
        __syncthreads();
        load_tile(queries, a.query, b, h, query, a.length, width, a.scale);
        load_tile(gradients, a.out_gradient, b, h, query, a.length, width, 1.0f);
        __syncthreads();
        const size_t mine = query + (size_t)lane;
        const bool there = mine < a.length;
        const float log_sum = there ? a.log_sum_exp[statistics + mine] : 0.0f;
        const float mean = there ? a.means[statistics + mine] : 0.0f;
#pragma unroll
        for (int k = 0; k < QUERIES; k++) {
            const size_t key = first + (size_t)k;
            if (key >= a.length || key >= query + TILE) continue;
            float p = 0.0f, ds = 0.0f;
            if (there && key <= mine) {
                p = expf(dot(queries + lane * (width + 1), keys + k * width, width) - log_sum);
                ds = p * (dot(gradients + lane * (width + 1), values + k * width, width) - mean);
            }
            add_rows(value_sums[k], gradients, p, width);
            add_rows(key_sums[k], queries, ds, width);
        }
    }
#pragma unroll
    for (int k = 0; k < QUERIES; k++) {
        if (first + (size_t)k >= a.length) break;
        store_row(a.key_gradient.row(b, first + (size_t)k, h, width), key_sums[k], 1.0f, width);
        store_row(a.value_gradient.row(b, first + (size_t)k, h, width), value_sums[k], 1.0f, width);
    }
}

/* The new keys and values behind those of the past. */
template <typename T>
__global__ void append_kernel(T *keys, T *values, const T *qkv, size_t length, size_t columns,
                              size_t past, size_t capacity, size_t count) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const size_t row = i / columns, column = i % columns;
    const size_t to = (row / length * capacity + past + row % length) * columns + column;
    keys[to] = qkv[row * 3 * columns + columns + column];
    values[to] = qkv[row * 3 * columns + 2 * columns + column];
}

/* Two tiles, and one row (backward two) of each of a warp's QUERIES. */
size_t shared_bytes(size_t width, bool backward) {
    const size_t rows = backward ? 2 : 1;
    return (2 * TILE * (width + 1) + rows * WARPS * QUERIES * width) * sizeof(float);
}

enum status check(const char *name, struct tensor qkv, struct tensor out, size_t batch,
                  size_t length, size_t heads) {
    const size_t columns = out.columns;
    if (heads == 0 || columns % heads != 0 || columns / heads > ATTENTION_WIDTH_MAX ||
        batch * heads > ATTENTION_HEADS_MAX) {
        return status_set(STATUS_INTERNAL,
                          "%s: %zu columns in %zu heads of %zu sequences; heads of at "
                          "most %d columns, at most %d of them",
                          name, columns, heads, batch, ATTENTION_WIDTH_MAX, ATTENTION_HEADS_MAX);
    }
    TRY(cuda_shape(name, "out", out, out.dtype, batch * length, columns));
    return cuda_shape(name, "qkv", qkv, out.dtype, batch * length, 3 * columns);
}

template <typename T>
heads_view<T> view_of(void *data, size_t first_column, size_t rows, size_t stride) {
    return {(T *)data + first_column, rows, stride};
}

/* What forward and backward have in common: heads of this width, and their scale. */
template <typename Args> void set_heads(Args *a, size_t columns, size_t heads) {
    a->heads = heads;
    a->width = (int)(columns / heads);
    a->scale = (float)(1.0 / sqrt((double)a->width));
}

/* The same, and query, key and value side by side in rows of 3 C. */
template <typename T, typename Args>
void set_packed(Args *a, void *qkv, size_t length, size_t columns, size_t heads) {
    a->query = view_of<const T>(qkv, 0, length, 3 * columns);
    a->key = view_of<const T>(qkv, columns, length, 3 * columns);
    a->value = view_of<const T>(qkv, 2 * columns, length, 3 * columns);
    set_heads(a, columns, heads);
}

dim3 grid_of(size_t rows, size_t batch, size_t heads) {
    return dim3(blocks_for(rows, WARPS * QUERIES), (unsigned)(batch * heads));
}

template <typename T>
enum status run_forward(const struct device *device, const forward_args<T> &a, size_t batch) {
    const size_t bytes = shared_bytes((size_t)a.width, false);
    CUDA_TRY(cudaFuncSetAttribute(forward_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)bytes));
    forward_kernel<T>
        <<<grid_of(a.queries, batch, a.heads), THREADS, bytes, backend_of(device)->stream>>>(a);
    return cuda_launched("attention forward");
}

template <typename T>
enum status run_backward(const struct device *device, const backward_args<T> &a, size_t batch) {
    cudaStream_t stream = backend_of(device)->stream;
    const size_t bytes = shared_bytes((size_t)a.width, true);
    const dim3 grid = grid_of(a.length, batch, a.heads);
    const dim3 means_grid(blocks_for(a.length, WARPS), grid.y);
    CUDA_TRY(cudaFuncSetAttribute(query_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)bytes));
    CUDA_TRY(cudaFuncSetAttribute(key_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)bytes));
    means_kernel<T><<<means_grid, THREADS, 0, stream>>>(a);
    query_kernel<T><<<grid, THREADS, bytes, stream>>>(a);
    key_kernel<T><<<grid, THREADS, bytes, stream>>>(a);
    return cuda_launched("attention backward");
}

} /* namespace */

extern "C" size_t simple_attention_shared_bytes(size_t head_width, bool backward) {
    return shared_bytes(head_width, backward);
}

extern "C" enum status simple_attention_forward(struct device *device,
                                                const struct attention_forward *op) {
    const size_t columns = op->out.columns, length = op->sequence_length;
    TRY(check("attention_forward", op->qkv, op->out, op->batch, length, op->heads));
    enum status status = STATUS_OK;
    FOR_DTYPE(op->out.dtype, {
        forward_args<T> a = {};
        set_packed<T>(&a, op->qkv.data, length, columns, op->heads);
        a.out = view_of<T>(op->out.data, 0, length, columns);
        a.log_sum_exp = op->log_sum_exp;
        a.queries = length;
        status = run_forward(device, a, op->batch);
    })
    return status;
}

extern "C" enum status simple_attention_backward(struct device *device,
                                                 const struct attention_backward *op) {
    const char *const name = "attention_backward";
    const size_t columns = op->out.columns, length = op->sequence_length;
    TRY(check(name, op->qkv, op->out, op->batch, length, op->heads));
    TRY(check(name, op->qkv_gradient, op->out_gradient, op->batch, length, op->heads));
    TRY(cuda_attention_scratch(device, name, op->batch * op->heads * length * sizeof(float)));
    enum status status = STATUS_OK;
    FOR_DTYPE(op->out.dtype, {
        backward_args<T> a = {};
        set_packed<T>(&a, op->qkv.data, length, columns, op->heads);
        a.out = view_of<const T>(op->out.data, 0, length, columns);
        a.out_gradient = view_of<const T>(op->out_gradient.data, 0, length, columns);
        a.query_gradient = view_of<T>(op->qkv_gradient.data, 0, length, 3 * columns);
        a.key_gradient = view_of<T>(op->qkv_gradient.data, columns, length, 3 * columns);
        a.value_gradient = view_of<T>(op->qkv_gradient.data, 2 * columns, length, 3 * columns);
        a.log_sum_exp = op->log_sum_exp;
        a.means = (float *)device->scratch;
        a.length = length;
        status = run_backward(device, a, op->batch);
    })
    return status;
}

extern "C" enum status cuda_attention_cached(struct device *device,
                                             const struct attention_cached *op) {
    const char *const name = "attention_cached";
    const size_t columns = op->out.columns, length = op->sequence_length, batch = op->batch;
    const size_t count = batch * length * columns;
    TRY(check(name, op->qkv, op->out, batch, length, op->heads));
    TRY(cuda_shape(name, "keys", op->keys, op->out.dtype, batch * op->capacity, columns));
    TRY(cuda_shape(name, "values", op->values, op->out.dtype, batch * op->capacity, columns));
    if (op->past > op->capacity || length > op->capacity - op->past) {
        return status_set(STATUS_INTERNAL, "%s: %zu more tokens behind %zu in caches of %zu", name,
                          length, op->past, op->capacity);
    }
    enum status status = STATUS_OK;
    FOR_DTYPE(op->out.dtype, {
        append_kernel<T><<<blocks_for(count, THREADS), THREADS, 0, backend_of(device)->stream>>>(
            (T *)op->keys.data, (T *)op->values.data, (const T *)op->qkv.data, length, columns,
            op->past, op->capacity, count);
        forward_args<T> a = {};
        a.query = view_of<const T>(op->qkv.data, 0, length, 3 * columns);
        a.key = view_of<const T>(op->keys.data, 0, op->capacity, columns);
        a.value = view_of<const T>(op->values.data, 0, op->capacity, columns);
        a.out = view_of<T>(op->out.data, 0, length, columns);
        set_heads(&a, columns, op->heads);
        a.queries = length;
        a.past = op->past;
        status = run_forward(device, a, batch);
    })
    return status;
}

/*
 * Token and position lookup, and its gradient. Backward sorts the tokens on the device (stable,
 * so equal tokens keep the order of n), cuts the sorted list into pieces of PIECE, and lets a
 * block sum each piece: a token that fills many pieces costs no more than as many different
 * ones. Sums that cross a piece's ends go through partials, added piece by piece in their order.
 */
#include <cub/device/device_radix_sort.cuh>

#include "base/checked.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/numbers.cuh"

namespace {

enum { PIECE = 32, THREADS_MAX = 256, TOKEN_BITS = 24 };

template <typename T, int W>
__global__ void forward_kernel(T *out, const int32_t *tokens, const T *token_weight,
                               const T *position_weight, size_t rows, size_t columns, size_t length,
                               size_t first_position) {
    const size_t n = (size_t)blockIdx.x * blockDim.y + threadIdx.y;
    const size_t column = ((size_t)blockIdx.y * blockDim.x + threadIdx.x) * W;
    if (n >= rows || column >= columns) return;
    float x[W], p[W];
    unpack(x, load<T, W>(token_weight + (size_t)tokens[n] * columns + column));
    unpack(p, load<T, W>(position_weight + (first_position + n % length) * columns + column));
#pragma unroll
    for (int k = 0; k < W; k++) x[k] += p[k];
    store(out + n * columns + column, pack<T, W>(x));
}

__global__ void number_kernel(int32_t *numbers, size_t count) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) numbers[i] = (int32_t)i;
}

struct sorted {
    const int32_t *tokens, *rows; /* (count) tokens in order, and where each stood */
    size_t count;
    float *heads, *tails; /* (pieces, columns): sums that began before, or go on after, the piece */
};

template <int W> __device__ inline void add_to(float *to, const float (&x)[W]) {
    float sum[W];
    unpack(sum, load<float, W>(to));
#pragma unroll
    for (int k = 0; k < W; k++) sum[k] += x[k];
    store(to, pack<float, W>(sum));
}

/* One piece: runs of one token that lie whole in it are added to the gradient; the first and
 * last run go to heads and tails where they reach over its ends. A run through the whole piece
 * is a head. */
template <typename T, int W>
__global__ void piece_kernel(const sorted s, float *gradient, const T *out_gradient,
                             size_t columns) {
    const size_t column = ((size_t)blockIdx.y * blockDim.x + threadIdx.x) * W;
    const size_t first = (size_t)blockIdx.x * PIECE, end = min(first + PIECE, s.count);
    if (column >= columns) return;
    const bool from_before = first > 0 && s.tokens[first - 1] == s.tokens[first];
    const bool goes_on = end < s.count && s.tokens[end] == s.tokens[end - 1];
    size_t begin = first;
    while (begin < end) {
        const int32_t token = s.tokens[begin];
        float sum[W] = {};
        size_t at = begin;
#pragma unroll 4
        for (; at < end && s.tokens[at] == token; at++) {
            float x[W];
            unpack(x, load<T, W>(out_gradient + (size_t)s.rows[at] * columns + column));
#pragma unroll
            for (int k = 0; k < W; k++) sum[k] += x[k];
        }
        const size_t partial = (size_t)blockIdx.x * columns + column;
        if (begin == first && from_before)
            store(s.heads + partial, pack<float, W>(sum));
        else if (at == end && goes_on)
            store(s.tails + partial, pack<float, W>(sum));
        else
            add_to(gradient + (size_t)token * columns + column, sum);
        begin = at;
    }
}

/* The piece where a run begins that goes on: its tail, and the heads of the pieces that follow. */
template <int W> __global__ void join_kernel(const sorted s, float *gradient, size_t columns) {
    const size_t column = ((size_t)blockIdx.y * blockDim.x + threadIdx.x) * W;
    const size_t first = (size_t)blockIdx.x * PIECE, end = min(first + PIECE, s.count);
    if (column >= columns || end >= s.count) return;
    const int32_t token = s.tokens[end - 1];
    if (s.tokens[end] != token) return;
    if (s.tokens[first] == token && first > 0 && s.tokens[first - 1] == token)
        return; /* began before */
    float sum[W], x[W];
    unpack(sum, load<float, W>(s.tails + (size_t)blockIdx.x * columns + column));
    for (size_t piece = blockIdx.x + 1; piece * PIECE < s.count && s.tokens[piece * PIECE] == token;
         piece++) {
        unpack(x, load<float, W>(s.heads + piece * columns + column));
#pragma unroll
        for (int k = 0; k < W; k++) sum[k] += x[k];
    }
    add_to(gradient + (size_t)token * columns + column, sum);
}

template <typename T, int W>
__global__ void position_kernel(float *gradient, const T *out_gradient, size_t rows, size_t columns,
                                size_t length, size_t positions, bool accumulate) {
    const size_t groups = columns / W;
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= positions * groups) return;
    const size_t position = i / groups, column = i % groups * W;
    float sum[W] = {};
    if (accumulate) unpack(sum, load<float, W>(gradient + position * columns + column));
    if (position < length) {
#pragma unroll 4
        for (size_t n = position; n < rows; n += length) {
            float x[W];
            unpack(x, load<T, W>(out_gradient + n * columns + column));
#pragma unroll
            for (int k = 0; k < W; k++) sum[k] += x[k];
        }
    }
    store(gradient + position * columns + column, pack<float, W>(sum));
}

/* Where the parts of the scratch memory begin. */
struct plan {
    size_t numbers, tokens, rows, heads, tails, sort, bytes;
    size_t sort_bytes;
};

plan plan_scratch(size_t count, size_t columns) {
    plan p = {};
    const size_t list = align_up(count * sizeof(int32_t), 256);
    const size_t partials = align_up(ceil_div(count, PIECE) * columns * sizeof(float), 256);
    p.tokens = list;
    p.rows = 2 * list;
    p.heads = 3 * list;
    p.tails = p.heads + partials;
    p.sort = p.tails + partials;
    cub::DeviceRadixSort::SortPairs((void *)nullptr, p.sort_bytes, (const int32_t *)nullptr,
                                    (int32_t *)nullptr, (const int32_t *)nullptr,
                                    (int32_t *)nullptr, (int)count, 0, TOKEN_BITS);
    p.bytes = p.sort + p.sort_bytes;
    return p;
}

enum status sort_tokens(struct device *device, const struct embedding_backward *op, const plan &p,
                        sorted *out) {
    char *scratch = (char *)device->scratch;
    cudaStream_t stream = backend_of(device)->stream;
    const size_t count = op->out_gradient.rows;
    size_t sort_bytes = p.sort_bytes;
    int32_t *numbers = (int32_t *)scratch, *tokens = (int32_t *)(scratch + p.tokens),
            *rows = (int32_t *)(scratch + p.rows);
    int bits = 1;
    while (bits < TOKEN_BITS && ((size_t)1 << bits) < op->token_gradient.rows) bits++;
    number_kernel<<<blocks_for(count, THREADS_MAX), THREADS_MAX, 0, stream>>>(numbers, count);
    TRY(cuda_launched("embedding_backward: numbering"));
    CUDA_TRY(cub::DeviceRadixSort::SortPairs(scratch + p.sort, sort_bytes, op->tokens, tokens,
                                             numbers, rows, (int)count, 0, bits, stream));
    *out = {tokens, rows, count, (float *)(scratch + p.heads), (float *)(scratch + p.tails)};
    return STATUS_OK;
}

enum status check_backward(const struct embedding_backward *op) {
    const char *const name = "embedding_backward";
    const size_t rows = op->out_gradient.rows, columns = op->out_gradient.columns;
    TRY(cuda_shape(name, "token_gradient", op->token_gradient, DTYPE_F32, op->token_gradient.rows,
                   columns));
    TRY(cuda_shape(name, "position_gradient", op->position_gradient, DTYPE_F32,
                   op->position_gradient.rows, columns));
    if (op->sequence_length == 0 || rows % op->sequence_length != 0 ||
        op->sequence_length > op->position_gradient.rows || rows > INT32_MAX ||
        op->token_gradient.rows > (size_t)1 << TOKEN_BITS) {
        return status_set(STATUS_INTERNAL,
                          "%s: %zu tokens of %zu in sequences of %zu, %zu positions", name, rows,
                          op->token_gradient.rows, op->sequence_length, op->position_gradient.rows);
    }
    return STATUS_OK;
}

} /* namespace */

extern "C" size_t cuda_embedding_scratch_bytes(const struct op_limits *limits) {
    return plan_scratch(limits->tokens, limits->model_width).bytes;
}

extern "C" enum status cuda_embedding_forward(struct device *device,
                                              const struct embedding_forward *op) {
    const char *const name = "embedding_forward";
    const size_t rows = op->out.rows, columns = op->out.columns, length = op->sequence_length;
    const enum dtype dtype = op->out.dtype;
    TRY(cuda_shape(name, "token_weight", op->token_weight, dtype, op->token_weight.rows, columns));
    TRY(cuda_shape(name, "position_weight", op->position_weight, dtype, op->position_weight.rows,
                   columns));
    if (length == 0 || rows % length != 0 || op->first_position > op->position_weight.rows ||
        length > op->position_weight.rows - op->first_position) {
        return status_set(STATUS_INTERNAL,
                          "%s: %zu tokens in sequences of %zu from position %zu, "
                          "positions (%zu, %zu)",
                          name, rows, length, op->first_position, op->position_weight.rows,
                          op->position_weight.columns);
    }
    FOR_DTYPE(dtype, FOR_WIDTH(columns, {
                  const dim3 threads(WARP, THREADS_MAX / WARP);
                  const dim3 grid(blocks_for(rows, threads.y), blocks_for(columns, WARP * W));
                  forward_kernel<T, W><<<grid, threads, 0, backend_of(device)->stream>>>(
                      (T *)op->out.data, op->tokens, (const T *)op->token_weight.data,
                      (const T *)op->position_weight.data, rows, columns, length,
                      op->first_position);
              }))
    return cuda_launched(name);
}

extern "C" enum status cuda_embedding_backward(struct device *device,
                                               const struct embedding_backward *op) {
    const char *const name = "embedding_backward";
    const size_t rows = op->out_gradient.rows, columns = op->out_gradient.columns;
    const size_t positions = op->position_gradient.rows;
    cudaStream_t stream = backend_of(device)->stream;
    sorted s = {};
    TRY(check_backward(op));
    const plan p = plan_scratch(rows, columns);
    TRY(cuda_scratch(device, name, p.bytes));
    TRY(sort_tokens(device, op, p, &s));
    float *gradient = (float *)op->token_gradient.data;
    FOR_DTYPE(op->out_gradient.dtype, FOR_WIDTH(columns, {
                  const size_t owners = columns / W;
                  const unsigned threads = (unsigned)size_min(THREADS_MAX, align_up(owners, WARP));
                  const dim3 grid(blocks_for(rows, PIECE), blocks_for(owners, threads));
                  const T *out_gradient = (const T *)op->out_gradient.data;
                  piece_kernel<T, W>
                      <<<grid, threads, 0, stream>>>(s, gradient, out_gradient, columns);
                  join_kernel<W><<<grid, threads, 0, stream>>>(s, gradient, columns);
                  position_kernel<T, W>
                      <<<blocks_for(positions * owners, THREADS_MAX), THREADS_MAX, 0, stream>>>(
                          (float *)op->position_gradient.data, out_gradient, rows, columns,
                          op->sequence_length, positions, op->accumulate);
              }))
    return cuda_launched(name);
}

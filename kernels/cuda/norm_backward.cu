/*
 * Backward of the layer norm: a block works on BACK_ROWS rows at a time, and each thread owns W
 * columns of them, so that column sums stay in the thread that owns the column until all rows are
 * done. Where quantised copies are wanted, a block collects the codes of a strip of rows in shared
 * memory and writes both copies from there when it is full (quantise.cuh); blocks take strips in
 * turns, so that the short runs of strips beside each other meet in the L2 cache. Then few blocks
 * fit on a multiprocessor, and rows are copied to shared memory some turns ahead, so that memory is
 * busy while a block waits at the barrier of its sums or writes a strip.
 */
#include "kernels/cuda/ahead.cuh"
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
    STRIP_ROWS = 32,
    TENSORS = 3 /* that a row is read from */
};

/* What becomes of the gradient beside its numbers. */
enum output { NUMBERS, AMAX, COPIES };

template <typename T> struct backward_args {
    T *residual_gradient;
    const T *out_gradient, *residual, *weight;
    const float *mean, *rstd;
    float *partials; /* (blocks, SUMS, columns) */
    size_t rows;
    int columns;
    bool overwrite, delta_bias;
    copies_args to;
    int height; /* COPIES: rows of a strip, a power of two */
    int ahead;  /* COPIES: turns that shared memory holds rows of, 1 to AHEAD_MAX */
};

/* What a thread needs of its columns of BACK_ROWS rows, as it lies in memory. */
template <typename T, int W> struct turn_rows {
    Numbers<T, W> residual[BACK_ROWS], gradient[BACK_ROWS], past[BACK_ROWS];
};

template <typename T, int W> __host__ __device__ constexpr size_t turn_bytes(int threads) {
    return sizeof(turn_rows<T, W>) * (size_t)threads;
}

template <typename T, int W> __device__ inline void copy_numbers(uint4 *to, const T *from) {
#pragma unroll
    for (size_t i = 0; i < sizeof(T) * W / 16; i++)
        copy_16(to + i * blockDim.x, reinterpret_cast<const uint4 *>(from) + i);
}

/* Asks for the thread's part of the rows from `first` on. A turn's 16-byte words lie a block apart,
 * so that no two threads of a warp meet in a bank; a thread reads only what it asked for itself. */
template <typename T, int W>
__device__ inline void ask_rows(uint4 *turn, const backward_args<T> &a, size_t first, int column) {
    constexpr size_t WORDS = sizeof(T) * W / 16;
#pragma unroll
    for (int r = 0; r < BACK_ROWS; r++) {
        if (first + r >= a.rows || column >= a.columns) continue;
        const size_t at = (first + r) * (size_t)a.columns + (size_t)column;
        uint4 *to = turn + threadIdx.x + r * TENSORS * WORDS * blockDim.x;
        copy_numbers<T, W>(to, a.residual + at);
        copy_numbers<T, W>(to + WORDS * blockDim.x, a.out_gradient + at);
        if (!a.overwrite) copy_numbers<T, W>(to + 2 * WORDS * blockDim.x, a.residual_gradient + at);
    }
}

template <typename T, int W> __device__ inline Numbers<T, W> take_numbers(const uint4 *from) {
    Numbers<T, W> n;
#pragma unroll
    for (size_t i = 0; i < sizeof n / 16; i++)
        reinterpret_cast<uint4 *>(&n)[i] = from[i * blockDim.x];
    return n;
}

template <typename T, int W>
__device__ inline void take_rows(turn_rows<T, W> &rows, const uint4 *turn) {
    constexpr size_t WORDS = sizeof(T) * W / 16;
#pragma unroll
    for (int r = 0; r < BACK_ROWS; r++) {
        const uint4 *from = turn + threadIdx.x + r * TENSORS * WORDS * blockDim.x;
        rows.residual[r] = take_numbers<T, W>(from);
        rows.gradient[r] = take_numbers<T, W>(from + WORDS * blockDim.x);
        rows.past[r] = take_numbers<T, W>(from + 2 * WORDS * blockDim.x);
    }
}

template <typename T, int W>
__device__ inline void load_rows(turn_rows<T, W> &rows, const backward_args<T> &a, size_t first,
                                 int column) {
#pragma unroll
    for (int r = 0; r < BACK_ROWS; r++) {
        if (first + r >= a.rows || column >= a.columns) continue;
        const size_t at = (first + r) * (size_t)a.columns + (size_t)column;
        rows.residual[r] = load_once<T, W>(a.residual + at);
        rows.gradient[r] = load_once<T, W>(a.out_gradient + at);
        if (!a.overwrite) rows.past[r] = load_once<T, W>(a.residual_gradient + at);
    }
}

/* Mean and inverse deviation of the rows from `first` on. */
struct turn_norms {
    float mean[BACK_ROWS], rstd[BACK_ROWS];
};

template <typename T>
__device__ inline void load_norms(turn_norms &n, const backward_args<T> &a, size_t first) {
#pragma unroll
    for (int r = 0; r < BACK_ROWS; r++) {
        const bool here = first + r < a.rows;
        n.mean[r] = here ? __ldg(a.mean + first + r) : 0.0f;
        n.rstd[r] = here ? __ldg(a.rstd + first + r) : 0.0f;
    }
}

/* Blocks of that many threads at once on a multiprocessor, by the registers that are left to each.
 * */
constexpr int resident_blocks(int block, bool copies) {
    return block == NARROW          ? (copies ? 4 : 5)
           : block == COPIES_MIDDLE ? 2
           : block == MIDDLE        ? (copies ? 2 : 3)
                                    : 1;
}

/* A thread's sums over rows of the gradients of its columns. */
template <int W> struct column_sums { float weight[W], bias[W], delta[W]; };

/* The thread's part of the two sums of each row from `first` on. */
template <typename T, int W>
__device__ inline void turn_sums(float (&sums)[2 * BACK_ROWS], column_sums<W> &own,
                                 const turn_rows<T, W> &rows, const turn_norms &norms,
                                 const Numbers<T, W> &weight, const backward_args<T> &a,
                                 size_t first, bool mine) {
#pragma unroll
    for (int r = 0; r < BACK_ROWS; r++) {
        if (!mine || first + r >= a.rows) continue;
        float x[W], g[W];
        unpack(x, rows.residual[r]);
        unpack(g, rows.gradient[r]);
#pragma unroll
        for (int i = 0; i < W; i++) {
            const float xhat = (x[i] - norms.mean[r]) * norms.rstd[r];
            own.weight[i] += g[i] * xhat;
            own.bias[i] += g[i];
            g[i] *= widen(weight.at[i]);
            sums[2 * r] += g[i];
            sums[2 * r + 1] += g[i] * xhat;
        }
    }
}

/* The gradient of the rows from `first` on, given their sums; its codes into the strip. */
template <typename T, int W, output OUTPUT>
__device__ inline float turn_write(const float (&sums)[2 * BACK_ROWS], column_sums<W> &own,
                                   const turn_rows<T, W> &rows, const turn_norms &norms,
                                   const Numbers<T, W> &weight, const backward_args<T> &a,
                                   size_t first, int column, bool mine, float share,
                                   uint32_t *strip, float scale, float amax) {
#pragma unroll
    for (int r = 0; r < BACK_ROWS; r++) {
        if (!mine || first + r >= a.rows) continue;
        float x[W], g[W], out[W] = {};
        unpack(x, rows.residual[r]);
        unpack(g, rows.gradient[r]);
        if (!a.overwrite) unpack(out, rows.past[r]);
#pragma unroll
        for (int i = 0; i < W; i++) {
            const float xhat = (x[i] - norms.mean[r]) * norms.rstd[r];
            out[i] += norms.rstd[r] * (g[i] * widen(weight.at[i]) - sums[2 * r] * share -
                                       xhat * (sums[2 * r + 1] * share));
            own.delta[i] += out[i];
        }
        store(a.residual_gradient + (first + r) * (size_t)a.columns + (size_t)column,
              pack<T, W>(out));
        if constexpr (OUTPUT != NUMBERS) amax = larger_size8(amax, out);
        if constexpr (OUTPUT == COPIES) {
            const int strip_row = (int)(first + r) & (a.height - 1);
            *reinterpret_cast<uint2 *>(
                strip + strip_at(a.height, a.columns, strip_row, column / 4)) = encode8(a.to.e5m2,
                                                                                        out, scale);
        }
    }
    return amax;
}

/* Both copies of a full strip. The next to write codes comes behind block_sums' barrier. */
template <typename T>
__device__ inline void strip_leave(const uint32_t *strip, const backward_args<T> &a, size_t first) {
    __syncthreads();
    strip_store_rows(strip, a.height, a.columns, a.to, first);
    if (a.to.transposed != nullptr) strip_store(strip, a.height, a.columns, a.to, first);
}

/* The first row of the block's i-th turn. */
template <output OUTPUT> __device__ inline size_t turn_first(int i, int height) {
    if (OUTPUT != COPIES) return ((size_t)i * gridDim.x + blockIdx.x) * BACK_ROWS;
    const int row = i * BACK_ROWS; /* of its strips, one behind the other */
    return ((size_t)(row / height) * gridDim.x + blockIdx.x) * (size_t)height + row % height;
}

/* BLOCK: the most threads a block may have; narrow rows leave registers for several such blocks. */
template <typename T, int W, int BLOCK, output OUTPUT>
__global__ void __launch_bounds__(BLOCK, resident_blocks(BLOCK, OUTPUT == COPIES))
    norm_backward_kernel(const backward_args<T> a) {
    extern __shared__ uint4 turns[];
    uint32_t *strip = reinterpret_cast<uint32_t *>(turns) +
                      (OUTPUT == COPIES ? a.ahead * turn_bytes<T, W>((int)blockDim.x) / 4 : 0);
    __shared__ float shared[2][BLOCK / WARP * 2 * BACK_ROWS];
    const int column = (int)threadIdx.x * W;
    const bool mine = column < a.columns;
    const float share = 1.0f / (float)a.columns;
    Numbers<T, W> weight = {}; /* as it lies in memory: registers are short here */
    column_sums<W> own = {};
    const float scale = OUTPUT == COPIES ? a.to.state->scale : 1.0f;
    float amax = 0.0f;
    int turn = 0;
    if (mine) weight = load<T, W>(a.weight + column);
    const size_t turn_words = turn_bytes<T, W>((int)blockDim.x) / 16;
    uint4 *slot = turns;
    turn_norms norms, norms_next;
    if constexpr (OUTPUT == COPIES) {
        for (int i = 0; i < a.ahead; i++) {
            const size_t first = turn_first<OUTPUT>(i, a.height);
            if (first < a.rows) ask_rows<T, W>(turns + i * turn_words, a, first, column);
            copies_commit();
        }
    }
    size_t first = turn_first<OUTPUT>(0, a.height);
    load_norms(norms_next, a, first);
    for (int number = 0; first < a.rows; number++) {
        const size_t after = turn_first<OUTPUT>(number + 1, a.height);
        turn_rows<T, W> rows;
        float sums[2 * BACK_ROWS] = {};
        norms = norms_next;
        if (after < a.rows) load_norms(norms_next, a, after);
        if constexpr (OUTPUT == COPIES) {
            copies_wait(a.ahead);
            take_rows(rows, slot);
        } else {
            load_rows(rows, a, first, column);
        }
        turn_sums<T, W>(sums, own, rows, norms, weight, a, first, mine);
        block_sums(sums, shared[turn]);
        turn ^= 1;
        if constexpr (OUTPUT == COPIES) { /* the thread has its part in registers */
            const size_t next = turn_first<OUTPUT>(number + a.ahead, a.height);
            if (next < a.rows) ask_rows<T, W>(slot, a, next, column);
            copies_commit();
            slot = slot + turn_words < turns + a.ahead * turn_words ? slot + turn_words : turns;
        }
        amax = turn_write<T, W, OUTPUT>(sums, own, rows, norms, weight, a, first, column, mine,
                                        share, strip, scale, amax);
        if constexpr (OUTPUT == COPIES) {
            const int last_row = (int)(first + BACK_ROWS - 1) & (a.height - 1);
            if (after >= a.rows || last_row == a.height - 1)
                strip_leave(strip, a, first & ~(size_t)(a.height - 1));
        }
        first = after;
    }
    if (OUTPUT != NUMBERS) raise_amax(a.to.state, a.to.stored ? as_stored<T>(amax) : amax);
    if (!mine) return;
    float *partials = a.partials + (size_t)blockIdx.x * SUMS * (size_t)a.columns + (size_t)column;
    store(partials, pack<float, W>(own.weight));
    store(partials + a.columns, pack<float, W>(own.bias));
    if (a.delta_bias) store(partials + 2 * a.columns, pack<float, W>(own.delta));
}

/* Blocks: as many as the multiprocessors hold at once, so one wave and the fewest partial sums, and
 * where they make strips, all the same number. */
template <typename T>
size_t plan_backward(const struct device *device, const backward_args<T> *a, int resident) {
    const size_t most = size_min((size_t)backend_of(device)->multiprocessors *
                                     size_max(1, (size_t)resident),
                                 COLUMN_PARTS_MAX);
    if (a->height == 0) return size_min(ceil_div(a->rows, BACK_ROWS), most);
    const size_t strips = ceil_div(a->rows, (size_t)a->height);
    return ceil_div(strips, ceil_div(strips, most));
}

/* Shared memory of a block that makes copies, so that as many fit as the registers allow: the
 * strip, and turns ahead in what is left. */
template <typename T, int W>
size_t plan_shared(const struct device *device, backward_args<T> *a, int threads, int resident) {
    enum { RESERVED = BLOCK_SYSTEM_BYTES + 1024 }; /* of each block: and the sums */
    const size_t most = backend_of(device)->shared_bytes, turn = turn_bytes<T, W>(threads);
    const size_t each = size_min(most, most / (size_t)resident) - RESERVED;
    a->height = strip_height(STRIP_ROWS, a->columns, most - RESERVED - turn);
    if (a->height == 0) return 0;
    const size_t strip = strip_bytes(a->height, a->columns), left = each > strip ? each - strip : 0;
    a->ahead = (int)size_min(AHEAD_MAX, size_max(1, left / turn));
    return (size_t)a->ahead * turn + strip;
}

template <typename T, int W, int BLOCK, output OUTPUT>
enum status run_backward(struct device *device, backward_args<T> a, int threads,
                         const struct norm_backward *op) {
    const char *const name = "norm_backward";
    const size_t columns = (size_t)a.columns;
    int resident = resident_blocks(BLOCK, OUTPUT == COPIES);
    size_t shared = 0;
    a.to = copies_args_of(&op->quantise, a.rows);
    if constexpr (OUTPUT == COPIES) {
        shared = plan_shared<T, W>(device, &a, threads, resident);
        if (a.height == 0) return refuse_width("norm_backward with copies", columns);
        CUDA_TRY(cudaFuncSetAttribute(norm_backward_kernel<T, W, BLOCK, OUTPUT>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    }
    CUDA_TRY(
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident,
                                                      norm_backward_kernel<T, W, BLOCK, OUTPUT>,
                                                      threads, shared));
    float *const outs[SUMS] = {op->weight_gradient, op->bias_gradient, op->delta_bias_gradient};
    const size_t blocks = plan_backward(device, &a, resident);
    TRY(cuda_scratch(device, name, blocks * SUMS * columns * sizeof(float)));
    a.partials = (float *)device->scratch;
    norm_backward_kernel<T, W, BLOCK, OUTPUT>
        <<<(unsigned)blocks, threads, shared, backend_of(device)->stream>>>(a);
    TRY(cuda_launched(name));
    return cuda_column_sums(device, outs, SUMS, a.partials, blocks, columns, op->accumulate);
}

template <typename T, int W, output OUTPUT>
enum status choose_backward(struct device *device, const backward_args<T> &a, int threads,
                            const struct norm_backward *op) {
    if (threads <= NARROW) return run_backward<T, W, NARROW, OUTPUT>(device, a, threads, op);
    if constexpr (OUTPUT == COPIES) {
        if (threads <= COPIES_MIDDLE)
            return run_backward<T, W, COPIES_MIDDLE, OUTPUT>(device, a, threads, op);
    }
    if (threads <= MIDDLE) return run_backward<T, W, MIDDLE, OUTPUT>(device, a, threads, op);
    return run_backward<T, W, NORM_THREADS_MAX, OUTPUT>(device, a, threads, op);
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

extern "C" size_t cuda_norm_scratch_bytes(const struct op_limits *limits) {
    const size_t blocks = size_min(COLUMN_PARTS_MAX, ceil_div(limits->tokens, BACK_ROWS));
    return blocks * SUMS * limits->model_width * sizeof(float);
}

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
    if (op->quantise.copies != NULL)
        return choose_backward<bf16, 8, COPIES>(device, backward_args_of<bf16>(op), threads, op);
    if (op->quantise.amax != NULL)
        return choose_backward<bf16, 8, AMAX>(device, backward_args_of<bf16>(op), threads, op);
    enum status status = STATUS_OK;
    FOR_DTYPE(dtype, FOR_WIDTH(columns, {
                  status = choose_backward<T, W, NUMBERS>(device, backward_args_of<T>(op), threads,
                                                          op);
              }))
    return status;
}

/*
 * Quantisation with scales of blocks (1X128, 128X128, MX, NV), one pass for both copies, bit for
 * bit as kernels/cpu/quantise.c; and the way back, for devices that multiply such operands in BF16
 * or FP32. Rows and columns are multiples of 16. quantise_128.cu is faster where it will do.
 *
 * A block of threads takes SIDE by SIDE numbers, whole blocks of every mode. The row copy is
 * encoded from the registers that the numbers were read into; they also go to shared memory as
 * FP32, from where each thread takes SLICE numbers of a column for the transposed copy. Its codes
 * pass through shared memory once more, to leave in whole runs.
 */
#include "base/checked.h"
#include "kernels/cuda/quantise.cuh"
#include "kernels/cuda/quantise.h"

namespace {

enum {
    SIDE = 128,
    THREADS = 512,
    LANES = SIDE / 8,       /* threads of a row, eight numbers each */
    STEP = THREADS / LANES, /* rows at a time */
    PASSES = SIDE / STEP,
    SLICE = SIDE / (THREADS / SIDE),
    SQUARE = 16,
    SQUARES = SIDE / SQUARE,
    SHARED_BYTES = SIDE * SIDE * 4 + SIDE * SIDE + (SQUARES * SQUARES + SIDE) * 4
};

struct block_args {
    const void *in;
    size_t rows, columns;
    struct operand row, transposed;
    bool square; /* one scale for SQUARE by SQUARE numbers, or for the whole tile: 128X128 */
    bool hadamard, stochastic;
    uint64_t seed;
    uint32_t tensor;
};

/* base/random.c's, on the device. */
__device__ inline void philox(uint64_t seed, uint32_t stream, uint64_t index, uint32_t (&x)[4]) {
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    x[0] = (uint32_t)index;
    x[1] = (uint32_t)(index >> 32);
    x[2] = stream;
    x[3] = 0;
    for (int round = 0; round < 10; round++) {
        const uint32_t high0 = __umulhi(0xD2511F53u, x[0]), low0 = 0xD2511F53u * x[0];
        const uint32_t high1 = __umulhi(0xCD9E8D57u, x[2]), low1 = 0xCD9E8D57u * x[2];
        x[0] = high1 ^ x[1] ^ key0;
        x[1] = low1;
        x[2] = high0 ^ x[3] ^ key1;
        x[3] = low0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

__device__ inline uint32_t size_bits(float x) { return __float_as_uint(x) & 0x7FFFFFFFu; }

template <int N> __device__ inline uint32_t amax_bits(const float *x) {
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < N; i++) most = max(most, size_bits(x[i]));
    return most;
}

/* A copy while it is written. */
struct writer {
    const block_args &args;
    const operand &copy;
    bool transposed;
    float tensor_factor; /* NV */
    uint32_t draws;

    __device__ writer(const block_args &a, bool second)
        : args(a), copy(second ? a.transposed : a.row), transposed(second), tensor_factor(1.0f),
          draws(0) {
        if (copy.mode != SCALE_NV || copy.codes == nullptr) return;
        draws = copy.state->draws;
        tensor_factor = scale_from_amax(__uint_as_float(copy.state->amax_bits),
                                        copy.state->largest);
        if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) {
            copy.state->scale = tensor_factor; /* the other blocks read neither */
            copy.state->inverse = scale_inverse(tensor_factor);
        }
    }

    /* The factor of the block at (row, column), but for NV its scale; stored if this thread is the
     * one to do it. */
    __device__ float block_factor(size_t row, size_t column, float amax, bool store_it) const {
        const size_t at = scale_index(copy.mode, copy.rows, copy.columns, row, column);
        if (copy.mode == SCALE_MX) {
            const uint8_t code = ue8m0_from_amax(amax);
            if (store_it) ((uint8_t *)copy.scales)[at] = code;
            return ue8m0_factor(code);
        }
        if (copy.mode == SCALE_NV) {
            const uint8_t code = nvfp4_block_scale(amax, tensor_factor);
            if (store_it) ((uint8_t *)copy.scales)[at] = code;
            return float_from_e4m3(code);
        }
        const float factor = scale_from_amax(amax, format_max(copy.format));
        if (store_it) ((float *)copy.scales)[at] = scale_inverse(factor);
        return factor;
    }

    /* Eight codes of E2M1, the first in the lowest bits. */
    __device__ uint32_t encode_e2m1(const float *x, float scale, size_t element) const {
        uint32_t codes = 0, words[4];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float scaled = nvfp4_scaled(x[i], tensor_factor, scale);
            uint32_t code = e2m1_from_float(scaled);
            if (args.stochastic) {
                if (i % 4 == 0) {
                    philox(args.seed, rounding_stream(args.tensor),
                           rounding_index(draws, transposed, element + (size_t)i), words);
                }
                code = format_encode_stochastic(FORMAT_E2M1, scaled, words[i % 4]);
            }
            codes |= code << (4 * i);
        }
        return codes;
    }
};

template <typename T>
__device__ inline void read_tile(const block_args &a, float (&x)[PASSES][8], float *numbers) {
    const int c = (int)threadIdx.x % LANES * 8;
    const size_t column = (size_t)blockIdx.x * SIDE + (size_t)c;
#pragma unroll
    for (int p = 0; p < PASSES; p++) {
        const int r = p * STEP + (int)threadIdx.x / LANES;
        const size_t row = (size_t)blockIdx.y * SIDE + (size_t)r;
#pragma unroll
        for (int i = 0; i < 8; i++) x[p][i] = 0.0f;
        if (row < a.rows && column < a.columns)
            unpack(x[p], load_once<T, 8>((const T *)a.in + row * a.columns + column));
        store(numbers + r * SIDE + c, pack<float, 8>(x[p]));
    }
}

/* Which of `squares` holds the largest number around (r, c). */
__device__ inline int square_at(const block_args &a, int r, int c) {
    const bool whole = a.row.mode == SCALE_128X128 || a.transposed.mode == SCALE_128X128;
    return whole ? 0 : r / SQUARE * SQUARES + c / SQUARE;
}

__device__ inline void write_rows(const block_args &a, const float (&x)[PASSES][8],
                                  const uint32_t *squares) {
    const writer w(a, false);
    const int c = (int)threadIdx.x % LANES * 8, block = (int)scale_block(a.row.mode);
    const size_t column = (size_t)blockIdx.x * SIDE + (size_t)c;
#pragma unroll
    for (int p = 0; p < PASSES; p++) {
        const int r = p * STEP + (int)threadIdx.x / LANES;
        const size_t row = (size_t)blockIdx.y * SIDE + (size_t)r;
        uint32_t bits = amax_bits<8>(x[p]);
        for (int step = 1; step < block / 8; step *= 2)
            bits = max(bits, __shfl_xor_sync(~0u, bits, step));
        if (a.square) bits = squares[square_at(a, r, c)];
        if (row >= a.rows || column >= a.columns) continue;
        const bool first = c % block == 0 && (a.row.mode != SCALE_128X128 || r == 0);
        const float factor = w.block_factor(row, column, __uint_as_float(bits), first);
        const size_t element = row * a.columns + column;
        uint8_t *codes = (uint8_t *)a.row.codes;
        if (a.row.mode == SCALE_NV) {
            *(uint32_t *)(codes + element / 2) = w.encode_e2m1(x[p], factor, element);
        } else {
            *(uint2 *)(codes + element) = encode8(a.row.format == FORMAT_E5M2, x[p], factor);
        }
    }
}

/* Codes of the slice into their places in `out`: a column's 16-byte words side by side, exchanged
 * by the column so that neighbours meet no bank twice. */
__device__ inline void encode_slice(const writer &w, const float (&x)[SLICE], size_t row,
                                    size_t column, const uint32_t (&bits)[2], bool here,
                                    uint4 *out) {
    const int c = (int)threadIdx.x % SIDE, slice = (int)threadIdx.x / SIDE;
    const size_t element = row * w.copy.columns + column;
    const bool nv = w.copy.mode == SCALE_NV, e5m2 = w.copy.format == FORMAT_E5M2;
    const size_t block = scale_block(w.copy.mode);
    uint32_t words[SLICE / 4] = {};
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const size_t at = column + (size_t)half * SQUARE;
        if (!here || at >= w.copy.columns) continue;
        const bool first = at % block == 0 && (w.copy.mode != SCALE_128X128 || row % SIDE == 0);
        const float factor = w.block_factor(row, at, __uint_as_float(bits[half]), first);
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const float(&some)[8] = *(const float(*)[8])(x + half * SQUARE + k * 8);
            if (nv) {
                words[half * 2 + k] = w.encode_e2m1(some, factor,
                                                    element + (size_t)(half * SQUARE + k * 8));
            } else {
                const uint2 codes = encode8(e5m2, some, factor);
                words[half * 4 + k * 2] = codes.x;
                words[half * 4 + k * 2 + 1] = codes.y;
            }
        }
    }
    const uint4 low = make_uint4(words[0], words[1], words[2], words[3]);
    if (nv) {
        out[c * 4 + (slice ^ (c & 3))] = low;
    } else {
        out[c * 8 + (2 * slice ^ (c & 7))] = low;
        out[c * 8 + ((2 * slice + 1) ^ (c & 7))] = make_uint4(words[4], words[5], words[6],
                                                              words[7]);
    }
}

/* Eight bytes of E2M1 hold sixteen rows of the tile, so do sixteen of FP8. */
__device__ inline void store_columns(const block_args &a, const uint4 *out) {
    const bool nv = a.transposed.mode == SCALE_NV;
    for (int piece = (int)threadIdx.x; piece < SIDE * (SIDE / 16); piece += THREADS) {
        const int c = piece / (SIDE / 16), q = piece % (SIDE / 16);
        const size_t row = (size_t)blockIdx.x * SIDE + (size_t)c; /* of the copy */
        const size_t column = (size_t)blockIdx.y * SIDE + (size_t)q * 16;
        if (row >= a.transposed.rows || column >= a.transposed.columns) continue;
        const size_t element = row * a.transposed.columns + column;
        uint8_t *codes = (uint8_t *)a.transposed.codes;
        if (nv) {
            const uint2 *halves = (const uint2 *)(out + c * 4 + (q / 2 ^ (c & 3)));
            *(uint2 *)(codes + element / 2) = halves[q % 2];
        } else {
            *(uint4 *)(codes + element) = out[c * 8 + (q ^ (c & 7))];
        }
    }
}

__device__ inline void write_columns(const block_args &a, const float *numbers, uint4 *out,
                                     const uint32_t *squares, uint32_t *column_amax) {
    const writer w(a, true);
    const int c = (int)threadIdx.x % SIDE, slice = (int)threadIdx.x / SIDE;
    const size_t row = (size_t)blockIdx.x * SIDE + (size_t)c; /* of the copy */
    const size_t column = (size_t)blockIdx.y * SIDE + (size_t)slice * SLICE;
    float x[SLICE];
#pragma unroll
    for (int i = 0; i < SLICE; i++) x[i] = numbers[(slice * SLICE + i) * SIDE + c];
    if (a.hadamard) {
        hadamard_transform(x);
        hadamard_transform(x + HADAMARD_SIZE);
    }
    uint32_t bits[2] = {amax_bits<SQUARE>(x), amax_bits<SQUARE>(x + SQUARE)};
    if (a.square) {
        bits[0] = squares[square_at(a, slice * SLICE, c)];
        bits[1] = squares[square_at(a, slice * SLICE + SQUARE, c)];
    } else if (w.copy.mode == SCALE_MX) {
        bits[0] = bits[1] = max(bits[0], bits[1]);
    } else if (w.copy.mode == SCALE_1X128) {
        atomicMax(&column_amax[c], max(bits[0], bits[1]));
        __syncthreads();
        bits[0] = bits[1] = column_amax[c];
    }
    encode_slice(w, x, row, column, bits, row < a.transposed.rows, out);
    __syncthreads();
    store_columns(a, out);
}

template <typename T>
__global__ void __launch_bounds__(THREADS, 2) blocks_kernel(const __grid_constant__ block_args a) {
    extern __shared__ uint4 shared[];
    float *numbers = (float *)shared, x[PASSES][8];
    uint4 *out = shared + SIDE * SIDE / 4;
    uint32_t *squares = (uint32_t *)(out + SIDE * SIDE / 16);
    uint32_t *column_amax = squares + SQUARES * SQUARES;
    for (int i = (int)threadIdx.x; i < SQUARES * SQUARES + SIDE; i += THREADS) squares[i] = 0;
    read_tile<T>(a, x, numbers);
    __syncthreads();
    if (a.square) {
#pragma unroll
        for (int p = 0; p < PASSES; p++) {
            const int r = p * STEP + (int)threadIdx.x / LANES, c = (int)threadIdx.x % LANES * 8;
            atomicMax(&squares[square_at(a, r, c)], amax_bits<8>(x[p]));
        }
        __syncthreads();
    }
    if (a.row.codes != nullptr) write_rows(a, x, squares);
    if (a.transposed.codes != nullptr) write_columns(a, numbers, out, squares, column_amax);
}

/* NV: amax of the row copy and of the transposed one, a thread sixteen numbers of a column. */
template <typename T> __global__ void copies_amax_kernel(const __grid_constant__ block_args a) {
    const size_t groups = a.rows / SQUARE * a.columns;
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    float x[SQUARE] = {};
    for (int r = 0; i < groups && r < SQUARE; r++) {
        const size_t row = i / a.columns * SQUARE + (size_t)r;
        x[r] = widen(((const T *)a.in)[row * a.columns + i % a.columns]);
    }
    if (a.row.codes != nullptr) raise_amax(a.row.state, __uint_as_float(amax_bits<SQUARE>(x)));
    if (a.transposed.codes == nullptr) return;
    if (a.hadamard) hadamard_transform(x);
    raise_amax(a.transposed.state, __uint_as_float(amax_bits<SQUARE>(x)));
}

enum status find_amaxes(struct device *device, const block_args &a, enum dtype dtype) {
    cudaStream_t stream = backend_of(device)->stream;
    const operand *const copies[] = {&a.row, &a.transposed};
    for (const operand *copy : copies) {
        if (copy->codes == nullptr) continue;
        CUDA_TRY(
            cudaMemsetAsync(&copy->state->amax_bits, 0, sizeof copy->state->amax_bits, stream));
    }
    const unsigned blocks = blocks_for(a.rows / SQUARE * a.columns, THREADS);
    FOR_DTYPE(dtype, { copies_amax_kernel<T><<<blocks, THREADS, 0, stream>>>(a); })
    return cuda_launched("amax of blocks");
}

/* All of the scales: a few bytes in a hundred of the codes'. */
enum status clear_padding(struct device *device, const operand *copy) {
    if (copy->codes == nullptr || copy->mode == SCALE_1X128) return STATUS_OK; /* it has none */
    CUDA_TRY(
        cudaMemsetAsync(copy->scales, 0, operand_scale_bytes(copy), backend_of(device)->stream));
    return STATUS_OK;
}

/* Eight numbers a thread. */
template <typename T>
__global__ void expand_kernel(const operand o, size_t first, size_t rows, T *to) {
    const size_t groups = o.columns / 8, i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= rows * groups) return;
    const size_t row = first + i / groups, column = i % groups * 8;
    const size_t element = row * o.columns + column;
    const size_t at = scale_index(o.mode, o.rows, o.columns, row, column);
    const uint8_t *codes = (const uint8_t *)o.codes;
    float scale = 1.0f, x[8];
    if (o.mode == SCALE_MX)
        scale = float_from_ue8m0(((const uint8_t *)o.scales)[at]);
    else if (o.mode == SCALE_NV)
        scale = float_from_e4m3(((const uint8_t *)o.scales)[at]);
    else if (o.mode != SCALE_TENSOR)
        scale = ((const float *)o.scales)[at];
#pragma unroll
    for (int k = 0; k < 8; k++) {
        const size_t e = element + (size_t)k;
        const uint8_t code = o.format == FORMAT_E2M1 ? (uint8_t)(codes[e / 2] >> e % 2 * 4 & 0xF)
                                                     : codes[e];
        x[k] = format_decode(o.format, code) * scale;
    }
    store(to + i * 8, pack<T, 8>(x));
}

__global__ void alpha_kernel(const scale_state *a, const scale_state *b, float beta, float *out) {
    out[0] = (a == nullptr ? 1.0f : a->inverse) * (b == nullptr ? 1.0f : b->inverse);
    out[1] = beta;
}

} /* namespace */

extern "C" enum status quantise_blocks(struct device *device, const struct quantise *op) {
    const enum scale_mode mode = op->out.row.codes != NULL ? op->out.row.mode
                                                           : op->out.transposed.mode;
    block_args a = {};
    a.in = op->in.data;
    a.rows = op->in.rows;
    a.columns = op->in.columns;
    a.row = op->out.row;
    a.transposed = op->out.transposed;
    a.square = mode == SCALE_128X128 || (mode == SCALE_NV && op->square);
    a.hadamard = op->hadamard;
    a.stochastic = op->stochastic;
    a.seed = op->seed;
    a.tensor = op->tensor;
    const dim3 grid(blocks_for(a.columns, SIDE), blocks_for(a.rows, SIDE));
    TRY(clear_padding(device, &a.row));
    TRY(clear_padding(device, &a.transposed));
    if (mode == SCALE_NV) TRY(find_amaxes(device, a, op->in.dtype));
    FOR_DTYPE(op->in.dtype, {
        CUDA_TRY(cudaFuncSetAttribute(blocks_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      SHARED_BYTES));
        blocks_kernel<T><<<grid, THREADS, SHARED_BYTES, backend_of(device)->stream>>>(a);
    })
    return cuda_launched("quantise");
}

extern "C" enum status operand_expand(struct device *device, const struct operand *o, size_t first,
                                      size_t rows, struct tensor to) {
    const unsigned blocks = blocks_for(rows * (o->columns / 8), THREADS);
    FOR_DTYPE(to.dtype, {
        expand_kernel<<<blocks, THREADS, 0, backend_of(device)->stream>>>(*o, first, rows,
                                                                          (T *)to.data);
    })
    return cuda_launched("operand_expand");
}

extern "C" enum status operand_alpha(struct device *device, const struct operand *a,
                                     const struct operand *b, float beta, float *alpha_beta) {
    alpha_kernel<<<1, 1, 0, backend_of(device)->stream>>>(a->state, b->state, beta, alpha_beta);
    return cuda_launched("operand_alpha");
}

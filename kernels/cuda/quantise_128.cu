/*
 * Quantisation of BF16 numbers with a scale for each 128 along a row (SCALE_1X128), in one pass for
 * both copies: what every activation and gradient of the recipe fp8_block goes through. Bit for bit
 * what quantise_blocks.cu, which takes all other scales and types, makes of it.
 *
 * A block of threads takes SIDE by SIDE numbers and keeps them in registers, two to a word: a
 * thread FOURS times four rows of eight columns. Magnitudes of BF16 are ordered as their bits are,
 * so the largest of a row or a column are found two at a time. The codes of the transposed copy go
 * through shared memory as words of four rows, to leave in whole runs.
 */
#include "kernels/cuda/quantise.cuh"
#include "kernels/cuda/quantise.h"

namespace {

using bf16 = __nv_bfloat16;

enum {
    SIDE = 128,
    LANES = SIDE / 8, /* threads side by side */
    THREADS = 256,
    FOURS = SIDE * LANES / 4 / THREADS, /* groups of four rows a thread */
    WARPS = THREADS / WARP,
    WORDS = SIDE / 4 /* of a column's codes */
};

struct args {
    const bf16 *in;
    size_t rows, columns;
    uint8_t *row, *transposed; /* NULL: not wanted */
    float *row_scales, *transposed_scales;
    float largest; /* of the format */
    bool e5m2;
};

/* A thread's numbers as they lie in memory: [four][row][pair of columns]. */
using pairs = uint32_t[FOURS][4][4];

__device__ inline uint32_t magnitudes(uint32_t pair) { return pair & 0x7FFF7FFFu; }

__device__ inline float from_bits(uint32_t bits) { return __uint_as_float(bits << 16); }

/* Row r of group f of the thread: its row in the tile. */
__device__ inline int row_of(int f, int r) {
    return (f * (THREADS / LANES) + (int)threadIdx.x / LANES) * 4 + r;
}

__device__ inline void read_tile(const args &a, pairs &x, size_t row, size_t column) {
#pragma unroll
    for (int f = 0; f < FOURS; f++) {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const size_t at = row + (size_t)row_of(f, r);
            uint4 words = make_uint4(0, 0, 0, 0);
            if (at < a.rows && column < a.columns)
                words = __ldcs(reinterpret_cast<const uint4 *>(a.in + at * a.columns + column));
            x[f][r][0] = words.x;
            x[f][r][1] = words.y;
            x[f][r][2] = words.z;
            x[f][r][3] = words.w;
        }
    }
}

/* The codes of eight numbers, each by its own factor. */
__device__ inline uint2 encode_pairs(bool e5m2, const uint32_t (&x)[4], const float (&factor)[8]) {
    uint32_t codes[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float low, high;
        widen_pair(low, high, x[i], bf16());
        codes[i] = encode_pair(e5m2, low * factor[2 * i], high * factor[2 * i + 1]);
    }
    return make_uint2(codes[0] | codes[1] << 16, codes[2] | codes[3] << 16);
}

/* Two rows of the thread at a time, in the halves of a word: their largest over the LANES threads
 * that share them. */
__device__ inline uint32_t two_rows_amax(const uint32_t (&first)[4], const uint32_t (&second)[4]) {
    uint32_t a = 0, b = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        a = __vmaxu2(a, magnitudes(first[i]));
        b = __vmaxu2(b, magnitudes(second[i]));
    }
    uint32_t most = __vmaxu2(__byte_perm(a, b, 0x5410), __byte_perm(a, b, 0x7632));
#pragma unroll
    for (int step = 1; step < LANES; step *= 2)
        most = __vmaxu2(most, __shfl_xor_sync(~0u, most, step));
    return most;
}

__device__ inline void write_rows(const args &a, const pairs &x, size_t row, size_t column) {
    const int lane = (int)threadIdx.x % LANES;
    float factors[FOURS][4];
#pragma unroll
    for (int f = 0; f < FOURS; f++) {
#pragma unroll
        for (int r = 0; r < 4; r += 2) {
            const uint32_t most = two_rows_amax(x[f][r], x[f][r + 1]);
            factors[f][r] = from_bits(most & 0xFFFFu);
            factors[f][r + 1] = from_bits(most >> 16);
        }
    }
    /* Every lane divides for one row. */
    float mine = 0.0f;
#pragma unroll
    for (int i = 0; i < FOURS * 4; i++) mine = lane == i ? factors[i / 4][i % 4] : mine;
    mine = scale_from_amax(mine, a.largest);
    const size_t here = row + (size_t)row_of(lane / 4 % FOURS, lane % 4);
    if (lane < FOURS * 4 && here < a.rows)
        a.row_scales[(size_t)blockIdx.x * a.rows + here] = scale_inverse(mine);
#pragma unroll
    for (int f = 0; f < FOURS; f++) {
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const float factor = __shfl_sync(~0u, mine, f * 4 + r, LANES);
            const size_t at = row + (size_t)row_of(f, r);
            if (at >= a.rows || column >= a.columns) continue;
            const float same[8] = {factor, factor, factor, factor, factor, factor, factor, factor};
            *reinterpret_cast<uint2 *>(a.row + at * a.columns +
                                       column) = encode_pairs(a.e5m2, x[f][r], same);
        }
    }
}

/* The factors of the tile's columns, in shared memory. */
__device__ inline void column_factors(const args &a, const pairs &x, uint32_t (*most)[SIDE / 2],
                                      float *factors) {
    const int lane = (int)threadIdx.x % LANES, warp = (int)threadIdx.x / WARP;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t top = 0;
#pragma unroll
        for (int f = 0; f < FOURS; f++) {
#pragma unroll
            for (int r = 0; r < 4; r++) top = __vmaxu2(top, magnitudes(x[f][r][i]));
        }
        top = __vmaxu2(top, __shfl_xor_sync(~0u, top, LANES)); /* two rows of threads a warp */
        if (threadIdx.x % WARP < LANES) most[warp][lane * 4 + i] = top;
    }
    __syncthreads();
    if (threadIdx.x < SIDE) {
        const int c = (int)threadIdx.x;
        uint32_t top = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) top = __vmaxu2(top, most[w][c / 2]);
        const float factor = scale_from_amax(from_bits(c % 2 == 0 ? top & 0xFFFFu : top >> 16),
                                             a.largest);
        const size_t of_copy = (size_t)blockIdx.x * SIDE + (size_t)c;
        factors[c] = factor;
        if (of_copy < a.columns)
            a.transposed_scales[blockIdx.y * a.columns + of_copy] = scale_inverse(factor);
    }
    __syncthreads();
}

/* Column c's words are row c of `tile`, its groups of four words exchanged by c / 8. */
__device__ inline int word_at(int c, int word) { return c * WORDS + (word ^ (c / 8 * 4) % WORDS); }

__device__ inline void put_codes(const args &a, const pairs &x, const float *shared_factors,
                                 uint32_t *tile) {
    const int lane = (int)threadIdx.x % LANES;
    float factor[8];
#pragma unroll
    for (int i = 0; i < 8; i++) factor[i] = shared_factors[lane * 8 + i];
#pragma unroll
    for (int f = 0; f < FOURS; f++) {
        uint32_t low[4], high[4];
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const uint2 codes = encode_pairs(a.e5m2, x[f][r], factor);
            low[r] = codes.x;
            high[r] = codes.y;
        }
        transpose4(low);
        transpose4(high);
#pragma unroll
        for (int c = 0; c < 4; c++) {
            tile[word_at(lane * 8 + c, row_of(f, 0) / 4)] = low[c];
            tile[word_at(lane * 8 + 4 + c, row_of(f, 0) / 4)] = high[c];
        }
    }
}

__device__ inline void store_codes(const args &a, const uint32_t *tile, size_t row, size_t column) {
    enum { QUADS = WORDS / 4 };
#pragma unroll
    for (int piece = (int)threadIdx.x; piece < SIDE * QUADS; piece += THREADS) {
        const int c = piece / QUADS, quad = piece % QUADS;
        const size_t of_copy = column + (size_t)c, at = row + (size_t)quad * 16;
        if (of_copy >= a.columns || at >= a.rows) continue;
        *reinterpret_cast<uint4 *>(a.transposed + of_copy * a.rows +
                                   at) = *reinterpret_cast<const uint4 *>(tile +
                                                                          word_at(c, quad * 4));
    }
}

__global__ void __launch_bounds__(THREADS, 3) rows_kernel(const args a) {
    __shared__ __align__(16) uint32_t tile[SIDE * WORDS];
    __shared__ uint32_t most[WARPS][SIDE / 2];
    __shared__ float factors[SIDE];
    const size_t row = (size_t)blockIdx.y * SIDE, first = (size_t)blockIdx.x * SIDE;
    const size_t column = first + threadIdx.x % LANES * 8;
    pairs x;
    read_tile(a, x, row, column);
    if (a.row != nullptr) write_rows(a, x, row, column);
    if (a.transposed == nullptr) return;
    column_factors(a, x, most, factors);
    put_codes(a, x, factors, tile);
    __syncthreads();
    store_codes(a, tile, row, first);
}

} /* namespace */

extern "C" enum status quantise_128(struct device *device, const struct quantise *op) {
    const struct operand *row = &op->out.row, *transposed = &op->out.transposed;
    const enum number_format format = row->codes != NULL ? row->format : transposed->format;
    args a = {};
    a.in = (const bf16 *)op->in.data;
    a.rows = op->in.rows;
    a.columns = op->in.columns;
    a.row = (uint8_t *)row->codes;
    a.transposed = (uint8_t *)transposed->codes;
    a.row_scales = (float *)row->scales;
    a.transposed_scales = (float *)transposed->scales;
    a.largest = format_max(format);
    a.e5m2 = format == FORMAT_E5M2;
    const dim3 grid(blocks_for(a.columns, SIDE), blocks_for(a.rows, SIDE));
    rows_kernel<<<grid, THREADS, 0, backend_of(device)->stream>>>(a);
    return cuda_launched("quantise");
}

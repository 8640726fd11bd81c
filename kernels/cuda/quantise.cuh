/*
 * What kernels share that write FP8 copies of a matrix (kernels/quantised.h, SCALE_TENSOR): codes
 * eight at a time, transposition of bytes in registers and through shared memory, the largest
 * magnitude, and tile_run(), which walks a matrix in tiles and makes both copies from numbers that
 * a source hands it. The quantise, norm, pointwise and cross_entropy .cu files include it.
 *
 * Bytes of the transposed copy leave as runs of 16 along a row of it, side by side in neighbouring
 * threads. So all copies have rows and columns in multiples of COPY_UNIT, as the tensor cores want
 * them too.
 */
#ifndef DEEPWELL_KERNELS_CUDA_QUANTISE_CUH_
#define DEEPWELL_KERNELS_CUDA_QUANTISE_CUH_

#include "base/checked.h"
#include "kernels/cuda/ahead.cuh"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/numbers.cuh"
#include "kernels/cuda/quantise.h"
#include "kernels/quantised.h"

/* Where the codes of a matrix go and by which state; all NULL: nowhere. Kernel argument. */
struct copies_args {
    uint8_t *row, *transposed; /* NULL: not wanted */
    struct scale_state *state;
    size_t rows; /* of the matrix: the transposed copy's columns */
    bool e5m2;
    bool stored; /* no codes: only the amax, of the numbers as they are stored */
};

static inline struct copies_args copies_args_of(const struct quantise_output *output, size_t rows) {
    struct copies_args args = {};
    args.rows = rows;
    args.state = output->amax;
    args.stored = output->copies == NULL;
    if (output->copies == NULL) return args;
    args.row = (uint8_t *)output->copies->row.codes;
    args.transposed = (uint8_t *)output->copies->transposed.codes;
    args.state = output->copies->row.state;
    args.e5m2 = output->copies->row.format == FORMAT_E5M2;
    return args;
}

/* ---- numbers ---- */

/* As e4m3_from_float() and e5m2_from_float() of kernels/formats.h, two at a time: the instruction
 * rounds to nearest even, saturates, and gives 0x7F for a NaN. */
__device__ inline uint32_t encode_pair(bool e5m2, float low, float high) {
#if __CUDA_ARCH__ >= 890
    uint16_t codes;
    if (e5m2) {
        asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
    } else {
        asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
    }
    return codes;
#else
    return e5m2 ? e5m2_from_float(low) | (uint32_t)e5m2_from_float(high) << 8
                : e4m3_from_float(low) | (uint32_t)e4m3_from_float(high) << 8;
#endif
}

/* Codes of x * scale, the first in the lowest byte. */
__device__ inline uint2 encode8(bool e5m2, const float (&x)[8], float scale) {
    uint32_t pairs[4];
    if (e5m2) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            pairs[i] = encode_pair(true, x[2 * i] * scale, x[2 * i + 1] * scale);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++)
            pairs[i] = encode_pair(false, x[2 * i] * scale, x[2 * i + 1] * scale);
    }
    return make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
}

/* The larger of top and |x|; a NaN stays. */
__device__ inline float larger_size(float top, float x) {
    float y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(top), "f"(fabsf(x)));
    return y;
}

__device__ inline float larger_size8(float top, const float (&x)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) top = larger_size(top, x[i]);
    return top;
}

/* state->amax_bits raised to the largest `amax` of a warp; all its lanes call it. Most warps find
 * it there already, and do not queue for it. */
__device__ inline void raise_amax(struct scale_state *state, float amax) {
    const uint32_t bits = __reduce_max_sync(~0u, __float_as_uint(amax));
    volatile uint32_t *known = &state->amax_bits;
    if (threadIdx.x % WARP == 0 && bits > *known) atomicMax(&state->amax_bits, bits);
}

/* The amax as the numbers are stored: rounding keeps the order. */
template <typename T> __device__ inline float as_stored(float amax) {
    return widen(narrow<T>(amax));
}

/* ---- transposition ---- */

/* Words of four codes: w[r] holds row r's columns 0 to 3, then w[c] holds column c's rows 0 to 3.
 * */
__device__ inline void transpose4(uint32_t (&w)[4]) {
    const uint32_t low01 = __byte_perm(w[0], w[1], 0x5140);
    const uint32_t high01 = __byte_perm(w[0], w[1], 0x7362);
    const uint32_t low23 = __byte_perm(w[2], w[3], 0x5140);
    const uint32_t high23 = __byte_perm(w[2], w[3], 0x7362);
    w[0] = __byte_perm(low01, low23, 0x5410);
    w[1] = __byte_perm(low01, low23, 0x7632);
    w[2] = __byte_perm(high01, high23, 0x5410);
    w[3] = __byte_perm(high01, high23, 0x7632);
}

/*
 * A strip: `height` (16, 32 or 64) whole rows of codes in shared memory, as they lie, until they
 * leave transposed. Sixteen rows on, a word lies 32 / (height / 16) banks further: then the
 * height / 16 threads that write one run together, and their neighbours in the columns beside, read
 * from different banks.
 */
__host__ __device__ inline int strip_pad(int height) { return 32 / (height / COPY_UNIT); }

__host__ __device__ inline size_t strip_bytes(int height, int columns) {
    return (size_t)height * (size_t)columns + (size_t)(height / COPY_UNIT) * 4 * strip_pad(height);
}

/* The highest strip that takes at most `bytes`; 0: none does. */
static inline int strip_height(int most, int columns, size_t bytes) {
    while (most >= COPY_UNIT && strip_bytes(most, columns) > bytes) most /= 2;
    return most >= COPY_UNIT ? most : 0;
}

/* Where the word of (row, 4 * word_column) lies. `columns` is a multiple of COPY_UNIT. */
__device__ inline int strip_at(int height, int columns, int row, int word_column) {
    return row * (columns / 4) + row / COPY_UNIT * strip_pad(height) + word_column;
}

/* The strip that starts at row `first` into the transposed copy; all threads of the block call it,
 * behind a barrier. */
__device__ inline void strip_store(const uint32_t *strip, int height, int columns,
                                   const struct copies_args &to, size_t first) {
    const int runs = height / COPY_UNIT, run = (int)threadIdx.x % runs;
    const size_t row = first + (size_t)(run * COPY_UNIT);
    if (row >= to.rows) return;
    for (int word = (int)threadIdx.x / runs; word < columns / 4; word += (int)blockDim.x / runs) {
        uint32_t codes[4][4]; /* [four rows][column] */
#pragma unroll
        for (int four = 0; four < 4; four++) {
#pragma unroll
            for (int r = 0; r < 4; r++) {
                codes[four][r] =
                    strip[strip_at(height, columns, run * COPY_UNIT + four * 4 + r, word)];
            }
            transpose4(codes[four]);
        }
#pragma unroll
        for (int c = 0; c < 4; c++) {
            uint4 *out = reinterpret_cast<uint4 *>(to.transposed +
                                                   ((size_t)word * 4 + c) * to.rows + row);
            *out = make_uint4(codes[0][c], codes[1][c], codes[2][c], codes[3][c]);
        }
    }
}

/* The strip as it lies into the row copy. */
__device__ inline void strip_store_rows(const uint32_t *strip, int height, int columns,
                                        const struct copies_args &to, size_t first) {
    const int quads = columns / 16;
    const size_t left = to.rows - first;
    const int rows = left < (size_t)height ? (int)left : height;
    uint4 *out = reinterpret_cast<uint4 *>(to.row + first * (size_t)columns);
    for (int i = (int)threadIdx.x; i < rows * quads; i += (int)blockDim.x) {
        const int group = i / (COPY_UNIT * quads); /* rows of a group lie without gaps */
        out[i] = *reinterpret_cast<const uint4 *>(strip + i * 4 + group * strip_pad(height));
    }
}

/* ---- tiles ---- */

/*
 * A block of TILE_THREADS makes tiles of TILE_ROWS by TILE_COLUMNS, one below the other: a thread
 * four rows of eight columns. The transposed codes pass through shared memory as words of four
 * rows: column c's are row c of `tile`, its groups of four words exchanged by c / 8, so that
 * neither writing (eight columns by four words in a warp) nor reading (16 bytes a thread) meets a
 * bank twice.
 */
enum { TILE_ROWS = 128, TILE_COLUMNS = 64, TILE_THREADS = 256, TILE_LANES = TILE_COLUMNS / 8 };

struct tile_job {
    struct copies_args copies;
    size_t rows, columns;
    unsigned across, down; /* tiles side by side, and blocks one below the other */
    bool current;          /* scale from state->amax_bits, which is complete; else raise it */
    void *values;          /* the numbers themselves too, or NULL */
    float *partials;       /* (down, columns) sums of columns, or NULL */
};

/* Blocks of a launch: so many that the last of them leave few multiprocessors idle. */
enum { TILE_BLOCKS_EACH = 24 }; /* of a multiprocessor, which holds three or four at once */
static inline size_t tile_blocks(const struct device *device) {
    return TILE_BLOCKS_EACH * (size_t)backend_of(device)->multiprocessors;
}

/* Those one below the other, each with several tiles. */
static inline unsigned tile_blocks_down(const struct device *device, size_t rows, unsigned across) {
    const size_t tiles = ceil_div(rows, TILE_ROWS), blocks = tile_blocks(device);
    return (unsigned)size_min(tiles, ceil_div(blocks, across));
}

static inline struct tile_job tile_job_of(const struct device *device,
                                          const struct copies_args &copies, size_t rows,
                                          size_t columns) {
    struct tile_job job = {};
    job.copies = copies;
    job.rows = rows;
    job.columns = columns;
    job.across = blocks_for(columns, TILE_COLUMNS);
    job.down = tile_blocks_down(device, rows, job.across);
    return job;
}

/* Sums of columns too, into scratch memory. */
static inline enum status tile_job_sum(struct device *device, const char *name,
                                       struct tile_job *job) {
    job->down = (unsigned)size_min(job->down, COLUMN_PARTS_MAX);
    job->partials = (float *)device->scratch;
    return cuda_scratch(device, name, job->down * job->columns * sizeof(float));
}

/* Eight numbers as they lie in memory. */
template <typename T> __device__ inline Numbers<T, 8> tile_numbers(const uint4 *words) {
    Numbers<T, 8> numbers;
#pragma unroll
    for (size_t i = 0; i < sizeof numbers / 16; i++)
        reinterpret_cast<uint4 *>(&numbers)[i] = words[i];
    return numbers;
}

__device__ inline void tile_put(uint32_t *tile, const uint2 (&codes)[4], int lane, int four) {
    uint32_t low[4], high[4];
#pragma unroll
    for (int r = 0; r < 4; r++) {
        low[r] = codes[r].x;
        high[r] = codes[r].y;
    }
    transpose4(low);
    transpose4(high);
    const int at = lane * 8 * (TILE_ROWS / 4) + (four ^ lane * 4);
#pragma unroll
    for (int c = 0; c < 4; c++) {
        tile[at + c * (TILE_ROWS / 4)] = low[c];
        tile[at + (c + 4) * (TILE_ROWS / 4)] = high[c];
    }
}

__device__ inline void tile_store(const uint32_t *tile, const struct tile_job &job,
                                  size_t first_row, size_t first_column) {
    enum { QUADS = TILE_ROWS / 16, PIECES = TILE_COLUMNS * QUADS };
#pragma unroll
    for (int piece = (int)threadIdx.x; piece < PIECES; piece += TILE_THREADS) {
        const int c = piece / QUADS, quad = piece % QUADS;
        const size_t column = first_column + c, row = first_row + quad * 16;
        if (column >= job.columns || row >= job.rows) continue;
        const uint4 codes = *reinterpret_cast<const uint4 *>(tile + c * (TILE_ROWS / 4) +
                                                             ((quad ^ c / 8) * 4));
        *reinterpret_cast<uint4 *>(job.copies.transposed + column * job.rows + row) = codes;
    }
}

/* Sums of the thread's columns over the block, into its row of partials. */
__device__ inline void tile_sums(float *partials, float (&sums)[8], uint32_t *tile, int lane,
                                 bool mine) {
    float *shared = reinterpret_cast<float *>(tile);
    const int warp = (int)threadIdx.x / WARP;
    __syncthreads(); /* the tile has left */
#pragma unroll
    for (int i = 0; i < 8; i++) {
        sums[i] += __shfl_xor_sync(~0u, sums[i], TILE_LANES);
        sums[i] += __shfl_xor_sync(~0u, sums[i], 2 * TILE_LANES);
        if (threadIdx.x % WARP < TILE_LANES) shared[warp * TILE_COLUMNS + lane * 8 + i] = sums[i];
    }
    __syncthreads();
    if (threadIdx.x >= TILE_LANES || !mine) return;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float total = 0.0f;
        for (int w = 0; w < TILE_THREADS / WARP; w++)
            total += shared[w * TILE_COLUMNS + lane * 8 + i];
        partials[i] = total;
    }
}

__device__ inline float tile_scale(const struct tile_job &job, unsigned block) {
    struct scale_state *state = job.copies.state;
    if (!job.current) return state->scale;
    const float scale = scale_from_amax(__uint_as_float(state->amax_bits), state->largest);
    if (block == 0 && threadIdx.x == 0) { /* the other blocks read neither */
        state->scale = scale;
        state->inverse = scale_inverse(scale);
    }
    return scale;
}

/* The numbers of a thread's four rows of the tile that comes next: it asks for them once it has
 * those of this one in its registers, so that loads are under way while codes are transposed. Words
 * of a thread lie a block apart. */
template <class Source>
__device__ inline void tile_ask(uint4 *slot, const Source &source, const struct tile_job &job,
                                size_t row, size_t column) {
#pragma unroll
    for (int r = 0; r < 4; r++) {
#pragma unroll
        for (int w = 0; w < Source::WORDS; w++) {
            copy_16(slot + (r * Source::WORDS + w) * TILE_THREADS,
                    source.word(w, (row + r) * job.columns + column));
        }
    }
}

/*
 * Block `block` of across * down. Source: WORDS of 16 bytes hold eight numbers of a row; column(c)
 * once, word(w, at) where word w of those from element `at` = row * columns + c on lies, and
 * compute(x, words, row), x the eight numbers. `type` is what `values` holds. SUMS: whether
 * partials may be wanted. CODES: whether copies are; else `values` are, and their amax.
 */
template <class Source, bool SUMS, bool CODES>
__device__ inline void tile_run(Source source, const struct tile_job &job, unsigned block) {
    __shared__ __align__(16) uint32_t tile[TILE_COLUMNS * TILE_ROWS / 4];
    __shared__ uint4 slots[4 * Source::WORDS * TILE_THREADS];
    using T = typename Source::type;
    uint4 *const slot = slots + threadIdx.x;
    const int lane = (int)threadIdx.x % TILE_LANES, four = (int)threadIdx.x / TILE_LANES;
    const size_t first_column = (size_t)(block % job.across) * TILE_COLUMNS;
    const size_t column = first_column + (size_t)lane * 8;
    const size_t begin = (size_t)(block / job.across) * TILE_ROWS;
    const size_t stride = (size_t)job.down * TILE_ROWS;
    const bool mine = column < job.columns;
    const float scale = CODES ? tile_scale(job, block) : 1.0f;
    float amax = 0.0f, sums[8] = {};
    if (mine) source.column(column);
    /* Rows are a multiple of 16: four or none. */
    if (mine && begin + (size_t)four * 4 < job.rows)
        tile_ask(slot, source, job, begin + (size_t)four * 4, column);
    copies_commit();
    for (size_t first = begin; first < job.rows; first += stride) {
        const size_t row = first + (size_t)four * 4, at = row * job.columns + column;
        uint2 codes[4] = {};
        copies_wait(1);
        if (mine && row < job.rows) {
#pragma unroll
            for (int r = 0; r < 4; r++) {
                uint4 words[Source::WORDS];
                float x[8];
#pragma unroll
                for (int w = 0; w < Source::WORDS; w++)
                    words[w] = slot[(r * Source::WORDS + w) * TILE_THREADS];
                source.compute(x, words, row + r);
                amax = larger_size8(amax, x);
                if (job.values != nullptr)
                    store((T *)job.values + at + r * job.columns, pack<T, 8>(x));
                if (CODES) codes[r] = encode8(job.copies.e5m2, x, scale);
                if (CODES && job.copies.row != nullptr)
                    *reinterpret_cast<uint2 *>(job.copies.row + at + r * job.columns) = codes[r];
                if (SUMS) {
#pragma unroll
                    for (int i = 0; i < 8; i++) sums[i] += x[i];
                }
            }
        }
        if (mine && row + stride < job.rows) tile_ask(slot, source, job, row + stride, column);
        copies_commit();
        if (!CODES || job.copies.transposed == nullptr) continue;
        __syncthreads(); /* the tile above has left */
        tile_put(tile, codes, lane, four);
        __syncthreads();
        tile_store(tile, job, first, first_column);
    }
    if (!job.current) raise_amax(job.copies.state, CODES ? amax : as_stored<T>(amax));
    if (SUMS && job.partials != nullptr) {
        tile_sums(job.partials + (size_t)(block / job.across) * job.columns + column, sums, tile,
                  lane, mine);
    }
}

#endif

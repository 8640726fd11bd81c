/*
 * Quantised matrices: what linear layers multiply in the recipes fp8, fp8_block, mxfp8 and nvfp4
 * (layers/recipe.h says which tensor takes which form).
 *
 * Hopper multiplies FP8 only with both operands contiguous along the reduced dimension K (TN). So a
 * matrix X (R, C) that one product reduces over its columns and another over its rows exists twice:
 *
 *              reduces over   a                             b
 *   fprop           in        input          row copy       weight (out, in)     row copy
 *   dgrad           out       out_gradient   row copy       weight              transposed copy
 *   wgrad           N         out_gradient   transposed     input               transposed copy
 *
 * The arrays live in the activations (or parameters) arena, the scale states of all tensors in one
 * flat device array of the engine. Codes and scales have the same bytes on the CPU and on a GPU.
 */
#ifndef DEEPWELL_KERNELS_QUANTISED_H_
#define DEEPWELL_KERNELS_QUANTISED_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/formats.h"
#include "kernels/host_device.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * How the codes of a copy (rows, columns) are scaled; value = decode(code) * scale. Blocks are
 * counted along the copy's columns, the reduced dimension. cuBLASLt's name for each in brackets,
 * and how `scales` lies in memory, which is how that library reads it:
 *
 * SCALE_TENSOR   [SCALAR_32F] one FP32, state->inverse; no array.
 * SCALE_1X128    [VEC128_32F] FP32 for 128 numbers of a row: [ceil(columns / 128)][rows].
 * SCALE_128X128  [BLK128x128_32F] FP32 for 128 rows by 128 columns:
 *                [ceil(rows / 128)][ceil(columns / 128) padded to a multiple of 4].
 * SCALE_MX       [VEC32_UE8M0] a byte for 32 numbers of a row, in tiles of 128 rows by 4 blocks
 *                (scale_tile_index).
 * SCALE_NV       [VEC16_UE4M3] a byte (E4M3) for 16 numbers of a row, tiles as above, all under
 *                state->inverse. Two codes a byte, the even column in the low half.
 * The last block of a row or column may be short in the two 128 forms; MX and NV need multiples of
 * 32 and 16. Every quantisation writes the padding of `scales` as zero: the
 * memory serves many shapes, and a stray NaN scale would reach the product.
 */
enum scale_mode { SCALE_TENSOR, SCALE_1X128, SCALE_128X128, SCALE_MX, SCALE_NV };

const char *scale_mode_name(enum scale_mode mode); /* "tensor", "1x128", "128x128", ... */

/* Numbers of a row under one scale; 0: all. */
DEEPWELL_HOST_DEVICE static inline size_t scale_block(enum scale_mode mode) {
    return mode == SCALE_TENSOR ? 0 : mode == SCALE_MX ? 32 : mode == SCALE_NV ? 16 : 128;
}

/*
 * Scale and history of one tensor. Bytes that are zero are no valid state: scales_initialise() in
 * the engine sets `largest`, scale = inverse = 1.
 *
 * `amax_bits` are the FP32 bits of the largest |x| seen since the last scales_begin or
 * scales_update that cleared it. For numbers without sign the order of the bits is that of the
 * numbers, NaN above all: so atomicMax on integers gives the same whatever the order, and nothing
 * that is not finite is lost.
 */
enum { AMAX_HISTORY = 16 };
struct scale_state {
    float inverse;      /* 1 / scale, rounded: what a GEMM multiplies by. First: 32-byte aligned */
    float scale;        /* what numbers are multiplied by before they are encoded */
    uint32_t amax_bits;
    float largest;      /* of the format: 448, 57344; 2688 for NVFP4. Constant */
    uint32_t seen;      /* amaxes ever entered; the newest is at (seen - 1) % AMAX_HISTORY */
    uint32_t draws;     /* micro-batches begun: keeps random roundings apart */
    uint32_t draws_before; /* of this step */
    uint32_t unused;
    float history[AMAX_HISTORY];
};

/* Scale and inverse from the amax of the tensor itself: "current" scaling. */
DEEPWELL_HOST_DEVICE static inline void scale_state_current(struct scale_state *s) {
    s->scale = scale_from_amax(float_of_bits(s->amax_bits), s->largest);
    s->inverse = scale_inverse(s->scale);
}

/* Start of a micro-batch; clear_amax: under current scaling. */
DEEPWELL_HOST_DEVICE static inline void scale_state_begin(struct scale_state *s, bool clear_amax) {
    s->draws++;
    if (clear_amax) s->amax_bits = 0;
}

/* The scale that the history gives: by the largest amax of the last AMAX_HISTORY steps. */
DEEPWELL_HOST_DEVICE static inline void scale_state_from_history(struct scale_state *s) {
    float most = 0.0f;
    for (uint32_t i = 0; i < AMAX_HISTORY && i < s->seen; i++) {
        most = s->history[i] > most ? s->history[i] : most;
    }
    s->scale = scale_from_amax(most, s->largest);
    s->inverse = scale_inverse(s->scale);
}

/* End of a step that is applied. `enter`, under delayed scaling: the step's amax (finite) enters
 * the history, which gives the scale of the next one. */
DEEPWELL_HOST_DEVICE static inline void scale_state_end(struct scale_state *s, bool enter) {
    if (enter) {
        s->history[s->seen % AMAX_HISTORY] = float_of_bits(s->amax_bits);
        s->seen++;
        scale_state_from_history(s);
    }
    s->amax_bits = 0;
    s->draws_before = s->draws;
}

/* End of a step that is not finite: as if it had not been. A scale that it spoilt (current scaling)
 * starts anew; `inverse` is made from the scale that stays, since an exchange may have taken the
 * two from different ranks (train/exchange.c). */
DEEPWELL_HOST_DEVICE static inline void scale_state_drop(struct scale_state *s) {
    if (!(s->scale > 0.0f)) s->scale = 1.0f;
    s->inverse = scale_inverse(s->scale);
    s->amax_bits = 0;
    s->draws = s->draws_before;
}

/* One copy of a matrix: an operand of quantised_gemm. */
struct operand {
    void *codes;           /* (rows, columns); NULL: this copy is not wanted */
    void *scales;          /* as scale_mode says; NULL for SCALE_TENSOR */
    struct scale_state *state; /* device memory; SCALE_TENSOR and SCALE_NV, else NULL */
    enum number_format format;
    enum scale_mode mode;
    size_t rows, columns;  /* columns: the reduced dimension K, contiguous */
};

/* A matrix (R, C): `row` is (R, C), `transposed` is (C, R). With SCALE_TENSOR and SCALE_128X128 the
 * codes of the one are those of the other transposed, and SCALE_TENSOR's share one state; with the
 * other modes each copy is quantised from the matrix on its own, NV's each under its own state. */
struct quantised {
    struct operand row, transposed;
};

/* Bytes of the arrays of an operand of this shape and form. Callers have checked that rows times
 * columns fits. */
size_t operand_code_bytes(const struct operand *operand);
size_t operand_scale_bytes(const struct operand *operand);

/* Byte of the scale of block `block` of row `row` in `scales` of MX and NV; `blocks` = columns /
 * scale_block. A tile is 128 rows by 4 blocks in 512 bytes, tiles one after the other along a row;
 * inside, rows 0, 32, 64 and 96 lie side by side. */
DEEPWELL_HOST_DEVICE static inline size_t scale_tile_index(size_t row, size_t block,
                                                          size_t blocks) {
    const size_t tile = row / 128 * ((blocks + 3) / 4) + block / 4;
    return tile * 512 + row % 32 * 16 + row % 128 / 32 * 4 + block % 4;
}

/* Place of the scale of (row, column) in `scales`: floats for the 128 modes, bytes for MX
 * and NV. */
DEEPWELL_HOST_DEVICE static inline size_t scale_index(enum scale_mode mode, size_t rows,
                                                     size_t columns, size_t row, size_t column) {
    const size_t blocks128 = (columns + 127) / 128;
    switch (mode) {
    case SCALE_TENSOR: return 0;
    case SCALE_1X128: return column / 128 * rows + row;
    case SCALE_128X128: return row / 128 * ((blocks128 + 3) / 4 * 4) + column / 128;
    case SCALE_MX: return scale_tile_index(row, column / 32, columns / 32);
    case SCALE_NV: return scale_tile_index(row, column / 16, columns / 16);
    }
    return 0;
}

/* The random word for element (row, column) of a copy: word `element % 4` of
 * random_words(seed, rounding_stream(tensor), rounding_index(...)) (base/random.h, Philox-4x32-10),
 * element = row * columns + column of that copy, below 2^33. `tensor` numbers the tensor in the
 * model; draws is state->draws, so no two micro-batches of a run round alike. */
DEEPWELL_HOST_DEVICE static inline uint32_t rounding_stream(uint32_t tensor) {
    return 5u | tensor << 8; /* 5: RANDOM_ROUNDING */
}
DEEPWELL_HOST_DEVICE static inline uint64_t rounding_index(uint32_t draws, bool transposed,
                                                          size_t element) {
    return (uint64_t)draws << 32 | (uint64_t)transposed << 31 | (uint64_t)(element / 4);
}

#ifdef __cplusplus
}
#endif
#endif

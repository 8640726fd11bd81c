/*
 * Narrow number formats and the rules of their scales, on the CPU and in kernels alike: a kernel
 * that converts with the hardware's instructions must give these bits.
 *
 *            exponent  fraction  bias  largest  smallest   specials
 *   E4M3        4         3        7     448     2^-9      NaN 0x7F and 0xFF, no infinity ("fn")
 *   E5M2        5         2       15   57344     2^-16     infinity 0x7C, NaN 0x7D to 0x7F
 *   E2M1        2         1        1       6     2^-1      none
 *   UE8M0       8         0      127   2^127     2^-127    NaN 0xFF; a scale: no sign, no zero
 *
 * Micikevicius et al., "FP8 formats for deep learning" (2022); OCP Microscaling formats v1.0
 * (2023).
 *
 * Encoding rounds to nearest, ties to even, and saturates: a finite number beyond the largest, and
 * an infinity, become the largest with their sign (PTX cvt.rn.satfinite). A NaN becomes 0x7F in
 * E4M3 and E5M2, its sign lost. E2M1 has no NaN: it becomes 6, and the scale of its block, which is
 * then NaN, carries it. Whoever must not lose an infinity looks at the largest magnitude (amax) of
 * the tensor or block, as all scale rules below do: none of them hides a number that is not finite.
 */
#ifndef DEEPWELL_KERNELS_FORMATS_H_
#define DEEPWELL_KERNELS_FORMATS_H_

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/float_bits.h"
#include "kernels/host_device.h"

#ifdef __cplusplus
extern "C" {
#endif

enum number_format { FORMAT_E4M3, FORMAT_E5M2, FORMAT_E2M1 };

const char *format_name(enum number_format format); /* "e4m3", "e5m2", "e2m1" */

#define E4M3_MAX 448.0f
#define E5M2_MAX 57344.0f
#define E2M1_MAX 6.0f

DEEPWELL_HOST_DEVICE static inline float format_max(enum number_format format) {
    return format == FORMAT_E4M3 ? E4M3_MAX : format == FORMAT_E5M2 ? E5M2_MAX : E2M1_MAX;
}

DEEPWELL_HOST_DEVICE static inline int format_is_nan(float value) {
    return (bits_of_float(value) & 0x7FFFFFFFu) > 0x7F800000u;
}

/* The code without its sign of the magnitude with FP32 bits `size`, no NaN. `bias` and `fraction`
 * are the format's, `largest` the FP32 bits of its largest number. Below the smallest normal number
 * the adder rounds: the last bit of `magic` is worth the format's smallest number. */
DEEPWELL_HOST_DEVICE static inline uint32_t format_magnitude(uint32_t size, uint32_t bias,
                                                            uint32_t fraction, uint32_t largest) {
    const uint32_t shift = 23u - fraction, rebias = (127u - bias) << 23;
    const uint32_t kept = size < largest ? size : largest;
    const uint32_t magic = (127u + 24u - bias - fraction) << 23;
    const uint32_t half = (1u << (shift - 1u)) - 1u + (kept >> shift & 1u); /* a tie: to even */
    const uint32_t normal = (kept - rebias + half) >> shift;
    const uint32_t subnormal = bits_of_float(float_of_bits(kept) + float_of_bits(magic)) - magic;
    return kept < rebias + (1u << 23) ? subnormal : normal;
}

DEEPWELL_HOST_DEVICE static inline uint8_t e4m3_from_float(float value) {
    const uint32_t bits = bits_of_float(value), size = bits & 0x7FFFFFFFu;
    const uint32_t code = (bits >> 24 & 0x80u) | format_magnitude(size, 7, 3, 0x43E00000u);
    return (uint8_t)(size > 0x7F800000u ? 0x7Fu : code);
}

DEEPWELL_HOST_DEVICE static inline uint8_t e5m2_from_float(float value) {
    const uint32_t bits = bits_of_float(value), size = bits & 0x7FFFFFFFu;
    const uint32_t code = (bits >> 24 & 0x80u) | format_magnitude(size, 15, 2, 0x47600000u);
    return (uint8_t)(size > 0x7F800000u ? 0x7Fu : code);
}

/* In the low four bits. */
DEEPWELL_HOST_DEVICE static inline uint8_t e2m1_from_float(float value) {
    const uint32_t bits = bits_of_float(value), size = bits & 0x7FFFFFFFu;
    const uint32_t code = (bits >> 28 & 0x8u) | format_magnitude(size, 1, 1, 0x40C00000u);
    return (uint8_t)(size > 0x7F800000u ? 0x7u : code);
}

/* Exact. Read with FP32's bias the code is a power of two too small. */
DEEPWELL_HOST_DEVICE static inline float float_from_e4m3(uint8_t code) {
    const uint32_t sign = (uint32_t)(code & 0x80u) << 24, size = code & 0x7Fu;
    const uint32_t finite = bits_of_float(float_of_bits(size << 20) * 0x1p120f);
    return float_of_bits(sign | (size == 0x7Fu ? 0x7FC00000u : finite));
}

DEEPWELL_HOST_DEVICE static inline float float_from_e5m2(uint8_t code) {
    const uint32_t sign = (uint32_t)(code & 0x80u) << 24, size = code & 0x7Fu;
    const uint32_t finite = bits_of_float(float_of_bits(size << 21) * 0x1p112f);
    const uint32_t special = size == 0x7Cu ? 0x7F800000u : 0x7FC00000u;
    return float_of_bits(sign | (size >= 0x7Cu ? special : finite));
}

DEEPWELL_HOST_DEVICE static inline float float_from_e2m1(uint8_t code) {
    const uint32_t sign = (uint32_t)(code & 0x8u) << 28;
    return float_of_bits(sign | bits_of_float(float_of_bits((code & 0x7u) << 22) * 0x1p126f));
}

DEEPWELL_HOST_DEVICE static inline uint8_t format_encode(enum number_format format, float value) {
    return format == FORMAT_E4M3   ? e4m3_from_float(value)
           : format == FORMAT_E5M2 ? e5m2_from_float(value) : e2m1_from_float(value);
}

DEEPWELL_HOST_DEVICE static inline float format_decode(enum number_format format, uint8_t code) {
    return format == FORMAT_E4M3   ? float_from_e4m3(code)
           : format == FORMAT_E5M2 ? float_from_e5m2(code) : float_from_e2m1(code);
}

/* Stochastic rounding: up in magnitude with probability (|value| - below) / (above - below), below
 * and above the neighbours in the format, if `random` is uniform over 32 bits (24 are used); so the
 * expected value is `value` wherever it does not saturate. A representable number stays itself. The
 * value is finite; others are encoded as format_encode() does. */
DEEPWELL_HOST_DEVICE static inline uint8_t format_encode_stochastic(enum number_format format,
                                                                   float value, uint32_t random) {
    const uint32_t fraction = format == FORMAT_E4M3 ? 3u : format == FORMAT_E5M2 ? 2u : 1u;
    const uint32_t bias = format == FORMAT_E4M3 ? 7u : format == FORMAT_E5M2 ? 15u : 1u;
    const uint32_t size = bits_of_float(value) & 0x7FFFFFFFu;
    const uint32_t lowest = 128u - bias; /* FP32 exponent of the smallest normal number */
    if (float_of_bits(size) >= format_max(format) || size >= 0x7F800000u) {
        return format_encode(format, value);
    }
    const uint32_t exponent = (size >> 23) < lowest ? lowest : size >> 23;
    const float spacing = float_of_bits((exponent - fraction) << 23); /* all three steps exact */
    const float position = float_of_bits(size) / spacing;
    const float below = floorf(position);
    const float chance = (float)(random >> 8) * 0x1p-24f;
    const float rounded = (chance < position - below ? below + 1.0f : below) * spacing;
    const uint32_t sign = bits_of_float(value) ^ size;
    return format_encode(format, float_of_bits(bits_of_float(rounded) | sign));
}

/* ---- scales ---- */

/* The largest power-of-two-safe factor: its inverse is still a normal FP32. */
#define SCALE_FACTOR_MAX 0x1p126f

/* What numbers up to `amax` are multiplied by before they are encoded, so that amax becomes
 * `largest`: largest / amax, rounded once. 1 for amax = 0, at most 2^126. An amax that is not
 * finite gives NaN: then every product is NaN, and the step is seen to be not finite. */
DEEPWELL_HOST_DEVICE static inline float scale_from_amax(float amax, float largest) {
    if (!(amax <= 3.402823466e38f)) return float_of_bits(0x7FC00000u);
    if (amax == 0.0f) return 1.0f;
    const float factor = largest / amax;
    return factor < SCALE_FACTOR_MAX ? factor : SCALE_FACTOR_MAX;
}

/* 1 / factor: what decoded numbers are multiplied by. Processors differ in the bits of the NaN that
 * they make of a NaN; this is always the same one. */
DEEPWELL_HOST_DEVICE static inline float scale_inverse(float factor) {
    return format_is_nan(factor) ? float_of_bits(0x7FC00000u) : 1.0f / factor;
}

/* MXFP8's scale of a block, 2^(code - 127) at or above amax / 448: rounded up, so that nothing
 * saturates ("Recipes for pre-training LLMs with MXFP8", arXiv 2506.08027; the floor rule of the
 * OCP specification would let a block's largest numbers saturate in one of five blocks). At least
 * 2^-117 (code 10), zero blocks too: then every E4M3 number times its scale is a normal BF16, and
 * blocks below 2^-109 lose digits nobody can see. NaN for a NaN; 2^127 for an infinity, which then
 * stays one when 448 is multiplied by it, while the rest of its block becomes 0. */
enum { UE8M0_LEAST = 10, UE8M0_ONE = 127, UE8M0_INFINITY = 0xFE, UE8M0_NAN = 0xFF };

DEEPWELL_HOST_DEVICE static inline uint8_t ue8m0_from_amax(float amax) {
    const uint32_t bits = bits_of_float(amax * (1.0f / E4M3_MAX)) & 0x7FFFFFFFu;
    if (bits > 0x7F800000u) return UE8M0_NAN;
    if (bits == 0x7F800000u) return UE8M0_INFINITY;
    const uint32_t code = (bits >> 23) + ((bits & 0x7FFFFFu) != 0);
    return (uint8_t)(code < UE8M0_LEAST ? (uint32_t)UE8M0_LEAST : code);
}

DEEPWELL_HOST_DEVICE static inline float float_from_ue8m0(uint8_t code) {
    return float_of_bits(code == UE8M0_NAN ? 0x7FC00000u : code == 0 ? 0x00400000u
                                                                     : (uint32_t)code << 23);
}

/* 1 / float_from_ue8m0(code): what a block's numbers are multiplied by. Exact. */
DEEPWELL_HOST_DEVICE static inline float ue8m0_factor(uint8_t code) {
    return float_of_bits(code == UE8M0_NAN ? 0x7FC00000u : code == 0xFE ? 0x00400000u
                                                                        : (254u - code) << 23);
}

/* NVFP4's scale of a block: block amax / 6 under the tensor's factor (2688 / amax, 2688 = 6 * 448),
 * in E4M3. NVIDIA, "Pretraining LLMs with NVFP4", arXiv 2509.25149. */
#define NVFP4_MAX (E4M3_MAX * E2M1_MAX)

DEEPWELL_HOST_DEVICE static inline uint8_t nvfp4_block_scale(float block_amax,
                                                            float tensor_factor) {
    return e4m3_from_float(block_amax * tensor_factor * (1.0f / E2M1_MAX));
}

/* What a number of that block is encoded from: x * tensor_factor / scale, 0 under a scale of 0. */
DEEPWELL_HOST_DEVICE static inline float nvfp4_scaled(float x, float tensor_factor, float scale) {
    return scale == 0.0f ? 0.0f : x * tensor_factor / scale;
}

/* The random Hadamard transform of 16 numbers, in place: signs, then butterflies at distances 1, 2,
 * 4 and 8, then 1/4. Orthonormal, so a product over a dimension that both operands transform stays
 * what it was. One fixed vector of random signs: bit i set changes the sign of x[i]. */
enum { HADAMARD_SIZE = 16, HADAMARD_SIGNS = 0x6B2D };

DEEPWELL_HOST_DEVICE static inline void hadamard_transform(float x[HADAMARD_SIZE]) {
    for (int i = 0; i < HADAMARD_SIZE; i++) {
        if (HADAMARD_SIGNS >> i & 1) x[i] = -x[i];
    }
    for (int distance = 1; distance < HADAMARD_SIZE; distance *= 2) {
        for (int i = 0; i < HADAMARD_SIZE; i++) {
            if (i & distance) continue;
            const float a = x[i], b = x[i + distance];
            x[i] = a + b;
            x[i + distance] = a - b;
        }
    }
    for (int i = 0; i < HADAMARD_SIZE; i++) x[i] *= 0.25f;
}

#ifdef __cplusplus
}
#endif
#endif

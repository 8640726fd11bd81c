/*
 * FP32 to and from the two-byte formats as bit arithmetic without branches, so that loops over it
 * vectorise on any machine. kernels/tensor.c offers it one number at a time, kernels/cpu/rows.c by
 * rows.
 *
 * BF16 is the upper half of an FP32. FP16 (IEEE 754 binary16) has 5 exponent bits of bias 15 and 10
 * fraction bits. Rounding is to nearest, ties to even; a NaN stays one (quiet, payload cut to what
 * fits).
 */
#ifndef DEEPWELL_KERNELS_FLOAT_BITS_H_
#define DEEPWELL_KERNELS_FLOAT_BITS_H_

#include <stdint.h>
#include <string.h>

#include "kernels/host_device.h"

DEEPWELL_HOST_DEVICE static inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

DEEPWELL_HOST_DEVICE static inline float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint16_t bf16_bits_from_float(float value) {
    const uint32_t bits = bits_of_float(value);
    const uint32_t odd = bits >> 16 & 1u; /* a tie goes up only from an odd number */
    const uint32_t rounded = (bits + 0x7FFFu + odd) >> 16;
    const uint32_t quiet = bits >> 16 | 0x0040u;
    return (uint16_t)((bits & 0x7FFFFFFFu) > 0x7F800000u ? quiet : rounded);
}

static inline float float_from_bf16_bits(uint16_t bits) {
    return float_of_bits((uint32_t)bits << 16);
}

static inline uint16_t f16_bits_from_float(float value) {
    const uint32_t bits = bits_of_float(value);
    const uint32_t sign = bits >> 16 & 0x8000u;
    const uint32_t size = bits & 0x7FFFFFFFu;
    /* Normal: exponent bias 127 to 15, then drop 13 fraction bits; a carry out of the largest
     * finite number gives infinity's bits by itself. */
    const uint32_t normal = (size - (112u << 23) + 0xFFFu + (size >> 13 & 1u)) >> 13;
    /* Subnormal: multiples of 2^-24. Adding 0.5, whose last bit is worth 2^-24, lets the adder
     * round. */
    const uint32_t subnormal = bits_of_float(float_of_bits(size) + 0.5f) - bits_of_float(0.5f);
    const uint32_t nan = 0x7E00u | (size >> 13 & 0x3FFu);
    uint32_t out = size < (113u << 23) ? subnormal : normal;
    out = size >= (143u << 23) ? 0x7C00u : out; /* 2^16 and above */
    out = size > 0x7F800000u ? nan : out;
    return (uint16_t)(sign | out);
}

static inline float float_from_f16_bits(uint16_t bits) {
    const uint32_t sign = (uint32_t)(bits & 0x8000u) << 16;
    const uint32_t size = (uint32_t)(bits & 0x7FFFu) << 13;
    /* Read with FP32's bias the number is 2^112 too small; the product is exact, subnormals
     * counted. */
    const uint32_t finite = bits_of_float(float_of_bits(size) * 0x1p112f);
    const uint32_t special = size | 0x7F800000u;
    return float_of_bits(sign | (size >= (0x7C00u << 13) ? special : finite));
}

#endif

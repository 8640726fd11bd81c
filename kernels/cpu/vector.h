/*
 * How the CPU kernels vectorise, and the exponential they share. Included by kernels/cpu only.
 *
 * The inner loops are small functions over one stretch of FP32 numbers, marked VECTOR_CLONES: the
 * compiler makes one copy for each instruction set, and the loader takes the best that the machine
 * has. OpenMP loops stay outside, because the function that OpenMP outlines would not be cloned.
 * The flags (see kernels/BUILD) never reorder arithmetic; only `omp simd reduction` sums in vector
 * lanes, where asked.
 */
#ifndef DEEPWELL_KERNELS_CPU_VECTOR_H_
#define DEEPWELL_KERNELS_CPU_VECTOR_H_

#include <stdint.h>
#include <stdlib.h>

#include "kernels/float_bits.h"

/* The loader picks the clone: glibc's can, and does so before AddressSanitizer and ThreadSanitizer
 * are ready to run. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define VECTOR_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VECTOR_CLONES
#endif

/*
 * exp(x) to within 2 units in the last place; 0 below and infinity above FP32's range, NaN for NaN.
 * Ours because it has no branch: it vectorises on every machine, and an element's bits depend
 * neither on the instruction set nor on where in a row it stands, which a vector library does not
 * promise.
 *
 * x = n ln 2 + r with |r| <= ln 2 / 2, and exp(x) = 2^n exp(r). n ln 2 is subtracted in two parts,
 * the first with so few bits that n times it is exact (Cody and Waite, 1980). The Taylor series of
 * exp(r) ends at r^7 / 7!: what follows is below r^8 / 8! < 6e-9, a tenth of FP32's unit roundoff.
 * 2^n is multiplied in two steps, so that results among the subnormal numbers come out right.
 */
static inline float vector_exp(float x) {
    const float nearest = 0x1.8p23f; /* adding it rounds to an integer, kept in the low bits */
    const float low = x < -104.0f ? -104.0f : x;
    const float clamped = low > 89.0f ? 89.0f : low; /* a NaN passes both comparisons */
    const float shifted = clamped * 1.44269504f + nearest;
    const float n = shifted - nearest;
    const float ln2_high = 355.0f / 512.0f; /* 9 bits */
    const float ln2_low = (float)(0.6931471805599453 - 355.0 / 512.0);
    const float r = (clamped - n * ln2_high) - n * ln2_low;
    float p = 1.0f / 5040.0f;
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r * r + r;
    p = p + 1.0f;
    const int32_t exponent = (int32_t)(bits_of_float(shifted) - bits_of_float(nearest));
    const int32_t half = exponent >> 1;
    const float scale1 = float_of_bits((uint32_t)(half + 127) << 23);
    const float scale2 = float_of_bits((uint32_t)(exponent - half + 127) << 23);
    return p * scale1 * scale2;
}

#endif

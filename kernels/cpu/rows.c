/* Widening and rounding of stretches of numbers, behind kernels/cpu/rows.h. */
#include "kernels/cpu/rows.h"

#include <string.h>

#include "kernels/cpu/vector.h"

VECTOR_CLONES
static void load_bf16(float *to, const uint16_t *from, size_t count) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) to[i] = float_from_bf16_bits(from[i]);
}

VECTOR_CLONES
static void load_f16(float *to, const uint16_t *from, size_t count) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) to[i] = float_from_f16_bits(from[i]);
}

VECTOR_CLONES
static void store_bf16(uint16_t *to, const float *from, size_t count) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) to[i] = bf16_bits_from_float(from[i]);
}

VECTOR_CLONES
static void store_f16(uint16_t *to, const float *from, size_t count) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) to[i] = f16_bits_from_float(from[i]);
}

VECTOR_CLONES
void row_add(float *to, const float *from, size_t count) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) to[i] += from[i];
}

VECTOR_CLONES
float row_largest(const float *x, float start, size_t count) {
    float top = start;
#pragma omp simd reduction(max : top)
    for (size_t i = 0; i < count; i++) top = x[i] > top ? x[i] : top;
    return top;
}

void row_load(float *to, const struct tensor *from, size_t first, size_t count) {
    switch (from->dtype) {
    case DTYPE_F32: memcpy(to, (const float *)from->data + first, count * sizeof *to); break;
    case DTYPE_BF16: load_bf16(to, (const uint16_t *)from->data + first, count); break;
    case DTYPE_F16: load_f16(to, (const uint16_t *)from->data + first, count); break;
    }
}

void row_store(const struct tensor *to, size_t first, size_t count, const float *from) {
    switch (to->dtype) {
    case DTYPE_F32: memcpy((float *)to->data + first, from, count * sizeof *from); break;
    case DTYPE_BF16: store_bf16((uint16_t *)to->data + first, from, count); break;
    case DTYPE_F16: store_f16((uint16_t *)to->data + first, from, count); break;
    }
}

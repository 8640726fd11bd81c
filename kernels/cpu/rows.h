/*
 * Stretches of a tensor as FP32: in place where the tensor is FP32, otherwise through a small
 * buffer, widened on the way in and rounded on the way out. `first` counts numbers from the
 * tensor's start.
 *
 *   const float *x = row_read(&in, first, count, buffer_x);
 *   float *y = row_target(&out, first, buffer_y);
 *   ... y[i] = f(x[i]) ...
 *   row_commit(&out, first, count, y);
 */
#ifndef DEEPWELL_KERNELS_CPU_ROWS_H_
#define DEEPWELL_KERNELS_CPU_ROWS_H_

#include "kernels/tensor.h"

/* Loops without state across a row work in stretches of this many numbers, with buffers on the
 * stack. */
enum { ROW_TILE = 1024 };

/* Copies, widening; the numbers are anywhere, also in FP32. */
void row_load(float *to, const struct tensor *from, size_t first, size_t count);

/* Copies, rounding. */
void row_store(const struct tensor *to, size_t first, size_t count, const float *from);

/* to[i] += from[i]. */
void row_add(float *to, const float *from, size_t count);

/* The largest of `start` and the numbers, not counting NaNs. */
float row_largest(const float *x, float start, size_t count);

static inline const float *row_read(const struct tensor *t, size_t first, size_t count,
                                    float *buffer) {
    if (t->dtype == DTYPE_F32) return (const float *)t->data + first;
    row_load(buffer, t, first, count);
    return buffer;
}

static inline float *row_target(const struct tensor *t, size_t first, float *buffer) {
    return t->dtype == DTYPE_F32 ? (float *)t->data + first : buffer;
}

static inline void row_commit(const struct tensor *t, size_t first, size_t count,
                              const float *values) {
    if (t->dtype != DTYPE_F32) row_store(t, first, count, values);
}

#endif

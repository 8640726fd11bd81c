/*
 * A tensor: where its numbers lie, their type and its shape. It owns nothing; arenas own memory.
 * Always row-major and contiguous. On the CPU a BF16 or FP16 tensor is stored in two bytes a number
 * too: operations widen to FP32, compute, and round to nearest even when they store.
 */
#ifndef DEEPWELL_KERNELS_TENSOR_H_
#define DEEPWELL_KERNELS_TENSOR_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum dtype { DTYPE_F32, DTYPE_BF16, DTYPE_F16 };

static inline size_t dtype_bytes(enum dtype type) { return type == DTYPE_F32 ? 4 : 2; }
const char *dtype_name(enum dtype type); /* "fp32", "bf16", "fp16" */

/* A matrix view (rows, columns): what every operation takes. A vector has one row. */
struct tensor {
    void *data;
    enum dtype dtype;
    size_t rows;
    size_t columns;
};

static inline struct tensor tensor_make(void *data, enum dtype dtype, size_t rows, size_t columns) {
    struct tensor t = {data, dtype, rows, columns};
    return t;
}
static inline size_t tensor_count(struct tensor t) { return t.rows * t.columns; }
static inline size_t tensor_bytes(struct tensor t) {
    return tensor_count(t) * dtype_bytes(t.dtype);
}

/* Rows [first, first + rows) of t, a view. */
static inline struct tensor tensor_rows(struct tensor t, size_t first, size_t rows) {
    char *base = (char *)t.data;
    return tensor_make(base == NULL ? NULL : base + first * t.columns * dtype_bytes(t.dtype),
                       t.dtype, rows, t.columns);
}

/* One number, round to nearest even; NaN stays NaN. */
uint16_t bf16_from_float(float value);
float float_from_bf16(uint16_t bits);
uint16_t f16_from_float(float value);
float float_from_f16(uint16_t bits);

/* `value` as a tensor of `type` would store it. */
float dtype_round(enum dtype type, float value);

#ifdef __cplusplus
}
#endif
#endif

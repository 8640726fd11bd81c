/* What the attention passes share, behind kernels/cpu/attention.h. */
#include "kernels/cpu/attention.h"

#include <cblas.h>
#include <limits.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vector.h"

size_t attention_scratch_bytes(int threads, const struct op_limits *limits) {
    const size_t length = limits->sequence_length, width = limits->head_width;
    if (limits->heads == 0) return 0;
    return buffers_bytes((size_t)threads, size_max(attention_forward_floats(length, width),
                                                   attention_backward_floats(length, width)));
}

enum status attention_check(const char *operation, struct tensor qkv, struct tensor out,
                            size_t rows, size_t heads) {
    const size_t width = out.columns;
    if (heads == 0 || width % heads != 0 || width > INT_MAX || rows > INT_MAX) {
        return status_set(STATUS_INTERNAL, "%s: width %zu in %zu heads, %zu rows, dimensions to %d",
                          operation, width, heads, rows, INT_MAX);
    }
    TRY(shape_check(operation, "qkv", qkv, rows, 3 * width));
    return shape_check(operation, "out", out, rows, width);
}

void head_pack(float *to, struct head_view from, size_t first, size_t rows, size_t width) {
    for (size_t i = 0; i < rows; i++) {
        row_load(to + i * width, &from.rows, (first + i) * from.rows.columns + from.column, width);
    }
}

void head_unpack(struct head_view to, const float *from, size_t first, size_t rows, size_t width) {
    for (size_t i = 0; i < rows; i++) {
        row_store(&to.rows, (first + i) * to.rows.columns + to.column, width, from + i * width);
    }
}

void tile_multiply(float *c, size_t c_stride, struct tile_operand a, struct tile_operand b,
                   size_t m, size_t n, size_t k, bool accumulate) {
    cblas_sgemm(CblasRowMajor, a.transposed ? CblasTrans : CblasNoTrans,
                b.transposed ? CblasTrans : CblasNoTrans, (int)m, (int)n, (int)k, 1.0f, a.data,
                (int)a.stride, b.data, (int)b.stride, accumulate ? 1.0f : 0.0f, c, (int)c_stride);
}

VECTOR_CLONES
void scale_row(float *x, float scale, size_t count) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) x[i] *= scale;
}

VECTOR_CLONES
float exponentials_row(float *x, float top, size_t count) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < count; i++) {
        x[i] = vector_exp(x[i] - top);
        sum += x[i];
    }
    return sum;
}

/*
 * The product of two quantised operands: codes are decoded block by block into FP32 panels, with
 * the scales of their blocks; a panel of the result is accumulated over all of K by sgemm. The
 * scales of whole tensors multiply the sum. So every product is of the very numbers that hardware
 * would multiply, and the accumulation is wide.
 */
#include <cblas.h>
#include <limits.h>

#include "base/checked.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/quantise.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vector.h"

/* As in gemm.c, whose scratch memory this uses: panels of 2, 4 and 2 MiB. */
enum { BLOCK_M = 512, BLOCK_N = 1024, BLOCK_K = 1024 };

VECTOR_CLONES
static void decode_e4m3(float *to, const uint8_t *codes, float scale, size_t count) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) to[i] = float_from_e4m3(codes[i]) * scale;
}

VECTOR_CLONES
static void decode_e5m2(float *to, const uint8_t *codes, float scale, size_t count) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) to[i] = float_from_e5m2(codes[i]) * scale;
}

VECTOR_CLONES
static void decode_e2m1(float *to, const uint8_t *codes, float scale, size_t count) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) {
        to[i] = float_from_e2m1((uint8_t)(codes[i / 2] >> (i % 2 * 4) & 0xF)) * scale;
    }
}

static float block_scale(const struct operand *o, size_t row, size_t column) {
    const size_t at = scale_index(o->mode, o->rows, o->columns, row, column);
    switch (o->mode) {
    case SCALE_TENSOR: return 1.0f;
    case SCALE_1X128:
    case SCALE_128X128: return ((const float *)o->scales)[at];
    case SCALE_MX: return float_from_ue8m0(((const uint8_t *)o->scales)[at]);
    case SCALE_NV: return float_from_e4m3(((const uint8_t *)o->scales)[at]);
    }
    return 1.0f;
}

void operand_decode(const struct operand *o, size_t row, size_t column, float *to, size_t count) {
    const size_t block = o->mode == SCALE_TENSOR ? count : scale_block(o->mode);
    for (size_t i = 0; i < count; i += block) {
        const size_t element = row * o->columns + column + i, some = size_min(block, count - i);
        const float scale = block_scale(o, row, column + i);
        const uint8_t *codes = o->codes;
        switch (o->format) {
        case FORMAT_E4M3: decode_e4m3(to + i, codes + element, scale, some); break;
        case FORMAT_E5M2: decode_e5m2(to + i, codes + element, scale, some); break;
        case FORMAT_E2M1: decode_e2m1(to + i, codes + element / 2, scale, some); break;
        }
    }
}

static float tensor_scale(const struct operand *o) {
    return o->state == NULL ? 1.0f : o->state->inverse;
}

static bool scales_match(enum scale_mode a, enum scale_mode b) {
    const bool wide_a = a == SCALE_1X128 || a == SCALE_128X128;
    const bool wide_b = b == SCALE_1X128 || b == SCALE_128X128;
    if (wide_a && wide_b) return a == SCALE_1X128 || b == SCALE_1X128;
    return a == b;
}

static enum status check(const struct quantised_gemm *op) {
    const struct operand *a = &op->a, *b = &op->b;
    const bool formats = (a->format == FORMAT_E2M1) == (b->format == FORMAT_E2M1) &&
                         !(a->format == FORMAT_E5M2 && b->format == FORMAT_E5M2);
    const bool shapes = a->columns == b->columns && op->c.rows == a->rows &&
                        op->c.columns == b->rows && a->columns > 0 && a->rows > 0 && b->rows > 0 &&
                        (op->bias == NULL || tensor_count(*op->bias) == b->rows) &&
                        size_max(size_max(a->rows, b->rows), a->columns) <= INT_MAX;
    if (formats && shapes && scales_match(a->mode, b->mode) && a->codes != NULL &&
        b->codes != NULL) {
        return STATUS_OK;
    }
    return status_set(STATUS_INTERNAL,
                      "quantised_gemm: (%zu, %zu) of %s, %s by (%zu, %zu) of %s, %s into "
                      "(%zu, %zu)",
                      a->rows, a->columns, format_name(a->format), scale_mode_name(a->mode),
                      b->rows, b->columns, format_name(b->format), scale_mode_name(b->mode),
                      op->c.rows, op->c.columns);
}

static void read_panel(const struct device *device, const struct operand *o, size_t row,
                       size_t rows, size_t column, size_t columns, float *to) {
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (size_t i = 0; i < rows; i++) {
        operand_decode(o, row + i, column, to + i * columns, columns);
    }
}

/* c's rows from the sums: the tensors' scales, then what is added. */
static void write_panel(const struct device *device, const struct quantised_gemm *op, size_t row,
                        size_t rows, size_t column, size_t columns, float *sums, float alpha) {
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (size_t i = 0; i < rows; i++) {
        const size_t first = (row + i) * op->c.columns + column;
        for (size_t j = 0; j < columns; j += ROW_TILE) {
            const size_t count = size_min(ROW_TILE, columns - j);
            float *x = sums + i * columns + j, buffer[ROW_TILE];
            for (size_t l = 0; l < count; l++) x[l] *= alpha;
            if (op->bias != NULL) row_add(x, row_read(op->bias, column + j, count, buffer), count);
            if (op->accumulate) row_add(x, row_read(&op->c, first + j, count, buffer), count);
            row_store(&op->c, first + j, count, x);
        }
    }
}

enum status cpu_quantised_gemm(struct device *device, const struct quantised_gemm *op) {
    struct scratch scratch = scratch_begin(device);
    struct buffers a = {0}, b = {0}, c = {0};
    TRY(check(op));
    TRY(scratch_take(&scratch, "quantised_gemm", 1, BLOCK_M * BLOCK_K, &a));
    TRY(scratch_take(&scratch, "quantised_gemm", 1, BLOCK_K * BLOCK_N, &b));
    TRY(scratch_take(&scratch, "quantised_gemm", 1, BLOCK_M * BLOCK_N, &c));
    const size_t m = op->c.rows, n = op->c.columns, k = op->a.columns;
    const float alpha = tensor_scale(&op->a) * tensor_scale(&op->b);
    for (size_t n0 = 0; n0 < n; n0 += BLOCK_N) {
        const size_t columns = size_min(BLOCK_N, n - n0);
        for (size_t m0 = 0; m0 < m; m0 += BLOCK_M) {
            const size_t rows = size_min(BLOCK_M, m - m0);
            for (size_t k0 = 0; k0 < k; k0 += BLOCK_K) {
                const size_t count = size_min(BLOCK_K, k - k0);
                read_panel(device, &op->a, m0, rows, k0, count, a.first);
                read_panel(device, &op->b, n0, columns, k0, count, b.first);
                cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows, (int)columns,
                            (int)count, 1.0f, a.first, (int)count, b.first, (int)count,
                            k0 > 0 ? 1.0f : 0.0f, c.first, (int)columns);
            }
            write_panel(device, op, m0, rows, n0, columns, c.first, alpha);
        }
    }
    return STATUS_OK;
}

enum support cpu_scale_support(const struct device *device, enum scale_mode mode) {
    (void)device;
    (void)mode;
    return SUPPORT_EMULATED;
}

/*
 * Matrix multiplication through OpenBLAS. FP32 operands go to sgemm as they lie. Others are widened
 * block by block into FP32 panels; a panel of c is accumulated over all of k and rounded once, when
 * stored.
 */
#include <cblas.h>
#include <limits.h>
#include <string.h>

#include "base/checked.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"

/* Panels of 2, 4 and 2 MiB. Widening a number costs about as much as 8 multiply-adds with it,
 * against BLOCK_M or BLOCK_N of them that follow. */
enum { BLOCK_M = 512, BLOCK_N = 1024, BLOCK_K = 1024 };

size_t gemm_scratch_bytes(const struct op_limits *limits) {
    if (limits->dtype == DTYPE_F32) return 0;
    return buffers_bytes(1, BLOCK_M * BLOCK_K) + buffers_bytes(1, BLOCK_K * BLOCK_N) +
           buffers_bytes(1, BLOCK_M * BLOCK_N);
}

struct gemm_shape {
    size_t m, n, k;
};

/* An FP32 matrix with `stride` numbers from row to row. */
struct panel {
    float *data;
    size_t stride;
};

/* Rows and columns of a matrix: [row, row + rows) x [column, column + columns). */
struct block {
    size_t row, rows, column, columns;
};

static struct block block_make(bool transposed, size_t row, size_t rows, size_t column,
                               size_t columns) {
    return transposed ? (struct block){column, columns, row, rows}
                      : (struct block){row, rows, column, columns};
}

static enum status gemm_check(const struct gemm *op, struct gemm_shape *shape) {
    const struct tensor *a = &op->a, *b = &op->b, *c = &op->c;
    const size_t k = op->transpose_a ? a->rows : a->columns;
    const size_t a_rows = op->transpose_a ? a->columns : a->rows;
    const size_t b_rows = op->transpose_b ? b->columns : b->rows;
    const size_t n = op->transpose_b ? b->rows : b->columns;
    const size_t largest = size_max(size_max(c->rows, c->columns), k);
    if (c->rows != a_rows || c->columns != n || b_rows != k || c->rows == 0 || n == 0 || k == 0 ||
        largest > INT_MAX || (op->bias != NULL && tensor_count(*op->bias) != n)) {
        return status_set(STATUS_INTERNAL,
                          "gemm: (%zu, %zu)%s by (%zu, %zu)%s into (%zu, %zu), bias "
                          "of %zu, dimensions to %d",
                          a->rows, a->columns, op->transpose_a ? " transposed" : "", b->rows,
                          b->columns, op->transpose_b ? " transposed" : "", c->rows, c->columns,
                          op->bias == NULL ? 0 : tensor_count(*op->bias), INT_MAX);
    }
    *shape = (struct gemm_shape){c->rows, n, k};
    return STATUS_OK;
}

/* The block in FP32: in place, or widened into `buffer`. */
static struct panel panel_read(const struct device *device, const struct tensor *t,
                               struct block block, float *buffer) {
    if (t->dtype == DTYPE_F32) {
        return (struct panel){(float *)t->data + block.row * t->columns + block.column, t->columns};
    }
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (size_t i = 0; i < block.rows; i++) {
        row_load(buffer + i * block.columns, t, (block.row + i) * t->columns + block.column,
                 block.columns);
    }
    return (struct panel){buffer, block.columns};
}

/* What sgemm adds to: old content and bias. Nothing is written if there is neither. */
static void panel_prefill(const struct device *device, const struct gemm *op, struct block block,
                          struct panel panel) {
    if (op->bias == NULL && (!op->accumulate || op->c.dtype == DTYPE_F32)) return;
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (size_t i = 0; i < block.rows; i++) {
        for (size_t j = 0; j < block.columns; j += ROW_TILE) {
            const size_t count = size_min(ROW_TILE, block.columns - j);
            float *to = panel.data + i * panel.stride + j;
            float buffer[ROW_TILE];
            if (!op->accumulate) {
                row_load(to, op->bias, block.column + j, count);
                continue;
            }
            if (op->c.dtype != DTYPE_F32) {
                row_load(to, &op->c, (block.row + i) * op->c.columns + block.column + j, count);
            }
            if (op->bias == NULL) continue;
            row_add(to, row_read(op->bias, block.column + j, count, buffer), count);
        }
    }
}

static void panel_commit(const struct device *device, const struct tensor *c, struct block block,
                         struct panel panel) {
    if (c->dtype == DTYPE_F32) return;
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (size_t i = 0; i < block.rows; i++) {
        row_store(c, (block.row + i) * c->columns + block.column, block.columns,
                  panel.data + i * panel.stride);
    }
}

/* c [+]= op(a) op(b) on FP32 panels. A single row is a matrix by a vector: sgemm would copy all of
 * b to read it once. It starts from zeros, for not every sgemv keeps a NaN out that lay in c (BLAS
 * leaves that open). */
static void panels_multiply(const struct gemm *op, struct block block, size_t k, struct panel a,
                            struct panel b, struct panel c, bool add) {
    if (block.rows == 1) {
        if (!add) memset(c.data, 0, block.columns * sizeof *c.data);
        const int a_step = op->transpose_a ? (int)a.stride : 1;
        const int b_rows = (int)(op->transpose_b ? block.columns : k);
        const int b_columns = (int)(op->transpose_b ? k : block.columns);
        cblas_sgemv(CblasRowMajor, op->transpose_b ? CblasNoTrans : CblasTrans, b_rows, b_columns,
                    1.0f, b.data, (int)b.stride, a.data, a_step, 1.0f, c.data, 1);
        return;
    }
    cblas_sgemm(CblasRowMajor, op->transpose_a ? CblasTrans : CblasNoTrans,
                op->transpose_b ? CblasTrans : CblasNoTrans, (int)block.rows, (int)block.columns,
                (int)k, 1.0f, a.data, (int)a.stride, b.data, (int)b.stride,
                add ? 1.0f : 0.0f, c.data, (int)c.stride);
}

struct gemm_panels {
    struct buffers a, b, c; /* unused where the tensor is FP32 */
};

/* One block of c, over all of k in steps of `step_k`. */
static void gemm_block(const struct device *device, const struct gemm *op, struct block block,
                       size_t k, size_t step_k, struct gemm_panels panels) {
    const bool in_place = op->c.dtype == DTYPE_F32;
    const struct panel c = {
        in_place ? (float *)op->c.data + block.row * op->c.columns + block.column : panels.c.first,
        in_place ? op->c.columns : block.columns};
    panel_prefill(device, op, block, c);
    const bool prefilled = op->accumulate || op->bias != NULL;
    for (size_t k0 = 0; k0 < k; k0 += step_k) {
        const size_t count = size_min(step_k, k - k0);
        const struct panel a = panel_read(
            device, &op->a, block_make(op->transpose_a, block.row, block.rows, k0, count),
            panels.a.first);
        const struct panel b = panel_read(
            device, &op->b, block_make(op->transpose_b, k0, count, block.column, block.columns),
            panels.b.first);
        panels_multiply(op, block, count, a, b, c, prefilled || k0 > 0);
    }
    panel_commit(device, &op->c, block, c);
}

enum status cpu_gemm(struct device *device, const struct gemm *op) {
    struct gemm_shape shape = {0};
    struct gemm_panels panels = {0};
    TRY(gemm_check(op, &shape));
    struct gemm_shape step = shape; /* FP32 needs no panels and so no blocks */
    if (op->a.dtype != DTYPE_F32 || op->b.dtype != DTYPE_F32 || op->c.dtype != DTYPE_F32) {
        struct scratch scratch = scratch_begin(device);
        step = (struct gemm_shape){BLOCK_M, BLOCK_N, BLOCK_K};
        TRY(scratch_take(&scratch, "gemm", 1, BLOCK_M * BLOCK_K, &panels.a));
        TRY(scratch_take(&scratch, "gemm", 1, BLOCK_K * BLOCK_N, &panels.b));
        TRY(scratch_take(&scratch, "gemm", 1, BLOCK_M * BLOCK_N, &panels.c));
    }
    for (size_t n0 = 0; n0 < shape.n; n0 += step.n) {
        for (size_t m0 = 0; m0 < shape.m; m0 += step.m) {
            const struct block block = {m0, size_min(step.m, shape.m - m0), n0,
                                        size_min(step.n, shape.n - n0)};
            gemm_block(device, op, block, shape.k, step.k, panels);
        }
    }
    return STATUS_OK;
}

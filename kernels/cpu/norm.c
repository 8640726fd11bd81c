/* Layer norm fused with the residual addition before it (Ba et al., 2016). */
#include <math.h>
#include <omp.h>

#include "base/checked.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/quantise.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vector.h"

static const double EPSILON = 1e-5;

/* Forward: weight, bias and delta_bias widened once, and 3 rows a thread. Backward: weight widened,
 * 3 rows a thread, and a chunk's partial column sums of the three gradients. */
enum { VECTORS = 3, THREAD_ROWS = 3, SUMS = 3 };

size_t norm_scratch_bytes(int threads, const struct op_limits *limits) {
    return buffers_bytes(VECTORS + THREAD_ROWS * (size_t)threads, limits->width) +
           buffers_bytes(row_chunks_max(limits->tokens), SUMS * limits->width);
}

VECTOR_CLONES
static void residual_row(float *out, const float *in, const float *delta, const float *bias,
                         size_t count) {
    if (bias == NULL) {
#pragma omp simd
        for (size_t i = 0; i < count; i++) out[i] = in[i] + delta[i];
    } else {
#pragma omp simd
        for (size_t i = 0; i < count; i++) out[i] = in[i] + (delta[i] + bias[i]);
    }
}

VECTOR_CLONES
static double sum_row(const float *x, size_t count) {
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < count; i++) sum += (double)x[i];
    return sum;
}

VECTOR_CLONES
static double squares_row(const float *x, double mean, size_t count) {
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < count; i++) sum += ((double)x[i] - mean) * ((double)x[i] - mean);
    return sum;
}

VECTOR_CLONES
static void normalise_row(float *out, const float *x, float mean, float rstd, const float *weight,
                          const float *bias, size_t count) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) out[i] = (x[i] - mean) * rstd * weight[i] + bias[i];
}

/* Returns the larger of `amax` and the row's (quantise.h). */
static uint32_t norm_forward_row(const struct norm_forward *op, size_t n, const float *weight,
                                 const float *bias, const float *delta_bias,
                                 float *rows[THREAD_ROWS], uint32_t amax) {
    const size_t width = op->out.columns, first = n * width;
    const float *x = row_read(&op->residual_in, first, width, rows[0]);
    if (op->delta != NULL) {
        float *residual = row_target(&op->residual, first, rows[1]);
        residual_row(residual, x, row_read(op->delta, first, width, rows[2]), delta_bias, width);
        row_commit(&op->residual, first, width, residual);
        x = row_read(&op->residual, first, width, rows[1]); /* as the backward pass will see it */
    }
    const double mean = sum_row(x, width) / (double)width;
    const double variance = squares_row(x, mean, width) / (double)width;
    op->mean[n] = (float)mean;
    op->rstd[n] = (float)(1.0 / sqrt(variance + EPSILON));
    const bool stored = op->out.data != NULL;
    float *out = stored ? row_target(&op->out, first, rows[2]) : rows[2];
    normalise_row(out, x, op->mean[n], op->rstd[n], weight, bias, width);
    if (stored) row_commit(&op->out, first, width, out);
    return quantise_output_row(&op->quantise, &op->out, first, out, width, amax);
}

enum status cpu_norm_forward(struct device *device, const struct norm_forward *op) {
    const char *const name = "norm_forward";
    const size_t tokens = op->out.rows, width = op->out.columns;
    struct scratch scratch = scratch_begin(device);
    struct buffers vectors = {0}, rows = {0};
    uint32_t amax = 0;
    TRY(shape_check(name, "residual_in", op->residual_in, tokens, width));
    TRY(quantise_output_check(name, &op->quantise, op->out.data == NULL, tokens, width));
    if (op->delta != NULL) {
        TRY(shape_check(name, "delta", *op->delta, tokens, width));
        TRY(shape_check(name, "residual", op->residual, tokens, width));
    }
    TRY(shape_check(name, "weight", op->weight, 1, width));
    TRY(shape_check(name, "bias", op->bias, 1, width));
    TRY(scratch_take(&scratch, name, VECTORS, width, &vectors));
    TRY(scratch_take(&scratch, name, THREAD_ROWS * (size_t)device->threads, width, &rows));
    const float *weight = row_read(&op->weight, 0, width, buffer_at(vectors, 0));
    const float *bias = row_read(&op->bias, 0, width, buffer_at(vectors, 1));
    const float *delta_bias = NULL;
    if (op->delta_bias != NULL) {
        TRY(shape_check(name, "delta_bias", *op->delta_bias, 1, width));
        delta_bias = row_read(op->delta_bias, 0, width, buffer_at(vectors, 2));
    }
#pragma omp parallel for schedule(static) num_threads(device->threads) reduction(max : amax)
    for (size_t n = 0; n < tokens; n++) {
        const size_t thread = THREAD_ROWS * (size_t)omp_get_thread_num();
        float *thread_rows[THREAD_ROWS] = {buffer_at(rows, thread), buffer_at(rows, thread + 1),
                                           buffer_at(rows, thread + 2)};
        amax = norm_forward_row(op, n, weight, bias, delta_bias, thread_rows, amax);
    }
    quantise_output_finish(device, &op->quantise, amax);
    return STATUS_OK;
}

/* The means over a row of g and of g * xhat, g = out_gradient * weight. */
struct row_means {
    float g, g_xhat;
};

VECTOR_CLONES
static struct row_means backward_means(const float *x, const float *out_gradient,
                                       const float *weight, float mean, float rstd, size_t count) {
    float g_sum = 0.0f, g_xhat_sum = 0.0f;
#pragma omp simd reduction(+ : g_sum, g_xhat_sum)
    for (size_t i = 0; i < count; i++) {
        const float g = out_gradient[i] * weight[i];
        g_sum += g;
        g_xhat_sum += g * ((x[i] - mean) * rstd);
    }
    return (struct row_means){g_sum / (float)count, g_xhat_sum / (float)count};
}

/* gradient = past + rstd (g - mean(g) - xhat mean(g xhat)); past NULL: nothing flowed past the
 * norm. */
VECTOR_CLONES
static void backward_row(float *gradient, const float *past, const float *x,
                         const float *out_gradient, const float *weight, float mean, float rstd,
                         struct row_means means, size_t count) {
    if (past == NULL) {
#pragma omp simd
        for (size_t i = 0; i < count; i++) {
            gradient[i] = rstd * (out_gradient[i] * weight[i] - means.g -
                                  (x[i] - mean) * rstd * means.g_xhat);
        }
    } else {
#pragma omp simd
        for (size_t i = 0; i < count; i++) {
            gradient[i] = past[i] + rstd * (out_gradient[i] * weight[i] - means.g -
                                            (x[i] - mean) * rstd * means.g_xhat);
        }
    }
}

VECTOR_CLONES
static void add_scaled_xhat(float *weight_sum, float *bias_sum, const float *x,
                            const float *out_gradient, float mean, float rstd, size_t count) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) {
        weight_sum[i] += out_gradient[i] * ((x[i] - mean) * rstd);
        bias_sum[i] += out_gradient[i];
    }
}

/* Rows of one chunk; `sums` (SUMS * width) receives their column sums. Returns the rows' amax. */
static uint32_t norm_backward_chunk(const struct norm_backward *op, struct row_chunk chunk,
                                    const float *weight, float *sums, float *rows[THREAD_ROWS]) {
    const size_t width = op->residual.columns;
    uint32_t amax = 0;
    for (size_t i = 0; i < SUMS * width; i++) sums[i] = 0.0f;
    for (size_t n = chunk.first; n < chunk.end; n++) {
        const size_t first = n * width;
        const float mean = op->mean[n], rstd = op->rstd[n];
        const float *x = row_read(&op->residual, first, width, rows[0]);
        const float *out_gradient = row_read(&op->out_gradient, first, width, rows[1]);
        const float *past = op->overwrite_residual_gradient
                                ? NULL : row_read(&op->residual_gradient, first, width, rows[2]);
        float *gradient = row_target(&op->residual_gradient, first, rows[2]);
        const struct row_means means = backward_means(x, out_gradient, weight, mean, rstd, width);
        add_scaled_xhat(sums, sums + width, x, out_gradient, mean, rstd, width);
        backward_row(gradient, past, x, out_gradient, weight, mean, rstd, means, width);
        if (op->delta_bias_gradient != NULL) row_add(sums + 2 * width, gradient, width);
        row_commit(&op->residual_gradient, first, width, gradient);
        amax = quantise_output_row(&op->quantise, &op->residual_gradient, first, gradient, width,
                                   amax);
    }
    return amax;
}

enum status cpu_norm_backward(struct device *device, const struct norm_backward *op) {
    const char *const name = "norm_backward";
    const size_t tokens = op->residual.rows, width = op->residual.columns;
    const size_t chunks = row_chunks(tokens);
    struct scratch scratch = scratch_begin(device);
    struct buffers vector = {0}, rows = {0}, sums = {0};
    uint32_t amax = 0;
    TRY(quantise_output_check(name, &op->quantise, false, tokens, width));
    TRY(shape_check(name, "residual_gradient", op->residual_gradient, tokens, width));
    TRY(shape_check(name, "out_gradient", op->out_gradient, tokens, width));
    TRY(shape_check(name, "weight", op->weight, 1, width));
    TRY(scratch_take(&scratch, name, 1, width, &vector));
    TRY(scratch_take(&scratch, name, THREAD_ROWS * (size_t)device->threads, width, &rows));
    TRY(scratch_take(&scratch, name, chunks, SUMS * width, &sums));
    const float *weight = row_read(&op->weight, 0, width, vector.first);
#pragma omp parallel for schedule(static) num_threads(device->threads) reduction(max : amax)
    for (size_t chunk = 0; chunk < chunks; chunk++) {
        const size_t thread = THREAD_ROWS * (size_t)omp_get_thread_num();
        float *thread_rows[THREAD_ROWS] = {buffer_at(rows, thread), buffer_at(rows, thread + 1),
                                           buffer_at(rows, thread + 2)};
        const uint32_t chunk_amax = norm_backward_chunk(op, row_chunk_at(tokens, chunk), weight,
                                                        buffer_at(sums, chunk), thread_rows);
        amax = chunk_amax > amax ? chunk_amax : amax;
    }
    quantise_output_finish(device, &op->quantise, amax);
    float *const outs[SUMS] = {op->weight_gradient, op->bias_gradient, op->delta_bias_gradient};
    column_sums_finish(device, outs, SUMS, sums, chunks, width, op->accumulate);
    return STATUS_OK;
}

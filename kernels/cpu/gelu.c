/*
 * GELU, tanh form (Hendrycks and Gimpel, 2016), with the bias before it. Computed through the
 * identity (1 + tanh z) / 2 = 1 / (1 + exp(-2 z)): one exponential, and no cancellation where tanh
 * z nears -1.
 */
#include "base/checked.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/quantise.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vector.h"

#define TWO_SQRT_2_OVER_PI 1.5957691216057308f
#define CUBIC 0.044715f

VECTOR_CLONES
static void gelu_row(float *out, const float *x, const float *bias, size_t count) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) {
        const float u = x[i] + bias[i];
        const float z2 = TWO_SQRT_2_OVER_PI * (u + CUBIC * u * u * u);
        out[i] = u / (1.0f + vector_exp(-z2));
    }
}

/* d gelu / du = s + u s (1 - s) d(2 z)/du, s = 1 / (1 + exp(-2 z)). With t = exp(-|2 z|), which is
 * at most 1, s is 1 / (1 + t) or t / (1 + t), and s (1 - s) = t / (1 + t)^2 without
 * cancellation. */
VECTOR_CLONES
static void gelu_backward_row(float *gradient, const float *out_gradient, const float *x,
                              const float *bias, float *sums, size_t count) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) {
        const float u = x[i] + bias[i];
        const float z2 = TWO_SQRT_2_OVER_PI * (u + CUBIC * u * u * u);
        const float slope = TWO_SQRT_2_OVER_PI * (1.0f + 3.0f * CUBIC * u * u);
        const float t = vector_exp(z2 < 0.0f ? z2 : -z2);
        const float r = 1.0f / (1.0f + t);
        const float s = z2 < 0.0f ? t * r : r;
        const float g = out_gradient[i] * (s + u * (t * r * r) * slope);
        gradient[i] = g;
        sums[i] += g;
    }
}

enum status cpu_gelu_forward(struct device *device, const struct gelu_forward *op) {
    const size_t tokens = op->out.rows, width = op->out.columns;
    const bool stored = op->out.data != NULL;
    uint32_t amax = 0;
    TRY(shape_check("gelu_forward", "x", op->x, tokens, width));
    TRY(shape_check("gelu_forward", "bias", op->bias, 1, width));
    TRY(quantise_output_check("gelu_forward", &op->quantise, !stored, tokens, width));
#pragma omp parallel for schedule(static) num_threads(device->threads) reduction(max : amax)
    for (size_t n = 0; n < tokens; n++) {
        for (size_t j = 0; j < width; j += ROW_TILE) {
            float x_buffer[ROW_TILE], bias_buffer[ROW_TILE], out_buffer[ROW_TILE];
            const size_t count = size_min(ROW_TILE, width - j), first = n * width + j;
            float *out = stored ? row_target(&op->out, first, out_buffer) : out_buffer;
            gelu_row(out, row_read(&op->x, first, count, x_buffer),
                     row_read(&op->bias, j, count, bias_buffer), count);
            if (stored) row_commit(&op->out, first, count, out);
            amax = quantise_output_row(&op->quantise, &op->out, first, out, count, amax);
        }
    }
    quantise_output_finish(device, &op->quantise, amax);
    return STATUS_OK;
}

/* `sums` receives the rows' column sums. Returns their amax. */
static uint32_t gelu_backward_chunk(const struct gelu_backward *op, struct row_chunk chunk,
                                    float *sums) {
    const size_t width = op->x.columns;
    const bool stored = op->x_gradient.data != NULL;
    uint32_t amax = 0;
    for (size_t j = 0; j < width; j += ROW_TILE) {
        float bias_buffer[ROW_TILE], x_buffer[ROW_TILE], gradient_buffer[ROW_TILE];
        const size_t count = size_min(ROW_TILE, width - j);
        const float *bias = row_read(&op->bias, j, count, bias_buffer);
        for (size_t i = 0; i < count; i++) sums[j + i] = 0.0f;
        for (size_t n = chunk.first; n < chunk.end; n++) {
            const size_t first = n * width + j;
            const float *out_gradient = row_read(&op->out_gradient, first, count, gradient_buffer);
            float *gradient =
                stored ? row_target(&op->x_gradient, first, gradient_buffer) : gradient_buffer;
            gelu_backward_row(gradient, out_gradient, row_read(&op->x, first, count, x_buffer),
                              bias, sums + j, count);
            if (stored) row_commit(&op->x_gradient, first, count, gradient);
            amax = quantise_output_row(&op->quantise, &op->x_gradient, first, gradient, count,
                                       amax);
        }
    }
    return amax;
}

enum status cpu_gelu_backward(struct device *device, const struct gelu_backward *op) {
    const char *const name = "gelu_backward";
    const size_t tokens = op->x.rows, width = op->x.columns, chunks = row_chunks(tokens);
    struct scratch scratch = scratch_begin(device);
    struct buffers sums = {0};
    uint32_t amax = 0;
    if (op->x_gradient.data != NULL) {
        TRY(shape_check(name, "x_gradient", op->x_gradient, tokens, width));
    }
    TRY(quantise_output_check(name, &op->quantise, op->x_gradient.data == NULL, tokens, width));
    TRY(shape_check(name, "out_gradient", op->out_gradient, tokens, width));
    TRY(shape_check(name, "bias", op->bias, 1, width));
    TRY(scratch_take(&scratch, name, chunks, width, &sums));
#pragma omp parallel for schedule(static) num_threads(device->threads) reduction(max : amax)
    for (size_t chunk = 0; chunk < chunks; chunk++) {
        const uint32_t chunk_amax =
            gelu_backward_chunk(op, row_chunk_at(tokens, chunk), buffer_at(sums, chunk));
        amax = chunk_amax > amax ? chunk_amax : amax;
    }
    quantise_output_finish(device, &op->quantise, amax);
    column_sums_finish(device, &op->bias_gradient, 1, sums, chunks, width, op->accumulate);
    return STATUS_OK;
}

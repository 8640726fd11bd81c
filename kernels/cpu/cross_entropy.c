/*
 * Softmax, cross-entropy and its gradient, row by row where the logits lie. A row is read twice at
 * most: once for its largest logit and the sum of exponentials, carried along stretch by stretch
 * (Milakov and Gimelshein, 2018), and, from the cache, once to become its own gradient.
 */
#include <math.h>

#include "base/checked.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/quantise.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vector.h"

VECTOR_CLONES
static float sum_of_exponentials(const float *x, float top, size_t count) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < count; i++) sum += vector_exp(x[i] - top);
    return sum;
}

VECTOR_CLONES
static void scaled_exponentials(float *out, const float *x, float top, float scale, size_t count) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) out[i] = vector_exp(x[i] - top) * scale;
}

/* A row's largest logit, and the sum of exp(logit - top), both over the vocabulary. */
struct row_sum {
    float top;
    double sum;
};

static struct row_sum row_sum_of(const struct cross_entropy *op, size_t n) {
    const size_t row = n * op->logits.columns;
    struct row_sum result = {-INFINITY, 0.0};
    for (size_t j = 0; j < op->vocabulary; j += ROW_TILE) {
        float buffer[ROW_TILE];
        const size_t count = size_min(ROW_TILE, op->vocabulary - j);
        const float *x = row_read(&op->logits, row + j, count, buffer);
        const float top = row_largest(x, result.top, count);
        if (top > result.top) result.sum *= exp((double)result.top - (double)top);
        result.top = top;
        result.sum += (double)sum_of_exponentials(x, top, count);
    }
    return result;
}

/* A stretch of the gradient to where it is wanted. Returns the larger of `amax` and its own. */
static uint32_t gradient_commit(const struct cross_entropy *op, size_t first, const float *gradient,
                                size_t count, uint32_t amax) {
    if (op->quantise.copies == NULL) row_commit(&op->logits, first, count, gradient);
    return quantise_output_row(&op->quantise, &op->logits, first, gradient, count, amax);
}

/* The row becomes (softmax - onehot) * scale, its padding 0. */
static uint32_t row_gradient(const struct cross_entropy *op, size_t n, struct row_sum row_sum,
                             float scale, uint32_t amax) {
    const size_t row = n * op->logits.columns;
    const size_t target = (size_t)op->targets[n];
    const float softmax_scale = (float)((double)scale / row_sum.sum);
    for (size_t j = 0; j < op->logits.columns; j += ROW_TILE) {
        float buffer[ROW_TILE];
        const size_t count = size_min(ROW_TILE, op->logits.columns - j);
        const size_t real = j >= op->vocabulary ? 0 : size_min(count, op->vocabulary - j);
        const float *x = row_read(&op->logits, row + j, count, buffer);
        float *gradient = row_target(&op->logits, row + j, buffer);
        scaled_exponentials(gradient, x, row_sum.top, softmax_scale, real);
        for (size_t i = real; i < count; i++) gradient[i] = 0.0f;
        if (target >= j && target < j + real) gradient[target - j] -= scale;
        amax = gradient_commit(op, row + j, gradient, count, amax);
    }
    return amax;
}

static void row_zero(const struct cross_entropy *op, size_t n) {
    const float zeros[ROW_TILE] = {0};
    for (size_t j = 0; j < op->logits.columns; j += ROW_TILE) {
        const size_t first = n * op->logits.columns + j;
        const size_t count = size_min(ROW_TILE, op->logits.columns - j);
        row_store(&op->logits, first, count, zeros);
        gradient_commit(op, first, zeros, count, 0);
    }
}

static uint32_t cross_entropy_row(const struct cross_entropy *op, size_t n, float scale,
                                  uint32_t amax) {
    if (op->targets[n] < 0) {
        op->losses[n] = 0.0f;
        if (op->write_gradient) row_zero(op, n);
        return amax;
    }
    float target_logit = 0.0f;
    const struct row_sum row_sum = row_sum_of(op, n);
    row_load(&target_logit, &op->logits, n * op->logits.columns + (size_t)op->targets[n], 1);
    op->losses[n] = (float)((double)row_sum.top - (double)target_logit + log(row_sum.sum));
    return op->write_gradient ? row_gradient(op, n, row_sum, scale, amax) : amax;
}

enum status cpu_cross_entropy(struct device *device, const struct cross_entropy *op) {
    const size_t tokens = op->logits.rows;
    uint32_t amax = 0;
    TRY(quantise_output_check("cross_entropy", &op->quantise, false, tokens, op->logits.columns));
    if (op->vocabulary == 0 || op->vocabulary > op->logits.columns) {
        return status_set(STATUS_INTERNAL, "cross_entropy: vocabulary of %zu in rows of %zu logits",
                          op->vocabulary, op->logits.columns);
    }
    for (size_t n = 0; n < tokens; n++) {
        if (op->targets[n] < -1 || op->targets[n] >= (int64_t)op->vocabulary) {
            return status_set(STATUS_INTERNAL, "cross_entropy: target %d at %zu, vocabulary of %zu",
                              op->targets[n], n, op->vocabulary);
        }
    }
    const float scale = op->write_gradient ? op->gradient_scale * *op->loss_scale : 0.0f;
#pragma omp parallel for schedule(static) num_threads(device->threads) reduction(max : amax)
    for (size_t n = 0; n < tokens; n++) amax = cross_entropy_row(op, n, scale, amax);
    if (op->write_gradient) quantise_output_finish(device, &op->quantise, amax);
    return STATUS_OK;
}

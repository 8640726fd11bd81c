/* Token and position lookup, and its gradient. */
#include <string.h>

#include "base/checked.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vector.h"

VECTOR_CLONES
static void sum_rows(float *out, const float *a, const float *b, size_t count) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) out[i] = a[i] + b[i];
}

enum status cpu_embedding_forward(struct device *device, const struct embedding_forward *op) {
    const char *const name = "embedding_forward";
    const size_t tokens = op->out.rows, width = op->out.columns, length = op->sequence_length;
    const size_t vocabulary = op->token_weight.rows;
    TRY(shape_check(name, "token_weight", op->token_weight, vocabulary, width));
    if (length == 0 || tokens % length != 0 || op->position_weight.columns != width ||
        op->first_position > op->position_weight.rows ||
        length > op->position_weight.rows - op->first_position) {
        return status_set(STATUS_INTERNAL,
                          "%s: %zu tokens in sequences of %zu from position %zu, "
                          "positions (%zu, %zu), width %zu",
                          name, tokens, length, op->first_position, op->position_weight.rows,
                          op->position_weight.columns, width);
    }
    for (size_t n = 0; n < tokens; n++) {
        if (op->tokens[n] < 0 || (size_t)op->tokens[n] >= vocabulary) {
            return status_set(STATUS_INTERNAL, "%s: token %d at %zu, vocabulary of %zu", name,
                              op->tokens[n], n, vocabulary);
        }
    }
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (size_t n = 0; n < tokens; n++) {
        const size_t token = (size_t)op->tokens[n] * width;
        const size_t position = (op->first_position + n % length) * width;
        for (size_t j = 0; j < width; j += ROW_TILE) {
            float token_buffer[ROW_TILE], position_buffer[ROW_TILE], out_buffer[ROW_TILE];
            const size_t count = size_min(ROW_TILE, width - j);
            float *out = row_target(&op->out, n * width + j, out_buffer);
            sum_rows(out, row_read(&op->token_weight, token + j, count, token_buffer),
                     row_read(&op->position_weight, position + j, count, position_buffer), count);
            row_commit(&op->out, n * width + j, count, out);
        }
    }
    return STATUS_OK;
}

/* Columns [first, first + count) of the token gradient, all tokens in order. */
static void token_gradient_columns(const struct embedding_backward *op, size_t first,
                                   size_t count) {
    float buffer[ROW_TILE];
    const size_t width = op->out_gradient.columns;
    float *gradient = op->token_gradient.data;
    for (size_t n = 0; n < op->out_gradient.rows; n++) {
        row_add(gradient + (size_t)op->tokens[n] * width + first,
                row_read(&op->out_gradient, n * width + first, count, buffer), count);
    }
}

/* One position's gradient: the sum over all sequences; zero for positions beyond them. */
static void position_gradient_row(const struct embedding_backward *op, size_t position) {
    const size_t width = op->out_gradient.columns;
    float *gradient = (float *)op->position_gradient.data + position * width;
    if (!op->accumulate) memset(gradient, 0, width * sizeof *gradient);
    if (position >= op->sequence_length) return;
    for (size_t n = position; n < op->out_gradient.rows; n += op->sequence_length) {
        for (size_t j = 0; j < width; j += ROW_TILE) {
            float buffer[ROW_TILE];
            const size_t count = size_min(ROW_TILE, width - j);
            row_add(gradient + j, row_read(&op->out_gradient, n * width + j, count, buffer), count);
        }
    }
}

/* A thread owns columns of the token gradient, so that equal tokens never meet in two threads. */
enum status cpu_embedding_backward(struct device *device, const struct embedding_backward *op) {
    enum { TILE = 64 };
    const char *const name = "embedding_backward";
    const size_t tokens = op->out_gradient.rows, width = op->out_gradient.columns;
    const size_t positions = op->position_gradient.rows;
    TRY(shape_check(name, "token_gradient", op->token_gradient, op->token_gradient.rows, width));
    TRY(shape_check(name, "position_gradient", op->position_gradient, positions, width));
    if (op->sequence_length == 0 || tokens % op->sequence_length != 0 ||
        op->sequence_length > positions || op->token_gradient.dtype != DTYPE_F32 ||
        op->position_gradient.dtype != DTYPE_F32) {
        return status_set(STATUS_INTERNAL, "%s: %zu tokens in sequences of %zu, %zu positions, "
                          "gradients in %s and %s", name, tokens, op->sequence_length, positions,
                          dtype_name(op->token_gradient.dtype),
                          dtype_name(op->position_gradient.dtype));
    }
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (size_t first = 0; first < width; first += TILE) {
        token_gradient_columns(op, first, size_min(TILE, width - first));
    }
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (size_t position = 0; position < positions; position++) position_gradient_row(op, position);
    return STATUS_OK;
}

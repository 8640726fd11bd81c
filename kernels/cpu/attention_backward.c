/* Attention backward: probabilities recomputed tile by tile from log_sum_exp (Dao et al., 2022). */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vector.h"

/* One head of one sequence. */
struct head_backward {
    struct head_view query, key, value, out, out_gradient;
    struct head_view query_gradient, key_gradient, value_gradient;
    const float *log_sum_exp; /* (length) */
    size_t length, width;
};

struct backward_scratch {
    float *query, *out_gradient, *query_gradient;     /* (QUERY_TILE, width) */
    float *key, *value, *key_gradient, *value_gradient; /* (length, width) */
    float *p, *score_gradient;                        /* (QUERY_TILE, KEY_TILE) */
};

size_t attention_backward_floats(size_t length, size_t width) {
    return 3 * QUERY_TILE * width + 4 * length * width + 2 * QUERY_TILE * KEY_TILE;
}

static struct backward_scratch backward_scratch_at(float *memory, size_t length, size_t width) {
    struct backward_scratch s = {.query = memory};
    s.out_gradient = s.query + QUERY_TILE * width;
    s.query_gradient = s.out_gradient + QUERY_TILE * width;
    s.key = s.query_gradient + QUERY_TILE * width;
    s.value = s.key + length * width;
    s.key_gradient = s.value + length * width;
    s.value_gradient = s.key_gradient + length * width;
    s.p = s.value_gradient + length * width;
    s.score_gradient = s.p + QUERY_TILE * KEY_TILE;
    return s;
}

VECTOR_CLONES
static float dot(const float *a, const float *b, size_t count) {
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < count; i++) sum += (double)a[i] * (double)b[i];
    return (float)sum;
}

/* d loss / d score = p (d loss / d p - mean), mean = the row's sum of p d loss / d p. */
VECTOR_CLONES
static void score_gradient_row(float *gradient, const float *p, float mean, size_t count) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) gradient[i] = p[i] * (gradient[i] - mean);
}

/* Scores to probabilities, zero above the diagonal. */
static void probabilities_tile(const struct backward_scratch *s, const struct tile *tile,
                               const float *log_sum_exp) {
    for (size_t i = 0; i < tile->queries; i++) {
        float *row = s->p + i * KEY_TILE;
        const size_t visible = tile_visible(tile, 0, i);
        exponentials_row(row, log_sum_exp[tile->query + i], visible);
        memset(row + visible, 0, (tile->keys - visible) * sizeof *row);
    }
}

/* d loss / d p to d loss / d score, zero above the diagonal. */
static void score_gradients_tile(const struct backward_scratch *s, const struct tile *tile,
                                 const float means[QUERY_TILE]) {
    for (size_t i = 0; i < tile->queries; i++) {
        float *row = s->score_gradient + i * KEY_TILE;
        const size_t visible = tile_visible(tile, 0, i);
        score_gradient_row(row, s->p + i * KEY_TILE, means[i], visible);
        memset(row + visible, 0, (tile->keys - visible) * sizeof *row);
    }
}

static void backward_tile(const struct head_backward *head, const struct backward_scratch *s,
                          const struct tile *tile, const float means[QUERY_TILE]) {
    const size_t width = head->width, queries = tile->queries, keys = tile->keys;
    const size_t first = tile->key * width;
    const struct tile_operand q = {s->query, width, false}, d_out = {s->out_gradient, width, false};
    const struct tile_operand k = {s->key + first, width, false};
    const struct tile_operand k_transposed = {s->key + first, width, true};
    const struct tile_operand v_transposed = {s->value + first, width, true};
    const struct tile_operand p_transposed = {s->p, KEY_TILE, true};
    const struct tile_operand d_score = {s->score_gradient, KEY_TILE, false};
    const struct tile_operand d_score_transposed = {s->score_gradient, KEY_TILE, true};
    tile_multiply(s->p, KEY_TILE, q, k_transposed, queries, keys, width, false);
    probabilities_tile(s, tile, head->log_sum_exp);
    tile_multiply(s->value_gradient + first, width, p_transposed, d_out, keys, width, queries,
                  true);
    tile_multiply(s->score_gradient, KEY_TILE, d_out, v_transposed, queries, keys, width, false);
    score_gradients_tile(s, tile, means);
    tile_multiply(s->query_gradient, width, d_score, k, queries, width, keys, true);
    tile_multiply(s->key_gradient + first, width, d_score_transposed, q, keys, width, queries,
                  true);
}

static void backward_queries(const struct head_backward *head, const struct backward_scratch *s,
                             size_t query) {
    const size_t width = head->width, queries = size_min(QUERY_TILE, head->length - query);
    const float scale = (float)(1.0 / sqrt((double)width));
    float means[QUERY_TILE];
    head_pack(s->query, head->query, query, queries, width);
    scale_row(s->query, scale, queries * width);
    head_pack(s->out_gradient, head->out_gradient, query, queries, width);
    /* The sum over keys of p d loss / d p is d_out . out; out passes through the gradient's
     * place. */
    head_pack(s->query_gradient, head->out, query, queries, width);
    for (size_t i = 0; i < queries; i++) {
        means[i] = dot(s->out_gradient + i * width, s->query_gradient + i * width, width);
    }
    memset(s->query_gradient, 0, queries * width * sizeof *s->query_gradient);
    for (size_t key = 0; key < query + queries; key += KEY_TILE) {
        const struct tile tile = tile_at(0, head->length, query, key);
        backward_tile(head, s, &tile, means);
    }
    scale_row(s->query_gradient, scale, queries * width);
    head_unpack(head->query_gradient, s->query_gradient, query, queries, width);
}

static void head_backward(const struct head_backward *head, float *scratch) {
    const size_t length = head->length, width = head->width;
    const struct backward_scratch s = backward_scratch_at(scratch, length, width);
    head_pack(s.key, head->key, 0, length, width);
    head_pack(s.value, head->value, 0, length, width);
    memset(s.key_gradient, 0, length * width * sizeof *s.key_gradient);
    memset(s.value_gradient, 0, length * width * sizeof *s.value_gradient);
    for (size_t query = 0; query < length; query += QUERY_TILE) backward_queries(head, &s, query);
    head_unpack(head->key_gradient, s.key_gradient, 0, length, width);
    head_unpack(head->value_gradient, s.value_gradient, 0, length, width);
}

enum status cpu_attention_backward(struct device *device, const struct attention_backward *op) {
    const char *const name = "attention_backward";
    const size_t length = op->sequence_length, heads = op->heads, channels = op->out.columns;
    const size_t rows = op->batch * length;
    struct scratch scratch = scratch_begin_attention(device);
    struct buffers buffers = {0};
    TRY(attention_check(name, op->qkv, op->out, rows, heads));
    TRY(attention_check(name, op->qkv_gradient, op->out_gradient, rows, heads));
    const size_t width = channels / heads;
    TRY(scratch_take(&scratch, name, (size_t)device->threads,
                     attention_backward_floats(length, width), &buffers));
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (size_t i = 0; i < op->batch * heads; i++) {
        const size_t first = i / heads * length, column = i % heads * width;
        const struct tensor qkv = tensor_rows(op->qkv, first, length);
        const struct tensor gradient = tensor_rows(op->qkv_gradient, first, length);
        const struct head_backward head = {
            .query = {qkv, column},
            .key = {qkv, channels + column},
            .value = {qkv, 2 * channels + column},
            .out = {tensor_rows(op->out, first, length), column},
            .out_gradient = {tensor_rows(op->out_gradient, first, length), column},
            .query_gradient = {gradient, column},
            .key_gradient = {gradient, channels + column},
            .value_gradient = {gradient, 2 * channels + column},
            .log_sum_exp = op->log_sum_exp + i * length,
            .length = length,
            .width = width,
        };
        head_backward(&head, buffer_at(buffers, (size_t)omp_get_thread_num()));
    }
    return STATUS_OK;
}

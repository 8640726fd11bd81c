/* Attention forward: online softmax (Milakov and Gimelshein, 2018) over the tiles of a row. */
#include <math.h>
#include <omp.h>
#include <string.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vector.h"

struct forward_scratch {
    float *query, *out;  /* (QUERY_TILE, width) */
    float *key, *value;  /* (length, width) */
    float *scores;       /* (QUERY_TILE, KEY_TILE) */
};

size_t attention_forward_floats(size_t length, size_t width) {
    return 2 * QUERY_TILE * width + 2 * length * width + QUERY_TILE * KEY_TILE;
}

static struct forward_scratch forward_scratch_at(float *memory, size_t length, size_t width) {
    struct forward_scratch s = {.query = memory};
    s.out = s.query + QUERY_TILE * width;
    s.key = s.out + QUERY_TILE * width;
    s.value = s.key + length * width;
    s.scores = s.value + length * width;
    return s;
}

/* A query's largest score so far, and the sum of exp(score - top). */
struct running {
    float top[QUERY_TILE];
    double sum[QUERY_TILE];
};

/* Scores to exponentials; where a row's largest score grows, what it has gathered shrinks. */
static void softmax_tile(const struct forward_scratch *s, const struct tile *tile, size_t past,
                         size_t width, struct running *running) {
    for (size_t i = 0; i < tile->queries; i++) {
        float *row = s->scores + i * KEY_TILE;
        const size_t visible = tile_visible(tile, past, i);
        const float top = row_largest(row, running->top[i], visible);
        if (top > running->top[i]) {
            const float factor = expf(running->top[i] - top);
            scale_row(s->out + i * width, factor, width);
            running->sum[i] *= (double)factor;
            running->top[i] = top;
        }
        running->sum[i] += (double)exponentials_row(row, top, visible);
        memset(row + visible, 0, (tile->keys - visible) * sizeof *row);
    }
}

/* Divides by the sums and stores. */
static void finish_queries(const struct attention_head *head, const struct forward_scratch *s,
                           size_t query, size_t queries, const struct running *running) {
    for (size_t i = 0; i < queries; i++) {
        scale_row(s->out + i * head->width, (float)(1.0 / running->sum[i]), head->width);
        if (head->log_sum_exp == NULL) continue;
        head->log_sum_exp[query + i] = (float)((double)running->top[i] + log(running->sum[i]));
    }
    head_unpack(head->out, s->out, query, queries, head->width);
}

static void forward_queries(const struct attention_head *head, const struct forward_scratch *s,
                            size_t query) {
    const size_t width = head->width;
    const size_t queries = size_min(QUERY_TILE, head->queries - query);
    const size_t keys = head->past + query + queries;
    struct running running;
    for (size_t i = 0; i < queries; i++) {
        running.top[i] = -INFINITY;
        running.sum[i] = 0.0;
    }
    memset(s->out, 0, queries * width * sizeof *s->out);
    head_pack(s->query, head->query, query, queries, width);
    scale_row(s->query, (float)(1.0 / sqrt((double)width)), queries * width);
    for (size_t key = 0; key < keys; key += KEY_TILE) {
        const struct tile tile = tile_at(head->past, head->queries, query, key);
        const struct tile_operand q = {s->query, width, false};
        const struct tile_operand k = {s->key + key * width, width, true};
        const struct tile_operand p = {s->scores, KEY_TILE, false};
        const struct tile_operand v = {s->value + key * width, width, false};
        tile_multiply(s->scores, KEY_TILE, q, k, queries, tile.keys, width, false);
        softmax_tile(s, &tile, head->past, width, &running);
        tile_multiply(s->out, width, p, v, queries, width, tile.keys, true);
    }
    finish_queries(head, s, query, queries, &running);
}

void attention_head_forward(const struct attention_head *head, float *scratch) {
    const size_t keys = head->past + head->queries;
    const struct forward_scratch s = forward_scratch_at(scratch, keys, head->width);
    head_pack(s.key, head->key, 0, keys, head->width);
    head_pack(s.value, head->value, 0, keys, head->width);
    for (size_t query = 0; query < head->queries; query += QUERY_TILE) {
        forward_queries(head, &s, query);
    }
}

enum status cpu_attention_forward(struct device *device, const struct attention_forward *op) {
    const char *const name = "attention_forward";
    const size_t length = op->sequence_length, heads = op->heads, channels = op->out.columns;
    struct scratch scratch = scratch_begin_attention(device);
    struct buffers buffers = {0};
    TRY(attention_check(name, op->qkv, op->out, op->batch * length, heads));
    const size_t width = channels / heads;
    TRY(scratch_take(&scratch, name, (size_t)device->threads,
                     attention_forward_floats(length, width), &buffers));
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (size_t i = 0; i < op->batch * heads; i++) {
        const size_t first = i / heads * length, column = i % heads * width;
        const struct tensor qkv = tensor_rows(op->qkv, first, length);
        const struct attention_head head = {
            .query = {qkv, column},
            .key = {qkv, channels + column},
            .value = {qkv, 2 * channels + column},
            .out = {tensor_rows(op->out, first, length), column},
            .queries = length,
            .width = width,
            .log_sum_exp = op->log_sum_exp + i * length,
        };
        attention_head_forward(&head, buffer_at(buffers, (size_t)omp_get_thread_num()));
    }
    return STATUS_OK;
}

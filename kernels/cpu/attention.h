/*
 * Causal self-attention in tiles of QUERY_TILE queries by KEY_TILE keys (Dao et al., 2022): the
 * scores of a tile live in a thread's scratch memory and nowhere else. Tiles above the diagonal are
 * never computed. attention_forward.c carries each query's largest score and sum of exponentials
 * along its tiles, attention_backward.c recomputes probabilities as exp(score - log_sum_exp), and
 * attention_cached.c runs the forward pass against the key and value caches.
 *
 * A thread does one head of one sequence at a time. Its sgemm calls come from inside a parallel
 * region, where an OpenBLAS built on OpenMP runs on the calling thread.
 */
#ifndef DEEPWELL_KERNELS_CPU_ATTENTION_H_
#define DEEPWELL_KERNELS_CPU_ATTENTION_H_

#include <stdbool.h>

#include "base/checked.h"
#include "base/status.h"
#include "kernels/tensor.h"

enum { QUERY_TILE = 64, KEY_TILE = 256 };

/* Columns [column, column + head width) of the rows of one sequence. */
struct head_view {
    struct tensor rows;
    size_t column;
};

/* Queries stand at positions [past, past + queries) and see the keys of all positions up to their
 * own; keys and values hold positions [0, past + queries). */
struct attention_head {
    struct head_view query, key, value, out;
    size_t queries, past, width;
    float *log_sum_exp; /* (queries), or NULL: not wanted */
};
void attention_head_forward(const struct attention_head *head, float *scratch);

/* Numbers of scratch memory that one thread needs for a head with up to `length` keys. */
size_t attention_forward_floats(size_t length, size_t width);
size_t attention_backward_floats(size_t length, size_t width);

/* STATUS_INTERNAL unless qkv is (rows, 3 C), out (rows, C) and C divides into heads. */
enum status attention_check(const char *operation, struct tensor qkv, struct tensor out,
                            size_t rows, size_t heads);

/* Copies rows [first, first + rows) of a head to packed FP32, and back (rounding). */
void head_pack(float *to, struct head_view from, size_t first, size_t rows, size_t width);
void head_unpack(struct head_view to, const float *from, size_t first, size_t rows, size_t width);

/* Where a tile lies: queries [query, query + queries), keys [key, key + keys). */
struct tile {
    size_t query, queries, key, keys;
};

/* The tile at (query, key), cut off after the last key that its last query sees. */
static inline struct tile tile_at(size_t past, size_t queries, size_t query, size_t key) {
    const size_t count = size_min(QUERY_TILE, queries - query);
    return (struct tile){query, count, key, size_min(KEY_TILE, past + query + count - key)};
}

/* Keys of the tile that its row i sees; the rest of the row lies above the diagonal. */
static inline size_t tile_visible(const struct tile *tile, size_t past, size_t i) {
    const size_t seen = past + tile->query + i + 1;
    return seen <= tile->key ? 0 : size_min(tile->keys, seen - tile->key);
}

/* c (m, n) [+]= a b with op(x) = x or its transpose; `stride` numbers from row to row. */
struct tile_operand {
    const float *data;
    size_t stride;
    bool transposed;
};
void tile_multiply(float *c, size_t c_stride, struct tile_operand a, struct tile_operand b,
                   size_t m, size_t n, size_t k, bool accumulate);

void scale_row(float *x, float scale, size_t count);

/* x[i] = exp(x[i] - top); returns their sum. */
float exponentials_row(float *x, float top, size_t count);

#endif

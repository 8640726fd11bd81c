/*
 * Tensors of more than 2^31 elements in GPU memory, and their comparison with the CPU. Called by
 * large_rows.c, large_tables.c and large_products.c, whose tests large_test.c runs.
 *
 * Operands repeat one pattern of random numbers whose period divides no power of two, so that an
 * index that lost its upper bits finds other numbers, and the host knows every element without
 * keeping any. A case that the GPU has too little memory for says so and is skipped.
 */
#ifndef DEEPWELL_TESTS_GPU_LARGE_TESTING_H_
#define DEEPWELL_TESTS_GPU_LARGE_TESTING_H_

#include "tests/gpu/gpu_testing.h"

static const double u = 0x1p-24;

/* 8 times a prime: 2^31 and 2^32 leave remainders, and slices stay aligned to 16 bytes. */
enum { PERIOD = 8 * 131071, SHIFT_STEP = 8 * 9973, SAMPLES_MAX = 16, COLUMNS = 3 };
static const size_t beyond = (size_t)1 << 31;

/* FP32 numbers, two periods on each side: normal ones, and for second moments 0.5 and more. */
enum { NORMAL, POSITIVE, PATTERNS };

/* What attention is tested on. */
enum { LENGTH = 1024, HEADS = 25, HEAD_WIDTH = 64, WIDTH = HEADS * HEAD_WIDTH };
static inline size_t attention_batch(void) { return beyond / (3 * WIDTH) / LENGTH + 1; }

/* A tensor in GPU memory; element i is the pattern's (shift + i) % PERIOD-th, rounded. */
struct large {
    struct tensor there;
    size_t shift;
    int pattern;
};

/* Before and after all tests. */
void patterns_make(void);
void patterns_free(void);

/* False, saying so, where the GPU has not that much memory. */
bool room_for(const char *what, size_t bytes);

struct large large_zeros(enum dtype type, size_t rows, size_t columns);
struct large large_fill(int kind, enum dtype type, size_t rows, size_t columns, size_t key);
/* large_fill with NORMAL */
struct large large_pattern(enum dtype type, size_t rows, size_t columns, size_t key);
void large_free(struct large *t);
/* Element i before it was rounded. */
double large_at(const struct large *t, size_t i);

/* Rows of the samples, in order, each once. */
struct samples {
    size_t at[SAMPLES_MAX], count;
};
struct samples sample_rows(size_t rows, size_t columns);

/* The samples' rows on the host, as the pattern says they are. */
struct tensor gather(const struct large *t, const struct samples *s);
/* All of it on the host. */
struct tensor gather_all(const struct large *t);
/* Columns 0, the middle one and the last, whole. */
size_t column_at(size_t i, size_t columns);
struct tensor gather_columns(const struct large *t);

/* The samples' rows of what the GPU made, against `expected` (samples, columns). */
void expect_rows(const char *what, struct tensor there, const struct samples *s,
                 struct tensor expected, double absolute);

/* A vector over columns that the GPU made, at the sampled columns. A column repeats its part of the
 * pattern up to ten times, so a sum of N numbers of order 1 is some sqrt(10 N); up to 1024 parts of
 * it are added in FP32, at u of it each: 100 sqrt(N) u, and callers allow five times that (an index
 * that wraps is off by some sqrt(N)). */
void expect_columns(const char *what, struct tensor there, const float *expected, double absolute);

/* large_rows.c */
void test_pointwise(void **state);
void test_norm(void **state);
void test_cross_entropy(void **state);

/* large_tables.c */
void test_convert_and_find(void **state);
void test_embedding(void **state);
void test_update(void **state);

/* large_products.c */
void test_gemm(void **state);
void test_attention(void **state);

#endif

/* Large tensors behind tests/gpu/large_testing.h; owns the patterns they repeat. */
#include "tests/gpu/large_testing.h"

static struct pair patterns[PATTERNS]; /* (1, 2 PERIOD) */

void patterns_make(void) {
    for (int kind = 0; kind < PATTERNS; kind++) {
        struct tensor host = filled_tensor(DTYPE_F32, 1, 2 * PERIOD, 0.0);
        float *x = host.data;
        for (size_t i = 0; i < PERIOD; i++) {
            const float normal = random_normal(5, RANDOM_TEST, i);
            x[i] = x[PERIOD + i] = kind == NORMAL ? normal : 0.5f + fabsf(normal);
        }
        patterns[kind] = pair_of(host);
    }
}

void patterns_free(void) { FREE_PAIRS(&patterns[NORMAL], &patterns[POSITIVE]); }

bool room_for(const char *what, size_t bytes) {
    if (bytes <= gpu.memory_bytes - size_min(gpu.memory_bytes, gpu.scratch_bytes)) return true;
    printf("skipped: %s needs %.1f GB of GPU memory, %.1f are free\n", what, (double)bytes * 1e-9,
           (double)gpu.memory_bytes * 1e-9);
    return false;
}

struct large large_zeros(enum dtype type, size_t rows, size_t columns) {
    struct large t = {.there = tensor_make(NULL, type, rows, columns)};
    t.there.data = gpu_memory(tensor_bytes(t.there));
    return t;
}

struct large large_fill(int kind, enum dtype type, size_t rows, size_t columns, size_t key) {
    struct large t = large_zeros(type, rows, columns);
    float *from_there = patterns[kind].there.data;
    const size_t count = tensor_count(t.there), number = dtype_bytes(type);
    t.shift = key * SHIFT_STEP % PERIOD;
    t.pattern = kind;
    for (size_t first = 0; first < count; first += PERIOD) {
        const size_t part = size_min(PERIOD, count - first);
        const struct tensor from = tensor_make(from_there + t.shift, DTYPE_F32, 1, part);
        const struct tensor to = tensor_make((char *)t.there.data + first * number, type, 1, part);
        EXPECT_OK(gpu.ops->convert(&gpu, to, from));
    }
    return t;
}

struct large large_pattern(enum dtype type, size_t rows, size_t columns, size_t key) {
    return large_fill(NORMAL, type, rows, columns, key);
}

void large_free(struct large *t) {
    device_release(&gpu, t->there.data, tensor_bytes(t->there));
}

double large_at(const struct large *t, size_t i) {
    return (double)floats(&patterns[t->pattern].host)[(t->shift + i % PERIOD) % PERIOD];
}

static void add_sample(struct samples *s, size_t row, size_t rows) {
    if (row >= rows) return;
    for (size_t i = 0; i < s->count; i++) {
        if (s->at[i] == row) return;
    }
    s->at[s->count++] = row;
}

struct samples sample_rows(size_t rows, size_t columns) {
    const size_t middle = beyond / columns;
    const size_t fixed[] = {0, middle - 1, middle, middle + 1, rows - 2, rows - 1};
    struct samples s = {.count = 0};
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++) add_sample(&s, fixed[i], rows);
    for (size_t i = 0; i < 6; i++) {
        add_sample(&s, (size_t)(random_uniform(3, RANDOM_TEST, i) * (float)rows), rows);
    }
    return s;
}

struct tensor gather(const struct large *t, const struct samples *s) {
    const size_t columns = t->there.columns;
    struct tensor rows = filled_tensor(t->there.dtype, s->count, columns, 0.0);
    for (size_t i = 0; i < s->count; i++) {
        for (size_t c = 0; c < columns; c++) {
            value_set(rows, i * columns + c, large_at(t, s->at[i] * columns + c));
        }
    }
    return rows;
}

struct tensor gather_all(const struct large *t) {
    struct tensor all = filled_tensor(t->there.dtype, t->there.rows, t->there.columns, 0.0);
    for (size_t i = 0; i < tensor_count(all); i++) value_set(all, i, large_at(t, i));
    return all;
}

size_t column_at(size_t i, size_t columns) { return i * (columns - 1) / (COLUMNS - 1); }

struct tensor gather_columns(const struct large *t) {
    const size_t columns = t->there.columns;
    struct tensor some = filled_tensor(t->there.dtype, t->there.rows, COLUMNS, 0.0);
    for (size_t n = 0; n < t->there.rows; n++) {
        for (size_t i = 0; i < COLUMNS; i++) {
            value_set(some, n * COLUMNS + i, large_at(t, n * columns + column_at(i, columns)));
        }
    }
    return some;
}

void expect_rows(const char *what, struct tensor there, const struct samples *s,
                        struct tensor expected, double absolute) {
    const size_t bytes = there.columns * dtype_bytes(there.dtype);
    struct tensor row = tensor_make(test_memory(bytes), there.dtype, 1, there.columns);
    struct comparison c = {.what = what};
    for (size_t i = 0; i < s->count; i++) {
        const char *from = (const char *)there.data + s->at[i] * bytes;
        EXPECT_OK(device_download(&gpu, row.data, from, bytes));
        for (size_t k = 0; k < there.columns; k++) {
            const double wanted = value_at(expected, i * there.columns + k);
            const double rounding = 2.0 * tolerance_of(there.dtype, wanted, absolute);
            compare(&c, s->at[i] * there.columns + k, value_at(row, k), wanted,
                    absolute + rounding);
        }
    }
    compare_end(&c);
    free(row.data);
}

void expect_columns(const char *what, struct tensor there, const float *expected,
                           double absolute) {
    float *got = test_memory(tensor_bytes(there));
    struct comparison c = {.what = what};
    EXPECT_OK(device_download(&gpu, got, there.data, tensor_bytes(there)));
    for (size_t i = 0; i < COLUMNS; i++) {
        const size_t at = column_at(i, there.columns);
        compare(&c, at, (double)got[at], (double)expected[i],
                absolute + 2 * u * fabs((double)expected[i]));
    }
    compare_end(&c);
    free(got);
}

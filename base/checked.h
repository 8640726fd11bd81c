/* Size arithmetic that cannot wrap unnoticed. Every element count and byte count goes through
 * here. */
#ifndef DEEPWELL_BASE_CHECKED_H_
#define DEEPWELL_BASE_CHECKED_H_

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>

/* *out = a * b; false, and *out untouched, if the product does not fit in size_t. */
static inline bool size_mul(size_t a, size_t b, size_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}

/* *out = a + b; false if the sum does not fit in size_t. */
static inline bool size_add(size_t a, size_t b, size_t *out) {
    return !__builtin_add_overflow(a, b, out);
}

static inline size_t ceil_div(size_t a, size_t b) {
    assert(b > 0);
    return a / b + (a % b != 0);
}

/* The multiple of `unit` at or above a. */
static inline size_t align_up(size_t a, size_t unit) { return ceil_div(a, unit) * unit; }

static inline size_t size_min(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t size_max(size_t a, size_t b) { return a > b ? a : b; }

#endif

/*
 * What the tests of the kernels share: random tensors, a device with exactly the scratch memory
 * that an operation may count on, and comparison within a derived tolerance that names the worst
 * element.
 */
#ifndef DEEPWELL_TESTS_KERNELS_TESTING_H_
#define DEEPWELL_TESTS_KERNELS_TESTING_H_

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "base/random.h"
#include "kernels/device.h"
#include "kernels/ops.h"
#include "kernels/tensor.h"

enum { TEST_DTYPES = 3 };
static const enum dtype test_dtypes[TEST_DTYPES] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};

/* Half the distance from 1 to the next number: what one rounding costs at most, relatively. */
static inline double unit_roundoff(enum dtype type) {
    return type == DTYPE_F32 ? 0x1p-24 : type == DTYPE_BF16 ? 0x1p-8 : 0x1p-11;
}

/* One rounding of `value` to the format (FP16 is never finer than 2^-24), after FP32 arithmetic
 * that may be off by `absolute`. */
static inline double tolerance_of(enum dtype type, double value, double absolute) {
    return absolute + 1.001 * unit_roundoff(type) * (fabs(value) + absolute) +
           (type == DTYPE_F16 ? 0x1p-25 : 0x1p-149);
}

/* malloc and not the device's mmap, so that AddressSanitizer sees the ends. */
static inline void *test_memory(size_t bytes) {
    void *memory = malloc(bytes > 0 ? bytes : 1);
    assert_non_null(memory);
    return memory;
}

static inline double value_at(struct tensor t, size_t i) {
    switch (t.dtype) {
    case DTYPE_F32: return (double)((const float *)t.data)[i];
    case DTYPE_BF16: return (double)float_from_bf16(((const uint16_t *)t.data)[i]);
    case DTYPE_F16: return (double)float_from_f16(((const uint16_t *)t.data)[i]);
    }
    return NAN;
}

static inline void value_set(struct tensor t, size_t i, double value) {
    switch (t.dtype) {
    case DTYPE_F32: ((float *)t.data)[i] = (float)value; break;
    case DTYPE_BF16: ((uint16_t *)t.data)[i] = bf16_from_float((float)value); break;
    case DTYPE_F16: ((uint16_t *)t.data)[i] = f16_from_float((float)value); break;
    }
}

/* Every number `value`; NaN shows whether an operation reads what it should only write. */
static inline struct tensor filled_tensor(enum dtype type, size_t rows, size_t columns,
                                          double value) {
    struct tensor t = tensor_make(NULL, type, rows, columns);
    t.data = test_memory(tensor_bytes(t));
    for (size_t i = 0; i < tensor_count(t); i++) value_set(t, i, value);
    return t;
}

/* mean + std * normal; `key` keeps tensors of one test apart. */
static inline struct tensor random_tensor(enum dtype type, size_t rows, size_t columns,
                                          uint64_t key, double mean, double std) {
    struct tensor t = filled_tensor(type, rows, columns, 0.0);
    for (size_t i = 0; i < tensor_count(t); i++) {
        value_set(t, i, mean + std * (double)random_normal(key, RANDOM_TEST, i));
    }
    return t;
}

static inline struct tensor copied_tensor(struct tensor from) {
    struct tensor t = from;
    t.data = test_memory(tensor_bytes(from));
    memcpy(t.data, from.data, tensor_bytes(from));
    return t;
}

/* The numbers as the FP64 references take them; release with free(). */
static inline double *doubles_of(struct tensor t) {
    double *values = test_memory(tensor_count(t) * sizeof *values);
    for (size_t i = 0; i < tensor_count(t); i++) values[i] = value_at(t, i);
    return values;
}

static inline void free_tensors(struct tensor *const *tensors, size_t count) {
    for (size_t i = 0; i < count; i++) free(tensors[i]->data);
}
#define FREE_TENSORS(...)                                                    \
    do {                                                                     \
        struct tensor *const list_[] = {__VA_ARGS__};                        \
        free_tensors(list_, sizeof list_ / sizeof list_[0]);                 \
    } while (0)

static inline void expect_status(enum status expected, enum status found) {
    if (found != expected)
        fail_msg("status %d, expected %d: %s", found, expected, status_message());
}
#define EXPECT_OK(expression) expect_status(STATUS_OK, (expression))

/* For main: with the name of a test as argument that one alone runs, under compute-sanitizer say.
 * False, saying what was expected, if there is none of this name. */
static inline bool test_choose(int argc, char **argv, const struct CMUnitTest *tests,
                               size_t count) {
    if (argc < 2) return true;
    for (size_t i = 0; i < count; i++) {
        if (strcmp(argv[1], tests[i].name) != 0) continue;
        cmocka_set_test_filter(tests[i].name);
        return true;
    }
    fprintf(stderr, "found %s, expected the name of a test:\n", argv[1]);
    for (size_t i = 0; i < count; i++) fprintf(stderr, "  %s\n", tests[i].name);
    return false;
}
#define CHOOSE_TEST(argc, argv, tests) \
    test_choose(argc, argv, tests, sizeof(tests) / sizeof((tests)[0]))

/* A CPU device with scratch memory for `limits` and not a byte more. */
static inline struct device test_device_open(int threads, const struct op_limits *limits) {
    struct device device = {0};
    EXPECT_OK(device_open_cpu(&device, threads));
    const size_t bytes = device.ops->scratch_bytes(&device, limits);
    device_set_scratch(&device, aligned_alloc(256, align_up(size_max(bytes, 1), 256)), bytes);
    assert_non_null(device.scratch);
    return device;
}

static inline void test_device_close(struct device *device) {
    free(device->scratch);
    device_close(device);
}

/* The element that is furthest off, in units of its tolerance. */
struct comparison {
    const char *what;
    size_t compared, worst_index;
    double worst, actual, expected, tolerance;
};

static inline void compare(struct comparison *c, size_t index, double actual, double expected,
                           double tolerance) {
    const double error = fabs(actual - expected);
    /* A NaN is infinitely off. */
    const double share = error <= INFINITY ? error / tolerance : INFINITY;
    if (c->compared++ > 0 && share <= c->worst) return;
    c->worst = share;
    c->worst_index = index;
    c->actual = actual;
    c->expected = expected;
    c->tolerance = tolerance;
}

static inline void compare_end(const struct comparison *c) {
    if (c->compared > 0 && c->worst <= 1.0) return;
    fail_msg("%s: %zu compared, worst at %zu: %.9g, expected %.9g, tolerance %.3g", c->what,
             c->compared, c->worst_index, c->actual, c->expected, c->tolerance);
}

/* All of t against `expected`. */
static inline void compare_tensor(const char *what, struct tensor t, const double *expected,
                                  double absolute) {
    struct comparison c = {.what = what};
    for (size_t i = 0; i < tensor_count(t); i++) {
        compare(&c, i, value_at(t, i), expected[i], tolerance_of(t.dtype, expected[i], absolute));
    }
    compare_end(&c);
}

/* d loss / d *x by central differences: in FP64 with h = 1e-5 the error is about 1e-10 of the
 * loss's third derivative and 1e-11 of the loss, below any FP32 tolerance. */
static inline double central_difference(double *x, double (*loss)(const void *),
                                        const void *context) {
    const double h = 1e-5, kept = *x;
    *x = kept + h;
    const double above = loss(context);
    *x = kept - h;
    const double below = loss(context);
    *x = kept;
    return (above - below) / (2.0 * h);
}

#endif

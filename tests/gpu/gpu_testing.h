/*
 * What the GPU's tests share: a tensor in host memory beside the same in GPU memory, and the
 * comparison of the two after the CPU worked on one and the GPU on the other.
 *
 * Tolerance: both compute in FP32 from the same numbers, in another order, and round once.
 * `absolute` is what the orders may differ by; two roundings to the format are at most two unit
 * roundoffs apart.
 */
#ifndef DEEPWELL_TESTS_GPU_GPU_TESTING_H_
#define DEEPWELL_TESTS_GPU_GPU_TESTING_H_

#include <stdio.h>

#include "tests/gpu/presence.h"
#include "tests/kernels/testing.h"

extern struct device cpu, gpu; /* gpu_testing.c */

struct pair {
    struct tensor host, there;
};

static inline void *gpu_memory(size_t bytes) {
    void *memory = NULL;
    EXPECT_OK(device_allocate(&gpu, size_max(bytes, 1), &memory));
    return memory;
}

static inline struct pair pair_of(struct tensor host) {
    struct pair pair = {host, host};
    pair.there.data = gpu_memory(tensor_bytes(host));
    EXPECT_OK(device_upload(&gpu, pair.there.data, host.data, tensor_bytes(host)));
    return pair;
}

static inline struct pair pair_random(enum dtype type, size_t rows, size_t columns, uint64_t key,
                                      double mean, double std) {
    return pair_of(random_tensor(type, rows, columns, key, mean, std));
}

/* For what is only written: NaN shows what was not, or was read. */
static inline struct pair pair_poison(enum dtype type, size_t rows, size_t columns) {
    return pair_of(filled_tensor(type, rows, columns, NAN));
}

static inline void pair_free(struct pair *pair) {
    device_release(&gpu, pair->there.data, tensor_bytes(pair->there));
    free(pair->host.data);
}
#define FREE_PAIRS(...)                                                                      \
    do {                                                                                     \
        struct pair *const list_[] = {__VA_ARGS__};                                          \
        for (size_t i_ = 0; i_ < sizeof list_ / sizeof list_[0]; i_++) pair_free(list_[i_]); \
    } while (0)

static inline void expect_same(const char *what, const struct pair *pair, double absolute) {
    struct tensor got = copied_tensor(pair->host);
    struct comparison c = {.what = what};
    EXPECT_OK(device_download(&gpu, got.data, pair->there.data, tensor_bytes(got)));
    for (size_t i = 0; i < tensor_count(got); i++) {
        const double expected = value_at(pair->host, i), found = value_at(got, i);
        if (isnan(expected) && isnan(found)) continue; /* untouched on both sides */
        const double rounding = 2.0 * tolerance_of(got.dtype, expected, absolute);
        compare(&c, i, found, expected, absolute + rounding);
    }
    if (c.compared == 0 || c.worst > 1.0) {
        fail_msg("%s (%s, %zu x %zu): worst at %zu: %.9g, expected %.9g, tolerance %.3g", what,
                 dtype_name(got.dtype), got.rows, got.columns, c.worst_index, c.actual, c.expected,
                 c.tolerance);
    }
    free(got.data);
}

/* What a sum of K products of numbers of order 1 may be off by. Both sides round in their own
 * order: sqrt(K) (2 sqrt(K) + 8) u, u = 2^-24. A tensor core, which multiplies the narrower
 * formats, adds 16 products at a time to the sum and cuts off what lies below its last bit, always
 * towards zero: K / 16 times at most 2 u of a sum that stays below 4 sqrt(K), four of its standard
 * deviations. A wrong operand is off by some sqrt(K). */
static inline double gemm_tolerance(enum dtype operands, double k) {
    const double unit = 0x1p-24, orders = sqrt(k) * (2.0 * sqrt(k) + 8.0) * unit;
    return operands == DTYPE_F32 ? orders : orders + k / 16.0 * 4.0 * sqrt(k) * 2.0 * unit;
}

static inline float *floats(const struct tensor *t) { return t->data; }

static inline void scratch_open(struct device *device, const struct op_limits *limits,
                                size_t count) {
    void *memory = NULL;
    size_t bytes = 1;
    for (size_t i = 0; i < count; i++) {
        /* a refusal is for the tests to meet; the check decides what attention may use */
        const enum status checked = device->ops->check(device, &limits[i], true);
        (void)checked;
        bytes = size_max(bytes, device->ops->scratch_bytes(device, &limits[i]));
    }
    EXPECT_OK(device_allocate(device, bytes, &memory));
    device_set_scratch(device, memory, bytes);
}

/* Opens both devices with scratch memory for these shapes; false, saying why, without a GPU. */
static inline bool devices_open(const struct device_options *options,
                                const struct op_limits *limits, size_t count) {
    if (gpu_missing()) return false;
    gpu_open(&gpu, options);
    printf("%s; %s\n", gpu.name, gpu.note);
    if (device_open_cpu(&cpu, 0) != STATUS_OK) gpu_test_stop("the CPU does not open");
    scratch_open(&gpu, limits, count);
    scratch_open(&cpu, limits, count);
    return true;
}

static inline void devices_close(void) {
    device_release(&gpu, gpu.scratch, gpu.scratch_bytes);
    device_release(&cpu, cpu.scratch, cpu.scratch_bytes);
    device_close(&gpu);
    device_close(&cpu);
}

#endif

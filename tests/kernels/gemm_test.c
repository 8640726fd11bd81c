/*
 * Oracle: a plain FP64 triple loop over the operands as stored. Tolerance: summing K products of
 * standard deviation 1 in FP32, partial sums grow as sqrt(k) and each rounding is at most u = 2^-24
 * of one, so the error's standard deviation is below u K; the largest of the elements compared
 * stays within 6 of those (accumulated content and bias add two roundings). One more rounding where
 * c is stored in its dtype.
 */
#include "tests/kernels/testing.h"

struct gemm_case {
    enum dtype a, b, c;
    size_t m, n, k;
    bool transpose_a, transpose_b, accumulate, bias;
};

static double reference(const struct gemm *op, const struct tensor *before, size_t i, size_t j,
                        size_t k) {
    double sum = before == NULL ? 0.0 : value_at(*before, i * op->c.columns + j);
    for (size_t l = 0; l < k; l++) {
        const double a = value_at(op->a, op->transpose_a ? l * op->a.columns + i
                                                         : i * op->a.columns + l);
        const double b = value_at(op->b, op->transpose_b ? j * op->b.columns + l
                                                         : l * op->b.columns + j);
        sum += a * b;
    }
    return op->bias == NULL ? sum : sum + value_at(*op->bias, j);
}

/* Compares every `stride`-th element, the last one included. */
static void check(struct device *device, const struct gemm_case *t, size_t stride) {
    struct tensor a = random_tensor(t->a, t->transpose_a ? t->k : t->m,
                                    t->transpose_a ? t->m : t->k, 1, 0.0, 1.0);
    struct tensor b = random_tensor(t->b, t->transpose_b ? t->n : t->k,
                                    t->transpose_b ? t->k : t->n, 2, 0.0, 1.0);
    struct tensor c = t->accumulate ? random_tensor(t->c, t->m, t->n, 3, 0.0, 1.0)
                                    : filled_tensor(t->c, t->m, t->n, NAN);
    struct tensor before = copied_tensor(c);
    struct tensor bias = random_tensor(t->a, 1, t->n, 4, 0.0, 1.0);
    const struct gemm op = {c, a, b, t->transpose_a, t->transpose_b, t->accumulate,
                            t->bias ? &bias : NULL};
    EXPECT_OK(device->ops->gemm(device, &op));
    struct comparison comparison = {.what = "c"};
    const double absolute = 6.0 * 0x1p-24 * (double)(t->k + 2);
    for (size_t left = t->m * t->n; left > 0; left -= size_min(left, stride)) {
        const size_t i = left - 1;
        const double expected = reference(&op, t->accumulate ? &before : NULL, i / t->n, i % t->n,
                                          t->k);
        compare(&comparison, i, value_at(c, i), expected, tolerance_of(t->c, expected, absolute));
    }
    compare_end(&comparison);
    FREE_TENSORS(&a, &b, &c, &before, &bias);
}

static const enum dtype mixes[][3] = {
    {DTYPE_F32, DTYPE_F32, DTYPE_F32}, {DTYPE_BF16, DTYPE_BF16, DTYPE_BF16},
    {DTYPE_F16, DTYPE_F16, DTYPE_F16}, {DTYPE_BF16, DTYPE_BF16, DTYPE_F32},
    {DTYPE_F32, DTYPE_BF16, DTYPE_F16}, {DTYPE_F16, DTYPE_F32, DTYPE_F32},
};

static struct device any_device(void) {
    return test_device_open(2, &(struct op_limits){.tokens = 1, .width = 1, .dtype = DTYPE_BF16});
}

static void test_all_variants(void **state) {
    static const size_t shapes[][3] = {{1, 1, 1}, {1, 7, 5}, {7, 1, 5}, {5, 6, 1}, {37, 29, 53}};
    (void)state;
    struct device device = any_device();
    for (size_t mix = 0; mix < sizeof mixes / sizeof mixes[0]; mix++) {
        for (size_t shape = 0; shape < sizeof shapes / sizeof shapes[0]; shape++) {
            for (int flags = 0; flags < 16; flags++) {
                const struct gemm_case t = {
                    mixes[mix][0], mixes[mix][1], mixes[mix][2],
                    shapes[shape][0], shapes[shape][1], shapes[shape][2],
                    (flags & 1) != 0, (flags & 2) != 0, (flags & 4) != 0, (flags & 8) != 0};
                check(&device, &t, 1);
            }
        }
    }
    test_device_close(&device);
}

/* Larger than the widened panels in every direction, and round in none. */
static void test_many_panels(void **state) {
    (void)state;
    struct device device = any_device();
    for (int flags = 0; flags < 4; flags++) {
        const struct gemm_case rounded = {DTYPE_BF16, DTYPE_BF16, DTYPE_BF16, 530, 1101, 1045,
                                          (flags & 1) != 0, (flags & 2) != 0, true, true};
        const struct gemm_case summed = {DTYPE_F16, DTYPE_F16, DTYPE_F32, 530, 1101, 1045,
                                         (flags & 1) != 0, (flags & 2) != 0, false, false};
        /* One row is left over for the last panel, and a is not widened. */
        const struct gemm_case left_over = {DTYPE_F32, DTYPE_BF16, DTYPE_F32, 513, 31, 1045,
                                            (flags & 1) != 0, (flags & 2) != 0, false, false};
        check(&device, &rounded, 997);
        check(&device, &summed, 997);
        check(&device, &left_over, 5);
    }
    test_device_close(&device);
}

static void test_refusals(void **state) {
    (void)state;
    struct device device = any_device();
    struct tensor a = filled_tensor(DTYPE_BF16, 3, 4, 1.0);
    struct tensor b = filled_tensor(DTYPE_BF16, 4, 5, 1.0);
    struct tensor c = filled_tensor(DTYPE_BF16, 3, 5, 1.0);
    struct tensor d = filled_tensor(DTYPE_BF16, 1, 4, 1.0);
    struct gemm op = {.c = c, .a = a, .b = b};
    EXPECT_OK(device.ops->gemm(&device, &op));
    op.transpose_b = true;
    expect_status(STATUS_INTERNAL, device.ops->gemm(&device, &op));
    op.transpose_b = false;
    op.bias = &d;
    expect_status(STATUS_INTERNAL, device.ops->gemm(&device, &op));
    /* One row more than BLAS can count; refused before anything is touched. */
    op = (struct gemm){.c = c, .a = a, .b = b};
    op.a.rows = op.c.rows = (size_t)INT32_MAX + 1;
    expect_status(STATUS_INTERNAL, device.ops->gemm(&device, &op));
    op = (struct gemm){.c = c, .a = a, .b = b};
    device.scratch_bytes--;
    expect_status(STATUS_INTERNAL, device.ops->gemm(&device, &op));
    FREE_TENSORS(&a, &b, &c, &d);
    test_device_close(&device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_variants),
        cmocka_unit_test(test_many_panels),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

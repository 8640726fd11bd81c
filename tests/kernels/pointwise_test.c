/*
 * GELU, bias gradients and embeddings. Oracle: the formulas of kernels/ops.h in FP64; the GELU's
 * gradient by central differences of its FP64 forward pass; equality for copies. Tolerances, u =
 * 2^-24, data of order 1 (below 5): an element is a dozen FP32 operations, hence 32 u; a sum over N
 * rows adds 6 u N as for GEMMs. Tensors in BF16 or FP16 add one rounding when stored.
 */
#include "tests/kernels/testing.h"

enum { TOKENS = 75, WIDTH = 1101 }; /* three chunks of rows, two stretches of a row */

static struct device any_device(enum dtype type) {
    return test_device_open(2, &(struct op_limits){
        .tokens = TOKENS, .width = WIDTH, .dtype = type});
}

static double gelu(double u) {
    return 0.5 * u * (1.0 + tanh(sqrt(2.0 / acos(-1.0)) * (u + 0.044715 * u * u * u)));
}

static double gelu_of(const void *u) { return gelu(*(const double *)u); }

static void test_gelu_forward(void **state) {
    (void)state;
    for (int type = 0; type < TEST_DTYPES; type++) {
        struct device device = any_device(test_dtypes[type]);
        struct tensor x = random_tensor(test_dtypes[type], TOKENS, WIDTH, 1, 0.0, 2.0);
        struct tensor bias = random_tensor(test_dtypes[type], 1, WIDTH, 2, 0.0, 1.0);
        struct tensor out = filled_tensor(test_dtypes[type], TOKENS, WIDTH, NAN);
        const struct gelu_forward op = {.out = out, .x = x, .bias = bias};
        EXPECT_OK(device.ops->gelu_forward(&device, &op));
        struct comparison c = {.what = "out"};
        for (size_t i = 0; i < tensor_count(x); i++) {
            const double expected = gelu(value_at(x, i) + value_at(bias, i % WIDTH));
            compare(&c, i, value_at(out, i), expected,
                    tolerance_of(out.dtype, expected, 32.0 * 0x1p-24));
        }
        compare_end(&c);
        FREE_TENSORS(&x, &bias, &out);
        test_device_close(&device);
    }
}

/* Where tanh saturates, and where the exponential over- and underflows. */
static void test_gelu_extremes(void **state) {
    (void)state;
    float inputs[] = {0.0f, -0.0f, 1e-30f, -1e-30f, 10.0f, -10.0f, 100.0f, -100.0f, 1e10f, -1e10f};
    enum { COUNT = sizeof inputs / sizeof inputs[0] };
    float zeros[COUNT] = {0}, outs[COUNT], sums[COUNT];
    struct device device = any_device(DTYPE_F32);
    struct tensor x = tensor_make(inputs, DTYPE_F32, 1, COUNT), out = x, bias = x;
    out.data = outs;
    bias.data = zeros;
    const struct gelu_forward forward = {.out = out, .x = x, .bias = bias};
    EXPECT_OK(device.ops->gelu_forward(&device, &forward));
    for (size_t i = 0; i < COUNT; i++) {
        assert_true(fabs((double)outs[i] - gelu((double)inputs[i])) <= 4.0 * 0x1p-24 *
                                                                       fabs((double)inputs[i]));
        outs[i] = 1.0f;
    }
    const struct gelu_backward backward = {
        .x_gradient = out, .out_gradient = out, .x = x, .bias = bias, .bias_gradient = sums};
    EXPECT_OK(device.ops->gelu_backward(&device, &backward));
    for (size_t i = 4; i < COUNT; i++) { /* the slope is 0 or 1 to within 1e-30 */
        assert_true(fabs((double)outs[i] - (inputs[i] > 0.0f ? 1.0 : 0.0)) < 1e-30);
    }
    test_device_close(&device);
}

static void check_gelu_backward(enum dtype type, bool accumulate, bool in_place) {
    struct device device = any_device(type);
    struct tensor x = random_tensor(type, TOKENS, WIDTH, 1, 0.0, 1.0);
    struct tensor bias = random_tensor(type, 1, WIDTH, 2, 0.0, 1.0);
    struct tensor out_gradient = random_tensor(type, TOKENS, WIDTH, 3, 0.0, 1.0);
    struct tensor fresh = filled_tensor(type, TOKENS, WIDTH, NAN);
    struct tensor sums = accumulate ? random_tensor(DTYPE_F32, 1, WIDTH, 4, 0.0, 1.0)
                                    : filled_tensor(DTYPE_F32, 1, WIDTH, NAN);
    double *incoming = doubles_of(out_gradient), *expected_sums = doubles_of(sums);
    const struct tensor gradient = in_place ? out_gradient : fresh;
    const struct gelu_backward op = {
        .x_gradient = gradient, .out_gradient = out_gradient, .x = x, .bias = bias,
        .bias_gradient = sums.data, .accumulate = accumulate};
    EXPECT_OK(device.ops->gelu_backward(&device, &op));
    struct comparison c = {.what = "x_gradient"};
    for (size_t i = 0; i < tensor_count(x); i++) {
        double u = value_at(x, i) + value_at(bias, i % WIDTH);
        const double expected = incoming[i] * central_difference(&u, gelu_of, &u);
        compare(&c, i, value_at(gradient, i), expected,
                tolerance_of(type, expected, 32.0 * 0x1p-24));
        if (i < WIDTH && !accumulate) expected_sums[i] = 0.0;
        expected_sums[i % WIDTH] += expected;
    }
    compare_end(&c);
    compare_tensor("bias_gradient", sums, expected_sums, (6.0 * TOKENS + 32.0) * 0x1p-24);
    free(incoming);
    free(expected_sums);
    FREE_TENSORS(&x, &bias, &out_gradient, &fresh, &sums);
    test_device_close(&device);
}

static void test_gelu_backward(void **state) {
    (void)state;
    for (int type = 0; type < TEST_DTYPES; type++) {
        for (int flags = 0; flags < 4; flags++) {
            check_gelu_backward(test_dtypes[type], (flags & 1) != 0, (flags & 2) != 0);
        }
    }
}

static void test_bias_backward(void **state) {
    (void)state;
    for (int variant = 0; variant < 2 * TEST_DTYPES; variant++) {
        const enum dtype type = test_dtypes[variant / 2];
        const bool accumulate = variant % 2 == 1;
        struct device device = any_device(type);
        struct tensor out_gradient = random_tensor(type, TOKENS, WIDTH, 1, 0.0, 1.0);
        struct tensor sums = accumulate ? random_tensor(DTYPE_F32, 1, WIDTH, 2, 0.0, 1.0)
                                        : filled_tensor(DTYPE_F32, 1, WIDTH, NAN);
        double *expected = doubles_of(sums);
        for (size_t i = 0; i < tensor_count(out_gradient); i++) {
            if (i < WIDTH && !accumulate) expected[i] = 0.0;
            expected[i % WIDTH] += value_at(out_gradient, i);
        }
        const struct bias_backward op = {sums.data, out_gradient, accumulate};
        EXPECT_OK(device.ops->bias_backward(&device, &op));
        compare_tensor("bias_gradient", sums, expected, 6.0 * TOKENS * 0x1p-24);
        free(expected);
        FREE_TENSORS(&out_gradient, &sums);
        test_device_close(&device);
    }
}

enum { VOCABULARY = 11, LENGTH = 15, POSITIONS = 23, FIRST = 7 };

static void tokens_make(int32_t tokens[TOKENS]) {
    for (size_t n = 0; n < TOKENS; n++) {
        tokens[n] = (int32_t)(random_uniform(9, RANDOM_TEST, n) * (float)VOCABULARY);
    }
}

static void test_embedding_forward(void **state) {
    (void)state;
    int32_t tokens[TOKENS];
    tokens_make(tokens);
    for (int type = 0; type < TEST_DTYPES; type++) {
        struct device device = any_device(test_dtypes[type]);
        struct tensor token = random_tensor(test_dtypes[type], VOCABULARY, WIDTH, 1, 0.0, 1.0);
        struct tensor position = random_tensor(test_dtypes[type], POSITIONS, WIDTH, 2, 0.0, 1.0);
        struct tensor out = filled_tensor(test_dtypes[type], TOKENS, WIDTH, NAN);
        struct embedding_forward op = {out, tokens, token, position, LENGTH, FIRST};
        EXPECT_OK(device.ops->embedding_forward(&device, &op));
        struct comparison c = {.what = "out"};
        for (size_t i = 0; i < tensor_count(out); i++) {
            const size_t n = i / WIDTH, at = FIRST + n % LENGTH;
            const double expected = value_at(token, (size_t)tokens[n] * WIDTH + i % WIDTH) +
                                    value_at(position, at * WIDTH + i % WIDTH);
            compare(&c, i, value_at(out, i), expected,
                    tolerance_of(out.dtype, expected, 4.0 * 0x1p-24));
        }
        compare_end(&c);
        op.first_position = POSITIONS - LENGTH + 1;
        expect_status(STATUS_INTERNAL, device.ops->embedding_forward(&device, &op));
        op.first_position = 0;
        tokens[TOKENS - 1] = VOCABULARY;
        expect_status(STATUS_INTERNAL, device.ops->embedding_forward(&device, &op));
        tokens[TOKENS - 1] = 0;
        FREE_TENSORS(&token, &position, &out);
        test_device_close(&device);
    }
}

/* A token stands in up to TOKENS rows, a position in TOKENS / LENGTH. */
static void check_embedding_backward(enum dtype type, bool accumulate) {
    int32_t tokens[TOKENS];
    struct device device = any_device(type);
    struct tensor out_gradient = random_tensor(type, TOKENS, WIDTH, 1, 0.0, 1.0);
    struct tensor token = random_tensor(DTYPE_F32, VOCABULARY, WIDTH, 2, 0.0, 1.0);
    struct tensor position = accumulate ? random_tensor(DTYPE_F32, POSITIONS, WIDTH, 3, 0.0, 1.0)
                                        : filled_tensor(DTYPE_F32, POSITIONS, WIDTH, NAN);
    double *expected_token = doubles_of(token), *expected_position = doubles_of(position);
    tokens_make(tokens);
    for (size_t i = 0; !accumulate && i < POSITIONS * WIDTH; i++) expected_position[i] = 0.0;
    for (size_t i = 0; i < tensor_count(out_gradient); i++) {
        const size_t n = i / WIDTH, column = i % WIDTH;
        expected_token[(size_t)tokens[n] * WIDTH + column] += value_at(out_gradient, i);
        expected_position[n % LENGTH * WIDTH + column] += value_at(out_gradient, i);
    }
    const struct embedding_backward op = {token, position, out_gradient, tokens, LENGTH,
                                          accumulate};
    EXPECT_OK(device.ops->embedding_backward(&device, &op));
    compare_tensor("token_gradient", token, expected_token, 6.0 * TOKENS * 0x1p-24);
    compare_tensor("position_gradient", position, expected_position, 6.0 * TOKENS * 0x1p-24);
    free(expected_token);
    free(expected_position);
    FREE_TENSORS(&out_gradient, &token, &position);
    test_device_close(&device);
}

static void test_embedding_backward(void **state) {
    (void)state;
    for (int type = 0; type < TEST_DTYPES; type++) {
        check_embedding_backward(test_dtypes[type], false);
        check_embedding_backward(test_dtypes[type], true);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gelu_forward),
        cmocka_unit_test(test_gelu_extremes),
        cmocka_unit_test(test_gelu_backward),
        cmocka_unit_test(test_bias_backward),
        cmocka_unit_test(test_embedding_forward),
        cmocka_unit_test(test_embedding_backward),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

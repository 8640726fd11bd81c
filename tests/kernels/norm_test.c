/*
 * Oracle: the formulas of kernels/ops.h in FP64; gradients by central differences of that forward
 * pass. Tolerances, u = 2^-24, all data of order 1 (below 5): an output is a dozen FP32 operations,
 * hence 64 u times rstd (backward) or rstd times the largest input (forward: the stored mean is
 * rounded); a sum over N rows adds 6 u N as for GEMMs. Tensors in BF16 or FP16 add one rounding
 * when stored. The norm is compared on the residual that the kernel stored, for that is what it
 * normalises.
 */
#include "tests/kernels/testing.h"

enum { TOKENS = 75, WIDTH = 37 }; /* three chunks of rows, no round number */

struct reference {
    double *x, *weight, *bias, *out_gradient; /* (N, C), (C), (C), (N, C) */
    double *out;                              /* (C) */
    size_t first, tokens, width;              /* the loss is over rows [first, first + tokens) */
};

static void reference_row(const struct reference *r, size_t n, double *out, double *mean_out,
                          double *rstd_out) {
    const double *x = r->x + n * r->width;
    double mean = 0.0, variance = 0.0;
    for (size_t i = 0; i < r->width; i++) mean += x[i] / (double)r->width;
    for (size_t i = 0; i < r->width; i++) {
        variance += (x[i] - mean) * (x[i] - mean) / (double)r->width;
    }
    const double rstd = 1.0 / sqrt(variance + 1e-5);
    for (size_t i = 0; i < r->width; i++) out[i] = (x[i] - mean) * rstd * r->weight[i] + r->bias[i];
    *mean_out = mean;
    *rstd_out = rstd;
}

static double reference_loss(const void *context) {
    const struct reference *r = context;
    double loss = 0.0, mean = 0.0, rstd = 0.0;
    for (size_t n = r->first; n < r->first + r->tokens; n++) {
        reference_row(r, n, r->out, &mean, &rstd);
        for (size_t i = 0; i < r->width; i++) loss += r->out[i] * r->out_gradient[n * r->width + i];
    }
    return loss;
}

/* The four ways to call: a residual of one, two or three parts, and in place. */
enum parts { ONE, TWO, THREE, IN_PLACE };

static void check_forward(enum dtype type, size_t tokens, size_t width, enum parts parts) {
    struct device device = test_device_open(2, &(struct op_limits){
        .tokens = tokens, .width = width, .dtype = type});
    struct tensor in = random_tensor(type, tokens, width, 1, 0.5, 1.0), in_copy = copied_tensor(in);
    struct tensor delta = random_tensor(type, tokens, width, 2, 0.0, 1.0);
    struct tensor delta_bias = random_tensor(type, 1, width, 3, 0.0, 1.0);
    struct tensor fresh = filled_tensor(type, tokens, width, NAN);
    struct tensor out = filled_tensor(type, tokens, width, NAN);
    struct tensor weight = random_tensor(type, 1, width, 4, 1.0, 0.3);
    struct tensor bias = random_tensor(type, 1, width, 5, 0.0, 0.3);
    struct tensor mean = filled_tensor(DTYPE_F32, 1, tokens, NAN);
    struct tensor rstd = filled_tensor(DTYPE_F32, 1, tokens, NAN);
    const struct tensor residual = parts == IN_PLACE ? in : fresh;
    const struct norm_forward op = {
        .out = out, .residual = residual, .residual_in = in, .delta = parts == ONE ? NULL : &delta,
        .delta_bias = parts == TWO ? NULL : &delta_bias, .weight = weight, .bias = bias,
        .mean = mean.data, .rstd = rstd.data};
    EXPECT_OK(device.ops->norm_forward(&device, &op));

    if (parts != ONE) {
        double *expected = test_memory(tokens * width * sizeof *expected);
        for (size_t i = 0; i < tokens * width; i++) {
            expected[i] = value_at(in_copy, i) + value_at(delta, i) +
                          (parts == TWO ? 0.0 : value_at(delta_bias, i % width));
        }
        compare_tensor("residual", residual, expected, 8.0 * 0x1p-24);
        free(expected);
    }
    struct tensor normalised = parts == ONE ? in : residual;
    struct reference r = {.x = doubles_of(normalised), .weight = doubles_of(weight),
                          .bias = doubles_of(bias), .tokens = tokens, .width = width};
    struct comparison c = {.what = "out"}, statistics = {.what = "mean and rstd"};
    double *row = test_memory(width * sizeof *row), expected_mean = 0.0, expected_rstd = 0.0;
    for (size_t n = 0; n < tokens; n++) {
        reference_row(&r, n, row, &expected_mean, &expected_rstd);
        compare(&statistics, n, value_at(mean, n), expected_mean,
                tolerance_of(DTYPE_F32, expected_mean, 0.0));
        compare(&statistics, n, value_at(rstd, n), expected_rstd,
                tolerance_of(DTYPE_F32, expected_rstd, 0.0));
        for (size_t i = 0; i < width; i++) {
            compare(&c, n * width + i, value_at(out, n * width + i), row[i],
                    tolerance_of(type, row[i], 64.0 * 0x1p-24 * fmax(1.0, expected_rstd)));
        }
    }
    compare_end(&c);
    compare_end(&statistics);
    free(row);
    free(r.x);
    free(r.weight);
    free(r.bias);
    FREE_TENSORS(&in, &in_copy, &delta, &delta_bias, &fresh, &out, &weight, &bias, &mean, &rstd);
    test_device_close(&device);
}

static void test_forward(void **state) {
    (void)state;
    for (int type = 0; type < TEST_DTYPES; type++) {
        for (enum parts parts = ONE; parts <= IN_PLACE; parts++) {
            check_forward(test_dtypes[type], TOKENS, WIDTH, parts);
            check_forward(test_dtypes[type], 3, 1101, parts);
            check_forward(test_dtypes[type], 1, 1, parts);
        }
    }
}

struct backward_case {
    enum dtype type;
    bool overwrite, accumulate, delta_bias;
};

/* Column sums that should have come out: `rows` (N, C) in FP64 on top of `before`. */
static void check_sums(const char *what, struct tensor found, const double *before,
                       const double *rows, bool accumulate) {
    double expected[WIDTH];
    for (size_t i = 0; i < WIDTH; i++) {
        expected[i] = accumulate ? before[i] : 0.0;
        for (size_t n = 0; n < TOKENS; n++) expected[i] += rows[n * WIDTH + i];
    }
    compare_tensor(what, found, expected, (6.0 * TOKENS + 64.0) * 0x1p-24);
}

static void check_backward(const struct backward_case *t) {
    struct device device = test_device_open(2, &(struct op_limits){
        .tokens = TOKENS, .width = WIDTH, .dtype = t->type});
    struct tensor x = random_tensor(t->type, TOKENS, WIDTH, 1, 0.5, 1.0);
    struct tensor weight = random_tensor(t->type, 1, WIDTH, 2, 1.0, 0.3);
    struct tensor out_gradient = random_tensor(t->type, TOKENS, WIDTH, 3, 0.0, 1.0);
    struct tensor gradient = t->overwrite ? filled_tensor(t->type, TOKENS, WIDTH, NAN)
                                          : random_tensor(t->type, TOKENS, WIDTH, 4, 0.0, 1.0);
    struct tensor past = copied_tensor(gradient);
    struct tensor sums = t->accumulate ? random_tensor(DTYPE_F32, 3, WIDTH, 5, 0.0, 1.0)
                                       : filled_tensor(DTYPE_F32, 3, WIDTH, NAN);
    struct reference r = {
        .x = doubles_of(x), .weight = doubles_of(weight), .out_gradient = doubles_of(out_gradient),
        .bias = calloc(WIDTH, sizeof(double)), .out = test_memory(WIDTH * sizeof(double)),
        .tokens = TOKENS, .width = WIDTH};
    float mean[TOKENS], rstd[TOKENS];
    for (size_t n = 0; n < TOKENS; n++) {
        double row_mean = 0.0, row_rstd = 0.0;
        reference_row(&r, n, r.out, &row_mean, &row_rstd);
        mean[n] = (float)row_mean;
        rstd[n] = (float)row_rstd;
    }
    double *before = doubles_of(sums), *expected = doubles_of(past);
    float *sum = sums.data;
    const struct norm_backward op = {.residual_gradient = gradient,
                                     .out_gradient = out_gradient,
                                     .residual = x,
                                     .weight = weight,
                                     .mean = mean,
                                     .rstd = rstd,
                                     .weight_gradient = sum,
                                     .bias_gradient = sum + WIDTH,
                                     .delta_bias_gradient = t->delta_bias ? sum + 2 * WIDTH : NULL,
                                     .overwrite_residual_gradient = t->overwrite,
                                     .accumulate = t->accumulate};
    EXPECT_OK(device.ops->norm_backward(&device, &op));

    r.tokens = 1; /* a number of x changes its own row only */
    for (size_t i = 0; i < TOKENS * WIDTH; i++) {
        r.first = i / WIDTH;
        const double own = central_difference(&r.x[i], reference_loss, &r);
        expected[i] = t->overwrite ? own : expected[i] + own;
    }
    compare_tensor("residual_gradient", gradient, expected, 64.0 * 0x1p-24);
    struct tensor row = tensor_make(sum + 2 * WIDTH, DTYPE_F32, 1, WIDTH);
    if (t->delta_bias)
        check_sums("delta_bias_gradient", row, before + 2 * WIDTH, expected, t->accumulate);
    r.first = 0;
    r.tokens = TOKENS;
    for (size_t i = 0; i < 2 * WIDTH; i++) {
        double *parameter = i < WIDTH ? &r.weight[i] : &r.bias[i - WIDTH];
        before[i] = (t->accumulate ? before[i] : 0.0) +
                    central_difference(parameter, reference_loss, &r);
    }
    row = tensor_make(sum, DTYPE_F32, 2, WIDTH);
    compare_tensor("weight_gradient, bias_gradient", row, before, (6.0 * TOKENS + 64.0) * 0x1p-24);
    free(before);
    free(expected);
    free(r.x);
    free(r.weight);
    free(r.out_gradient);
    free(r.bias);
    free(r.out);
    FREE_TENSORS(&x, &weight, &out_gradient, &gradient, &past, &sums);
    test_device_close(&device);
}

static void test_backward(void **state) {
    (void)state;
    for (int type = 0; type < TEST_DTYPES; type++) {
        for (int flags = 0; flags < 8; flags++) {
            const struct backward_case t = {test_dtypes[type], (flags & 1) != 0, (flags & 2) != 0,
                                            (flags & 4) != 0};
            check_backward(&t);
        }
    }
}

static void test_too_little_scratch(void **state) {
    (void)state;
    struct device device = test_device_open(2, &(struct op_limits){
        .tokens = TOKENS, .width = WIDTH, .dtype = DTYPE_F32});
    struct tensor x = random_tensor(DTYPE_F32, TOKENS, WIDTH, 1, 0.0, 1.0);
    struct tensor vector = filled_tensor(DTYPE_F32, 1, WIDTH, 1.0);
    struct tensor mean = filled_tensor(DTYPE_F32, 2, TOKENS, 0.0);
    const struct norm_backward op = {
        .residual_gradient = x, .out_gradient = x, .residual = x, .weight = vector,
        .mean = mean.data, .rstd = mean.data, .weight_gradient = vector.data,
        .bias_gradient = vector.data};
    device.scratch_bytes = 64;
    expect_status(STATUS_INTERNAL, device.ops->norm_backward(&device, &op));
    FREE_TENSORS(&x, &vector, &mean);
    test_device_close(&device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forward),
        cmocka_unit_test(test_backward),
        cmocka_unit_test(test_too_little_scratch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/*
 * Oracle: softmax(q k^T / sqrt(width)) v in FP64 with the whole row of scores; gradients by central
 * differences of it; attention_cached against attention_forward, row for row. Tolerances, u =
 * 2^-24, data of order 1: a probability is off by some 32 u relatively (its score is a sum over the
 * head's width, then exponentiated), an output is an average of values below 5: 128 u. Gradients
 * sum probabilities over up to T queries, which is about ln T in all, times products below 10: 512
 * u. Tensors in BF16 or FP16 add one rounding when stored; backward also starts from the rounded
 * output, whose error enters every score's gradient: 8 unit roundoffs of the format.
 */
#include "tests/kernels/testing.h"

struct shape {
    size_t batch, length, heads, width;
};
/* Less than a tile; more than one tile of queries; more than one tile of keys. */
static const struct shape shapes[] = {{2, 9, 3, 5}, {1, 70, 2, 7}, {1, 301, 1, 5}, {1, 1, 1, 1}};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

static struct device device_for(const struct shape *s, enum dtype type) {
    return test_device_open(2, &(struct op_limits){
        .tokens = s->batch * s->length, .width = 3 * s->heads * s->width,
        .sequence_length = s->length, .heads = s->heads, .head_width = s->width, .dtype = type});
}

struct reference {
    double *qkv, *out_gradient; /* (B T, 3 C), (B T, C) */
    const struct shape *shape;
    size_t sequence, head; /* the one that is looked at */
};

/* Output (width) of one query; returns log(sum(exp(scores))). */
static double reference_row(const struct reference *r, size_t t, double *out) {
    const struct shape *s = r->shape;
    const size_t stride = 3 * s->heads * s->width, channels = s->heads * s->width;
    const double *first = r->qkv + r->sequence * s->length * stride + r->head * s->width;
    double total = 0.0;
    for (size_t i = 0; i < s->width; i++) out[i] = 0.0;
    for (size_t u = 0; u <= t; u++) {
        double score = 0.0;
        for (size_t i = 0; i < s->width; i++) {
            score += first[t * stride + i] * first[u * stride + channels + i];
        }
        const double weight = exp(score / sqrt((double)s->width)); /* scores are small */
        total += weight;
        for (size_t i = 0; i < s->width; i++) {
            out[i] += weight * first[u * stride + 2 * channels + i];
        }
    }
    for (size_t i = 0; i < s->width; i++) out[i] /= total;
    return log(total);
}

static double reference_loss(const void *context) {
    const struct reference *r = context;
    const struct shape *s = r->shape;
    double loss = 0.0, out[8];
    for (size_t t = 0; t < s->length; t++) {
        const size_t row = (r->sequence * s->length + t) * s->heads + r->head;
        reference_row(r, t, out);
        for (size_t i = 0; i < s->width; i++) loss += out[i] * r->out_gradient[row * s->width + i];
    }
    return loss;
}

static void check_forward(const struct shape *s, enum dtype type) {
    struct device device = device_for(s, type);
    const size_t rows = s->batch * s->length, channels = s->heads * s->width;
    struct tensor qkv = random_tensor(type, rows, 3 * channels, 1, 0.0, 1.0);
    struct tensor out = filled_tensor(type, rows, channels, NAN);
    struct tensor log_sum_exp = filled_tensor(DTYPE_F32, s->batch * s->heads, s->length, NAN);
    const struct attention_forward op = {out, log_sum_exp.data, qkv, s->batch, s->length, s->heads};
    EXPECT_OK(device.ops->attention_forward(&device, &op));
    struct reference r = {.qkv = doubles_of(qkv), .shape = s};
    struct comparison c = {.what = "out"}, sums = {.what = "log_sum_exp"};
    for (size_t row = 0; row < rows * s->heads; row++) {
        double expected[8];
        const size_t t = row / s->heads % s->length;
        r.sequence = row / s->heads / s->length;
        r.head = row % s->heads;
        const double log_sum = reference_row(&r, t, expected);
        const size_t at = (r.sequence * s->heads + r.head) * s->length + t;
        compare(&sums, at, value_at(log_sum_exp, at), log_sum,
                tolerance_of(DTYPE_F32, log_sum, 32.0 * 0x1p-24));
        for (size_t i = 0; i < s->width; i++) {
            compare(&c, row * s->width + i, value_at(out, row * s->width + i), expected[i],
                    tolerance_of(type, expected[i], 128.0 * 0x1p-24));
        }
    }
    compare_end(&c);
    compare_end(&sums);
    free(r.qkv);
    FREE_TENSORS(&qkv, &out, &log_sum_exp);
    test_device_close(&device);
}

static void test_forward(void **state) {
    (void)state;
    for (size_t i = 0; i < SHAPES; i++) {
        for (int type = 0; type < TEST_DTYPES; type++) check_forward(&shapes[i], test_dtypes[type]);
    }
}

/* Central differences of some 300 of the inputs, spread over all of them. */
static void check_backward(const struct shape *s, enum dtype type) {
    struct device device = device_for(s, type);
    const size_t rows = s->batch * s->length, channels = s->heads * s->width;
    struct tensor qkv = random_tensor(type, rows, 3 * channels, 1, 0.0, 1.0);
    struct tensor out = filled_tensor(type, rows, channels, NAN);
    struct tensor log_sum_exp = filled_tensor(DTYPE_F32, s->batch * s->heads, s->length, NAN);
    struct tensor out_gradient = random_tensor(type, rows, channels, 2, 0.0, 1.0);
    struct tensor gradient = filled_tensor(type, rows, 3 * channels, NAN);
    const struct attention_forward forward = {out, log_sum_exp.data, qkv, s->batch, s->length,
                                              s->heads};
    const struct attention_backward op = {gradient, out_gradient, qkv, out, log_sum_exp.data,
                                          s->batch, s->length, s->heads};
    EXPECT_OK(device.ops->attention_forward(&device, &forward));
    EXPECT_OK(device.ops->attention_backward(&device, &op));
    struct reference r = {doubles_of(qkv), doubles_of(out_gradient), s, 0, 0};
    struct comparison c = {.what = "qkv_gradient"};
    const double absolute = 512.0 * 0x1p-24 + (type == DTYPE_F32 ? 0.0 : 8.0 * unit_roundoff(type));
    const size_t step = tensor_count(qkv) / 300 + 1;
    for (size_t i = 0; i < tensor_count(qkv); i += step) {
        r.sequence = i / (3 * channels) / s->length;
        r.head = i % channels / s->width;
        const double expected = central_difference(&r.qkv[i], reference_loss, &r);
        compare(&c, i, value_at(gradient, i), expected, tolerance_of(type, expected, absolute));
    }
    compare_end(&c);
    free(r.qkv);
    free(r.out_gradient);
    FREE_TENSORS(&qkv, &out, &log_sum_exp, &out_gradient, &gradient);
    test_device_close(&device);
}

static void test_backward(void **state) {
    (void)state;
    for (size_t i = 0; i < SHAPES; i++) {
        for (int type = 0; type < TEST_DTYPES; type++)
            check_backward(&shapes[i], test_dtypes[type]);
    }
}

/* Scores of some thousands: exponentials would overflow if a row's largest were not taken off
 * first. The first key wins by far, so every output is the first value. */
static void test_large_scores(void **state) {
    (void)state;
    const struct shape s = {1, 300, 1, 4};
    struct device device = device_for(&s, DTYPE_F32);
    struct tensor qkv = random_tensor(DTYPE_F32, s.length, 12, 1, 0.0, 1.0);
    struct tensor out = filled_tensor(DTYPE_F32, s.length, 4, NAN);
    struct tensor log_sum_exp = filled_tensor(DTYPE_F32, 1, s.length, NAN);
    for (size_t t = 0; t < s.length; t++) {
        for (size_t i = 0; i < 4; i++) {
            value_set(qkv, t * 12 + i, 100.0);
            value_set(qkv, t * 12 + 4 + i, t == 0 ? 50.0 : -50.0 + (double)t / 10.0);
        }
    }
    const struct attention_forward op = {out, log_sum_exp.data, qkv, 1, s.length, 1};
    EXPECT_OK(device.ops->attention_forward(&device, &op));
    for (size_t i = 0; i < tensor_count(out); i++) {
        assert_true(value_at(out, i) == value_at(qkv, 8 + i % 4));
    }
    FREE_TENSORS(&qkv, &out, &log_sum_exp);
    test_device_close(&device);
}

/* Rows [first, first + count) of every sequence of `from` (B T, C), as (B count, C). */
static struct tensor pieces(struct tensor from, size_t batch, size_t length, size_t first,
                            size_t count) {
    struct tensor piece = filled_tensor(from.dtype, batch * count, from.columns, 0.0);
    const size_t bytes = tensor_bytes(piece) / batch;
    for (size_t b = 0; b < batch; b++) {
        memcpy((char *)piece.data + b * bytes, tensor_rows(from, b * length + first, count).data,
               bytes);
    }
    return piece;
}

/* The caches hold NaN beyond what was appended. Both results are rounded once: two unit
 * roundoffs. */
static void check_cached(const struct shape *s, enum dtype type) {
    static const size_t steps[] = {1, 5, 68, 1, 150, 500};
    struct device device = device_for(s, type);
    const size_t rows = s->batch * s->length, channels = s->heads * s->width;
    struct tensor qkv = random_tensor(type, rows, 3 * channels, 1, 0.0, 1.0);
    struct tensor whole = filled_tensor(type, rows, channels, NAN);
    struct tensor log_sum_exp = filled_tensor(DTYPE_F32, s->batch * s->heads, s->length, NAN);
    struct tensor keys = filled_tensor(type, rows, channels, NAN), values = copied_tensor(keys);
    const struct attention_forward forward = {whole, log_sum_exp.data, qkv, s->batch, s->length,
                                              s->heads};
    EXPECT_OK(device.ops->attention_forward(&device, &forward));
    struct comparison c = {.what = "out"};
    for (size_t past = 0, step = 0; past < s->length; step++) {
        const size_t count = size_min(steps[step], s->length - past);
        struct tensor part = pieces(qkv, s->batch, s->length, past, count);
        struct tensor expected = pieces(whole, s->batch, s->length, past, count);
        struct tensor out = filled_tensor(type, s->batch * count, channels, NAN);
        const struct attention_cached op = {out, part, keys, values, s->batch, count, s->heads,
                                            past, s->length};
        EXPECT_OK(device.ops->attention_cached(&device, &op));
        for (size_t i = 0; i < tensor_count(out); i++) {
            const double value = value_at(expected, i);
            compare(&c, i, value_at(out, i), value,
                    2.0 * tolerance_of(type, value, 128.0 * 0x1p-24));
        }
        past += count;
        FREE_TENSORS(&part, &expected, &out);
    }
    compare_end(&c);
    for (size_t i = 0; i < tensor_count(keys); i++) {
        const size_t from = i / channels * 3 * channels + i % channels;
        assert_true(value_at(keys, i) == value_at(qkv, from + channels));
        assert_true(value_at(values, i) == value_at(qkv, from + 2 * channels));
    }
    FREE_TENSORS(&qkv, &whole, &log_sum_exp, &keys, &values);
    test_device_close(&device);
}

static void test_cached(void **state) {
    static const struct shape batches[] = {{2, 9, 3, 5}, {2, 301, 2, 7}};
    (void)state;
    for (int type = 0; type < TEST_DTYPES; type++) {
        check_cached(&batches[0], test_dtypes[type]);
        check_cached(&batches[1], test_dtypes[type]);
    }
}

static void test_refusals(void **state) {
    (void)state;
    const struct shape s = {1, 4, 1, 6};
    struct device device = device_for(&s, DTYPE_F32);
    struct tensor qkv = random_tensor(DTYPE_F32, 4, 18, 1, 0.0, 1.0);
    struct tensor out = filled_tensor(DTYPE_F32, 4, 6, 0.0);
    struct tensor cache = filled_tensor(DTYPE_F32, 5, 6, 0.0);
    float log_sum_exp[16];
    const struct attention_forward uneven = {out, log_sum_exp, qkv, 1, 4, 4};
    expect_status(STATUS_INTERNAL, device.ops->attention_forward(&device, &uneven));
    const struct attention_cached full = {out, qkv, cache, cache, 1, 4, 1, 2, 5};
    expect_status(STATUS_INTERNAL, device.ops->attention_cached(&device, &full));
    const struct attention_forward op = {out, log_sum_exp, qkv, 1, 4, 1};
    device_set_scratch(&device, device.scratch, 256);
    expect_status(STATUS_INTERNAL, device.ops->attention_forward(&device, &op));
    FREE_TENSORS(&qkv, &out, &cache);
    test_device_close(&device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forward),      cmocka_unit_test(test_backward),
        cmocka_unit_test(test_large_scores), cmocka_unit_test(test_cached),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

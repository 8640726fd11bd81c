/*
 * BF16 and FP16, the convert operation, find_nonfinite, and the vectorised exponential. Oracles:
 * the formats' definitions through ldexp for every one of the 65536 codes; for rounding, the nearer
 * of the two neighbouring codes in exact FP64 arithmetic, ties to the even code; exp() in FP64.
 */
#include "kernels/cpu/vector.h"
#include "tests/kernels/testing.h"

/* A format with `exponent_bits` and `fraction_bits`, as IEEE 754 defines it. */
struct format {
    enum dtype type;
    int exponent_bits, fraction_bits;
};
static const struct format formats[] = {{DTYPE_BF16, 8, 7}, {DTYPE_F16, 5, 10}};

static double code_value(const struct format *f, uint32_t code) {
    const int bias = (1 << (f->exponent_bits - 1)) - 1;
    const uint32_t fraction = code & ((1u << f->fraction_bits) - 1u);
    const int exponent = (int)(code >> f->fraction_bits & ((1u << f->exponent_bits) - 1u));
    const double sign = code >> 15 != 0 ? -1.0 : 1.0;
    if (exponent == (1 << f->exponent_bits) - 1) return fraction != 0 ? NAN : sign * INFINITY;
    const int lead = exponent > 0 ? 1 << f->fraction_bits : 0;
    const int power = (exponent > 0 ? exponent : 1) - bias - f->fraction_bits;
    return sign * ldexp((double)(lead + (int)fraction), power);
}

static float widen(enum dtype type, uint16_t code) {
    return type == DTYPE_BF16 ? float_from_bf16(code) : float_from_f16(code);
}

static uint16_t narrow(enum dtype type, float value) {
    return type == DTYPE_BF16 ? bf16_from_float(value) : f16_from_float(value);
}

static void test_every_code(void **state) {
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        for (uint32_t code = 0; code < 65536; code++) {
            const double expected = code_value(&formats[i], code);
            const float value = widen(formats[i].type, (uint16_t)code);
            if (isnan(expected)) {
                assert_true(isnan(value) &&
                            isnan(widen(formats[i].type, narrow(formats[i].type, value))));
                assert_int_equal(signbit(value) != 0, code >> 15);
            } else {
                assert_true((double)value == expected &&
                            (signbit(value) != 0) == (code >> 15 != 0));
                assert_int_equal(narrow(formats[i].type, value), code); /* there and back */
            }
        }
    }
}

/* Between each code and the next: the tie, and the FP32 numbers on either side of it. */
static void test_rounding(void **state) {
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        const uint32_t infinity = ((1u << formats[i].exponent_bits) - 1u)
                                  << formats[i].fraction_bits;
        for (uint32_t code = 0; code < infinity; code++) {
            const double low = code_value(&formats[i], code);
            /* The gap above the largest finite number is as wide as the one below it. */
            const double high = code + 1 < infinity ? code_value(&formats[i], code + 1)
                                                    : 2.0 * low - code_value(&formats[i], code - 1);
            const float tie = (float)((low + high) / 2.0); /* exact in FP32 */
            const uint32_t even = code % 2 == 0 ? code : code + 1;
            assert_true((double)tie == (low + high) / 2.0);
            assert_int_equal(narrow(formats[i].type, tie), even);
            assert_int_equal(narrow(formats[i].type, nextafterf(tie, 0.0f)), code);
            assert_int_equal(narrow(formats[i].type, nextafterf(tie, INFINITY)), code + 1);
            assert_int_equal(narrow(formats[i].type, -tie), even | 0x8000u);
        }
    }
}

static void test_special_numbers(void **state) {
    (void)state;
    /* A NaN whose payload lies in the bits that are cut. */
    const float not_quiet = float_of_bits(0x7F800001u);
    for (size_t i = 0; i < 2; i++) {
        const enum dtype type = formats[i].type;
        assert_true(isnan(dtype_round(type, NAN)) && isnan(dtype_round(type, not_quiet)));
        assert_true(isnan(dtype_round(type, float_of_bits(0xFFFFFFFFu))));
        assert_true(dtype_round(type, INFINITY) == INFINITY);
        assert_true(dtype_round(type, -INFINITY) == -INFINITY);
        assert_true(dtype_round(type, 3.4028234e38f) == INFINITY);
        assert_true(dtype_round(type, 0x1p-149f) == 0.0f);
        assert_true(signbit(dtype_round(type, -0x1p-149f)) != 0);
    }
    assert_true(dtype_round(DTYPE_F32, 0.1f) == 0.1f);
    assert_true(dtype_round(DTYPE_F16, 65519.0f) == 65504.0f);
    assert_true(dtype_round(DTYPE_F16, 65520.0f) == INFINITY);
    assert_string_equal(dtype_name(DTYPE_F32), "fp32");
    assert_string_equal(dtype_name(DTYPE_BF16), "bf16");
    assert_string_equal(dtype_name(DTYPE_F16), "fp16");
}

static struct device any_device(void) {
    return test_device_open(2, &(struct op_limits){.tokens = 1, .width = 1});
}

/* The vectorised rows against the numbers one by one: the same bits, all codes, all pairs of
 * formats. */
static void test_convert(void **state) {
    (void)state;
    struct device device = any_device();
    struct tensor wide = filled_tensor(DTYPE_F32, 7, 65536 / 4 + 1, 0.0);
    for (size_t i = 0; i < tensor_count(wide); i++) { /* FP32 bits from all over */
        uint32_t words[4];
        random_words(1, RANDOM_TEST, i, words);
        ((float *)wide.data)[i] =
            float_of_bits(words[0] & (i % 3 == 0 ? 0xC7FFFFFFu : 0xFFFFFFFFu));
    }
    for (size_t i = 0; i < 2; i++) {
        struct tensor half = filled_tensor(formats[i].type, 1, tensor_count(wide), 0.0);
        struct tensor back = filled_tensor(DTYPE_F32, tensor_count(wide), 1, 0.0);
        struct tensor other = filled_tensor(formats[1 - i].type, 1, tensor_count(wide), 0.0);
        EXPECT_OK(device.ops->convert(&device, half, wide));
        EXPECT_OK(device.ops->convert(&device, back, half));
        EXPECT_OK(device.ops->convert(&device, other, half));
        for (size_t j = 0; j < tensor_count(wide); j++) {
            const uint16_t code = ((const uint16_t *)half.data)[j];
            const float value = widen(formats[i].type, code);
            assert_int_equal(code, narrow(formats[i].type, ((const float *)wide.data)[j]));
            assert_int_equal(bits_of_float(((const float *)back.data)[j]), bits_of_float(value));
            assert_int_equal(((const uint16_t *)other.data)[j], narrow(formats[1 - i].type, value));
        }
        half.columns--;
        expect_status(STATUS_INTERNAL, device.ops->convert(&device, half, wide));
        FREE_TENSORS(&half, &back, &other);
    }
    FREE_TENSORS(&wide);
    test_device_close(&device);
}

static void test_find_nonfinite(void **state) {
    (void)state;
    struct device device = any_device();
    for (int type = 0; type < TEST_DTYPES; type++) {
        struct tensor t = random_tensor(test_dtypes[type], 3, 5001, 1, 0.0, 1.0);
        size_t index = 0;
        EXPECT_OK(device.ops->find_nonfinite(&device, t, &index));
        assert_true(index == SIZE_MAX);
        value_set(t, 15002, NAN);
        EXPECT_OK(device.ops->find_nonfinite(&device, t, &index));
        assert_int_equal(index, 15002);
        value_set(t, 9000, -INFINITY);
        value_set(t, 9001, NAN);
        EXPECT_OK(device.ops->find_nonfinite(&device, t, &index));
        assert_int_equal(index, 9000);
        FREE_TENSORS(&t);
    }
    test_device_close(&device);
}

/* Every 4099th FP32 of either sign: within 2 units in the last place, which is worth 2^-23
 * relatively, or 2^-149 among the subnormal numbers. */
static void test_vector_exp(void **state) {
    (void)state;
    struct comparison c = {.what = "vector_exp"};
    for (uint64_t bits = 0; bits < (uint64_t)1 << 32; bits += 4099) {
        const float x = float_of_bits((uint32_t)bits), y = vector_exp(x);
        const double expected = exp((double)x);
        if (isnan(x)) {
            assert_true(isnan(y));
        } else if (expected > 3.4028235e38) { /* FP32's largest */
            assert_true(y >= 3.4028e38f);
        } else {
            compare(&c, (size_t)bits, (double)y, expected,
                    fmax(2.0 * 0x1p-23 * expected, 0x1p-148));
        }
    }
    compare_end(&c);
    assert_true(vector_exp(0.0f) == 1.0f && vector_exp(-0.0f) == 1.0f);
    assert_true(vector_exp(-INFINITY) == 0.0f && vector_exp(INFINITY) == INFINITY);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_code),      cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_special_numbers), cmocka_unit_test(test_convert),
        cmocka_unit_test(test_find_nonfinite),  cmocka_unit_test(test_vector_exp),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

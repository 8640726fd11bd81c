/*
 * E4M3, E5M2, E2M1, UE8M0 and the rules of scales (kernels/formats.h). Oracles: a fixture made with
 * ml_dtypes for every code and for rounding at and beside every midpoint; the formats' definitions
 * for saturation and specials; closed forms for scales; the expectation of stochastic rounding
 * with a bound of six standard deviations.
 */
#include "kernels/formats.h"
#include "tests/kernels/formats_fixture.h"
#include "tests/kernels/testing.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static const struct fixture {
    enum number_format format;
    const uint32_t *values, *inputs;
    const uint8_t *codes;
    size_t value_count, input_count;
    double smallest;
} fixtures[] = {
    {FORMAT_E4M3, e4m3_values, e4m3_inputs, e4m3_codes, COUNT(e4m3_values), COUNT(e4m3_inputs),
     0x1p-9},
    {FORMAT_E5M2, e5m2_values, e5m2_inputs, e5m2_codes, COUNT(e5m2_values), COUNT(e5m2_inputs),
     0x1p-16},
    {FORMAT_E2M1, e2m1_values, e2m1_inputs, e2m1_codes, COUNT(e2m1_values), COUNT(e2m1_inputs),
     0.5},
};
enum { FIXTURES = sizeof fixtures / sizeof fixtures[0] };

static void every_code_decodes_and_comes_back(void **state) {
    (void)state;
    for (size_t f = 0; f < FIXTURES; f++) {
        for (size_t code = 0; code < fixtures[f].value_count; code++) {
            const float value = format_decode(fixtures[f].format, (uint8_t)code);
            const float expected = float_of_bits(fixtures[f].values[code]);
            if (isnan(expected)) {
                assert_true(isnan(value));
                assert_int_equal(format_encode(fixtures[f].format, value), 0x7F);
                continue;
            }
            assert_int_equal(bits_of_float(value), fixtures[f].values[code]);
            if (isinf(value)) continue;
            assert_int_equal(format_encode(fixtures[f].format, value), code);
            assert_int_equal(format_encode_stochastic(fixtures[f].format, value, 0), code);
            assert_int_equal(format_encode_stochastic(fixtures[f].format, value, UINT32_MAX), code);
        }
    }
}

static void rounding_is_to_nearest_even(void **state) {
    (void)state;
    for (size_t f = 0; f < FIXTURES; f++) {
        for (size_t i = 0; i < fixtures[f].input_count; i++) {
            const float input = float_of_bits(fixtures[f].inputs[i]);
            assert_int_equal(format_encode(fixtures[f].format, input), fixtures[f].codes[i]);
        }
    }
}

static void beyond_the_largest_saturates(void **state) {
    (void)state;
    for (size_t f = 0; f < FIXTURES; f++) {
        const enum number_format format = fixtures[f].format;
        const float largest = format_max(format);
        const float beyond[] = {nextafterf(largest, INFINITY), 1.2f * largest, 3e38f, INFINITY};
        for (size_t i = 0; i < COUNT(beyond); i++) {
            assert_true(format_decode(format, format_encode(format, beyond[i])) == largest);
            assert_true(format_decode(format, format_encode(format, -beyond[i])) == -largest);
            assert_true(format_decode(format, format_encode_stochastic(format, beyond[i], 1u)) ==
                        largest);
        }
        assert_true(format_decode(format, format_encode(format, 0x1p-140f)) == 0.0f);
        const uint8_t nan = format_encode(format, NAN);
        assert_true(format == FORMAT_E2M1 ? float_from_e2m1(nan) == 6.0f
                                          : isnan(format_decode(format, nan)));
    }
}

/* The mean of n roundings of a number between two neighbours d apart is off by at most
 * 6 sqrt(p (1 - p) / n) d with all but 2e-9 probability; the seed is fixed. */
static void stochastic_rounding_is_unbiased(void **state) {
    (void)state;
    enum { TIMES = 20000 };
    for (size_t f = 0; f < FIXTURES; f++) {
        const enum number_format format = fixtures[f].format;
        const double numbers[] = {0.3 * fixtures[f].smallest, 1.7 * fixtures[f].smallest, 1.1,
                                  -2.7, 0.9 * (double)format_max(format)};
        for (size_t i = 0; i < COUNT(numbers); i++) {
            const float number = (float)numbers[i];
            double sum = 0.0, below = INFINITY, above = -INFINITY;
            for (uint64_t t = 0; t < TIMES; t++) {
                uint32_t words[4];
                random_words(f * 8 + i, RANDOM_TEST, t, words);
                const double x = (double)format_decode(
                    format, format_encode_stochastic(format, number, words[0]));
                sum += x;
                below = fmin(below, x);
                above = fmax(above, x);
            }
            const double distance = above - below, p = ((double)number - below) / distance;
            assert_true(below < (double)number && (double)number < above);
            assert_true(fabs(sum / TIMES - (double)number) <
                        6.0 * sqrt(p * (1.0 - p) / TIMES) * distance);
        }
    }
}

static void scales_of_amaxes(void **state) {
    (void)state;
    assert_true(scale_from_amax(448.0f, E4M3_MAX) == 1.0f);
    assert_true(scale_from_amax(0.0f, E4M3_MAX) == 1.0f);
    assert_true(scale_from_amax(0x1p-149f, E4M3_MAX) == SCALE_FACTOR_MAX);
    assert_true(scale_from_amax(3.0f, E5M2_MAX) == 57344.0f / 3.0f);
    assert_true(isnan(scale_from_amax(INFINITY, E4M3_MAX)));
    assert_true(isnan(scale_from_amax(NAN, E4M3_MAX)));
    assert_int_equal(nvfp4_block_scale(6.0f, 448.0f), 0x7E); /* 448 */
    assert_true(nvfp4_scaled(3.0f, 2.0f, 0.0f) == 0.0f && nvfp4_scaled(3.0f, 2.0f, 4.0f) == 1.5f);
}

/* 2^ceil(log2(amax / 448)): exactly at a power of two it is that, one FP32 step above the next. */
static void ue8m0_rounds_up(void **state) {
    (void)state;
    for (int e = -100; e <= 119; e++) {
        const float exact = 448.0f * (float)ldexp(1.0, e);
        assert_int_equal(ue8m0_from_amax(exact), 127 + e);
        assert_int_equal(ue8m0_from_amax(nextafterf(exact, INFINITY)), 128 + e);
        assert_int_equal(ue8m0_from_amax(nextafterf(exact, 0.0f)), 127 + e);
    }
    for (int code = 0; code < 255; code++) {
        assert_true((double)float_from_ue8m0((uint8_t)code) == ldexp(1.0, code - 127));
        if (code >= UE8M0_LEAST) {
            assert_true((double)ue8m0_factor((uint8_t)code) == ldexp(1.0, 127 - code));
        }
    }
    assert_int_equal(ue8m0_from_amax(0.0f), UE8M0_LEAST);
    assert_int_equal(ue8m0_from_amax(NAN), UE8M0_NAN);
    assert_int_equal(ue8m0_from_amax(INFINITY), UE8M0_INFINITY);
    assert_true(isnan(float_from_ue8m0(UE8M0_NAN)) && isnan(ue8m0_factor(UE8M0_NAN)));
}

/* Every finite E4M3 number times every scale that ue8m0_from_amax gives for a finite amax below
 * 448 * 2^119 is exactly a BF16: what emulation on BF16 tensor cores stands on. */
static void mxfp8_operands_are_exact_in_bf16(void **state) {
    (void)state;
    for (int scale = UE8M0_LEAST; scale <= 127 + 119; scale++) {
        for (int code = 0; code < 256; code++) {
            const float value = float_from_e4m3((uint8_t)code) * float_from_ue8m0((uint8_t)scale);
            if (isnan(value)) continue;
            assert_true(float_from_bf16(bf16_from_float(value)) == value);
        }
    }
}

/* Likewise the 15 magnitudes of E2M1 times every E4M3 scale. */
static void nvfp4_operands_are_exact_in_bf16(void **state) {
    (void)state;
    for (int scale = 0; scale < 0x7F; scale++) {
        for (uint8_t code = 0; code < 16; code++) {
            const float value = float_from_e2m1(code) * float_from_e4m3((uint8_t)scale);
            assert_true(float_from_bf16(bf16_from_float(value)) == value);
        }
    }
}

/* The rule of the OCP specification, 2^(floor(log2 amax) - 8), leaves amax / scale in [256, 512):
 * above 448 in a share 1 - log2(1.75) = 19.3 % of blocks whose amax is log-uniform. The count of
 * n = 2^16 evenly spread logarithms is within one of n times that. Rounded up, none saturates. */
static void the_floor_rule_would_saturate_a_fifth(void **state) {
    (void)state;
    enum { BLOCKS = 1 << 16 };
    size_t floor_saturates = 0, up_saturates = 0;
    for (size_t i = 0; i < BLOCKS; i++) {
        const double amax = exp2(((double)i + 0.5) / BLOCKS);
        floor_saturates += amax / exp2(floor(log2(amax)) - 8.0) > 448.0;
        const uint8_t code = ue8m0_from_amax((float)amax);
        up_saturates += (float)amax * ue8m0_factor(code) > E4M3_MAX;
    }
    assert_true(fabs((double)floor_saturates - BLOCKS * (1.0 - log2(1.75))) <= 1.0);
    assert_int_equal(up_saturates, 0);
}

/* Orthonormal: lengths and products stay. Sums of 16 numbers of size 1 in FP32: 16 * 2^-24 each. */
static void hadamard_keeps_products(void **state) {
    (void)state;
    float x[HADAMARD_SIZE], y[HADAMARD_SIZE];
    double before = 0.0, after = 0.0;
    for (uint64_t i = 0; i < HADAMARD_SIZE; i++) {
        x[i] = random_uniform(1, RANDOM_TEST, i);
        y[i] = random_uniform(2, RANDOM_TEST, i);
        before += (double)x[i] * (double)y[i];
    }
    hadamard_transform(x);
    hadamard_transform(y);
    for (size_t i = 0; i < HADAMARD_SIZE; i++) after += (double)x[i] * (double)y[i];
    assert_true(fabs(after - before) < 16.0 * 16.0 * 0x1p-24);
    float one[HADAMARD_SIZE] = {0};
    one[3] = 1.0f;
    hadamard_transform(one);
    for (size_t i = 0; i < HADAMARD_SIZE; i++) assert_true(fabsf(one[i]) == 0.25f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_decodes_and_comes_back),
        cmocka_unit_test(rounding_is_to_nearest_even),
        cmocka_unit_test(beyond_the_largest_saturates),
        cmocka_unit_test(stochastic_rounding_is_unbiased),
        cmocka_unit_test(scales_of_amaxes),
        cmocka_unit_test(ue8m0_rounds_up),
        cmocka_unit_test(mxfp8_operands_are_exact_in_bf16),
        cmocka_unit_test(nvfp4_operands_are_exact_in_bf16),
        cmocka_unit_test(the_floor_rule_would_saturate_a_fifth),
        cmocka_unit_test(hadamard_keeps_products),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

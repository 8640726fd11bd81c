/*
 * The peak table and MFU. Oracle: names as drivers report them against figures from the data
 * sheets, rules that every row must follow, and shares worked out by hand.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "train/peak.h"

static void names_as_drivers_report_them(void **state) {
    (void)state;
    static const struct { const char *name; int capability; double bf16, fp8, fp4; } known[] = {
        {"NVIDIA H200", 90, 989.5, 1979, 0},
        {"NVIDIA H200", 0, 989.5, 1979, 0},
        {"nvidia h200", 90, 989.5, 1979, 0},
        {"NVIDIA H200 NVL", 90, 835.5, 1670.5, 0},
        {"NVIDIA H100 80GB HBM3", 90, 989.5, 1979, 0},
        {"NVIDIA H100 PCIe", 90, 756.5, 1513, 0},
        {"NVIDIA H100 NVL", 90, 835.5, 1670.5, 0},
        {"NVIDIA B200", 100, 2250, 4500, 9000},
        {"NVIDIA A100-SXM4-80GB", 80, 312, 0, 0},
        {"A100-SXM4-40GB", 80, 312, 0, 0},
        {"NVIDIA L40S", 89, 362.05, 733, 0},
        {"NVIDIA L40", 89, 181.05, 362, 0},
        {"NVIDIA L4", 89, 121, 242.5, 0},
        {"NVIDIA GeForce RTX 4090", 89, 165.2, 330.3, 0},
        {"NVIDIA GeForce RTX 3090", 86, 71, 0, 0},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        const struct peak *peak = peak_find(known[i].name, known[i].capability);
        assert_non_null(peak);
        assert_true(peak->tflops[PEAK_BF16] == known[i].bf16);
        assert_true(peak->tflops[PEAK_FP8] == known[i].fp8);
        assert_true(peak->tflops[PEAK_FP4] == known[i].fp4);
    }
}

static void other_devices_have_no_peak(void **state) {
    (void)state;
    static const char *const unknown[] = {
        "NVIDIA GH200 480GB", "NVIDIA GB200", "NVIDIA H20", "NVIDIA H100", "NVIDIA H800",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA H200 MIG 1g.18gb", "NVIDIA A100-SXM-64GB",
        "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA RTX 4090",
        "NVIDIA GeForce RTX 3090 Ti", "XH200", "AMD EPYC 9654, 2 threads", "", "0",
    };
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++) {
        assert_null(peak_find(unknown[i], 0));
    }
    assert_null(peak_find("NVIDIA H200", 80)); /* a name alone is not believed */
}

/* A sparse figure put into the table would break one of these: tensor types double from one to the
 * next. */
static void rows_follow_the_rules(void **state) {
    (void)state;
    size_t rows = 0;
    for (const struct peak *row; (row = peak_row(rows)) != NULL; rows++) {
        assert_true(row->capability >= 70 && strlen(row->name) > 0);
        assert_true(strncmp(row->source, "NVIDIA ", 7) == 0);
        assert_ptr_equal(peak_find(row->name, row->capability), row);
        const double *tflops = row->tflops;
        assert_true(tflops[PEAK_FP16] > 0.0 && tflops[PEAK_FP32] > 0.0);
        if (tflops[PEAK_BF16] > 0.0) assert_true(tflops[PEAK_BF16] == tflops[PEAK_FP16]);
        /* 3 %: data sheets round (L40S: 362.05 and 733, B200: 1100 and 2250) */
        if (tflops[PEAK_FP8] > 0.0) {
            assert_true(fabs(tflops[PEAK_FP8] / tflops[PEAK_FP16] - 2.0) <= 0.06);
        }
        if (tflops[PEAK_FP4] > 0.0) assert_true(tflops[PEAK_FP4] == 2.0 * tflops[PEAK_FP8]);
        if (tflops[PEAK_TF32] > 0.0) {
            assert_true(fabs(tflops[PEAK_FP16] / tflops[PEAK_TF32] - 2.0) <= 0.06);
        }
    }
    assert_true(rows > 0);
    assert_null(peak_row(rows + 1));
}

static const struct speed_limit bf16_peak = {.tflops = 989.5, .types = 1u << PEAK_BF16};

static void shares_by_hand(void **state) {
    (void)state;
    char text[MFU_TEXT_BYTES];
    const struct speed_limit unknown = {.types = 1u << PEAK_FP32};
    struct mfu mfu = mfu_against(494.75, &bf16_peak);
    assert_int_equal(mfu.state, MFU_KNOWN);
    assert_true(mfu.share == 0.5);
    assert_string_equal(mfu_text(text, &mfu), "mfu 50.0% of 989.5 (BF16 dense)");
    mfu = mfu_against(989.5, &bf16_peak);
    assert_int_equal(mfu.state, MFU_KNOWN);
    mfu = mfu_against(0.4, &unknown);
    assert_int_equal(mfu.state, MFU_UNKNOWN);
    assert_string_equal(mfu_text(text, &mfu), "mfu n/a");
}

static void above_the_peak_is_an_error(void **state) {
    (void)state;
    char text[MFU_TEXT_BYTES];
    struct mfu mfu = mfu_against(1200.0, &bf16_peak);
    assert_int_equal(mfu.state, MFU_MEASUREMENT_ERROR);
    assert_non_null(strstr(mfu_text(text, &mfu), "measurement error, 1200.0"));
    assert_null(strchr(text, '%')); /* no share that could be quoted */
    const double none[] = {(double)NAN, (double)INFINITY, -1.0};
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++) {
        mfu = mfu_against(none[i], &bf16_peak);
        assert_int_equal(mfu.state, MFU_MEASUREMENT_ERROR);
    }
}

/* By hand, on the H200's row: 3/4 at 1979 and 1/4 at 989.5 take 5/8 of the time of all at 989.5. */
static void a_mixture_has_a_speed_of_light(void **state) {
    char text[MFU_TEXT_BYTES];
    (void)state;
    const struct peak *h200 = peak_find("NVIDIA H200", 90), *a100 = peak_find("A100-SXM4-80GB", 80);
    const double share[PEAK_TYPE_COUNT] = {[PEAK_FP8] = 0.75, [PEAK_BF16] = 0.25};
    struct speed_limit limit = speed_limit_mixed(h200, share);
    assert_true(limit.mixed && !limit.emulated);
    assert_true(limit.tflops > 1583.199 && limit.tflops < 1583.201); /* 989.5 x 8 / 5 */
    struct mfu mfu = mfu_against(682.4, &limit);
    assert_string_equal(mfu_text(text, &mfu), "speed of light 43.1% (FP8 + BF16 dense)");
    mfu = mfu_against(1200.0, &limit); /* above BF16's peak, and no error */
    assert_int_equal(mfu.state, MFU_KNOWN);
    mfu = mfu_against(1600.0, &limit);
    assert_non_null(strstr(mfu_text(text, &mfu), "speed of light: measurement error, 1600.0"));
    const struct speed_limit unknown[] = {speed_limit_mixed(NULL, share),
                                          speed_limit_mixed(a100, share)}; /* it has no FP8 */
    for (size_t i = 0; i < 2; i++) {
        mfu = mfu_against(100.0, &unknown[i]);
        assert_string_equal(mfu_text(text, &mfu), "speed of light n/a");
    }
    limit.emulated = true;
    mfu = mfu_against(100.0, &limit);
    assert_string_equal(mfu_text(text, &mfu), "emulated");
}

/* nvfp4 on a B200: 3/4 at 9000 and 1/4 at 2250 take 7/16 of the time of all at 2250. */
static void four_bits_have_a_peak(void **state) {
    char text[MFU_TEXT_BYTES];
    (void)state;
    const double share[PEAK_TYPE_COUNT] = {[PEAK_FP4] = 0.75, [PEAK_BF16] = 0.25};
    const struct speed_limit limit = speed_limit_mixed(peak_find("NVIDIA B200", 100), share);
    assert_true(fabs(limit.tflops - 2250.0 * 16.0 / 7.0) < 1e-6);
    const struct mfu mfu = mfu_against(limit.tflops / 2.0, &limit);
    assert_string_equal(mfu_text(text, &mfu), "speed of light 50.0% (FP4 + BF16 dense)");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_mixture_has_a_speed_of_light),
        cmocka_unit_test(four_bits_have_a_peak),
        cmocka_unit_test(names_as_drivers_report_them),
        cmocka_unit_test(other_devices_have_no_peak),
        cmocka_unit_test(rows_follow_the_rules),
        cmocka_unit_test(shares_by_hand),
        cmocka_unit_test(above_the_peak_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

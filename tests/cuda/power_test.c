/*
 * Power and energy through NVML. Oracle: the figures of a library under NVML's name (fake_nvml.c),
 * which the test loads first, so that the loader takes it for libnvidia-ml.so.1. Its path is the
 * first argument.
 */
#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/cuda/power.h"
#include "tests/cuda/fake_nvml.h"

static void (*set_figures)(const struct fake_nvml *figures);

static void figures_are_nvmls(void **state) {
    struct gpu_power power;
    char text[GPU_POWER_TEXT_BYTES];
    double limit = 0.0;
    unsigned watts = 0, mhz = 0;
    (void)state;
    gpu_power_open(&power, FAKE_NVML_BUS_ID);
    assert_non_null(power.library);
    gpu_power_limits(&power, &limit, &mhz);
    assert_true(limit == 700.0 && mhz == 1980);
    set_figures(&(struct fake_nvml){.counts_energy = true, .energy_mj = 5000000, .mw = 688400,
                                    .mhz = 1440, .reasons = 0x4});
    assert_true(gpu_power_now(&power, &watts, &mhz));
    assert_true(watts == 688 && mhz == 1440);
    gpu_power_start(&power);
    gpu_power_look(&power);
    set_figures(&(struct fake_nvml){.counts_energy = true,
                                    .energy_mj = 5000000 + 126000,
                                    .mw = 1000,
                                    .mhz = 1500,
                                    .reasons = 0x20});
    gpu_power_look(&power);
    gpu_power_look(&power);
    gpu_power_stop(&power);
    assert_true(power.joules == 126.0);
    assert_int_equal(gpu_power_median_mhz(&power), 1500);
    assert_true(gpu_power_mean_watts(&power) == 126.0 / power.seconds);
    assert_string_equal(gpu_power_limit_text(text, &power), "limited by power and thermal");
    gpu_power_text(text, &power, 10000.0); /* 126 J for 10,000 tokens */
    assert_non_null(strstr(text, "SM 1500 MHz (median of 3 looks), limited by power and thermal; "
                                 "12.60 kJ a million tokens"));
    gpu_power_close(&power);
}

static void memory_and_driver_are_nvmls(void **state) {
    struct gpu_power power;
    char text[GPU_DRIVER_TEXT_BYTES];
    size_t bytes = 0;
    (void)state;
    gpu_power_open(&power, FAKE_NVML_BUS_ID);
    set_figures(&(struct fake_nvml){.memory_used = 61ull << 30});
    assert_true(gpu_memory_used(&power, &bytes) && bytes == 61ull << 30);
    set_figures(&(struct fake_nvml){0});
    assert_false(gpu_memory_used(&power, &bytes));
    assert_string_equal(gpu_driver_text(text, &power), "580.65.06");
    gpu_power_close(&power);
    gpu_power_open(&power, "");
    assert_false(gpu_memory_used(&power, &bytes));
    assert_string_equal(gpu_driver_text(text, &power), "n/a");
    gpu_power_close(&power);
}

/* A GPU that counts no energy has none, and its power is what was seen. */
static void no_counter_is_said(void **state) {
    struct gpu_power power;
    char text[GPU_POWER_TEXT_BYTES];
    (void)state;
    set_figures(&(struct fake_nvml){.mw = 70000, .mhz = 900});
    gpu_power_open(&power, FAKE_NVML_BUS_ID);
    gpu_power_start(&power);
    gpu_power_look(&power);
    gpu_power_stop(&power);
    assert_true(power.joules < 0.0 && gpu_power_mean_watts(&power) == 70.0);
    assert_string_equal(
        gpu_power_text(text, &power, 10.0),
        "70 W, SM 900 MHz (median of 1 looks), not limited; energy n/a: this GPU counts "
        "none");
    assert_string_equal(gpu_power_text(text, &power, 0.0),
                        "70 W, SM 900 MHz (median of 1 looks), not limited");
    gpu_power_close(&power);
}

static void absence_is_said(void **state) {
    static const char *const cases[][2] = {
        {"", "n/a: the work is on the CPU"},
        {"0000:FF:00.0", "n/a: NVML knows no GPU at 0000:FF:00.0"},
    };
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct gpu_power power;
        char text[GPU_POWER_TEXT_BYTES];
        double limit = 1.0;
        unsigned watts = 0, mhz = 1;
        gpu_power_open(&power, cases[i][0]);
        assert_null(power.library);
        assert_false(gpu_power_now(&power, &watts, &mhz));
        gpu_power_limits(&power, &limit, &mhz);
        assert_true(limit == 0.0 && mhz == 0);
        gpu_power_start(&power);
        gpu_power_look(&power);
        gpu_power_stop(&power);
        assert_true(power.joules < 0.0 && power.looks == 0 && gpu_power_mean_watts(&power) < 0.0);
        assert_string_equal(gpu_power_text(text, &power, 10.0), cases[i][1]);
        assert_string_equal(gpu_power_limit_text(text, &power), "");
        gpu_power_close(&power);
    }
}

/* Of a long stretch the looks are spread over all of it, and no reason is missed. */
static void looks_are_spread(void **state) {
    enum { ASKED = 10000 };
    struct gpu_power power;
    char text[GPU_POWER_TEXT_BYTES];
    (void)state;
    gpu_power_open(&power, FAKE_NVML_BUS_ID);
    gpu_power_start(&power);
    for (unsigned i = 0; i < ASKED; i++) {
        const struct fake_nvml figures = {.mw = 1000 * i, .mhz = i,
                                          .reasons = i == ASKED - 1 ? 0x8 : 0};
        set_figures(&figures);
        gpu_power_look(&power);
    }
    gpu_power_stop(&power);
    assert_true(power.looks >= GPU_POWER_LOOKS / 2 && power.looks < GPU_POWER_LOOKS);
    for (size_t i = 0; i < power.looks; i++) {
        assert_int_equal(power.sm_mhz[i], i * power.stride);
        assert_int_equal(power.watts[i], i * power.stride);
    }
    assert_true(power.looks * power.stride >= ASKED); /* to the end */
    assert_string_equal(gpu_power_limit_text(text, &power), "limited by hardware slowdown");
    gpu_power_close(&power);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(figures_are_nvmls),
        cmocka_unit_test(memory_and_driver_are_nvmls),
        cmocka_unit_test(no_counter_is_said),
        cmocka_unit_test(absence_is_said),
        cmocka_unit_test(looks_are_spread),
    };
    void *library = argc == 2 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : NULL;
    void *symbol = library == NULL ? NULL : dlsym(library, "fake_nvml_set");
    if (symbol == NULL) {
        fprintf(stderr, "expected the path of the library that stands for NVML\n");
        return 1;
    }
    memcpy(&set_figures, &symbol, sizeof symbol);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

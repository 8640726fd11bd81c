/*
 * The whole engine on a GPU. Oracles: the CPU engine in FP32 for the loss curve; bit equality
 * for what must not change a bit (recordings on and off, recomputation, going on from a saved
 * state, a second run).
 *
 * The curve. BF16 keeps 8 bits: after the 8 roundings a block that a residual stream passes, over
 * 4 blocks, a logit of order 1 is off by some e = sqrt(32) 2^-9 = 0.011, and so is a gradient,
 * relatively. A token's loss is off by that at most, at random, so a step's mean over 1024 tokens
 * by e / 32: six times that is allowed. A step lowers the loss by its update times the gradient,
 * to first order; updates that are off by e change what was gained so far, loss_0 - loss_i, by e of
 * it at most. Together 6 e / 32 + e (loss_0 - loss_i): 0.002 at first, 0.036 after a fall of 3
 * nats. FP32 rounds 2^15 times finer, but sums in other orders meet sqrt(K) roundings, K up to 1024
 * (32 = 2^5), and functions are good to 4 units: 2^-8 of it, and 1e-6 for a loss of 5 as FP32.
 */
#include <stdio.h>

#include "base/clock.h"
#include "base/file.h"
#include "tests/gpu/engine_testing.h"
#include "tests/gpu/presence.h"

static const double roundings = 0.011; /* e above */

enum { BITS_STEPS = 7 };

static const struct variant cuda_bf16 = {
    .name = "bf16",
    .device = CONFIG_DEVICE_CUDA,
    .recipe = CONFIG_RECIPE_BF16,
};

static void test_loss_curve(void **state) {
    const struct variant cpu = {.device = CONFIG_DEVICE_CPU, .recipe = CONFIG_RECIPE_FP32};
    const struct variant fp32 = {.device = CONFIG_DEVICE_CUDA, .recipe = CONFIG_RECIPE_FP32};
    double expected[STEPS], bf16[STEPS], own[STEPS];
    (void)state;
    struct saved a = variant_train(&cpu, 0, STEPS, NULL, expected);
    struct saved b = variant_train(&cuda_bf16, 0, STEPS, NULL, bf16);
    struct saved c = variant_train(&fp32, 0, STEPS, NULL, own);
    for (size_t i = 0; i < STEPS; i++) {
        printf("step %2zu  cpu fp32 %.5f  cuda bf16 %.5f  cuda fp32 %.7f\n", i + 1, expected[i],
               bf16[i], own[i]);
    }
    assert_true(expected[STEPS - 1] < expected[0] - 1.0);
    for (size_t i = 0; i < STEPS; i++) {
        const double allowed = roundings * (6.0 / 32.0 + expected[0] - expected[i]);
        assert_true(fabs(bf16[i] - expected[i]) <= allowed);
        assert_true(fabs(own[i] - expected[i]) <= allowed * 0x1p-8 + 1e-6);
    }
    saved_free(&a);
    saved_free(&b);
    saved_free(&c);
}

/* Another run of `v`, which must leave the bits of `first`. */
static void expect_case(const char *what, const struct variant *v, const struct saved *first) {
    struct saved other = variant_train(v, 0, BITS_STEPS, NULL, NULL);
    expect_bits(v->name, what, first, &other);
    saved_free(&other);
}

static void expect_resumed(const struct variant *v, const struct saved *first) {
    struct saved half = variant_train(v, 0, 4, NULL, NULL);
    struct saved whole = variant_train(v, 4, BITS_STEPS, &half, NULL);
    expect_bits(v->name, "a resumed run", first, &whole);
    saved_free(&half);
    saved_free(&whole);
}

/* Narrow recipes in the ways in which a device runs them: scales known beforehand and found,
 * blocks, emulation, random rounding; the head in the recipe or in BF16. */
static void test_bits(void **state) {
    static const struct variant recipes[] = {
        {.name = "bf16", .recipe = CONFIG_RECIPE_BF16},
        {.name = "fp32", .recipe = CONFIG_RECIPE_FP32},
        {.name = "fp8 delayed", .recipe = CONFIG_RECIPE_FP8, .lm_head = CONFIG_RECIPE_FP8},
        {.name = "fp8 current", .recipe = CONFIG_RECIPE_FP8, .scaling = CONFIG_FP8_CURRENT},
        {.name = "fp8_block", .recipe = CONFIG_RECIPE_FP8_BLOCK},
        {.name = "mxfp8", .recipe = CONFIG_RECIPE_MXFP8, .lm_head = CONFIG_RECIPE_MXFP8},
        {.name = "nvfp4", .recipe = CONFIG_RECIPE_NVFP4},
    };
    (void)state;
    for (size_t r = 0; r < sizeof recipes / sizeof recipes[0]; r++) {
        struct variant v = recipes[r];
        v.device = CONFIG_DEVICE_CUDA;
        if (variant_support(&v) == SUPPORT_NONE) continue;
        const double begun = clock_seconds();
        struct saved first = variant_train(&v, 0, BITS_STEPS, NULL, NULL);
        expect_case("a second run", &v, &first);
        expect_resumed(&v, &first);
        v.eager = true;
        expect_case("recordings off", &v, &first);
        v.eager = false;
        v.recompute = CONFIG_RECOMPUTE_GELU;
        expect_case("recomputed GELU", &v, &first);
        v.recompute = CONFIG_RECOMPUTE_BLOCK;
        expect_case("recomputed blocks", &v, &first);
        printf("%-12s the same bits in 5 cases, %.1f s\n", v.name, clock_seconds() - begun);
        saved_free(&first);
    }
}

/* What ranks exchange, of one rank: recorded and not, and in every stage, the same bits. */
static void test_exchange(void **state) {
    struct saved first = {0};
    (void)state;
    for (int zero = 0; zero <= 3; zero++) {
        struct variant v = cuda_bf16;
        v.exchanged = true;
        v.zero = zero;
        struct saved recorded = variant_train(&v, 0, BITS_STEPS, NULL, NULL);
        v.eager = true;
        struct saved eager = variant_train(&v, 0, BITS_STEPS, NULL, NULL);
        expect_bits("bf16", "an exchange without recordings", &recorded, &eager);
        saved_free(&eager);
        if (zero == 0) {
            first = recorded;
        } else {
            expect_bits("bf16", "another stage", &first, &recorded);
            saved_free(&recorded);
        }
    }
    saved_free(&first);
}

/* A logit's gradient is at most the scale / 1024 tokens: 2^30 overflows FP16 (65504) in the first
 * steps, which are skipped, recorded and replayed, until the scale has halved often enough. With
 * recordings and without, the same bits. */
static void test_overflow(void **state) {
    struct variant v = cuda_bf16;
    (void)state;
    v.recipe = CONFIG_RECIPE_FP16;
    v.loss_scale = 0x1p30;
    struct saved recorded = variant_train(&v, 0, STEPS, NULL, NULL);
    v.eager = true;
    struct saved eager = variant_train(&v, 0, STEPS, NULL, NULL);
    printf("fp16: %d of %d steps skipped, scale %g\n", (int)recorded.state.skipped_nonfinite, STEPS,
           (double)recorded.state.loss_scale);
    assert_in_range(recorded.state.skipped_nonfinite, 3, STEPS - 2); /* the third is a replay */
    assert_int_equal(recorded.state.skipped_nonfinite, eager.state.skipped_nonfinite);
    assert_true(recorded.state.loss_scale == eager.state.loss_scale);
    assert_int_equal(recorded.state.updates, STEPS - recorded.state.skipped_nonfinite);
    expect_bits("fp16", "overflows in recordings", &recorded, &eager);
    saved_free(&recorded);
    saved_free(&eager);
}

/* Sums in any order leave no bits to compare: it trains, to the curve's tolerance. */
static void test_fast_attention(void **state) {
    struct variant v = cuda_bf16;
    double expected[STEPS], fast[STEPS];
    (void)state;
    struct saved a = variant_train(&v, 0, STEPS, NULL, expected);
    v.attention = CONFIG_ATTENTION_FAST;
    struct saved b = variant_train(&v, 0, STEPS, NULL, fast);
    assert_true(fast[STEPS - 1] < fast[0] - 1.0);
    for (size_t i = 0; i < STEPS; i++) {
        const double allowed = roundings * (6.0 / 32.0 + expected[0] - expected[i]);
        assert_true(fabs(fast[i] - expected[i]) <= 2.0 * allowed); /* both round */
    }
    saved_free(&a);
    saved_free(&b);
}

/* The file of choices of a step's GEMMs, and of those of the tests before, and its content. */
static size_t device_cache(char path[PATH_BYTES], char **text) {
    char folder[PATH_BYTES], **names = NULL;
    size_t count = 0, bytes = 0, found = 0;
    struct saved step = variant_train(&cuda_bf16, 0, 1, NULL, NULL);
    saved_free(&step);
    EXPECT_OK(path_join(folder, getenv("XDG_CACHE_HOME"), "deepwell"));
    EXPECT_OK(folder_list(folder, &names, &count));
    for (size_t i = 0; i < count; i++) {
        const size_t length = strlen(names[i]);
        if (length < 4 || strcmp(names[i] + length - 4, ".txt") != 0) continue;
        EXPECT_OK(path_join(path, folder, names[i]));
        found++;
    }
    names_free(names, count);
    assert_int_equal(found, 1);
    EXPECT_OK(file_read(path, (size_t)1 << 24, text, &bytes));
    return bytes;
}

static void expect_content(const char *path, const char *text, size_t bytes) {
    char *now = NULL;
    size_t now_bytes = 0;
    EXPECT_OK(file_read(path, (size_t)1 << 24, &now, &now_bytes));
    assert_int_equal(now_bytes, bytes);
    assert_memory_equal(now, text, bytes);
    free(now);
}

/* A file that is not as written is refused by name when the GPU is opened, and left as it is. */
static void expect_refused(const char *path, const char *text, size_t bytes) {
    const struct device_options options = {.gemm_effort = GEMM_EFFORT_FULL};
    struct device device;
    EXPECT_OK(file_write_durable(path, text, bytes));
    expect_status(STATUS_DEVICE, device_open_cuda(&device, &options));
    assert_non_null(strstr(status_message(), path));
    assert_non_null(strstr(status_message(), "remove the file"));
    expect_content(path, text, bytes);
}

static void test_corrupt_cache(void **state) {
    static const char extra[] = "nonsense\n";
    char path[PATH_BYTES], *text = NULL;
    (void)state;
    const size_t bytes = device_cache(path, &text);
    char *spoilt = test_memory(bytes + sizeof extra);
    memcpy(spoilt, text, bytes);
    memcpy(spoilt + bytes, extra, sizeof extra - 1);
    expect_refused(path, spoilt, bytes + sizeof extra - 1);
    expect_refused(path, text, bytes - 10); /* cut inside the last line */
    expect_refused(path, text, 0);
    memcpy(spoilt, text, bytes);
    spoilt[0] = 'D';
    expect_refused(path, spoilt, bytes);
    EXPECT_OK(file_write_durable(path, text, bytes));
    free(spoilt);
    free(text);
}

/* Algorithms that read as one but are none: every word of every line is 0x77. The file opens, and
 * the first GEMM that uses one is refused. */
static void test_wrong_algorithm(void **state) {
    char path[PATH_BYTES], *text = NULL, *rest = NULL;
    struct config config;
    static struct engine engine;
    (void)state;
    const size_t bytes = device_cache(path, &text);
    char *spoilt = test_memory(2 * bytes + 1), *copy = strdup(text);
    size_t used = 0, number = 0;
    for (char *line = strtok_r(copy, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest)) {
        char *words = line; /* behind 14 fields */
        for (int field = 0; number > 0 && field < 14; field++) words = strchr(words, ' ') + 1;
        used += (size_t)sprintf(spoilt + used,
                                number > 0 ? "%.*s77 77 77 77 77 77 77 77\n" : "%.*s%s\n",
                                (int)(words - line), line, words);
        number++;
    }
    assert_true(number > 1 && used <= 2 * bytes);
    EXPECT_OK(file_write_durable(path, spoilt, used));
    variant_config(&config, &cuda_bf16);
    EXPECT_OK(engine_open(&engine, &config, ENGINE_TRAIN, ENGINE_REAL));
    EXPECT_OK(engine_initialise(&engine, &config));
    const struct step_policy policy = step_policy(&config, 0);
    EXPECT_OK(step_begin(&engine, &policy));
    expect_status(STATUS_DEVICE, step_micro_batch(&engine, &policy, true));
    printf("refused: %s\n", status_message());
    assert_non_null(strstr(status_message(), path));
    engine_close(&engine);
    expect_content(path, spoilt, used);
    EXPECT_OK(file_write_durable(path, text, bytes));
    free(spoilt);
    free(copy);
    free(text);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loss_curve),      cmocka_unit_test(test_bits),
        cmocka_unit_test(test_exchange),        cmocka_unit_test(test_overflow),
        cmocka_unit_test(test_fast_attention),  cmocka_unit_test(test_corrupt_cache),
        cmocka_unit_test(test_wrong_algorithm),
    };
    if (!CHOOSE_TEST(argc, argv, tests)) return 2;
    if (gpu_missing()) return 0;
    gpu_test_folder_make();
    return cmocka_run_group_tests(tests, NULL, NULL);
}

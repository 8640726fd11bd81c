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

#include "base/file.h"
#include "tests/gpu/presence.h"
#include "tests/kernels/testing.h"
#include "train/step.h"

static const double roundings = 0.011; /* e above */

enum { VOCABULARY = 256, LENGTH = 64, ROWS = 8, STEPS = 20 };

struct variant {
    enum config_device device;
    enum config_recipe recipe;
    enum config_recompute recompute;
    int64_t micro_batch;
    bool eager;
    enum config_attention attention;
    double loss_scale; /* 0: the default */
};

/* Not -1: with comm.order = fixed, of one rank, and this train.zero. */
static int exchanged_stage = -1;

static void configure(struct config *config, const struct variant *v) {
    config_defaults(config);
    if (exchanged_stage >= 0) {
        config->comm.order = CONFIG_ORDER_FIXED;
        config->train.zero = exchanged_stage;
    }
    config->device = (int)v->device;
    config->model.vocabulary = VOCABULARY;
    config->model.context = LENGTH;
    config->model.layers = 4;
    config->model.heads = 4;
    config->model.width = 256;
    config->train.batch = 2 * ROWS;
    config->train.micro_batch = v->micro_batch;
    config->train.sequence_length = LENGTH;
    config->train.recompute = (int)v->recompute;
    config->train.steps = STEPS;
    config->optimizer.learning_rate = 1e-3;
    config->optimizer.warmup_steps = 2;
    config->precision.recipe = (int)v->recipe;
    config->attention.backward = (int)v->attention;
    if (v->loss_scale > 0.0) config->precision.loss_scale = v->loss_scale;
    EXPECT_OK(config_check(config));
}

/* Text with something to learn: a token is mostly the one before plus a step that depends on it. */
static int32_t token_at(size_t i) {
    int32_t token = 7;
    for (size_t k = i / 97 * 97; k <= i; k++) {
        uint32_t words[4];
        random_words(11, RANDOM_TEST, k, words);
        token = words[0] % 8 == 0 ? (int32_t)(words[1] % VOCABULARY) : (token * 5 + 3) % VOCABULARY;
    }
    return token;
}

static void run_step(struct engine *engine, const struct config *config, int64_t step) {
    const struct step_policy policy = step_policy(config, step);
    struct gpt_training *training = &engine->training;
    const size_t tokens = training->shape.batch * LENGTH;
    int32_t *inputs = test_memory(tokens * 4), *targets = test_memory(tokens * 4);
    EXPECT_OK(step_begin(engine, &policy));
    for (size_t row = 0; row < (size_t)config->train.batch; row += training->shape.batch) {
        for (size_t i = 0; i < tokens; i++) {
            const size_t at = ((size_t)step * (size_t)config->train.batch + row) * LENGTH + i;
            inputs[i] = token_at(at);
            targets[i] = token_at(at + 1);
        }
        EXPECT_OK(device_upload(&engine->device, training->inputs, inputs, tokens * 4));
        EXPECT_OK(device_upload(&engine->device, training->targets, targets, tokens * 4));
        EXPECT_OK(step_micro_batch(engine, &policy, row == 0));
    }
    EXPECT_OK(step_update(engine, config));
    free(inputs);
    free(targets);
}

struct saved {
    float *masters, *moments1, *moments2;
    struct step_state state;
};

static float *fetch(struct engine *engine, const float *from) {
    const size_t bytes = engine->gpt.table.elements * sizeof(float);
    float *to = test_memory(bytes);
    EXPECT_OK(device_download(&engine->device, to, from, bytes));
    return to;
}

static struct saved save(struct engine *engine) {
    struct saved s = {.masters = fetch(engine, engine->masters),
                      .moments1 = fetch(engine, engine->moments1),
                      .moments2 = fetch(engine, engine->moments2)};
    EXPECT_OK(device_download(&engine->device, &s.state, engine->state, sizeof s.state));
    return s;
}

static void restore(struct engine *engine, const struct saved *s) {
    const size_t elements = engine->gpt.table.elements, bytes = elements * sizeof(float);
    struct device *device = &engine->device;
    EXPECT_OK(device_upload(device, engine->masters, s->masters, bytes));
    EXPECT_OK(device_upload(device, engine->moments1, s->moments1, bytes));
    EXPECT_OK(device_upload(device, engine->moments2, s->moments2, bytes));
    EXPECT_OK(device_upload(device, engine->state, &s->state, sizeof s->state));
    if (engine->weights.data == engine->masters) return;
    EXPECT_OK(device->ops->convert(device, engine->weights,
                                   tensor_make(engine->masters, DTYPE_F32, 1, elements)));
}

static void saved_free(struct saved *s) {
    free(s->masters);
    free(s->moments1);
    free(s->moments2);
}

/* Two runs make a recording, and every step has two micro-batches; a CPU makes none. */
static void expect_recordings(const struct engine *engine, bool wanted) {
    const bool there = wanted && device_records(&engine->device);
    assert_true(there == wanted || engine->device.kind == DEVICE_CPU);
    assert_true((engine->update.recording != NULL) == there);
    assert_true((engine->micro_batches[0].recording != NULL) == there);
    const size_t second = engine->exchange.active ? 3 : 1; /* the last of a step has its own */
    assert_true((engine->micro_batches[second].recording != NULL) == there);
}

/* Runs [from, to) of the steps, from a saved state or from the seed; losses (NULL: not wanted). */
static struct saved train(const struct variant *v, int64_t from, int64_t to,
                          const struct saved *start, double *losses, size_t *bytes) {
    struct config config;
    static struct engine engine;
    configure(&config, v);
    EXPECT_OK(engine_open(&engine, &config, ENGINE_TRAIN, ENGINE_REAL));
    engine.eager = v->eager;
    EXPECT_OK(engine_initialise(&engine, &config));
    if (start != NULL) restore(&engine, start);
    for (int64_t step = from; step < to; step++) {
        run_step(&engine, &config, step);
        if (losses == NULL) continue;
        struct step_state state;
        EXPECT_OK(device_download(&engine.device, &state, engine.state, sizeof state));
        losses[step] = (double)state.loss;
    }
    expect_recordings(&engine, !v->eager && to - from >= 2);
    struct saved end = save(&engine);
    *bytes = engine.gpt.table.elements * sizeof(float);
    engine_close(&engine);
    return end;
}

static void expect_bits(const char *what, const struct saved *a, const struct saved *b,
                        size_t bytes) {
    if (memcmp(a->masters, b->masters, bytes) != 0 ||
        memcmp(a->moments1, b->moments1, bytes) != 0 ||
        memcmp(a->moments2, b->moments2, bytes) != 0 || a->state.loss_sum != b->state.loss_sum) {
        fail_msg("%s: not bit equal, losses %.9g and %.9g", what, (double)a->state.loss,
                 (double)b->state.loss);
    }
}

static const struct variant cuda_bf16 = {CONFIG_DEVICE_CUDA,
                                         CONFIG_RECIPE_BF16,
                                         CONFIG_RECOMPUTE_NONE,
                                         ROWS,
                                         false,
                                         CONFIG_ATTENTION_DETERMINISTIC,
                                         0.0};

static void test_loss_curve(void **state) {
    static const struct variant cpu = {CONFIG_DEVICE_CPU,
                                       CONFIG_RECIPE_FP32,
                                       CONFIG_RECOMPUTE_NONE,
                                       ROWS,
                                       false,
                                       CONFIG_ATTENTION_DETERMINISTIC,
                                       0.0};
    const struct variant fp32 = {CONFIG_DEVICE_CUDA,
                                 CONFIG_RECIPE_FP32,
                                 CONFIG_RECOMPUTE_NONE,
                                 ROWS,
                                 false,
                                 CONFIG_ATTENTION_DETERMINISTIC,
                                 0.0};
    double expected[STEPS], bf16[STEPS], own[STEPS];
    size_t bytes = 0;
    (void)state;
    struct saved a = train(&cpu, 0, STEPS, NULL, expected, &bytes);
    struct saved b = train(&cuda_bf16, 0, STEPS, NULL, bf16, &bytes);
    struct saved c = train(&fp32, 0, STEPS, NULL, own, &bytes);
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

static void test_bits(void **state) {
    static const enum config_recipe recipes[] = {CONFIG_RECIPE_BF16, CONFIG_RECIPE_FP32};
    (void)state;
    for (size_t r = 0; r < 2; r++) {
        struct variant v = cuda_bf16;
        size_t bytes = 0;
        v.recipe = recipes[r];
        struct saved first = train(&v, 0, 7, NULL, NULL, &bytes),
                     again = train(&v, 0, 7, NULL, NULL, &bytes);
        expect_bits("a second run", &first, &again, bytes);
        saved_free(&again);
        v.eager = true;
        struct saved eager = train(&v, 0, 7, NULL, NULL, &bytes);
        expect_bits("recordings off", &first, &eager, bytes);
        saved_free(&eager);
        v.eager = false;
        v.recompute = CONFIG_RECOMPUTE_GELU;
        struct saved gelu = train(&v, 0, 7, NULL, NULL, &bytes);
        expect_bits("recomputed GELU", &first, &gelu, bytes);
        saved_free(&gelu);
        v.recompute = CONFIG_RECOMPUTE_BLOCK;
        struct saved block = train(&v, 0, 7, NULL, NULL, &bytes);
        expect_bits("recomputed blocks", &first, &block, bytes);
        saved_free(&block);
        v.recompute = CONFIG_RECOMPUTE_NONE;
        struct saved half = train(&v, 0, 4, NULL, NULL, &bytes);
        struct saved whole = train(&v, 4, 7, &half, NULL, &bytes);
        expect_bits("a resumed run", &first, &whole, bytes);
        saved_free(&half);
        saved_free(&whole);
        saved_free(&first);
    }
}

/* What ranks exchange, of one rank: recorded and not, and in every stage, the same bits. */
static void test_exchange(void **state) {
    struct saved first = {0};
    (void)state;
    for (int zero = 0; zero <= 3; zero++) {
        struct variant v = cuda_bf16;
        size_t bytes = 0;
        exchanged_stage = zero;
        struct saved recorded = train(&v, 0, 7, NULL, NULL, &bytes);
        v.eager = true;
        struct saved eager = train(&v, 0, 7, NULL, NULL, &bytes);
        expect_bits("an exchange without recordings", &recorded, &eager, bytes);
        saved_free(&eager);
        if (zero == 0) {
            first = recorded;
        } else {
            expect_bits("another stage", &first, &recorded, bytes);
            saved_free(&recorded);
        }
    }
    exchanged_stage = -1;
    saved_free(&first);
}

/* A logit's gradient is at most the scale / 1024 tokens: 2^30 overflows FP16 (65504) in the first
 * steps, which are skipped, recorded and replayed, until the scale has halved often enough. With
 * recordings and without, the same bits. */
static void test_overflow(void **state) {
    struct variant v = cuda_bf16;
    size_t bytes = 0;
    (void)state;
    v.recipe = CONFIG_RECIPE_FP16;
    v.loss_scale = 0x1p30;
    struct saved recorded = train(&v, 0, STEPS, NULL, NULL, &bytes);
    v.eager = true;
    struct saved eager = train(&v, 0, STEPS, NULL, NULL, &bytes);
    printf("fp16: %d of %d steps skipped, scale %g\n", (int)recorded.state.skipped_nonfinite, STEPS,
           (double)recorded.state.loss_scale);
    assert_in_range(recorded.state.skipped_nonfinite, 3, STEPS - 2); /* the third is a replay */
    assert_int_equal(recorded.state.skipped_nonfinite, eager.state.skipped_nonfinite);
    assert_true(recorded.state.loss_scale == eager.state.loss_scale);
    assert_int_equal(recorded.state.updates, STEPS - recorded.state.skipped_nonfinite);
    expect_bits("overflows in recordings", &recorded, &eager, bytes);
    saved_free(&recorded);
    saved_free(&eager);
}

/* Sums in any order leave no bits to compare: it trains, to the curve's tolerance. */
static void test_fast_attention(void **state) {
    struct variant v = cuda_bf16;
    double expected[STEPS], fast[STEPS];
    size_t bytes = 0;
    (void)state;
    struct saved a = train(&v, 0, STEPS, NULL, expected, &bytes);
    v.attention = CONFIG_ATTENTION_FAST;
    struct saved b = train(&v, 0, STEPS, NULL, fast, &bytes);
    assert_true(fast[STEPS - 1] < fast[0] - 1.0);
    for (size_t i = 0; i < STEPS; i++) {
        const double allowed = roundings * (6.0 / 32.0 + expected[0] - expected[i]);
        assert_true(fabs(fast[i] - expected[i]) <= 2.0 * allowed); /* both round */
    }
    saved_free(&a);
    saved_free(&b);
}

/* The file of choices that the tests before made, and its content. */
static size_t device_cache(char path[PATH_BYTES], char **text) {
    char folder[PATH_BYTES], **names = NULL;
    size_t count = 0, bytes = 0, found = 0;
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
    configure(&config, &cuda_bf16);
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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loss_curve),      cmocka_unit_test(test_bits),
        cmocka_unit_test(test_exchange),        cmocka_unit_test(test_overflow),
        cmocka_unit_test(test_fast_attention),  cmocka_unit_test(test_corrupt_cache),
        cmocka_unit_test(test_wrong_algorithm),
    };
    char folder[] = "/tmp/gpu_engine_XXXXXX";
    if (gpu_missing()) return 0;
    if (mkdtemp(folder) == NULL) return 1;
    setenv("XDG_CACHE_HOME", folder, 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Running a small model, behind tests/gpu/engine_testing.h. */
#include "tests/gpu/engine_testing.h"

#include <stdio.h>

#include "tests/gpu/presence.h"

enum support variant_support(const struct variant *v) {
    const struct device_options options = {0};
    struct device device;
    gpu_open(&device, &options);
    const enum support support = recipe_support(&device, (enum recipe_kind)v->recipe);
    device_close(&device);
    if (support == SUPPORT_NONE) printf("%s: this GPU does not run it\n", v->name);
    return support;
}

void variant_config(struct config *config, const struct variant *v) {
    config_defaults(config);
    if (v->exchanged) {
        config->comm.order = CONFIG_ORDER_FIXED;
        config->train.zero = v->zero;
    }
    config->device = (int)v->device;
    config->model.vocabulary = VOCABULARY;
    config->model.context = LENGTH;
    config->model.layers = v->layers > 0 ? v->layers : 4;
    config->model.heads = 4;
    config->model.width = 256;
    config->train.batch = 2 * ROWS;
    config->train.micro_batch = ROWS;
    config->train.sequence_length = LENGTH;
    config->train.recompute = (int)v->recompute;
    config->train.steps = STEPS;
    config->optimizer.learning_rate = 1e-3;
    config->optimizer.warmup_steps = 2;
    config->precision.recipe = (int)v->recipe;
    config->precision.lm_head = (int)v->lm_head;
    config->precision.scaling = (int)v->scaling;
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

void variant_gradients(struct engine *engine, const struct config *config, int64_t step) {
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
    free(inputs);
    free(targets);
}

static float *fetch(struct engine *engine, const float *from) {
    const size_t bytes = engine->gpt.table.elements * sizeof(float);
    float *to = test_memory(bytes);
    EXPECT_OK(device_download(&engine->device, to, from, bytes));
    return to;
}

static struct scale_state *fetch_scales(struct engine *engine, size_t *count) {
    *count = 0;
    if (engine->scales == NULL) return NULL;
    *count = gpt_scale_count(&engine->gpt);
    struct scale_state *to = test_memory(*count * sizeof *to);
    EXPECT_OK(engine_read_scales(engine, to));
    return to;
}

static struct saved save(struct engine *engine) {
    struct saved s = {
        .masters = fetch(engine, engine->masters),
        .moments1 = fetch(engine, engine->moments1),
        .moments2 = fetch(engine, engine->moments2),
        .elements = engine->gpt.table.elements,
    };
    EXPECT_OK(device_download(&engine->device, &s.state, engine->state, sizeof s.state));
    s.scales = fetch_scales(engine, &s.scale_count);
    return s;
}

static void restore(struct engine *engine, const struct saved *s) {
    const size_t bytes = s->elements * sizeof(float);
    struct device *device = &engine->device;
    EXPECT_OK(device_upload(device, engine->masters, s->masters, bytes));
    EXPECT_OK(device_upload(device, engine->moments1, s->moments1, bytes));
    EXPECT_OK(device_upload(device, engine->moments2, s->moments2, bytes));
    EXPECT_OK(device_upload(device, engine->state, &s->state, sizeof s->state));
    if (engine->weights.data == engine->masters) return;
    EXPECT_OK(device->ops->convert(device, engine->weights,
                                   tensor_make(engine->masters, DTYPE_F32, 1, s->elements)));
    if (engine->scales == NULL || s->scales == NULL) return;
    EXPECT_OK(engine_write_scales(engine, s->scales)); /* and weights */
}

void saved_free(struct saved *s) {
    free(s->masters);
    free(s->moments1);
    free(s->moments2);
    free(s->scales);
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

struct saved variant_train(const struct variant *v, int64_t from, int64_t to,
                           const struct saved *start, double *losses) {
    struct config config;
    static struct engine engine;
    variant_config(&config, v);
    EXPECT_OK(engine_open(&engine, &config, ENGINE_TRAIN, ENGINE_REAL));
    engine.eager = v->eager;
    EXPECT_OK(engine_initialise(&engine, &config));
    if (start != NULL) restore(&engine, start);
    for (int64_t step = from; step < to; step++) {
        variant_gradients(&engine, &config, step);
        EXPECT_OK(step_update(&engine, &config));
        if (losses == NULL) continue;
        struct step_state state;
        EXPECT_OK(device_download(&engine.device, &state, engine.state, sizeof state));
        losses[step] = (double)state.loss;
    }
    expect_recordings(&engine, !v->eager && to - from >= 2);
    struct saved end = save(&engine);
    engine_close(&engine);
    return end;
}

struct gradients variant_gradients_from(const struct variant *v, int64_t step,
                                        const struct saved *start) {
    struct config config;
    static struct engine engine;
    struct gradients g = {0};
    variant_config(&config, v);
    EXPECT_OK(engine_open(&engine, &config, ENGINE_TRAIN, ENGINE_REAL));
    EXPECT_OK(engine_initialise(&engine, &config));
    restore(&engine, start);
    variant_gradients(&engine, &config, step);
    g.numbers = fetch(&engine, engine.gradients);
    g.count = engine.gpt.table.elements;
    g.scales = fetch_scales(&engine, &g.scale_count);
    engine_close(&engine);
    return g;
}

void gradients_free(struct gradients *g) {
    free(g->numbers);
    free(g->scales);
}

void expect_bits(const char *recipe, const char *what, const struct saved *a,
                 const struct saved *b) {
    const size_t bytes = a->elements * sizeof(float);
    const size_t scale_bytes = a->scale_count * sizeof *a->scales;
    assert_int_equal(a->elements, b->elements);
    assert_int_equal(a->scale_count, b->scale_count);
    if (memcmp(a->masters, b->masters, bytes) != 0 ||
        memcmp(a->moments1, b->moments1, bytes) != 0 ||
        memcmp(a->moments2, b->moments2, bytes) != 0 || a->state.loss_sum != b->state.loss_sum) {
        fail_msg("%s, %s: not bit equal, losses %.9g and %.9g", recipe, what, (double)a->state.loss,
                 (double)b->state.loss);
    }
    if (scale_bytes > 0 && memcmp(a->scales, b->scales, scale_bytes) != 0) {
        fail_msg("%s, %s: weights are bit equal, scale states are not", recipe, what);
    }
}

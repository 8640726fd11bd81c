/*
 * Where the first number that is not finite lies. Oracle: fault injection. Each fault is placed so
 * that one tensor must be the first to show it, and that tensor, with the place in it, is what must
 * be named; for gradients, a search of the gradient buffer here.
 */
#include <stdio.h>

#include "tests/train/small_run.h"
#include "train/nonfinite.h"

enum { WIDTH = 24, STEP = 1, SAMPLES = 3 * BATCH };

static char folder[PATH_BYTES], shard[PATH_BYTES];

/* Token 30 stands once only: in step 1, second micro-batch (samples 6 and 7), sample 7, position 3.
 * Token 31 is nowhere. */
enum { RARE_TOKEN = 30, ABSENT_TOKEN = 31, RARE_MICRO_BATCH = 1, RARE_ROW = 1, RARE_POSITION = 3 };

static int make_shard(void **state) {
    (void)state;
    int32_t tokens[SAMPLES * LENGTH + 1];
    for (size_t i = 0; i < sizeof tokens / sizeof tokens[0]; i++) tokens[i] = (int32_t)(i * 7 % 29);
    tokens[7 * LENGTH + RARE_POSITION] = RARE_TOKEN;
    small_shard(folder, shard, tokens, sizeof tokens / sizeof tokens[0]);
    return 0;
}

static int remove_shard(void **state) {
    (void)state;
    return folder_remove(folder) == STATUS_OK ? 0 : -1;
}

struct scene {
    struct small_run run;
    struct dataset dataset;
    struct loader_shape shape;
    float gradient_scale;
};

static void scene_open(struct scene *scene) {
    *scene = (struct scene){
        .shape = {.rows = MICRO_BATCH, .micro_batches = BATCH / MICRO_BATCH, .ranks = 1},
        .gradient_scale = 1.0f / (BATCH * LENGTH),
    };
    small_config(&scene->run.config, CONFIG_RECIPE_FP32);
    small_run_open(&scene->run, ENGINE_TRAIN);
    EXPECT_OK(dataset_open(&scene->dataset, shard, LENGTH, VOCABULARY, ORDER_SEQUENTIAL, 0));
}

static void scene_close(struct scene *scene) {
    dataset_close(&scene->dataset);
    small_run_close(&scene->run);
}

/* Element (row, column) of a parameter. */
static float *at(const struct scene *scene, const char *name, size_t row, size_t column) {
    const struct param *param = param_table_find(&scene->run.engine.gpt.table, name);
    assert_non_null(param);
    return scene->run.engine.masters + param->offset + row * param->columns + column;
}

static struct nonfinite find(struct scene *scene) {
    const struct nonfinite_request request = {
        .dataset = &scene->dataset, .shape = &scene->shape, .step = STEP,
        .gradient_scale = scene->gradient_scale,
    };
    struct engine *engine = &scene->run.engine;
    const size_t bytes = engine->gpt.table.elements * sizeof(float);
    float *kept = test_memory(bytes);
    struct nonfinite result;
    memcpy(kept, engine->masters, bytes);
    EXPECT_OK(nonfinite_find(engine, &request, &result));
    assert_memory_equal(engine->masters, kept, bytes); /* looking changes no weight */
    assert_null(engine->training.observer);
    free(kept);
    return result;
}

static void assert_starts(const char *text, const char *expected) {
    if (strncmp(text, expected, strlen(expected)) != 0) {
        fail_msg("expected \"%s...\", found \"%s\"", expected, text);
    }
}

static void weights(void **state) {
    (void)state;
    static const struct {
        const char *name;
        size_t row, column;
    } cases[] = {
        {"token_embedding", RARE_TOKEN, 5},   {"token_embedding", ABSENT_TOKEN, 0},
        {"position_embedding", 8, 23},        {"block.0.norm1.weight", 0, 7},
        {"block.1.attention.qkv.weight", 71, 23}, {"block.1.mlp.projection.bias", 0, 1},
        {"final_norm.bias", 0, 23},
    };
    static const float faults[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct scene scene;
        char expected[128];
        scene_open(&scene);
        *at(&scene, cases[i].name, cases[i].row, cases[i].column) = faults[i % 3];
        const struct nonfinite found = find(&scene);
        snprintf(expected, sizeof expected, "weight of %s (row %zu, column %zu", cases[i].name,
                 cases[i].row, cases[i].column);
        assert_starts(found.text, expected);
        assert_true(found.weights);
        scene_close(&scene);
    }
}

/* A bias of 100 makes one column of an activation large (the GELU passes it, attention averages
 * it), and a weight of 3e38 on that column overflows the result: in every token, so the first is
 * named. */
static void activations(void **state) {
    (void)state;
    static const struct {
        const char *bias, *weight;
        size_t bias_column, row, column;
        const char *expected;
    } cases[] = {
        {"block.1.norm1.bias", "block.1.attention.qkv.weight", 7, 40, 7,
         "query, key and value of block 1 (micro-batch 0, token 0, column 40)"},
        {"block.1.attention.qkv.bias", "block.1.attention.projection.weight", 2 * WIDTH + 7, 9, 7,
         "attention projection of block 1 (micro-batch 0, token 0, column 9)"},
        {"block.0.norm2.bias", "block.0.mlp.fc.weight", 23, 11, 23,
         "MLP fc output of block 0 (micro-batch 0, token 0, column 11)"},
        {"block.0.mlp.fc.bias", "block.0.mlp.projection.weight", 95, 3, 95,
         "MLP projection of block 0 (micro-batch 0, token 0, column 3)"},
        {"block.1.mlp.fc.bias", "block.1.mlp.projection.weight", 0, 0, 0,
         "MLP projection of block 1 (micro-batch 0, token 0, column 0)"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct scene scene;
        scene_open(&scene);
        *at(&scene, cases[i].bias, 0, cases[i].bias_column) = 100.0f;
        *at(&scene, cases[i].weight, cases[i].row, cases[i].column) = 3e38f;
        const struct nonfinite found = find(&scene);
        assert_string_equal(found.text, cases[i].expected);
        assert_false(found.weights);
        scene_close(&scene);
    }
}

/* Two embeddings that overflow together, at the one place where both are looked up. The token's
 * part is small enough for its logits elsewhere (below 5 times it), the scale for the gradients
 * of the rest. */
static void micro_batch_and_token(void **state) {
    (void)state;
    struct scene scene;
    char expected[128];
    scene_open(&scene);
    scene.gradient_scale = 1e-30f;
    *at(&scene, "token_embedding", RARE_TOKEN, 5) = 1e37f;
    *at(&scene, "position_embedding", RARE_POSITION, 5) = 3.4e38f;
    const struct nonfinite found = find(&scene);
    snprintf(expected, sizeof expected, "embedding (micro-batch %d, token %d, column 5)",
             RARE_MICRO_BATCH, RARE_ROW * LENGTH + RARE_POSITION);
    assert_string_equal(found.text, expected);
    scene_close(&scene);
}

/* A row of the head that no token looks up: only its logit, and so the loss, overflows. */
static void loss(void **state) {
    (void)state;
    struct scene scene;
    scene_open(&scene);
    for (size_t c = 0; c < WIDTH; c++) {
        *at(&scene, "token_embedding", ABSENT_TOKEN, c) = c % 2 == 0 ? 3e38f : -3e38f;
    }
    assert_string_equal(find(&scene).text, "loss (micro-batch 0, token 0, column 0)");
    scene_close(&scene);
}

/* The forward pass is finite, the gradients are not: named is the last tensor of the table that
 * shows it, for backward comes to it first. */
static void gradients(void **state) {
    (void)state;
    struct scene scene;
    scene_open(&scene);
    scene.gradient_scale = 3e38f;
    const struct nonfinite found = find(&scene);
    const struct param_table *table = &scene.run.engine.gpt.table;
    const struct param *last = NULL;
    size_t first = SIZE_MAX;
    for (size_t i = 0; i < table->length; i++) {
        const struct param *param = &table->params[i];
        const float *gradient = scene.run.engine.gradients + param->offset;
        for (size_t n = param->count; n-- > 0;) {
            if (isfinite(gradient[n])) continue;
            last = param;
            first = n;
        }
    }
    assert_non_null(last);
    char expected[128];
    snprintf(expected, sizeof expected, "gradient of %s (row %zu, column %zu, micro-batch 0)",
             last->name, first / last->columns, first % last->columns);
    assert_string_equal(found.text, expected);
    assert_false(found.weights);
    scene_close(&scene);
}

static void nothing(void **state) {
    (void)state;
    struct scene scene;
    scene_open(&scene);
    assert_starts(find(&scene).text, "no single tensor");
    scene_close(&scene);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights),
        cmocka_unit_test(activations),
        cmocka_unit_test(micro_batch_and_token),
        cmocka_unit_test(loss),
        cmocka_unit_test(gradients),
        cmocka_unit_test(nothing),
    };
    return cmocka_run_group_tests(tests, make_shard, remove_shard);
}

/* The shared parts of the tests of checkpoints/: see fixture.h. */
#include "tests/checkpoints/fixture.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"

const struct checkpoint_retention keep_all = {.keep = 1000, .keep_every = 0};

/* 70 x 33 crosses the edges of the 32 x 32 blocks that transposing works in, in both directions. */
static const struct param rows[ROWS] = {
    [ROW_WTE] = {.name = "wte.weight",
                 .hf_name = "transformer.wte.weight",
                 .role = ROLE_EMBEDDING,
                 .rows = 5,
                 .columns = 6,
                 .padded_rows = 8},
    [ROW_WPE] = {.name = "wpe.weight",
                 .hf_name = "transformer.wpe.weight",
                 .role = ROLE_POSITION,
                 .rows = 4,
                 .columns = 6},
    [ROW_NORM] = {.name = "h.0.norm.scale",
                  .hf_name = "transformer.h.0.ln_1.weight",
                  .role = ROLE_NORM,
                  .rows = 1,
                  .columns = 6},
    [ROW_QKV] = {.name = "h.0.qkv.weight",
                 .hf_name = "transformer.h.0.attn.c_attn.weight",
                 .hf_transposed = true,
                 .role = ROLE_LINEAR,
                 .rows = 18,
                 .columns = 6,
                 .padded_rows = 20},
    [ROW_QKV_BIAS] = {.name = "h.0.qkv.bias",
                      .hf_name = "transformer.h.0.attn.c_attn.bias",
                      .role = ROLE_BIAS,
                      .rows = 1,
                      .columns = 18},
    [ROW_UP] = {.name = "h.0.up.weight",
                .hf_name = "transformer.h.0.mlp.c_fc.weight",
                .hf_transposed = true,
                .role = ROLE_LINEAR,
                .rows = 70,
                .columns = 33},
    [ROW_PLAIN] = {.name = "plain.weight",
                   .hf_name = "plain.weight",
                   .role = ROLE_LINEAR,
                   .rows = 3,
                   .columns = 7},
    [ROW_ONE_ROW] = {.name = "one.weight",
                     .hf_name = "one.weight",
                     .hf_transposed = true,
                     .role = ROLE_LINEAR,
                     .rows = 1,
                     .columns = 9},
};

static void make_folder(char out[PATH_BYTES]) {
    const char *base = getenv("TEST_TMPDIR");
    assert_int_equal(path_join(out, base == NULL ? "/tmp" : base, "checkpoints_XXXXXX"), STATUS_OK);
    assert_non_null(mkdtemp(out));
}

void fixture_open(struct fixture *fixture) {
    memset(fixture, 0, sizeof *fixture);
    make_folder(fixture->folder);
    assert_int_equal(path_join(fixture->run, fixture->folder, "run"), STATUS_OK);
    for (size_t i = 0; i < ROWS; i++) {
        assert_int_equal(param_table_add(&fixture->params, &rows[i]), STATUS_OK);
    }
    fixture->masters = calloc(fixture->params.elements, sizeof(float));
    fixture->moments1 = calloc(fixture->params.elements, sizeof(float));
    fixture->moments2 = calloc(fixture->params.elements, sizeof(float));
    assert_true(fixture->masters && fixture->moments1 && fixture->moments2);
}

void fixture_close(struct fixture *fixture) {
    assert_int_equal(folder_remove(fixture->folder), STATUS_OK);
    cJSON_Delete(fixture->state);
    free(fixture->moments2);
    free(fixture->moments1);
    free(fixture->masters);
    param_table_free(&fixture->params);
}

/* Random bits: every exponent, infinities, NaN with any payload, both zeros, denormals. */
static void fill(float *flat, const struct param_table *params, int64_t step, uint32_t kind) {
    for (size_t p = 0; p < params->length; p++) {
        const struct param *param = &params->params[p];
        for (size_t i = 0; i < param_count(param); i++) {
            uint32_t words[4];
            random_words((uint64_t)step, 100 + kind, param->offset + i, words);
            memcpy(&flat[param->offset + i], &words[0], sizeof(float));
        }
    }
}

/* Doubles that a careless writer rounds, and enough text to be longer than config.json. */
static cJSON *make_state(int64_t step) {
    cJSON *state = cJSON_CreateObject();
    assert_non_null(cJSON_AddNumberToObject(state, "step", (double)step));
    cJSON *numbers = cJSON_AddArrayToObject(state, "numbers");
    const double special[] = {0.0,
                              -0.0,
                              DBL_MIN,
                              DBL_MAX,
                              DBL_TRUE_MIN,
                              0.1 + 0.2,
                              1.0 + DBL_EPSILON,
                              1.0 / 3.0,
                              -9007199254740992.0,
                              123456789012345680.0};
    for (size_t i = 0; i < sizeof special / sizeof special[0]; i++) {
        assert_true(cJSON_AddItemToArray(numbers, cJSON_CreateNumber(special[i])));
    }
    for (size_t i = 0; i < 100; i++) {
        uint32_t words[4];
        random_words((uint64_t)step, 99, i, words);
        const double value =
            ldexp((double)words[0] * 4294967296.0 + words[1], (int)(words[2] % 400) - 264);
        assert_true(cJSON_AddItemToArray(numbers, cJSON_CreateNumber(value)));
    }
    return state;
}

void fixture_fill(struct fixture *fixture, int64_t step) {
    fill(fixture->masters, &fixture->params, step, 0);
    fill(fixture->moments1, &fixture->params, step, 1);
    fill(fixture->moments2, &fixture->params, step, 2);
    cJSON_Delete(fixture->state);
    fixture->state = make_state(step);
    fixture->content = (struct checkpoint_content){
        .step = step,
        .params = &fixture->params,
        .masters = fixture->masters,
        .moments1 = fixture->moments1,
        .moments2 = fixture->moments2,
        .model = {.vocab_size = 5,
                  .n_positions = 4,
                  .n_embd = 6,
                  .n_layer = 1,
                  .n_head = 2,
                  .bos_token_id = -1,
                  .eos_token_id = 4},
        .state = fixture->state,
    };
}

void fixture_save(struct fixture *fixture, int64_t step) {
    fixture_fill(fixture, step);
    if (checkpoint_save(fixture->run, &fixture->content, &keep_all) == STATUS_OK) return;
    fail_msg("%s", status_message());
}

static void expect_same_state(const cJSON *found, int64_t step) {
    cJSON *expected = make_state(step);
    const cJSON *left = cJSON_GetObjectItem(found, "numbers");
    const cJSON *right = cJSON_GetObjectItem(expected, "numbers");
    assert_int_equal(cJSON_GetArraySize(left), cJSON_GetArraySize(right));
    for (left = left->child, right = right->child; left != NULL;
         left = left->next, right = right->next) {
        assert_memory_equal(&left->valuedouble, &right->valuedouble, sizeof(double));
    }
    cJSON_Delete(expected);
}

int64_t fixture_expect_whole(struct fixture *fixture, const char *path) {
    struct checkpoint checkpoint;
    const size_t bytes = fixture->params.elements * sizeof(float);
    float *loaded[3], *expected = calloc(1, bytes);
    if (checkpoint_open(&checkpoint, path) != STATUS_OK) fail_msg("%s", status_message());
    for (size_t i = 0; i < 3; i++) {
        loaded[i] = malloc(bytes);
        assert_non_null(loaded[i]);
        memset(loaded[i], 0x7F, bytes); /* so that padding which is not set shows */
    }
    assert_int_equal(checkpoint_load_weights(&checkpoint, &fixture->params, loaded[0]), STATUS_OK);
    assert_int_equal(checkpoint_load_moments(&checkpoint, &fixture->params,
                                             all_of(&fixture->params), loaded[1], loaded[2]),
                     STATUS_OK);
    for (uint32_t i = 0; i < 3; i++) {
        fill(expected, &fixture->params, checkpoint.step, i); /* the padding stays zero */
        assert_memory_equal(loaded[i], expected, bytes);
        free(loaded[i]);
    }
    expect_same_state(checkpoint.state, checkpoint.step);
    assert_int_equal(checkpoint.model.n_embd, 6);
    assert_int_equal(checkpoint.model.bos_token_id, -1);
    assert_int_equal(checkpoint.model.eos_token_id, 4);
    const int64_t step = checkpoint.step;
    checkpoint_close(&checkpoint);
    free(expected);
    return step;
}

int64_t fixture_expect_newest(struct fixture *fixture) {
    char path[PATH_BYTES];
    bool found = false;
    if (checkpoint_newest(fixture->run, path, &found, NULL) != STATUS_OK) {
        fail_msg("%s", status_message());
    }
    assert_true(found);
    return fixture_expect_whole(fixture, path);
}

void fixture_path(const struct fixture *fixture, int64_t step, const char *name,
                  char out[PATH_BYTES]) {
    char relative[200];
    snprintf(relative, sizeof relative, "step_%08" PRId64 "%s%s", step, name == NULL ? "" : "/",
             name == NULL ? "" : name);
    assert_int_equal(path_join(out, fixture->run, relative), STATUS_OK);
}

size_t fixture_count(const struct fixture *fixture, const char *part) {
    char **names = NULL;
    size_t count = 0, matching = 0;
    assert_int_equal(folder_list(fixture->run, &names, &count), STATUS_OK);
    for (size_t i = 0; i < count; i++) matching += strstr(names[i], part) != NULL;
    names_free(names, count);
    return matching;
}

void test_write_file(const char *path, const void *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    if (bytes > 0) assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

char *test_read_file(const char *path, size_t *bytes) {
    char *text = NULL;
    assert_int_equal(file_read(path, (size_t)1 << 30, &text, bytes), STATUS_OK);
    return text;
}

void expect_refused(enum status found, enum status expected, const char *part) {
    if (found != expected || strstr(status_message(), part) == NULL) {
        fail_msg("expected status %d with \"%s\", found %d: %s", (int)expected, part, (int)found,
                 found == STATUS_OK ? "" : status_message());
    }
}

/*
 * state.json. Oracle: bit equality after writing and reading the text; a table of every field,
 * taken away or made something else, whose name the refusal must hold; the lists of keys in docs
 * and run_state.h.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "checkpoints/json.h"
#include "train/run_state.h"

static void assert_message_has(const char *words) {
    if (strstr(status_message(), words) == NULL) {
        fail_msg("expected \"%s\" in the message \"%s\"", words, status_message());
    }
}

/* Numbers that a decimal with few digits would miss. */
static struct run_state odd_state(void) {
    struct run_state state = {
        .step = ((int64_t)1 << 53) - 1,
        .fingerprint = "0123456789abcdef0123456789abcdef",
        .control = {
            .loss_scale = 0x1.fffffep+23f, .good_steps = 1999, .updates = ((int64_t)1 << 52) + 1,
            .skipped_nonfinite = 3, .skipped_outlier = 5, .nonfinite_in_a_row = 2,
             .losses.seen = 129, .norms.seen = 127,
        },
    };
    for (size_t i = 0; i < OUTLIER_WINDOW; i++) {
        state.control.losses.values[i] = 10.0 / 3.0 + (double)i * 0x1p-50;
        state.control.norms.values[i] = pow(0.1, (double)i); /* down to 1e-127 */
    }
    state.control.norms.values[0] = 0x1p-1074;
    state.control.norms.values[1] = 0x1.fffffffffffffp+1023;
    state.control.norms.values[2] = 0.0;
    return state;
}

/* Writes the text as a checkpoint does and reads it; release with cJSON_Delete. */
static cJSON *through_text(const struct run_state *state, const struct config *config) {
    cJSON *json = run_state_to_json(state, config);
    assert_non_null(json);
    char *text = NULL;
    assert_int_equal(json_text_exact("state.json", json, &text), STATUS_OK);
    cJSON_Delete(json);
    json = cJSON_Parse(text);
    assert_non_null(json);
    free(text);
    return json;
}

static void every_bit_comes_back(void **test_state) {
    (void)test_state;
    const struct run_state state = odd_state();
    struct run_state got;
    struct config config;
    config_defaults(&config);
    cJSON *json = through_text(&state, &config);
    assert_int_equal(run_state_from_json(json, &got), STATUS_OK);
    cJSON_Delete(json);
    assert_int_equal(got.step, state.step);
    assert_string_equal(got.fingerprint, state.fingerprint);
    const struct step_state *a = &got.control, *b = &state.control;
    assert_memory_equal(&a->loss_scale, &b->loss_scale, sizeof a->loss_scale);
    assert_int_equal(a->good_steps, b->good_steps);
    assert_int_equal(a->updates, b->updates);
    assert_int_equal(a->skipped_nonfinite, b->skipped_nonfinite);
    assert_int_equal(a->skipped_outlier, b->skipped_outlier);
    assert_int_equal(a->nonfinite_in_a_row, b->nonfinite_in_a_row);
    assert_memory_equal(&a->losses, &b->losses, sizeof a->losses);
    assert_memory_equal(&a->norms, &b->norms, sizeof a->norms);
    assert_true(a->learning_rate == 0.0f && a->skip == SKIP_NONE && a->loss_sum == 0.0);
}

/* All that is carried from step to step is saved: a field added to struct step_state is noticed
 * here. */
static void nothing_is_carried_that_is_not_saved(void **test_state) {
    (void)test_state;
    const size_t loss_scale = offsetof(struct step_state, loss_scale);
    const size_t good_steps = offsetof(struct step_state, good_steps);
    assert_int_equal(loss_scale + sizeof(float),
                     offsetof(struct step_state, skip) + 2 * sizeof(float));
    /* nothing but alignment between them */
    assert_true(good_steps - loss_scale <= sizeof(int64_t));
    assert_int_equal(sizeof(struct step_state) - good_steps,
                     5 * sizeof(int64_t) + 2 * sizeof(struct outlier_window));
}

enum damage { MISSING, TEXT, NEGATIVE, FRACTION, ENDLESS, HUGE_NUMBER, DAMAGES };

static cJSON *damaged_value(enum damage damage) {
    switch (damage) {
    case TEXT: return cJSON_CreateString("1");
    case NEGATIVE: return cJSON_CreateNumber(-1.0);
    case FRACTION: return cJSON_CreateNumber(1.5);
    case ENDLESS: return cJSON_CreateNumber(INFINITY);
    case HUGE_NUMBER: return cJSON_CreateNumber(0x1p54);
    case MISSING: case DAMAGES: break;
    }
    return NULL;
}

static void every_number_is_needed(void **test_state) {
    (void)test_state;
    static const char *const names[] = {"step", "loss_scale", "good_steps", "updates",
                                        "skipped_nonfinite", "skipped_outlier",
                                        "nonfinite_in_a_row", "losses_seen", "norms_seen"};
    const struct run_state state = odd_state();
    struct config config;
    config_defaults(&config);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        for (enum damage damage = MISSING; damage < DAMAGES; damage++) {
            struct run_state got;
            char quoted[64];
            cJSON *json = through_text(&state, &config), *value = damaged_value(damage);
            cJSON *place = i == 0 ? json : cJSON_GetObjectItem(json, "step_control");
            if (value == NULL) cJSON_DeleteItemFromObject(place, names[i]);
            else assert_true(cJSON_ReplaceItemInObject(place, names[i], value));
            const bool fine = i == 1 && damage == FRACTION; /* the one that need not be whole */
            assert_int_equal(run_state_from_json(json, &got), fine ? STATUS_OK : STATUS_CHECKPOINT);
            snprintf(quoted, sizeof quoted, "\"%s\"", names[i]);
            if (!fine) assert_message_has(quoted);
            cJSON_Delete(json);
        }
    }
}

static void windows_are_needed_whole(void **test_state) {
    (void)test_state;
    static const char *const names[] = {"losses", "norms"};
    const struct run_state state = odd_state();
    struct run_state got;
    struct config config;
    config_defaults(&config);
    for (size_t i = 0; i < 2; i++) {
        for (int damage = 0; damage < 6; damage++) {
            char quoted[64];
            cJSON *json = through_text(&state, &config);
            cJSON *control = cJSON_GetObjectItem(json, "step_control");
            cJSON *array = cJSON_GetObjectItem(control, names[i]);
            switch (damage) {
            case 0: cJSON_DeleteItemFromObject(control, names[i]); break;
            case 1: cJSON_ReplaceItemInObject(control, names[i], cJSON_CreateNumber(1.0)); break;
            case 2: cJSON_DeleteItemFromArray(array, 7); break;
            case 3: cJSON_AddItemToArray(array, cJSON_CreateNumber(1.0)); break;
            case 4: cJSON_ReplaceItemInArray(array, 127, cJSON_CreateNull()); break;
            case 5: cJSON_ReplaceItemInArray(array, 127, cJSON_CreateNumber(INFINITY)); break;
            }
            assert_int_equal(run_state_from_json(json, &got), STATUS_CHECKPOINT);
            snprintf(quoted, sizeof quoted, "\"%s\"%s", names[i], damage >= 4 ? "[127]" : "");
            assert_message_has(quoted);
            cJSON_Delete(json);
        }
    }
}

static void texts_and_objects_are_needed(void **test_state) {
    (void)test_state;
    const struct run_state state = odd_state();
    struct run_state got;
    struct config config;
    config_defaults(&config);

    cJSON *json = through_text(&state, &config);
    cJSON_ReplaceItemInObject(json, "data_fingerprint",
                              cJSON_CreateString("0123456789abcdef0123456789abcdef0"));
    assert_int_equal(run_state_from_json(json, &got), STATUS_CHECKPOINT);
    assert_message_has("\"data_fingerprint\"");
    cJSON_ReplaceItemInObject(json, "data_fingerprint", cJSON_CreateNumber(1.0));
    assert_int_equal(run_state_from_json(json, &got), STATUS_CHECKPOINT);
    assert_message_has("\"data_fingerprint\"");
    cJSON_Delete(json);

    json = through_text(&state, &config);
    cJSON_DeleteItemFromObject(json, "step_control");
    assert_int_equal(run_state_from_json(json, &got), STATUS_CHECKPOINT);
    cJSON_ReplaceItemInObject(json, "configuration", cJSON_CreateNumber(1.0));
    assert_int_equal(run_state_config(json, &config), STATUS_CHECKPOINT);
    assert_message_has("\"configuration\"");
    cJSON_DeleteItemFromObject(json, "configuration");
    assert_int_equal(run_state_config(json, &config), STATUS_CHECKPOINT);
    cJSON_Delete(json);
}

static void the_configuration_comes_back(void **test_state) {
    (void)test_state;
    const struct run_state state = odd_state();
    struct config config, got;
    config_defaults(&config);
    assert_int_equal(config_set(&config, "optimizer.learning_rate", "0.1234567890123456"),
                     STATUS_OK);
    assert_int_equal(config_set(&config, "sample.prompt", "a \"quoted\"\n\xC3\xA9"), STATUS_OK);
    assert_int_equal(config_set(&config, "train.seed", "9223372036854775807"), STATUS_OK);
    cJSON *json = through_text(&state, &config);
    memset(&got, 0xFF, sizeof got);
    assert_int_equal(run_state_config(json, &got), STATUS_OK);
    assert_memory_equal(&got.optimizer, &config.optimizer, sizeof got.optimizer);
    assert_string_equal(got.sample.prompt, config.sample.prompt);
    assert_int_equal(got.train.seed, INT64_MAX);

    cJSON *configuration = cJSON_GetObjectItem(json, "configuration");
    cJSON_ReplaceItemInObject(configuration, "train.seed", cJSON_CreateString("many"));
    assert_int_equal(run_state_config(json, &got), STATUS_CHECKPOINT);
    assert_message_has("train.seed");
    cJSON_Delete(json);
}

static void fixed_keys_are_refused(void **test_state) {
    (void)test_state;
    static const struct {
        const char *key, *value;
    } cases[] = {
        {"model.layers", "13"},           {"model.heads", "6"},        {"model.width", "384"},
        {"model.context", "999"},         {"model.vocabulary", "256"}, {"train.init", "x"},
        {"train.sequence_length", "100"}, {"train.seed", "2"},
    };
    struct config saved, now;
    char changes[RUN_CHANGES_BYTES];
    config_defaults(&saved);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        now = saved;
        assert_int_equal(config_set(&now, cases[i].key, cases[i].value), STATUS_OK);
        if (strcmp(cases[i].key, "model.context") == 0) {
            now.train.sequence_length = saved.model.context;
        }
        assert_int_equal(run_state_compare(&saved, &now, changes), STATUS_CHECKPOINT);
        assert_message_has(cases[i].key);
        assert_message_has(cases[i].value);
        assert_message_has("the checkpoint was made with");
    }
}

static void other_keys_are_listed(void **test_state) {
    (void)test_state;
    struct config saved, now;
    char changes[RUN_CHANGES_BYTES];
    config_defaults(&saved);
    now = saved;
    assert_int_equal(run_state_compare(&saved, &now, changes), STATUS_OK);
    assert_string_equal(changes, "");
    /* 0 means the context: the same length, said otherwise */
    now.train.sequence_length = now.model.context;
    assert_int_equal(run_state_compare(&saved, &now, changes), STATUS_OK);
    assert_string_equal(changes, "");
    /* where things are, and what is shown */
    assert_int_equal(config_set(&now, "train.out", "elsewhere"), STATUS_OK);
    assert_int_equal(config_set(&now, "threads", "1"), STATUS_OK);
    assert_int_equal(config_set(&now, "train.log_every", "1"), STATUS_OK);
    assert_int_equal(run_state_compare(&saved, &now, changes), STATUS_OK);
    assert_string_equal(changes, "");
    assert_int_equal(config_set(&now, "train.recompute", "block"), STATUS_OK);
    assert_int_equal(config_set(&now, "optimizer.learning_rate", "0.25"), STATUS_OK);
    assert_int_equal(config_set(&now, "precision.recipe", "fp16"), STATUS_OK);
    assert_int_equal(run_state_compare(&saved, &now, changes), STATUS_OK);
    assert_string_equal(changes,
                        "train.recompute none -> block, optimizer.learning_rate 0.0006 -> 0.25, "
                        "precision.recipe bf16 -> fp16");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_bit_comes_back),
        cmocka_unit_test(nothing_is_carried_that_is_not_saved),
        cmocka_unit_test(every_number_is_needed),
        cmocka_unit_test(windows_are_needed_whole),
        cmocka_unit_test(texts_and_objects_are_needed),
        cmocka_unit_test(the_configuration_comes_back),
        cmocka_unit_test(fixed_keys_are_refused),
        cmocka_unit_test(other_keys_are_listed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

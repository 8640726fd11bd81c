/* state.json: to and from JSON, and what may differ between a checkpoint and the run that continues
 * it. */
#include "train/run_state.h"

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "train/version.h"

/* The carried numbers of struct step_state: one list for both directions. */
enum number_type { NUMBER_FLOAT, NUMBER_INT64 };
struct number {
    const char *name;
    enum number_type type;
    size_t offset;
};
static const struct number numbers[] = {
    {"loss_scale", NUMBER_FLOAT, offsetof(struct step_state, loss_scale)},
    {"good_steps", NUMBER_INT64, offsetof(struct step_state, good_steps)},
    {"updates", NUMBER_INT64, offsetof(struct step_state, updates)},
    {"skipped_nonfinite", NUMBER_INT64, offsetof(struct step_state, skipped_nonfinite)},
    {"skipped_outlier", NUMBER_INT64, offsetof(struct step_state, skipped_outlier)},
    {"nonfinite_in_a_row", NUMBER_INT64, offsetof(struct step_state, nonfinite_in_a_row)},
    {"losses_seen", NUMBER_INT64, offsetof(struct step_state, losses.seen)},
    {"norms_seen", NUMBER_INT64, offsetof(struct step_state, norms.seen)},
};
enum { NUMBERS = sizeof numbers / sizeof numbers[0] };

static const char *const window_names[2] = {"losses", "norms"};

static double number_get(const struct step_state *state, const struct number *number) {
    const char *at = (const char *)state + number->offset;
    if (number->type == NUMBER_FLOAT) {
        float value;
        memcpy(&value, at, sizeof value);
        return (double)value;
    }
    int64_t value;
    memcpy(&value, at, sizeof value);
    return (double)value;
}

static void number_set(struct step_state *state, const struct number *number, double value) {
    char *at = (char *)state + number->offset;
    if (number->type == NUMBER_FLOAT) {
        const float narrow = (float)value;
        memcpy(at, &narrow, sizeof narrow);
    } else {
        const int64_t whole = (int64_t)value;
        memcpy(at, &whole, sizeof whole);
    }
}

static bool add_control(cJSON *json, const struct step_state *control) {
    cJSON *object = cJSON_AddObjectToObject(json, "step_control");
    bool fine = object != NULL;
    for (size_t i = 0; i < NUMBERS && fine; i++) {
        const double value = number_get(control, &numbers[i]);
        fine = cJSON_AddNumberToObject(object, numbers[i].name, value) != NULL;
    }
    const struct outlier_window *const windows[2] = {&control->losses, &control->norms};
    for (size_t i = 0; i < 2 && fine; i++) {
        cJSON *values = cJSON_CreateDoubleArray(windows[i]->values, OUTLIER_WINDOW);
        fine = values != NULL && cJSON_AddItemToObject(object, window_names[i], values);
    }
    return fine;
}

cJSON *run_state_to_json(const struct run_state *state, const struct config *config) {
    cJSON *json = cJSON_CreateObject();
    cJSON *configuration = config_to_json(config);
    const bool fine = json != NULL && configuration != NULL &&
                      cJSON_AddNumberToObject(json, "step", (double)state->step) != NULL &&
                      cJSON_AddNumberToObject(json, "sequences", (double)state->sequences) !=
                          NULL &&
                      cJSON_AddStringToObject(json, "data_fingerprint", state->fingerprint) !=
                          NULL &&
                      cJSON_AddStringToObject(json, "deepwell_version", DEEPWELL_VERSION) != NULL &&
                      add_control(json, &state->control);
    if (!fine) {
        cJSON_Delete(configuration);
        cJSON_Delete(json);
        return NULL;
    }
    cJSON_AddItemToObject(json, "configuration", configuration);
    return json;
}

static enum status read_number(const cJSON *object, const char *name, enum number_type type,
                               double *value) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0.0 && item->valuedouble <= 0x1p53) ||
        (type == NUMBER_INT64 && item->valuedouble != floor(item->valuedouble))) {
        return status_set(STATUS_CHECKPOINT,
                          "state.json: expected a %s from 0 to 2^53 under \"%s\", "
                          "found %s",
                          type == NUMBER_INT64 ? "whole number" : "number", name,
                          item == NULL ? "nothing" : "something else");
    }
    *value = item->valuedouble;
    return STATUS_OK;
}

static enum status read_window(const cJSON *object, const char *name,
                               struct outlier_window *window) {
    const cJSON *array = cJSON_GetObjectItemCaseSensitive(object, name);
    if (!cJSON_IsArray(array) || cJSON_GetArraySize(array) != OUTLIER_WINDOW) {
        return status_set(STATUS_CHECKPOINT, "state.json: expected %d numbers under \"%s\"",
                          OUTLIER_WINDOW, name);
    }
    size_t i = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, array) {
        if (!cJSON_IsNumber(item) || !isfinite(item->valuedouble)) {
            return status_set(STATUS_CHECKPOINT, "state.json: \"%s\"[%zu] is no finite number",
                              name, i);
        }
        window->values[i++] = item->valuedouble;
    }
    return STATUS_OK;
}

enum status run_state_from_json(const cJSON *json, struct run_state *state) {
    *state = (struct run_state){0};
    double step = 0.0, sequences = 0.0;
    TRY(read_number(json, "step", NUMBER_INT64, &step));
    TRY(read_number(json, "sequences", NUMBER_INT64, &sequences));
    state->step = (int64_t)step;
    state->sequences = (int64_t)sequences;
    const cJSON *fingerprint = cJSON_GetObjectItemCaseSensitive(json, "data_fingerprint");
    if (!cJSON_IsString(fingerprint) ||
        strlen(fingerprint->valuestring) >= sizeof state->fingerprint) {
        return status_set(STATUS_CHECKPOINT, "state.json: expected a text of 32 characters under "
                          "\"data_fingerprint\"");
    }
    snprintf(state->fingerprint, sizeof state->fingerprint, "%s", fingerprint->valuestring);
    const cJSON *control = cJSON_GetObjectItemCaseSensitive(json, "step_control");
    for (size_t i = 0; i < NUMBERS; i++) {
        double value = 0.0;
        TRY(read_number(control, numbers[i].name, numbers[i].type, &value));
        number_set(&state->control, &numbers[i], value);
    }
    TRY(read_window(control, window_names[0], &state->control.losses));
    return read_window(control, window_names[1], &state->control.norms);
}

enum status run_state_config(const cJSON *json, struct config *config) {
    const cJSON *configuration = cJSON_GetObjectItemCaseSensitive(json, "configuration");
    if (!cJSON_IsObject(configuration)) {
        return status_set(STATUS_CHECKPOINT,
                          "state.json: expected an object under \"configuration\"");
    }
    config_defaults(config);
    const enum status status = config_from_json(config, configuration);
    return status == STATUS_OK ? STATUS_OK : status_context(STATUS_CHECKPOINT, "state.json");
}

/* Keys that decide which tokens a step reads, or what the weights are. */
static const char *const fixed_keys[] = {
    "model.layers", "model.heads", "model.width", "model.context", "model.vocabulary",
    "train.sequence_length", "train.seed", "train.init",
};

/* Keys that say where things are or what is shown: not worth a line in the log. */
static const char *const silent_keys[] = {
    "device", "threads", "data.train", "data.validation", "eval.file", "train.out", "train.resume",
    "train.log_every", "sample.prompt", "checkpoint.background",
};

static bool listed(const char *key, const char *const *keys, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (strcmp(key, keys[i]) == 0) return true;
    }
    return false;
}

static enum status compare_json(const cJSON *saved, const cJSON *now,
                                char changes[RUN_CHANGES_BYTES]) {
    size_t used = 0;
    const cJSON *item;
    changes[0] = '\0';
    cJSON_ArrayForEach(item, now) {
        const char *key = item->string;
        const cJSON *old = cJSON_GetObjectItemCaseSensitive(saved, key);
        const char *old_value = cJSON_GetStringValue(old), *new_value = cJSON_GetStringValue(item);
        if (old_value == NULL || new_value == NULL || strcmp(old_value, new_value) == 0) continue;
        if (strcmp(key, "train.init") == 0 && new_value[0] == '\0') continue; /* done long ago */
        if (listed(key, fixed_keys, sizeof fixed_keys / sizeof fixed_keys[0])) {
            return status_set(
                STATUS_CHECKPOINT,
                "%s is %s, but the checkpoint was made with %s: it cannot "
                "be continued so; set it back, or start a new run with another train.out",
                key, new_value, old_value);
        }
        if (listed(key, silent_keys, sizeof silent_keys / sizeof silent_keys[0])) continue;
        const int written = snprintf(changes + used, RUN_CHANGES_BYTES - used, "%s%s %s -> %s",
                                     used > 0 ? ", " : "", key, old_value, new_value);
        if (written > 0) used = used + (size_t)written < RUN_CHANGES_BYTES ? used + (size_t)written
                                                                           : RUN_CHANGES_BYTES - 1;
    }
    return STATUS_OK;
}

enum status run_state_compare(const struct config *saved, const struct config *now,
                              char changes[RUN_CHANGES_BYTES]) {
    /* 0 stands for another key's value here: compare what it means. */
    struct config a = *saved, b = *now;
    a.train.sequence_length = config_sequence_length(saved);
    b.train.sequence_length = config_sequence_length(now);
    cJSON *old = config_to_json(&a);
    cJSON *new = config_to_json(&b);
    const enum status status = old == NULL || new == NULL
                                   ? status_set(STATUS_MEMORY,
                                                "out of memory comparing configurations")
                                   : compare_json(old, new, changes);
    cJSON_Delete(old);
    cJSON_Delete(new);
    return status;
}

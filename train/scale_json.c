/* Scale states to and from JSON. */
#include "train/scale_json.h"

#include <math.h>
#include <stdlib.h>

enum { SEEN, DRAWS, HISTORY, NUMBERS = HISTORY + AMAX_HISTORY };

/* A tensor that is quantised, and no weight. */
static bool is_saved(const struct gpt *gpt, size_t index) {
    const struct tensor_place place = gpt_scale_place(gpt, index);
    return place.tensor != TENSOR_WEIGHT && gpt_recipe_at(gpt, place.layer).narrow;
}

static cJSON *state_to_json(const struct scale_state *state) {
    double numbers[NUMBERS] = {[SEEN] = state->seen, [DRAWS] = state->draws_before};
    for (int i = 0; i < AMAX_HISTORY; i++) numbers[HISTORY + i] = (double)state->history[i];
    return cJSON_CreateDoubleArray(numbers, NUMBERS);
}

static enum status add_states(const struct gpt *gpt, const struct scale_state *states,
                              cJSON *object) {
    for (size_t i = 0; i < gpt_scale_count(gpt); i++) {
        char name[TENSOR_PLACE_BYTES];
        if (!is_saved(gpt, i)) continue;
        cJSON *numbers = state_to_json(&states[i]);
        if (numbers == NULL ||
            !cJSON_AddItemToObject(object, gpt_scale_name(name, gpt, i), numbers)) {
            cJSON_Delete(numbers);
            return status_set(STATUS_MEMORY, "out of memory for the scale states of state.json");
        }
    }
    return STATUS_OK;
}

static enum status take_states(const struct engine *engine, struct scale_state **out) {
    *out = calloc(gpt_scale_count(&engine->gpt), sizeof **out);
    return *out != NULL ? STATUS_OK
                        : status_set(STATUS_MEMORY, "out of memory for the scale states");
}

enum status scales_to_json(struct engine *engine, cJSON *json) {
    struct scale_state *states = NULL;
    if (engine->scales == NULL) return STATUS_OK;
    TRY(take_states(engine, &states));
    enum status status = engine_read_scales(engine, states);
    cJSON *object = cJSON_AddObjectToObject(json, "scales");
    if (status == STATUS_OK && object == NULL) {
        status = status_set(STATUS_MEMORY, "out of memory for the scale states of state.json");
    }
    if (status == STATUS_OK) status = add_states(&engine->gpt, states, object);
    free(states);
    return status;
}

/* Counts are whole numbers below 2^32, amaxes finite FP32 numbers of at least 0. */
static bool valid(int i, double value) {
    if (i == SEEN || i == DRAWS) {
        return value >= 0.0 && value <= (double)UINT32_MAX && value == floor(value);
    }
    return value >= 0.0 && value <= 3.402823466e38;
}

static enum status read_state(const cJSON *object, const char *name, struct scale_state *state) {
    const cJSON *array = cJSON_GetObjectItemCaseSensitive(object, name), *item;
    double numbers[NUMBERS] = {0};
    int i = 0;
    if (!cJSON_IsArray(array) || cJSON_GetArraySize(array) != NUMBERS) {
        return status_set(STATUS_CHECKPOINT, "state.json: expected %d numbers under \"scales\", "
                          "\"%s\": another file, or damaged", NUMBERS, name);
    }
    cJSON_ArrayForEach(item, array) {
        if (!cJSON_IsNumber(item) || !valid(i, item->valuedouble)) {
            return status_set(STATUS_CHECKPOINT,
                              "state.json: \"scales\", \"%s\"[%d] is no valid number", name, i);
        }
        numbers[i++] = item->valuedouble;
    }
    state->seen = (uint32_t)numbers[SEEN];
    state->draws = state->draws_before = (uint32_t)numbers[DRAWS];
    for (int h = 0; h < AMAX_HISTORY; h++) state->history[h] = (float)numbers[HISTORY + h];
    scale_state_from_history(state);
    return STATUS_OK;
}

enum status scales_from_json(struct engine *engine, const cJSON *json) {
    const cJSON *object = cJSON_GetObjectItemCaseSensitive(json, "scales");
    const struct gpt *gpt = &engine->gpt;
    struct scale_state *states = NULL;
    enum status status = STATUS_OK;
    if (engine->scales == NULL || object == NULL) return STATUS_OK;
    TRY(take_states(engine, &states));
    gpt_scales_initialise(gpt, states);
    for (size_t i = 0; i < gpt_scale_count(gpt) && status == STATUS_OK; i++) {
        char name[TENSOR_PLACE_BYTES];
        if (is_saved(gpt, i)) status = read_state(object, gpt_scale_name(name, gpt, i), &states[i]);
    }
    if (status == STATUS_OK) status = engine_write_scales(engine, states);
    free(states);
    return status;
}

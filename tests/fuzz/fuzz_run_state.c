/*
 * Fuzz entry for state.json: train/run_state.h over checkpoints/json.h, as a resumed run reads it.
 * A state that is accepted must come back the same from its own text.
 */
#include "train/run_state.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/json.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    cJSON *root = NULL;
    struct run_state state, again;
    struct config config;
    if (json_parse("input", (const char *)data, size, &root) != STATUS_OK) return 0;
    if (run_state_from_json(root, &state) == STATUS_OK &&
        run_state_config(root, &config) == STATUS_OK) {
        cJSON *json = run_state_to_json(&state, &config);
        if (json == NULL || run_state_from_json(json, &again) != STATUS_OK) abort();
        if (again.step != state.step || again.sequences != state.sequences ||
            again.control.updates != state.control.updates) {
            abort();
        }
        cJSON_Delete(json);
    }
    cJSON_Delete(root);
    return 0;
}

size_t fuzz_seeds(size_t index, uint8_t *seed, size_t capacity) {
    struct run_state state = {.step = 1000,
                              .sequences = 512000,
                              .fingerprint = "00112233445566778899aabbccddeeff"};
    struct config config;
    char *text = NULL;
    if (index > 0) return 0;
    state.control.loss_scale = 65536.0f;
    state.control.updates = 999;
    config_defaults(&config);
    cJSON *json = run_state_to_json(&state, &config);
    if (json == NULL || json_text_exact("seed", json, &text) != STATUS_OK) abort();
    const size_t bytes = strlen(text);
    if (bytes > capacity) abort();
    memcpy(seed, text, bytes);
    free(text);
    cJSON_Delete(json);
    return bytes;
}

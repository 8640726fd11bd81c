/* GPT-2's config.json, read with suspicion and written for from_pretrained: behind
 * checkpoints/hf_config.h. */
#include "checkpoints/hf_config.h"

#include <limits.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/json.h"

enum { CONFIG_BYTES_MAX = 1 << 20 };

/* The sizes, and what is absurd: far above every model ever trained, far below overflow. */
static const struct {
    const char *key;
    size_t offset; /* in struct hf_config */
    size_t most;
} sizes[] = {
    {"vocab_size", offsetof(struct hf_config, vocab_size), 1 << 24},
    {"n_positions", offsetof(struct hf_config, n_positions), 1 << 24},
    {"n_embd", offsetof(struct hf_config, n_embd), 1 << 20},
    {"n_layer", offsetof(struct hf_config, n_layer), 1 << 16},
    {"n_head", offsetof(struct hf_config, n_head), 1 << 16},
};
enum { SIZES = sizeof sizes / sizeof sizes[0] };

/* Switches that change what the model computes; it is built for one setting of each. A key that is
 * not there has this value in Hugging Face's GPT2Config. */
static const struct {
    const char *key;
    bool value;
} switches[] = {
    {"tie_word_embeddings", true},
    {"scale_attn_weights", true},
    {"scale_attn_by_inverse_layer_idx", false},
    {"reorder_and_upcast_attn", false},
    {"add_cross_attention", false},
};
enum { SWITCHES = sizeof switches / sizeof switches[0] };

/* Written as 0, which is what was trained with; ignored when read, since dropout has no weights. */
static const char *const dropouts[] = {"resid_pdrop", "embd_pdrop", "attn_pdrop"};
enum { DROPOUTS = sizeof dropouts / sizeof dropouts[0] };

static const double layer_norm_epsilon = 1e-5;

static size_t *size_at(struct hf_config *config, size_t i) {
    return (size_t *)(void *)((char *)config + sizes[i].offset);
}

static enum status token_check(const char *where, const char *key, int token, size_t vocab_size) {
    if (token >= -1 && (token < 0 || (size_t)token < vocab_size)) return STATUS_OK;
    return status_set(STATUS_CHECKPOINT,
                      "%s: expected %s to be a token below vocab_size %zu, found %d", where, key,
                      vocab_size, token);
}

enum status hf_config_check(const char *where, const struct hf_config *config) {
    struct hf_config copy = *config;
    for (size_t i = 0; i < SIZES; i++) {
        const size_t size = *size_at(&copy, i);
        if (size < 1 || size > sizes[i].most) {
            return status_set(STATUS_CHECKPOINT, "%s: expected %s from 1 to %zu, found %zu", where,
                              sizes[i].key, sizes[i].most, size);
        }
    }
    if (config->n_embd % config->n_head != 0) {
        return status_set(STATUS_CHECKPOINT, "%s: expected n_head to divide n_embd %zu, found %zu",
                          where, config->n_embd, config->n_head);
    }
    TRY(token_check(where, "bos_token_id", config->bos_token_id, config->vocab_size));
    return token_check(where, "eos_token_id", config->eos_token_id, config->vocab_size);
}

/* A string that must be `expected`; absent is fine where Hugging Face's default is the same. */
static enum status require_string(const char *path, const cJSON *root, const char *key,
                                  const char *expected, bool may_be_absent) {
    const cJSON *item = NULL;
    const char *found = NULL;
    TRY(json_find(path, root, key, &item));
    if (item == NULL && may_be_absent) return STATUS_OK;
    TRY(json_string(path, root, key, &found));
    if (strcmp(found, expected) == 0) return STATUS_OK;
    return status_set(STATUS_CHECKPOINT,
                      "%s: expected %s \"%s\", found \"%.40s\": this program runs the "
                      "GPT-2 family only",
                      path, key, expected, found);
}

static enum status require_switch(const char *path, const cJSON *root, const char *key,
                                  bool expected) {
    const cJSON *item = NULL;
    TRY(json_find(path, root, key, &item));
    if (item == NULL || (cJSON_IsBool(item) && cJSON_IsTrue(item) == expected)) return STATUS_OK;
    return status_set(STATUS_CHECKPOINT,
                      "%s: expected %s to be %s or absent: this program has no other "
                      "kind",
                      path, key, expected ? "true" : "false");
}

static enum status require_inner_width(const char *path, const cJSON *root, size_t n_embd) {
    const cJSON *item = NULL;
    TRY(json_find(path, root, "n_inner", &item));
    if (item == NULL || cJSON_IsNull(item)) return STATUS_OK;
    int64_t n_inner = 0;
    TRY(json_integer(path, root, "n_inner", 1, JSON_INTEGER_MAX, &n_inner));
    if ((size_t)n_inner == 4 * n_embd) return STATUS_OK;
    return status_set(STATUS_CHECKPOINT,
                      "%s: expected n_inner to be null or 4 n_embd = %zu, found %lld", path,
                      4 * n_embd, (long long)n_inner);
}

static enum status require_epsilon(const char *path, const cJSON *root) {
    const cJSON *item = NULL;
    TRY(json_find(path, root, "layer_norm_epsilon", &item));
    if (item == NULL) return STATUS_OK;
    const double found = cJSON_IsNumber(item) ? item->valuedouble : NAN;
    if (found == layer_norm_epsilon) return STATUS_OK;
    return status_set(STATUS_CHECKPOINT, "%s: expected layer_norm_epsilon %g, found %g", path,
                      layer_norm_epsilon, found);
}

static enum status read_token(const char *path, const cJSON *root, const char *key, int *token) {
    const cJSON *item = NULL;
    int64_t value = -1;
    TRY(json_find(path, root, key, &item));
    if (item != NULL && !cJSON_IsNull(item)) TRY(json_integer(path, root, key, 0, INT_MAX, &value));
    *token = (int)value;
    return STATUS_OK;
}

static enum status read_object(const char *path, const cJSON *root, struct hf_config *config) {
    TRY(require_string(path, root, "model_type", "gpt2", false));
    TRY(require_string(path, root, "activation_function", "gelu_new", true));
    for (size_t i = 0; i < SWITCHES; i++) {
        TRY(require_switch(path, root, switches[i].key, switches[i].value));
    }
    TRY(require_epsilon(path, root));
    for (size_t i = 0; i < SIZES; i++) {
        int64_t value = 0;
        TRY(json_integer(path, root, sizes[i].key, 1, (int64_t)sizes[i].most, &value));
        *size_at(config, i) = (size_t)value;
    }
    TRY(require_inner_width(path, root, config->n_embd));
    TRY(read_token(path, root, "bos_token_id", &config->bos_token_id));
    TRY(read_token(path, root, "eos_token_id", &config->eos_token_id));
    return hf_config_check(path, config);
}

enum status hf_config_read(const char *path, struct hf_config *config) {
    cJSON *root = NULL;
    TRY(json_read(path, CONFIG_BYTES_MAX, &root));
    const enum status status = read_object(path, root, config);
    cJSON_Delete(root);
    return status;
}

static bool add_token(cJSON *root, const char *key, int token) {
    if (token < 0) return cJSON_AddNullToObject(root, key) != NULL;
    return cJSON_AddNumberToObject(root, key, token) != NULL;
}

char *hf_config_text(const struct hf_config *config, const char *dtype) {
    char *text = NULL;
    struct hf_config copy = *config;
    cJSON *root = cJSON_CreateObject();
    cJSON *architectures = cJSON_AddArrayToObject(root, "architectures");
    bool good = cJSON_AddItemToArray(architectures, cJSON_CreateString("GPT2LMHeadModel")) &&
                cJSON_AddStringToObject(root, "model_type", "gpt2") != NULL;
    for (size_t i = 0; i < SIZES && good; i++) {
        good = cJSON_AddNumberToObject(root, sizes[i].key, (double)*size_at(&copy, i)) != NULL;
    }
    good = good && cJSON_AddNullToObject(root, "n_inner") != NULL &&
           cJSON_AddStringToObject(root, "activation_function", "gelu_new") != NULL &&
           cJSON_AddNumberToObject(root, "layer_norm_epsilon", layer_norm_epsilon) != NULL;
    for (size_t i = 0; i < SWITCHES && good; i++) {
        good = cJSON_AddBoolToObject(root, switches[i].key, switches[i].value) != NULL;
    }
    for (size_t i = 0; i < DROPOUTS && good; i++) {
        good = cJSON_AddNumberToObject(root, dropouts[i], 0.0) != NULL;
    }
    good = good && add_token(root, "bos_token_id", config->bos_token_id) &&
           add_token(root, "eos_token_id", config->eos_token_id) &&
           cJSON_AddStringToObject(root, "torch_dtype", dtype) != NULL;
    if (good) text = cJSON_Print(root);
    cJSON_Delete(root);
    return text;
}

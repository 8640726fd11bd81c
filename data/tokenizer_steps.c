/* The "pre_tokenizer" of tokenizer.json: the steps from a piece of text to words. */
#include <string.h>

#include "data/tokenizer_json.h"

/* GPT-2's expression, which a step ByteLevel uses unless it says otherwise. */
static const char gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static enum status add_step(struct tokenizer *tokenizer, struct tokenizer_step **step) {
    if (tokenizer->step_count == TOKENIZER_STEPS_MAX) {
        return status_set(STATUS_DATA, "pre_tokenizer: expected at most %d steps, found more",
                          TOKENIZER_STEPS_MAX);
    }
    *step = &tokenizer->steps[tokenizer->step_count++];
    return STATUS_OK;
}

/* A step that cuts by a pattern; matches and what lies between them both become words. */
static enum status add_split(struct tokenizer *tokenizer, const char *pattern, bool literal,
                             struct tokenizer_step **step) {
    TRY(add_step(tokenizer, step));
    TRY(split_open(&(*step)->split, pattern, literal));
    (*step)->splits = true;
    (*step)->split.keeps_matches = (*step)->split.keeps_gaps = true;
    return STATUS_OK;
}

static enum status read_split(struct tokenizer *tokenizer, const cJSON *object) {
    const cJSON *pattern = NULL;
    const char *text = NULL, *behavior = NULL;
    struct tokenizer_step *step = NULL;
    bool invert = false;
    TRY(tokenizer_json_find(object, "pattern", &pattern));
    const bool literal = cJSON_GetObjectItemCaseSensitive(pattern, "String") != NULL;
    TRY(tokenizer_json_text(pattern, literal ? "String" : "Regex", &text));
    TRY(tokenizer_json_text(object, "behavior", &behavior));
    TRY(tokenizer_json_flag(object, "invert", &invert));
    const bool removes = strcmp(behavior, "Removed") == 0;
    if (!removes && strcmp(behavior, "Isolated") != 0) {
        return status_set(STATUS_DATA, "pre_tokenizer: expected a Split with the behavior Isolated "
                          "or Removed, found \"%.40s\"", behavior);
    }
    TRY(add_split(tokenizer, text, literal, &step));
    if (removes) *(invert ? &step->split.keeps_gaps : &step->split.keeps_matches) = false;
    return STATUS_OK;
}

static enum status read_digits(struct tokenizer *tokenizer, const cJSON *object) {
    struct tokenizer_step *step = NULL;
    bool individual = false;
    TRY(tokenizer_json_flag(object, "individual_digits", &individual));
    return add_split(tokenizer, individual ? "\\p{N}" : "\\p{N}+", false, &step);
}

static enum status read_byte_level(struct tokenizer *tokenizer, const cJSON *object) {
    struct tokenizer_step *step = NULL;
    bool adds_space = true, splits = true; /* the library's defaults */
    TRY(tokenizer_json_flag(object, "add_prefix_space", &adds_space));
    TRY(tokenizer_json_flag(object, "use_regex", &splits));
    if (splits) TRY(add_split(tokenizer, gpt2_pattern, false, &step));
    if (adds_space && step == NULL) TRY(add_step(tokenizer, &step));
    if (adds_space) step->adds_space = true;
    return STATUS_OK;
}

static enum status read_step(struct tokenizer *tokenizer, const cJSON *object, bool *byte_level) {
    const char *type = NULL;
    if (*byte_level) {
        return status_set(STATUS_DATA, "pre_tokenizer: expected ByteLevel as the last step, found "
                          "another behind it");
    }
    TRY(tokenizer_json_text(object, "type", &type));
    if (strcmp(type, "Split") == 0) return read_split(tokenizer, object);
    if (strcmp(type, "Digits") == 0) return read_digits(tokenizer, object);
    if (strcmp(type, "ByteLevel") == 0) {
        *byte_level = true;
        return read_byte_level(tokenizer, object);
    }
    return status_set(STATUS_DATA, "pre_tokenizer: expected the steps Split, Digits and ByteLevel, "
                      "found \"%.40s\": this is no byte-level tokenizer that can be used", type);
}

enum status tokenizer_read_steps(struct tokenizer *tokenizer, const cJSON *root) {
    const cJSON *object = NULL, *steps = NULL;
    const char *type = NULL;
    bool byte_level = false;
    TRY(tokenizer_json_find(root, "pre_tokenizer", &object));
    if (object == NULL) {
        return status_set(STATUS_DATA, "expected a pre_tokenizer ByteLevel, found none: only "
                          "byte-level tokenizers can be used");
    }
    TRY(tokenizer_json_text(object, "type", &type));
    if (strcmp(type, "Sequence") != 0) {
        TRY(read_step(tokenizer, object, &byte_level));
    } else {
        TRY(tokenizer_json_find(object, "pretokenizers", &steps));
        if (!cJSON_IsArray(steps)) {
            return status_set(STATUS_DATA, "pre_tokenizer: expected a list \"pretokenizers\"");
        }
        for (const cJSON *step = steps->child; step != NULL; step = step->next) {
            TRY(read_step(tokenizer, step, &byte_level));
        }
    }
    if (byte_level) return STATUS_OK;
    return status_set(STATUS_DATA, "pre_tokenizer: expected ByteLevel as the last step, found "
                      "\"%.40s\" without it: only byte-level tokenizers can be used", type);
}

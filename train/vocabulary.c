/* Finding and opening the vocabulary. */
#include "train/vocabulary.h"

#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "data/choices.h"
#include "data/description.h"

/* Takes a tokenizer that was found, not asked for. One that is not read here (with a normalizer,
 * say) is no reason to refuse the run: training needs numbers only. */
static enum status take_tokenizer(struct config *config, const char *path) {
    struct tokenizer *tokenizer = NULL;
    enum status status = tokenizer_open(&tokenizer, path);
    tokenizer_close(tokenizer);
    if (status == STATUS_DATA) {
        fprintf(stderr, "note: %s; tokens are shown as numbers\n", status_message());
        config->data.tokenizer[0] = '\0';
        return STATUS_OK;
    }
    if (status == STATUS_OK) status = config_set(config, "data.tokenizer", path);
    if (status == STATUS_OK) return status;
    return status_context(status, "the tokenizer beside the data (--data.tokenizer names another)");
}

int32_t vocabulary_end_of_text(const struct config *config) {
    if (config->data.end_of_text >= 0) return (int32_t)config->data.end_of_text;
    return config->model.vocabulary == BYTE_VOCABULARY ? BYTE_END_OF_TEXT : -1;
}

/* Losses of one vocabulary say nothing about another's. Shards without a description may be of
 * any. */
static enum status check_validation(const struct config *config, const struct description *train) {
    struct description validation;
    if (config->data.validation[0] == '\0' || !train->found) return STATUS_OK;
    TRY(description_open(&validation, config->data.validation));
    const bool same = !validation.found || description_same_tokenizer(train, &validation);
    const enum status status =
        same ? STATUS_OK
             : status_set(STATUS_DATA,
                          "data.validation: expected shards of data.train's tokenizer (%.1000s: "
                          "%lld tokens), found another's (%.1000s: %lld tokens)",
                          train->path, (long long)train->vocabulary, validation.path,
                          (long long)validation.vocabulary);
    description_close(&validation);
    return status;
}

static enum status resolve_from_shards(struct config *config) {
    struct description description;
    TRY(description_open(&description, config->data.train));
    enum status status = check_validation(config, &description);
    if (description.found && status == STATUS_OK) {
        if (config->data.end_of_text < 0) config->data.end_of_text = description.end_of_text;
        if (config->data.tokenizer[0] == '\0' && description.tokenizer[0] != '\0') {
            status = take_tokenizer(config, description.tokenizer);
        }
    }
    description_close(&description);
    return status;
}

enum status vocabulary_resolve(struct config *config) {
    if (config->data.train[0] != '\0') TRY(resolve_from_shards(config));
    if (config->data.tokenizer[0] != '\0') {
        struct vocabulary vocabulary;
        TRY(vocabulary_open(&vocabulary, config));
        config->data.end_of_text = vocabulary.end_of_text;
        vocabulary_close(&vocabulary);
    }
    if (config->data.end_of_text >= config->model.vocabulary) {
        return status_set(STATUS_CONFIG, "expected data.end_of_text below model.vocabulary (%lld), "
                          "found %lld: the data were prepared for another vocabulary",
                          (long long)config->model.vocabulary,
                          (long long)config->data.end_of_text);
    }
    if (config->sample.every > 0 && config->sample.prompt[0] == '\0' &&
        vocabulary_end_of_text(config) < 0) {
        return status_set(STATUS_CONFIG, "sample.every is set and sample.prompt is empty: expected "
                          "data.end_of_text, the token that samples begin with, found none in the "
                          "data: set it, or give a prompt");
    }
    if (choices_is_text(config->eval.file) && config->data.tokenizer[0] == '\0' &&
        config->model.vocabulary != BYTE_VOCABULARY) {
        return status_set(STATUS_CONFIG, "eval.file is %s, questions as text: expected "
                          "data.tokenizer, which makes tokens of them, found none: set it, or name "
                          "a file of tokens in llm.c's form", config->eval.file);
    }
    return STATUS_OK;
}

bool vocabulary_is_text(const struct vocabulary *vocabulary) {
    return vocabulary->tokenizer != NULL || vocabulary->size == BYTE_VOCABULARY;
}

enum status vocabulary_prefer_checkpoint(struct config *config, const char *folder) {
    char path[PATH_BYTES];
    TRY(path_join(path, folder, "tokenizer.json"));
    return path_is_file(path) ? take_tokenizer(config, path) : STATUS_OK;
}

/* data.tokenizer is the file, or its folder. */
static enum status open_tokenizer(struct tokenizer **tokenizer, const char *named) {
    char path[PATH_BYTES];
    if (!path_is_folder(named)) return tokenizer_open(tokenizer, named);
    TRY(path_join(path, named, "tokenizer.json"));
    return tokenizer_open(tokenizer, path);
}

enum status vocabulary_open(struct vocabulary *vocabulary, const struct config *config) {
    *vocabulary = (struct vocabulary){.size = (size_t)config->model.vocabulary};
    vocabulary->end_of_text = vocabulary_end_of_text(config);
    if (config->data.tokenizer[0] == '\0') return STATUS_OK;
    const enum status status = open_tokenizer(&vocabulary->tokenizer, config->data.tokenizer);
    if (status != STATUS_OK) {
        return status_context(status, "data.tokenizer (--data.tokenizer names another)");
    }
    const size_t tokens = tokenizer_vocabulary(vocabulary->tokenizer);
    if (tokens > vocabulary->size) {
        vocabulary_close(vocabulary);
        return status_set(STATUS_CONFIG, "%s: expected a tokenizer of at most %lld tokens, which "
                          "model.vocabulary says, found %zu: it is another model's",
                          config->data.tokenizer, (long long)config->model.vocabulary, tokens);
    }
    if (config->data.end_of_text < 0) {
        vocabulary->end_of_text = tokenizer_end_of_text(vocabulary->tokenizer);
    }
    return STATUS_OK;
}

void vocabulary_close(struct vocabulary *vocabulary) {
    tokenizer_close(vocabulary->tokenizer);
    *vocabulary = (struct vocabulary){.size = 0};
}

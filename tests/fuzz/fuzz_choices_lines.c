/*
 * Fuzz entry for multiple-choice questions as text (data/choices.h). What is accepted has as many
 * examples with tokens as without, each label is a completion, and the tokens of every text of a
 * tokenizer, put together, are at least one byte; as bytes, every ending begins with the space.
 */
#include <stdlib.h>
#include <string.h>

#include "data/choices.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/small_tokenizer.h"

static struct tokenizer *open_once(void) {
    static struct tokenizer *tokenizer;
    static char json[16384];
    if (tokenizer != NULL) return tokenizer;
    const size_t bytes = small_tokenizer(json, sizeof json,
                                         "{\"type\":\"ByteLevel\","
                                         "\"add_prefix_space\":false}");
    if (tokenizer_parse(&tokenizer, "small", json, bytes) != STATUS_OK) abort();
    return tokenizer;
}

static void read_all(const int32_t *tokens, size_t count, size_t vocabulary) {
    if (count == 0) abort();
    for (size_t i = 0; i < count; i++) {
        if (tokens[i] < 0 || (size_t)tokens[i] >= vocabulary) abort();
    }
}

static void check(const struct choices *choices, const struct tokenizer *tokenizer) {
    const size_t vocabulary = tokenizer == NULL ? BYTE_VOCABULARY : tokenizer_vocabulary(tokenizer);
    size_t completions = 0;
    for (size_t i = 0; i < choices->count; i++) {
        const struct choice_example example = choices_get(choices, i);
        char place[CHOICES_PLACE_BYTES];
        if (example.label >= example.completion_count) abort();
        if (strncmp(choices_place(choices, i, place), "fuzz:", 5) != 0) abort();
        read_all(example.context, example.context_tokens, vocabulary);
        for (size_t c = 0; c < example.completion_count; c++) {
            read_all(example.completions[c], example.completion_tokens[c], vocabulary);
            if (tokenizer == NULL && example.completions[c][0] != ' ') abort();
            completions++;
        }
    }
    if (completions != choices->completions) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct tokenizer *const tokenizers[] = {NULL, open_once()};
    for (size_t t = 0; t < sizeof tokenizers / sizeof tokenizers[0]; t++) {
        struct choices choices;
        if (choices_parse(&choices, "fuzz", (const char *)data, size) != STATUS_OK) return 0;
        const size_t count = choices.count;
        if (choices_tokenise(&choices, tokenizers[t]) == STATUS_OK) {
            if (choices.count != count || choices.lines != NULL) abort();
            check(&choices, tokenizers[t]);
        }
        choices_close(&choices);
    }
    return 0;
}

size_t fuzz_seeds(size_t index, uint8_t *seed, size_t capacity) {
    static const char *const texts[] = {
        "{\"ind\":24,\"ctx\":\"the cat\",\"endings\":[\"sat.\",\"the <e> ab\"],\"label\":1}\n\n"
        "{\"ctx\":\"caf\\u00e9 \xE2\x82\xAC\","
        "\"endings\":[\"\",\"b\",\"\\\\u0000\"],\"label\":\"2\"}",
        "{\"label\":0,\"endings\":[\"\\ud83d\\ude00\",\"\xFF\"],\"ctx\":\"x\",\"more\":[{}]}\r\n",
    };
    if (index >= sizeof texts / sizeof texts[0] || strlen(texts[index]) > capacity) return 0;
    memcpy(seed, texts[index], strlen(texts[index]));
    return strlen(texts[index]);
}

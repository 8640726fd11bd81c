/*
 * Any bytes as a tokenizer.json. Oracle: no crash, no report, no hang; what is accepted encodes a
 * text, by its own pattern, to tokens of its own vocabulary, or says why not.
 */
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "data/tokenizer.h"
#include "tests/fuzz/small_tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char text[] = " the ab<e>  aaaaa\n\nab 12 it's \xC3\xA9\xFF \t x<e ";
    struct tokenizer *tokenizer = NULL;
    if (tokenizer_parse(&tokenizer, "input", (const char *)data, size) != STATUS_OK) return 0;
    for (int special = 0; special < 2; special++) {
        int32_t *tokens = NULL;
        size_t count = 0;
        if (tokenizer_encode(tokenizer, text, sizeof text - 1, special != 0, &tokens, &count) !=
            STATUS_OK) {
            continue;
        }
        for (size_t i = 0; i < count; i++) {
            size_t bytes = 0;
            if (tokens[i] < 0 || (size_t)tokens[i] >= tokenizer_vocabulary(tokenizer)) abort();
            (void)tokenizer_text(tokenizer, tokens[i], &bytes);
            if (bytes > tokenizer_longest(tokenizer)) abort();
        }
        free(tokens);
    }
    tokenizer_close(tokenizer);
    return 0;
}

size_t fuzz_seeds(size_t index, uint8_t *seed, size_t capacity) {
    static const char *const steps[] = {
        "{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"use_regex\":true}",
        "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":"
        "\"(?i:'s|'t)|[^\\\\r\\\\n\\\\p{L}]?\\\\p{L}+|\\\\p{N}{1,3}|\\\\s+(?!\\\\S)|\\\\s+\"},"
        "\"behavior\":\"Removed\",\"invert\":true},"
        "{\"type\":\"Digits\",\"individual_digits\":true},"
        "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]}",
    };
    if (index >= sizeof steps / sizeof steps[0]) return 0;
    return small_tokenizer((char *)seed, capacity, steps[index]);
}

/* Fuzz entry for llm.c's files of data/choices.h (fuzz_choices_lines.c has text). Every token of
 * every example of a file that is accepted is below the vocabulary and can be read. */
#include "data/choices.h"

#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"

enum { VOCABULARY = 300 };

static void read_all(const int32_t *tokens, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (tokens[i] < 0 || tokens[i] >= VOCABULARY) abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct fuzz_file input;
    struct choices choices;
    fuzz_file_open(&input, data, size);
    if (choices_open(&choices, input.path, VOCABULARY) == STATUS_OK) {
        for (size_t i = 0; i < choices.count; i++) {
            const struct choice_example example = choices_get(&choices, i);
            if (example.label >= example.completion_count) abort();
            read_all(example.context, example.context_tokens);
            for (size_t c = 0; c < example.completion_count; c++) {
                read_all(example.completions[c], example.completion_tokens[c]);
            }
        }
        choices_close(&choices);
    }
    fuzz_file_close(&input);
    return 0;
}

size_t fuzz_seeds(size_t index, uint8_t *seed, size_t capacity) {
    static const int32_t header[] = {20240522, 1, 2, 24};
    static const uint16_t body[] = {65535, 24, 0, 1, 2, 2, 10, 11, 1, 12, 1, 13,
                                    65535, 22, 1, 0, 2, 1, 9,  1,  8, 1,  7};
    if (index > 0 || 1024 + sizeof body > capacity) return 0;
    memset(seed, 0, 1024);
    memcpy(seed, header, sizeof header);
    memcpy(seed + 1024, body, sizeof body);
    return 1024 + sizeof body;
}

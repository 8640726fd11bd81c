/*
 * Fuzz entry for train/prompts.h. Of bytes every text without a zero byte is taken, and its prompts
 * with the newlines between them are the text again, but for carriage returns; of numbers every
 * token is below the vocabulary.
 */
#include "train/prompts.h"

#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"

static void check_bytes(const struct prompt_list *list, const char *text, size_t size) {
    size_t at = 0;
    for (size_t i = 0; i < list->count; i++) {
        const size_t length = strlen(list->items[i].text);
        if (list->items[i].line != i + 1 || length > size - at) abort();
        if (memcmp(list->items[i].text, text + at, length) != 0) abort();
        at += length;
        if (at < size && text[at] == '\r') at++;
        if (at < size && text[at++] != '\n') abort();
    }
    if (at != size) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const struct vocabulary bytes = {.size = 256, .end_of_text = 0},
                                   numbers = {.size = 300, .end_of_text = 299};
    const char *text = (const char *)data;
    struct prompt_list list = {.items = NULL};
    const enum status status = prompt_list_parse(&list, &bytes, "fuzz", text, size);
    if ((status == STATUS_OK) != (size > 0 && memchr(text, '\0', size) == NULL)) abort();
    if (status == STATUS_OK) check_bytes(&list, text, size);
    prompt_list_free(&list);
    if (prompt_list_parse(&list, &numbers, "fuzz", text, size) == STATUS_OK) {
        for (size_t i = 0; i < list.count; i++) {
            if (list.items[i].token_count == 0) abort();
            for (size_t t = 0; t < list.items[i].token_count; t++) {
                if (list.items[i].tokens[t] < 0 || list.items[i].tokens[t] >= 300) abort();
            }
        }
    }
    prompt_list_free(&list);
    return 0;
}

size_t fuzz_seeds(size_t index, uint8_t *seed, size_t capacity) {
    static const char *const texts[] = {"12 299\n\n0\r\n7", "Once upon\n a time\r\n\n\xE2\x82\xAC"};
    if (index >= sizeof texts / sizeof texts[0] || strlen(texts[index]) > capacity) return 0;
    memcpy(seed, texts[index], strlen(texts[index]));
    return strlen(texts[index]);
}

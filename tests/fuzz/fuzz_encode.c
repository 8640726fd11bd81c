/*
 * Any bytes as text to encode. Oracle: the tokens put together spell the text, where it is UTF-8
 * and holds no added token.
 */
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "data/tokenizer.h"
#include "tests/fuzz/small_tokenizer.h"

static struct tokenizer *open_once(void) {
    static struct tokenizer *tokenizer;
    static char json[16384];
    if (tokenizer != NULL) return tokenizer;
    const size_t bytes = small_tokenizer(json, sizeof json, "{\"type\":\"ByteLevel\","
                                         "\"add_prefix_space\":false}");
    if (tokenizer_parse(&tokenizer, "small", json, bytes) != STATUS_OK) abort();
    return tokenizer;
}

static int is_valid(const char *text, size_t size) {
    size_t length = 0;
    for (size_t i = 0; i < size; i += length) {
        length = utf8_sequence(text + i, size - i);
        if (length == 0) return 0;
    }
    return 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const struct tokenizer *tokenizer = open_once();
    const char *text = (const char *)data;
    int32_t *tokens = NULL;
    size_t count = 0, at = 0;
    if (tokenizer_encode(tokenizer, text, size, false, &tokens, &count) != STATUS_OK) abort();
    const int spells = is_valid(text, size) && memmem(text, size, "ab", 2) == NULL;
    for (size_t i = 0; i < count && spells; i++) {
        size_t bytes = 0;
        const char *part = tokenizer_text(tokenizer, tokens[i], &bytes);
        if (bytes > size - at || memcmp(part, text + at, bytes) != 0) abort();
        at += bytes;
    }
    if (spells && at != size) abort();
    free(tokens);
    return 0;
}

size_t fuzz_seeds(size_t index, uint8_t *seed, size_t capacity) {
    static const char *const texts[] = {
        "the cat's 12 th\xC3\xA9s <e> aaaaaaaaaaaa  the   \n\n x\t",
        "\xE6\x97\xA5\xE6\x9C\xAC ab \xF0\x9F\x98\x80<e> aaaa ab",
    };
    if (index >= sizeof texts / sizeof texts[0] || strlen(texts[index]) > capacity) return 0;
    memcpy(seed, texts[index], strlen(texts[index]));
    return strlen(texts[index]);
}

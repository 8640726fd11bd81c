/* The byte tokenizer. */
#include "data/tokenizer.h"

void byte_encode(const unsigned char *text, size_t bytes, int32_t *tokens) {
    for (size_t i = 0; i < bytes; i++) tokens[i] = text[i];
}

/* The byte tokenizer. */
#include "data/tokenizer.h"

void byte_encode(const unsigned char *text, size_t bytes, int32_t *tokens) {
    for (size_t i = 0; i < bytes; i++) tokens[i] = text[i];
}

enum status byte_decode(int32_t token, unsigned char *byte) {
    if (token < 0 || token >= BYTE_VOCABULARY) {
        return status_set(STATUS_DATA, "expected a byte token, 0 to %d, found %d: the tokens were "
                          "made by another tokenizer", BYTE_VOCABULARY - 1, token);
    }
    *byte = (unsigned char)token;
    return STATUS_OK;
}

/*
 * Text to tokens and back. Built in: bytes, 256 tokens, each byte its own token; byte 0, which text
 * does not contain, ends a document.
 */
#ifndef DEEPWELL_DATA_TOKENIZER_H_
#define DEEPWELL_DATA_TOKENIZER_H_

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { BYTE_VOCABULARY = 256, BYTE_END_OF_TEXT = 0 };

/* tokens[i] of text; `tokens` has room for `bytes`. */
void byte_encode(const unsigned char *text, size_t bytes, int32_t *tokens);

/* Writes the byte of a token to *byte; STATUS_DATA if the token is no byte. */
enum status byte_decode(int32_t token, unsigned char *byte);

#endif

/*
 * Text to tokens. Built in: bytes, 256 tokens, each byte its own token; byte 0, which text does not
 * contain, ends a document.
 */
#ifndef DEEPWELL_DATA_TOKENIZER_H_
#define DEEPWELL_DATA_TOKENIZER_H_

#include <stddef.h>
#include <stdint.h>

enum { BYTE_VOCABULARY = 256, BYTE_END_OF_TEXT = 0 };

/* tokens[i] of text; `tokens` has room for `bytes`. */
void byte_encode(const unsigned char *text, size_t bytes, int32_t *tokens);

#endif

/*
 * Text to tokens and back.
 *
 * Built in: bytes, 256 tokens, each byte its own token; byte 0, which text does not contain, ends a
 * document.
 *
 * From a Hugging Face tokenizer.json: byte-level byte-pair encoding (GPT-2 and most after it). The
 * tokens are those of the `tokenizers` library with add_special_tokens=False: nothing is put around
 * the text. A file that asks for what is not here (a normalizer, another model, a byte that no
 * token stands for) is refused by name, never approximated. Bytes that are no UTF-8 are encoded as
 * U+FFFD, as Python's errors="replace" gives them.
 */
#ifndef DEEPWELL_DATA_TOKENIZER_H_
#define DEEPWELL_DATA_TOKENIZER_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { BYTE_VOCABULARY = 256, BYTE_END_OF_TEXT = 0 };

/* tokens[i] of text; `tokens` has room for `bytes`. */
void byte_encode(const unsigned char *text, size_t bytes, int32_t *tokens);

struct tokenizer;

enum {
    TOKENIZER_TOKENS_MAX = 1 << 22,     /* token numbers are below */
    TOKENIZER_FILE_BYTES_MAX = 1 << 28,
};

/* STATUS_DATA with the path for a file that is no such tokenizer, STATUS_IO if it cannot be
 * read. */
enum status tokenizer_open(struct tokenizer **tokenizer, const char *path);

/* The same from memory; `label` stands for the file in messages. */
enum status tokenizer_parse(struct tokenizer **tokenizer, const char *label, const char *json,
                            size_t bytes);
void tokenizer_close(struct tokenizer *tokenizer); /* NULL is fine */

/* The largest token + 1. */
size_t tokenizer_vocabulary(const struct tokenizer *tokenizer);

/* Bytes of the longest token. */
size_t tokenizer_longest(const struct tokenizer *tokenizer);

/* The token that is written so in tokenizer.json ("<|endoftext|>"), -1 if there is none. */
int32_t tokenizer_find(const struct tokenizer *tokenizer, const char *content);

/* The token after which a text ends, by the names that it usually has; -1 if there is none. */
int32_t tokenizer_end_of_text(const struct tokenizer *tokenizer);

/* The tokens of text[0..bytes), any bytes; release with free(). With `special`, what is written
 * like a special token is that token; otherwise it is text like any other. One thread at a time.
 * STATUS_DATA if the tokenizer's pattern fails, STATUS_MEMORY. */
enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                             bool special, int32_t **tokens, size_t *count);

/* The bytes that a token stands for, *bytes of them, without NUL; not always whole characters. None
 * for a number that is no token. They live as long as the tokenizer. */
const char *tokenizer_text(const struct tokenizer *tokenizer, int32_t token, size_t *bytes);

#endif

/*
 * Numbers and text as machine-readable files need them: numbers that read back to the same bits,
 * text that is valid UTF-8. Used by the configuration and the metrics file.
 */
#ifndef DEEPWELL_TRAIN_ENCODE_H_
#define DEEPWELL_TRAIN_ENCODE_H_

#include <stddef.h>

/* The shortest of 15, 16 or 17 digits that strtod reads back to the same value ("nan", "inf" and
 * "-inf" too). Writes into `text` and returns it. */
enum { REAL_TEXT_BYTES = 32 };
const char *real_text(char text[REAL_TEXT_BYTES], double value);

/* Length of the valid UTF-8 sequence at the start of text[0..bytes), 1 to 4; 0 if there is none:
 * broken, overlong, a surrogate, or beyond U+10FFFF (RFC 3629, section 4). */
size_t utf8_sequence(const char *text, size_t bytes);

/* A copy of `text` in which every byte that belongs to no valid sequence is U+FFFD; release with
 * free(). NULL when out of memory. */
char *utf8_repaired(const char *text);

#endif

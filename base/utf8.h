/* UTF-8: text that comes from anywhere, checked and repaired. Used by data (tokenizers), by the
 * configuration, the metrics file and what is printed of generated tokens. */
#ifndef DEEPWELL_BASE_UTF8_H_
#define DEEPWELL_BASE_UTF8_H_

#include <stddef.h>

#define UTF8_REPLACEMENT "\xEF\xBF\xBD" /* U+FFFD */

/* Length of the valid UTF-8 sequence at the start of text[0..bytes), 1 to 4; 0 if there is none:
 * broken, overlong, a surrogate, or beyond U+10FFFF (RFC 3629, section 4). */
size_t utf8_sequence(const char *text, size_t bytes);

/* For a place where utf8_sequence says 0 (bytes > 0): how many bytes one U+FFFD stands for, the
 * longest start of a sequence that could have become valid (Unicode 15, section 3.9, "maximal
 * subpart"; Python's errors="replace" does the same). */
size_t utf8_broken(const char *text, size_t bytes);

/* A copy of `text` in which every byte that belongs to no valid sequence is U+FFFD; release with
 * free(). NULL when out of memory. */
char *utf8_repaired(const char *text);

#endif

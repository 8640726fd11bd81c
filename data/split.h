/*
 * Text to words by a regular expression, the first step of byte-level BPE ("pre-tokenizer"). The
 * expressions of tokenizer.json are written for Oniguruma; here PCRE2 runs them. What both read
 * alike, or can be rewritten (\s: PCRE2 counts U+180E as white space), is taken; what they read
 * differently is refused by name. Both know the characters of a Unicode version: a letter that
 * PCRE2's version does not have yet is no letter here. Used by tokenizer_json.c and tokenizer.c.
 */
#ifndef DEEPWELL_DATA_SPLIT_H_
#define DEEPWELL_DATA_SPLIT_H_

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

struct split {
    void *code, *match, *limits; /* PCRE2's */
    bool keeps_matches, keeps_gaps; /* which of both become words */
};

enum { SPLIT_PATTERN_BYTES_MAX = 65536 };

/* `literal`: the pattern is text to be found as it stands. STATUS_DATA, without the name of the
 * file, for what cannot be used. keeps_matches and keeps_gaps are for the caller to set. */
enum status split_open(struct split *split, const char *pattern, bool literal);
void split_close(struct split *split);

/* Hands the words of text[0..bytes), valid UTF-8, to `take` in order; empty ones are left out. What
 * takes more steps than any sensible expression needs is STATUS_DATA. One thread at a time. */
enum status split_run(const struct split *split, const char *text, size_t bytes,
                      enum status (*take)(void *context, const char *word, size_t bytes),
                      void *context);

#endif

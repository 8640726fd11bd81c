/* Looking into shards: what `deepwell data info`, `check` and `show` print. */
#ifndef DEEPWELL_DATA_INSPECT_H_
#define DEEPWELL_DATA_INSPECT_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "base/status.h"

/* One line for each shard of the pattern (path, dtype, tokens, largest token, bytes), their sum if
 * there are several, and what the dataset.json beside them says of the tokens. Reads all tokens. */
enum status inspect_shards(const char *pattern, FILE *out);

/* Compares each shard of the pattern with the dataset.json beside it (description.h) and prints a
 * line for it; without one, with its own header alone. Fails at the first that differs. */
enum status inspect_check(const char *pattern, FILE *out);

struct inspect_range {
    size_t first, count; /* tokens [first, first + count), fewer at the end of the shard */
    const char *tokenizer; /* a tokenizer.json; "": the one that dataset.json names, if any */
    bool numbers;          /* whatever they stand for */
};

/* Tokens of a shard: as text by the tokenizer; without one, as text if dataset.json says bytes or
 * no token of the shard is above a byte, as numbers otherwise. In text, control characters but tab
 * and line end are printed as \xNN, so that no shard can steer a terminal. STATUS_CONFIG if the
 * first token is past the end. */
enum status inspect_tokens(const char *path, const struct inspect_range *range, FILE *out);

#endif

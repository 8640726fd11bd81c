/* Looking into shards: what `deepwell data info` and `deepwell data show` print. */
#ifndef DEEPWELL_DATA_INSPECT_H_
#define DEEPWELL_DATA_INSPECT_H_

#include <stddef.h>
#include <stdio.h>

#include "base/status.h"

/* One line for each shard of the pattern (path, dtype, tokens, largest token, bytes), and their sum
 * if there are several. Reads all tokens. */
enum status inspect_shards(const char *pattern, FILE *out);

/* Tokens [first, first + count) of a shard, fewer at its end: as text if no token of the shard is
 * above a byte, as numbers otherwise. In text, control characters but tab and line end are printed
 * as \xNN, so that no shard can steer a terminal. STATUS_CONFIG if `first` is past the end. */
enum status inspect_tokens(const char *path, size_t first, size_t count, FILE *out);

#endif

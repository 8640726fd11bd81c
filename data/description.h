/*
 * dataset.json, which `deepwell data prepare` writes beside shards: how to read their tokens.
 * Shards that others made have none. Used by inspect.c and by train/vocabulary.c.
 */
#ifndef DEEPWELL_DATA_DESCRIPTION_H_
#define DEEPWELL_DATA_DESCRIPTION_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cjson/cJSON.h>

#include "base/file.h"
#include "base/status.h"

struct description {
    bool found;                 /* there is one; without it the rest is empty */
    char path[PATH_BYTES];
    char tokenizer[PATH_BYTES]; /* the tokenizer.json beside it; "": the tokens are bytes */
    int64_t vocabulary;
    int64_t end_of_text;
    cJSON *root;                /* all of it */
};

/* The description of the shards at `pattern` (a path or a glob): dataset.json in their folder.
 * STATUS_DATA for one that cannot be understood. */
enum status description_open(struct description *description, const char *pattern);
void description_close(struct description *description);

/* STATUS_DATA if the shard of this path is not as the description says: number of tokens and
 * XXH3-128 of the file, and the largest token below the vocabulary. A description that does not
 * name the shard says nothing about it: *known is false. */
enum status description_check_shard(const struct description *description, const char *path,
                                    bool *known);

/* The same for the tokenizer that is copied beside the shards. */
enum status description_check_tokenizer(const struct description *description);

/* Whether both sets, which were found, were made with one tokenizer: by its kind, its size and,
 * where both note it, the checksum of its file. */
bool description_same_tokenizer(const struct description *a, const struct description *b);

enum { DIGEST_TEXT_BYTES = 33 };
/* XXH3-128 of a whole file, in hex. */
enum status description_digest(const char *path, char text[DIGEST_TEXT_BYTES]);

#endif

/* Reading and checking dataset.json. */
#include "data/description.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "data/shard.h"
#include "data/shard_paths.h"
#include "data/tokenizer.h"

enum { DESCRIPTION_BYTES_MAX = 1 << 24 };

static enum status whole_number(const struct description *description, const cJSON *object,
                                const char *key, int64_t most, int64_t *value) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    const double number = cJSON_IsNumber(item) ? item->valuedouble : -1;
    if (!(number >= 0 && number <= (double)most) || (double)(int64_t)number != number) {
        return status_set(STATUS_DATA, "%s: expected a whole number from 0 to %" PRId64 " as "
                          "\"%s\": prepare the data again", description->path, most, key);
    }
    *value = (int64_t)number;
    return STATUS_OK;
}

/* Text without a slash: a name beside the description. */
static enum status plain_name(const struct description *description, const cJSON *object,
                              const char *key, const char **name) {
    *name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, key));
    if (*name != NULL && (*name)[0] != '\0' && strchr(*name, '/') == NULL) return STATUS_OK;
    return status_set(STATUS_DATA, "%s: expected a name as \"%s\": prepare the data again",
                      description->path, key);
}

/* The folder of a path, "." for a bare name. */
static void folder_of(const char *path, char folder[PATH_BYTES]) {
    const char *slash = strrchr(path, '/');
    if (slash == NULL) snprintf(folder, PATH_BYTES, ".");
    else snprintf(folder, PATH_BYTES, "%.*s", slash == path ? 1 : (int)(slash - path), path);
}

/* The folder of the first shard that a pattern stands for: its folders may have wildcards too. */
static enum status folder_of_first(const char *pattern, char folder[PATH_BYTES]) {
    char **paths = NULL;
    size_t count = 0;
    folder_of(pattern, folder);
    if (strpbrk(folder, "*?[") == NULL) return STATUS_OK;
    TRY(shard_paths(pattern, &paths, &count));
    folder_of(paths[0], folder);
    names_free(paths, count);
    return STATUS_OK;
}

static enum status read_fields(struct description *description, const char *folder) {
    const cJSON *root = description->root;
    const char *tokenizer = NULL;
    if (!cJSON_IsObject(root)) {
        return status_set(STATUS_DATA, "%s: expected a JSON object: prepare the data again",
                          description->path);
    }
    TRY(plain_name(description, root, "tokenizer", &tokenizer));
    if (strcmp(tokenizer, "bytes") != 0) {
        TRY(path_join(description->tokenizer, folder, tokenizer));
    }
    TRY(whole_number(description, root, "vocabulary", TOKENIZER_TOKENS_MAX,
                     &description->vocabulary));
    return whole_number(description, root, "end_of_text", TOKENIZER_TOKENS_MAX,
                        &description->end_of_text);
}

enum status description_open(struct description *description, const char *pattern) {
    char folder[PATH_BYTES], *text = NULL;
    size_t bytes = 0;
    *description = (struct description){.found = false};
    TRY(folder_of_first(pattern, folder));
    TRY(path_join(description->path, folder, "dataset.json"));
    if (!path_is_file(description->path)) return STATUS_OK;
    TRY(file_read(description->path, DESCRIPTION_BYTES_MAX, &text, &bytes));
    description->root = cJSON_ParseWithLength(text, bytes);
    free(text);
    const enum status status = read_fields(description, folder);
    description->found = status == STATUS_OK;
    if (status != STATUS_OK) description_close(description);
    return status;
}

void description_close(struct description *description) {
    cJSON_Delete(description->root);
    *description = (struct description){.found = false};
}

enum status description_digest(const char *path, char text[DIGEST_TEXT_BYTES]) {
    struct file_map map;
    XXH128_canonical_t canonical;
    TRY(file_map_open(path, &map));
    XXH128_canonicalFromHash(&canonical, XXH3_128bits(map.data, map.bytes));
    file_map_close(&map);
    for (size_t i = 0; i < sizeof canonical.digest; i++) {
        snprintf(text + 2 * i, 3, "%02x", canonical.digest[i]);
    }
    return STATUS_OK;
}

static enum status check_digest(const struct description *description, const char *path,
                                const cJSON *expected) {
    char found[DIGEST_TEXT_BYTES];
    if (!cJSON_IsString(expected)) return STATUS_OK;
    TRY(description_digest(path, found));
    if (strcmp(found, expected->valuestring) == 0) return STATUS_OK;
    return status_set(STATUS_DATA, "%s: expected the content with the XXH3-128 %.32s, which %s "
                      "names, found %s: it was changed, copy or prepare it again", path,
                      expected->valuestring, description->path, found);
}

static enum status check_content(const struct description *description, const char *path,
                                 const cJSON *entry) {
    struct shard shard;
    int64_t tokens = 0;
    TRY(whole_number(description, entry, "tokens", SHARD_TOKENS_MAX, &tokens));
    TRY(shard_open(&shard, path, (size_t)description->vocabulary));
    const size_t found = shard.tokens;
    shard_close(&shard);
    if (found != (size_t)tokens) {
        return status_set(STATUS_DATA, "%s: expected %" PRId64 " tokens, which %s names, found "
                          "%zu: prepare the data again", path, tokens, description->path, found);
    }
    return check_digest(description, path,
                        cJSON_GetObjectItemCaseSensitive(entry, "xxh3_128"));
}

enum status description_check_shard(const struct description *description, const char *path,
                                    bool *known) {
    const char *slash = strrchr(path, '/'), *name = slash == NULL ? path : slash + 1;
    const cJSON *entry = NULL;
    *known = false;
    cJSON_ArrayForEach(entry, cJSON_GetObjectItemCaseSensitive(description->root, "shards")) {
        const char *named = NULL;
        TRY(plain_name(description, entry, "name", &named));
        if (strcmp(named, name) != 0) continue;
        *known = true;
        return check_content(description, path, entry);
    }
    return STATUS_OK;
}

enum status description_check_tokenizer(const struct description *description) {
    if (description->tokenizer[0] == '\0') return STATUS_OK;
    return check_digest(description, description->tokenizer,
                        cJSON_GetObjectItemCaseSensitive(description->root,
                                                         "tokenizer_xxh3_128"));
}

static const char *tokenizer_digest(const struct description *description) {
    return cJSON_GetStringValue(
        cJSON_GetObjectItemCaseSensitive(description->root, "tokenizer_xxh3_128"));
}

bool description_same_tokenizer(const struct description *a, const struct description *b) {
    const char *first = tokenizer_digest(a), *second = tokenizer_digest(b);
    return a->vocabulary == b->vocabulary &&
           (a->tokenizer[0] == '\0') == (b->tokenizer[0] == '\0') &&
           (first == NULL || second == NULL || strcmp(first, second) == 0);
}

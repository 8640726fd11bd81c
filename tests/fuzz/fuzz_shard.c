/*
 * Any bytes as a token shard. Oracle: no crash and no report; besides, whatever is accepted has
 * exactly the length that its header speaks of, and no token outside the vocabulary.
 */
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

#include "data/shard.h"

enum { VOCABULARY = 256 };

static void check_tokens(const struct shard *shard, size_t file_bytes) {
    if (SHARD_HEADER_BYTES + shard->tokens * shard->token_bytes != file_bytes) abort();
    for (size_t i = 0; i < shard->tokens; i++) {
        int32_t token = -1;
        shard_read(shard, i, 1, &token);
        if (token < 0 || token >= VOCABULARY) abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct fuzz_file file;
    struct shard shard;
    fuzz_file_open(&file, data, size);
    if (shard_open(&shard, file.path, VOCABULARY) == STATUS_OK) {
        check_tokens(&shard, size);
        shard_close(&shard);
    }
    if (shard_open(&shard, file.path, 0) == STATUS_OK) {
        volatile uint32_t largest = shard_largest_token(&shard);
        (void)largest;
        shard_close(&shard);
    }
    fuzz_file_close(&file);
    return 0;
}

/* Both formats, with tokens 0, 1, ... 255, 0, ...; and one without tokens. */
size_t fuzz_seeds(size_t index, uint8_t *seed, size_t capacity) {
    static const struct {
        int32_t magic, version, tokens;
        size_t token_bytes;
    } kinds[] = {{20240520, 1, 500, 2}, {20240801, 7, 300, 4}, {20240520, 1, 0, 2}};
    if (index >= sizeof kinds / sizeof kinds[0]) return 0;
    const int32_t header[] = {kinds[index].magic, kinds[index].version, kinds[index].tokens};
    const size_t tokens = (size_t)kinds[index].tokens, token_bytes = kinds[index].token_bytes;
    memset(seed, 0, capacity);
    memcpy(seed, header, sizeof header);
    for (size_t i = 0; i < tokens; i++) seed[SHARD_HEADER_BYTES + i * token_bytes] = (uint8_t)i;
    return SHARD_HEADER_BYTES + tokens * token_bytes;
}

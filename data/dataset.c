/*
 * The shards of a split, the order of their sequences, and the fingerprint.
 *
 * Order: a Feistel network is a bijection of [0, 2^bits) whatever its round function is. With
 * 2^bits the next power of two above the number of sequences, a place outside is permuted again
 * until it lies inside ("cycle walking": Black and Rogaway, "Ciphers with arbitrary finite
 * domains", CT-RSA 2002); less than half of all places lie outside, so that takes fewer than two
 * rounds on average.
 */
#include "data/dataset.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <xxhash.h>

#include "base/checked.h"
#include "base/random.h"
#include "data/shard_paths.h"

enum {
    FEISTEL_ROUNDS = 8, /* 4 give a good permutation of large sets; small halves profit from more */
    FINGERPRINT_SAMPLES = 64,
    FINGERPRINT_SAMPLE_BYTES = 4096,
};

/* One pass of the network over [0, 2^bits). The halves may differ by a bit: even rounds change the
 * left one, odd rounds the right one, each by a function of the other, and nothing is swapped. */
static uint64_t feistel(uint64_t key, unsigned bits, uint64_t value) {
    const unsigned right_bits = bits - bits / 2;
    const uint64_t right_mask = (UINT64_C(1) << right_bits) - 1;
    const uint64_t left_mask = (UINT64_C(1) << (bits / 2)) - 1;
    uint64_t left = value >> right_bits, right = value & right_mask;
    for (uint64_t round = 0; round < FEISTEL_ROUNDS; round++) {
        const uint64_t half = round % 2 == 0 ? right : left; /* at most 32 bits */
        uint32_t words[4];
        random_words(key, RANDOM_ORDER, round << 32 | half, words);
        if (round % 2 == 0) {
            left ^= words[0] & left_mask;
        } else {
            right ^= words[0] & right_mask;
        }
    }
    return left << right_bits | right;
}

uint64_t dataset_permute(uint64_t seed, uint64_t epoch, uint64_t i, uint64_t count) {
    assert(i < count);
    if (count == 1) return 0;
    uint32_t words[4];
    random_words(seed, RANDOM_ORDER, epoch, words); /* a key of its own for every epoch */
    const uint64_t key = (uint64_t)words[1] << 32 | words[0];
    const unsigned bits = 64 - (unsigned)__builtin_clzll(count - 1);
    uint64_t place = i;
    do {
        place = feistel(key, bits, place);
    } while (place >= count);
    return place;
}

/*
 * Name, size and 64 pieces of 4096 bytes at evenly spaced places (the whole file if it is shorter
 * than that), the first and the last bytes among them. It notices: other, renamed, added, missing
 * or reordered shards, another length, another tokenizer, shuffled or replaced content. It cannot
 * notice a change that keeps every size and lies wholly between the pieces, such as a few altered
 * tokens in a large shard; and it does not depend on the folder, so data may move.
 */
static void fingerprint_add(XXH3_state_t *state, const struct shard *shard) {
    const char *slash = strrchr(shard->path, '/');
    const char *name = slash == NULL ? shard->path : slash + 1;
    const unsigned char *data = shard->map.data;
    const uint64_t bytes = shard->map.bytes;
    XXH3_128bits_update(state, name, strlen(name) + 1);
    XXH3_128bits_update(state, &bytes, sizeof bytes);
    if (bytes <= (uint64_t)FINGERPRINT_SAMPLES * FINGERPRINT_SAMPLE_BYTES) {
        XXH3_128bits_update(state, data, bytes);
        return;
    }
    const uint64_t last = bytes - FINGERPRINT_SAMPLE_BYTES; /* the start of the last piece */
    const uint64_t pieces = FINGERPRINT_SAMPLES - 1;        /* before it */
    for (uint64_t i = 0; i <= pieces; i++) {
        const uint64_t start = last / pieces * i + last % pieces * i / pieces;
        XXH3_128bits_update(state, data + start, FINGERPRINT_SAMPLE_BYTES);
    }
}

static enum status fingerprint(struct dataset *dataset) {
    XXH3_state_t *state = XXH3_createState();
    if (state == NULL) return status_set(STATUS_MEMORY, "out of memory for the fingerprint");
    XXH3_128bits_reset(state);
    for (size_t i = 0; i < dataset->shard_count; i++) fingerprint_add(state, &dataset->shards[i]);
    const XXH128_hash_t hash = XXH3_128bits_digest(state);
    XXH3_freeState(state);
    snprintf(dataset->fingerprint, sizeof dataset->fingerprint, "%016" PRIx64 "%016" PRIx64,
             (uint64_t)hash.high64, (uint64_t)hash.low64);
    return STATUS_OK;
}

/* Opens the shards and counts. On failure the opened ones are in the dataset, to be closed. */
static enum status open_shards(struct dataset *dataset, char *const *paths, size_t count,
                               size_t vocabulary) {
    dataset->shards = calloc(count, sizeof *dataset->shards);
    dataset->first_sequence = calloc(count + 1, sizeof *dataset->first_sequence);
    if (dataset->shards == NULL || dataset->first_sequence == NULL) {
        return status_set(STATUS_MEMORY, "out of memory for a list of %zu shards", count);
    }
    for (size_t i = 0; i < count; i++) {
        struct shard *shard = &dataset->shards[i];
        TRY(shard_open(shard, paths[i], vocabulary));
        dataset->shard_count = i + 1;
        /* A shuffled run reads a kilobyte or so here and there. Left alone, the kernel would fetch
         * 128 KiB around each page that is not in memory and push other files out with it. The
         * call is advice: if it fails nothing is lost. */
        if (dataset->order == ORDER_SHUFFLED) {
            madvise((void *)(uintptr_t)shard->map.data, shard->map.bytes, MADV_RANDOM);
        }
        const size_t sequences =
            shard->tokens == 0 ? 0 : (shard->tokens - 1) / dataset->sequence_length;
        dataset->first_sequence[i + 1] = dataset->first_sequence[i] + sequences;
        dataset->tokens += shard->tokens;
    }
    dataset->sequences = dataset->first_sequence[count];
    return STATUS_OK;
}

static enum status refuse_short(const struct dataset *dataset, const char *pattern) {
    size_t longest = 0;
    for (size_t i = 0; i < dataset->shard_count; i++) {
        longest = size_max(longest, dataset->shards[i].tokens);
    }
    return status_set(STATUS_DATA, "%s: expected a shard of at least %zu tokens (sequence length "
                      "%zu, and one token to predict), found %zu in the largest of %zu: choose a "
                      "shorter sequence length or give more data", pattern,
                      dataset->sequence_length + 1, dataset->sequence_length, longest,
                      dataset->shard_count);
}

enum status dataset_open(struct dataset *dataset, const char *pattern, size_t sequence_length,
                         size_t vocabulary, enum dataset_order order, uint64_t seed) {
    enum status status = STATUS_OK;
    char **paths = NULL;
    size_t count = 0;
    *dataset = (struct dataset){.sequence_length = sequence_length, .order = order, .seed = seed};
    if (sequence_length == 0) {
        return status_set(STATUS_CONFIG, "expected a sequence length of 1 or more, found 0");
    }
    TRY(shard_paths(pattern, &paths, &count));
    TRY_GOTO(open_shards(dataset, paths, count, vocabulary), cleanup);
    if (dataset->sequences == 0) TRY_GOTO(refuse_short(dataset, pattern), cleanup);
    TRY_GOTO(fingerprint(dataset), cleanup);

cleanup:
    names_free(paths, count);
    if (status != STATUS_OK) dataset_close(dataset);
    return status;
}

void dataset_close(struct dataset *dataset) {
    for (size_t i = 0; i < dataset->shard_count; i++) shard_close(&dataset->shards[i]);
    free(dataset->first_sequence);
    free(dataset->shards);
    *dataset = (struct dataset){.shards = NULL};
}

/* The shard that holds sequence j: the last one whose first sequence is not above j. Shards without
 * a sequence are passed over, because the one after them begins at the same number. */
static size_t find_shard(const struct dataset *dataset, size_t j) {
    size_t low = 0, high = dataset->shard_count;
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        if (dataset->first_sequence[middle] <= j) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

void dataset_sample(const struct dataset *dataset, uint64_t g, int32_t *inputs, int32_t *targets) {
    const size_t length = dataset->sequence_length;
    const uint64_t epoch = g / dataset->sequences;
    size_t j = g % dataset->sequences;
    if (dataset->order == ORDER_SHUFFLED) {
        j = dataset_permute(dataset->seed, epoch, j, dataset->sequences);
    }
    const size_t index = find_shard(dataset, j);
    const size_t first = (j - dataset->first_sequence[index]) * length;
    shard_read(&dataset->shards[index], first, length, inputs);
    shard_read(&dataset->shards[index], first + 1, length, targets);
}

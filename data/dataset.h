/*
 * All shards of a split as one list of sequences, and their order as a pure function.
 *
 * Sequence j of a shard is tokens [j T, j T + T] (T inputs, T targets, one token shared with the
 * next), so a shard of n tokens has (n - 1) / T sequences. Sample g of the run (g counts from 0 for
 * ever) is sequence permutation(seed, epoch = g / count)(g mod count): every sequence once an
 * epoch, no state but g, the same for any number of ranks. The permutation is a Feistel network
 * over Philox with cycle walking.
 */
#ifndef DEEPWELL_DATA_DATASET_H_
#define DEEPWELL_DATA_DATASET_H_

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "data/shard.h"

enum dataset_order { ORDER_SHUFFLED, ORDER_SEQUENTIAL };

struct dataset {
    struct shard *shards;
    size_t shard_count;
    size_t *first_sequence; /* shard_count + 1 entries: running sum of sequences */
    size_t sequences;
    size_t tokens;          /* in all shards */
    size_t sequence_length;
    enum dataset_order order;
    uint64_t seed;
    char fingerprint[33];   /* XXH3-128 of the shards' names, sizes and sampled content, in hex:
                               checkpoints refuse to continue silently on other data */
};

/* `pattern`: a file, or a glob ("data/train_*.bin"), matched names sorted. STATUS_DATA if nothing
 * matches or no shard holds a whole sequence. */
enum status dataset_open(struct dataset *dataset, const char *pattern, size_t sequence_length,
                         size_t vocabulary, enum dataset_order order, uint64_t seed);
void dataset_close(struct dataset *dataset);

/* Inputs and targets (sequence_length each) of sample g. */
void dataset_sample(const struct dataset *dataset, uint64_t g, int32_t *inputs, int32_t *targets);

/* The place of element i of [0, count) under the permutation of this epoch; a bijection. */
uint64_t dataset_permute(uint64_t seed, uint64_t epoch, uint64_t i, uint64_t count);

#endif

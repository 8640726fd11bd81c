/*
 * Byte-pair merging of one word: the pair of neighbours whose merge was learned first is merged
 * first, the leftmost of equal ones, until no neighbours have a merge (Sennrich et al., "Neural
 * machine translation of rare words with subword units", ACL 2016). Used by tokenizer.c.
 */
#ifndef DEEPWELL_DATA_BPE_H_
#define DEEPWELL_DATA_BPE_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bpe_merges {
    struct bpe_merge *slots; /* open addressing */
    size_t capacity;         /* a power of two */
    size_t count;            /* also the rank of the next merge */
};

/* Room for `most` merges; false when out of memory. */
bool bpe_merges_open(struct bpe_merges *merges, size_t most);
void bpe_merges_close(struct bpe_merges *merges);

/* The next merge in learned order: left, right -> merged. False if the pair is there already. */
bool bpe_merges_add(struct bpe_merges *merges, int32_t left, int32_t right, int32_t merged);

/* Working memory that grows to the longest word; zero-initialised, released by bpe_work_close. */
struct bpe_work {
    struct bpe_symbol *symbols;
    struct bpe_candidate *heap;
    size_t capacity; /* symbols there is room for */
    size_t waiting;  /* candidates in the heap */
};
void bpe_work_close(struct bpe_work *work);

/* Merges tokens[0..*count) in place in O(n log n); *count becomes the number that is left. False
 * when out of memory. */
bool bpe_merge_word(const struct bpe_merges *merges, struct bpe_work *work, int32_t *tokens,
                    size_t *count);

#endif

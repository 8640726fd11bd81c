/* Merging with a linked list of symbols and a heap of candidate pairs. */
#include "data/bpe.h"

#include <stdlib.h>
#include <xxhash.h>

#include "base/checked.h"

struct bpe_merge {
    int32_t left, right, merged; /* left -1: free */
    uint32_t rank;
};

/* A token of the word; places in the list are those of the word's bytes, SIZE_MAX: none. */
struct bpe_symbol {
    int32_t token; /* -1: merged into the one before */
    size_t previous, next;
};

/* A pair that can be merged, as long as both tokens at this place are still the ones named. */
struct bpe_candidate {
    uint32_t rank;
    int32_t left, right, merged;
    size_t place;
};

bool bpe_merges_open(struct bpe_merges *merges, size_t most) {
    size_t capacity = 16;
    while (capacity / 2 < most && capacity <= SIZE_MAX / 4) capacity *= 2; /* at most half full */
    *merges = (struct bpe_merges){.capacity = capacity};
    merges->slots = calloc(capacity, sizeof *merges->slots);
    for (size_t i = 0; merges->slots != NULL && i < capacity; i++) merges->slots[i].left = -1;
    return merges->slots != NULL;
}

void bpe_merges_close(struct bpe_merges *merges) {
    free(merges->slots);
    *merges = (struct bpe_merges){.slots = NULL};
}

/* Where the pair is, or the free slot where it would be. */
static struct bpe_merge *find_slot(const struct bpe_merges *merges, int32_t left, int32_t right) {
    const uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t place = XXH3_64bits(&pair, sizeof pair) & (merges->capacity - 1);
    for (;; place = (place + 1) & (merges->capacity - 1)) {
        struct bpe_merge *slot = &merges->slots[place];
        if (slot->left < 0 || (slot->left == left && slot->right == right)) return slot;
    }
}

bool bpe_merges_add(struct bpe_merges *merges, int32_t left, int32_t right, int32_t merged) {
    struct bpe_merge *slot = find_slot(merges, left, right);
    if (slot->left >= 0) return false;
    *slot = (struct bpe_merge){left, right, merged, (uint32_t)merges->count++};
    return true;
}

void bpe_work_close(struct bpe_work *work) {
    free(work->symbols);
    free(work->heap);
    *work = (struct bpe_work){.symbols = NULL};
}

/* A word of n symbols has at first n - 1 candidates, and each of its at most n - 1 merges brings
 * two: fewer than 3 n in all. */
static bool reserve(struct bpe_work *work, size_t symbols) {
    size_t symbol_bytes = 0, candidates = 0, heap_bytes = 0;
    if (symbols <= work->capacity) return true;
    if (!size_mul(symbols, sizeof *work->symbols, &symbol_bytes) ||
        !size_mul(symbols, 3, &candidates) ||
        !size_mul(candidates, sizeof *work->heap, &heap_bytes)) {
        return false;
    }
    bpe_work_close(work);
    work->symbols = malloc(symbol_bytes);
    work->heap = malloc(heap_bytes);
    if (work->symbols == NULL || work->heap == NULL) return false;
    work->capacity = symbols;
    return true;
}

static bool before(const struct bpe_candidate *a, const struct bpe_candidate *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->place < b->place;
}

static void heap_push(struct bpe_work *work, struct bpe_candidate candidate) {
    size_t i = work->waiting++;
    for (; i > 0 && before(&candidate, &work->heap[(i - 1) / 2]); i = (i - 1) / 2) {
        work->heap[i] = work->heap[(i - 1) / 2];
    }
    work->heap[i] = candidate;
}

static struct bpe_candidate heap_pop(struct bpe_work *work) {
    const struct bpe_candidate top = work->heap[0], last = work->heap[--work->waiting];
    size_t i = 0;
    for (size_t child = 1; child < work->waiting; child = 2 * i + 1) {
        if (child + 1 < work->waiting && before(&work->heap[child + 1], &work->heap[child])) {
            child++;
        }
        if (!before(&work->heap[child], &last)) break;
        work->heap[i] = work->heap[child];
        i = child;
    }
    work->heap[i] = last;
    return top;
}

/* Puts the pair that begins at `place` into the heap if it has a merge. */
static void consider(const struct bpe_merges *merges, struct bpe_work *work, size_t place) {
    const struct bpe_symbol *symbol = &work->symbols[place];
    if (symbol->next == SIZE_MAX) return;
    const struct bpe_merge *merge = find_slot(merges, symbol->token,
                                              work->symbols[symbol->next].token);
    if (merge->left < 0) return;
    heap_push(work, (struct bpe_candidate){merge->rank, merge->left, merge->right, merge->merged,
                                           place});
}

static void apply(const struct bpe_merges *merges, struct bpe_work *work,
                  const struct bpe_candidate *candidate) {
    struct bpe_symbol *left = &work->symbols[candidate->place];
    if (left->token != candidate->left || left->next == SIZE_MAX) return;
    struct bpe_symbol *right = &work->symbols[left->next];
    if (right->token != candidate->right) return;
    left->token = candidate->merged;
    left->next = right->next;
    right->token = -1;
    if (left->next != SIZE_MAX) work->symbols[left->next].previous = candidate->place;
    if (left->previous != SIZE_MAX) consider(merges, work, left->previous);
    consider(merges, work, candidate->place);
}

bool bpe_merge_word(const struct bpe_merges *merges, struct bpe_work *work, int32_t *tokens,
                    size_t *count) {
    const size_t symbols = *count;
    size_t left = 0;
    if (symbols < 2) return true;
    if (!reserve(work, symbols)) return false;
    work->waiting = 0;
    for (size_t i = 0; i < symbols; i++) {
        work->symbols[i] = (struct bpe_symbol){tokens[i], i == 0 ? SIZE_MAX : i - 1,
                                               i + 1 == symbols ? SIZE_MAX : i + 1};
    }
    for (size_t i = 0; i < symbols; i++) consider(merges, work, i);
    while (work->waiting > 0) {
        const struct bpe_candidate candidate = heap_pop(work);
        apply(merges, work, &candidate);
    }
    for (size_t i = 0; i != SIZE_MAX; i = work->symbols[i].next) {
        tokens[left++] = work->symbols[i].token;
    }
    *count = left;
    return true;
}

/*
 * The reader thread and its ring.
 *
 * Micro-batches are numbered 0, 1, ... from micro-batch 0 of the first step; number n lives in slot
 * n % RING_SLOTS. Invariants, under the lock:
 *   given - 1 <= released <= given <= filled <= released + RING_SLOTS
 * `filled` is advanced by the thread only (run), the others by the owner only (loader_next). A slot
 * is written without the lock: it belongs to the thread while its number is `filled`, and to the
 * owner from then until it is released.
 */
#include "data/loader.h"

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/clock.h"

enum { RING_SLOTS = 4 }; /* the owner holds one; the rest hides a slow disk for a moment */

struct loader {
    const struct dataset *dataset;
    struct loader_shape shape;
    uint64_t first_step;
    size_t slot_tokens; /* inputs or targets of one micro-batch: rows * T */
    int32_t *tokens;    /* (RING_SLOTS, 2, rows, T): inputs and targets */

    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* any of the fields below */
    uint64_t filled, given, released;
    bool stopping;
    double waited_seconds; /* the owner's */
};

/* Fills micro-batch `number`, counted from the first step. */
static void fill(const struct loader *loader, uint64_t number, int32_t *inputs, int32_t *targets) {
    const struct loader_shape *shape = &loader->shape;
    const size_t length = loader->dataset->sequence_length;
    const uint64_t step = loader->first_step + number / shape->micro_batches;
    const uint64_t micro = number % shape->micro_batches;
    const uint64_t first = loader_first_sample(shape, step, micro);
    for (size_t row = 0; row < shape->rows; row++) {
        dataset_sample(loader->dataset, first + row, inputs + row * length, targets + row * length);
    }
}

static int32_t *slot_inputs(const struct loader *loader, uint64_t number) {
    return loader->tokens + number % RING_SLOTS * 2 * loader->slot_tokens;
}

static void *run(void *argument) {
    struct loader *loader = argument;
    pthread_mutex_lock(&loader->lock);
    for (;;) {
        while (!loader->stopping && loader->filled == loader->released + RING_SLOTS) {
            pthread_cond_wait(&loader->changed, &loader->lock);
        }
        if (loader->stopping) break;
        const uint64_t number = loader->filled;
        pthread_mutex_unlock(&loader->lock);
        int32_t *inputs = slot_inputs(loader, number);
        fill(loader, number, inputs, inputs + loader->slot_tokens);
        pthread_mutex_lock(&loader->lock);
        loader->filled++;
        pthread_cond_signal(&loader->changed);
    }
    pthread_mutex_unlock(&loader->lock);
    return NULL;
}

static enum status check_shape(const struct loader_shape *shape, uint64_t first_step) {
    if (shape->rows == 0 || shape->micro_batches == 0 || shape->rank >= shape->ranks) {
        return status_set(STATUS_CONFIG, "expected at least one row, one micro-batch, and a rank "
                          "below the number of ranks, found %zu rows, %zu micro-batches, rank %zu "
                          "of %zu", shape->rows, shape->micro_batches, shape->rank, shape->ranks);
    }
    size_t step_rows = 0, rows_before = 0;
    if (!size_mul(shape->micro_batches, shape->ranks, &step_rows) ||
        !size_mul(step_rows, shape->rows, &step_rows) ||
        !size_mul(step_rows, first_step, &rows_before)) {
        return status_set(STATUS_CONFIG, "expected fewer than 2^64 sequences before step %llu, "
                          "found %zu rows * %zu micro-batches * %zu ranks a step: choose a smaller "
                          "batch", (unsigned long long)first_step, shape->rows,
                          shape->micro_batches, shape->ranks);
    }
    return STATUS_OK;
}

/* Starts the thread with all signals blocked, so that they reach the trainer. */
static enum status start(struct loader *loader) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int error = pthread_create(&loader->thread, NULL, run, loader);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error == 0) return STATUS_OK;
    return status_set(STATUS_MEMORY, "cannot start the thread that reads ahead: %s; allow this "
                      "process more threads", strerror(error));
}

enum status loader_open(struct loader **out, const struct dataset *dataset,
                        const struct loader_shape *shape, uint64_t first_step) {
    enum status status = STATUS_OK;
    size_t slot_tokens = 0, ring_tokens = 0, ring_bytes = 0;
    TRY(check_shape(shape, first_step));
    struct loader *loader = calloc(1, sizeof *loader);
    if (size_mul(shape->rows, dataset->sequence_length, &slot_tokens) &&
        size_mul(slot_tokens, 2 * RING_SLOTS, &ring_tokens) &&
        size_mul(ring_tokens, sizeof *loader->tokens, &ring_bytes) && loader != NULL) {
        loader->tokens = malloc(ring_bytes);
    }
    if (loader == NULL || loader->tokens == NULL) {
        free(loader);
        return status_set(STATUS_MEMORY, "out of memory for %d micro-batches of %zu rows of %zu "
                          "tokens read ahead: choose fewer rows", RING_SLOTS, shape->rows,
                          dataset->sequence_length);
    }
    loader->dataset = dataset;
    loader->shape = *shape;
    loader->first_step = first_step;
    loader->slot_tokens = slot_tokens;
    pthread_mutex_init(&loader->lock, NULL);
    pthread_cond_init(&loader->changed, NULL);
    TRY_GOTO(start(loader), fail);
    *out = loader;
    return STATUS_OK;

fail:
    pthread_cond_destroy(&loader->changed);
    pthread_mutex_destroy(&loader->lock);
    free(loader->tokens);
    free(loader);
    return status;
}

enum status loader_next(struct loader *loader, struct batch *batch) {
    const double start_seconds = clock_seconds();
    pthread_mutex_lock(&loader->lock);
    loader->released = loader->given;
    pthread_cond_signal(&loader->changed);
    while (loader->filled == loader->given) pthread_cond_wait(&loader->changed, &loader->lock);
    const int32_t *inputs = slot_inputs(loader, loader->given);
    loader->given++;
    pthread_mutex_unlock(&loader->lock);
    loader->waited_seconds += clock_seconds() - start_seconds;
    *batch = (struct batch){.inputs = inputs, .targets = inputs + loader->slot_tokens};
    return STATUS_OK;
}

double loader_waited_seconds(const struct loader *loader) { return loader->waited_seconds; }

void loader_close(struct loader *loader) {
    if (loader == NULL) return;
    pthread_mutex_lock(&loader->lock);
    loader->stopping = true;
    pthread_cond_signal(&loader->changed);
    pthread_mutex_unlock(&loader->lock);
    pthread_join(loader->thread, NULL);
    pthread_cond_destroy(&loader->changed);
    pthread_mutex_destroy(&loader->lock);
    free(loader->tokens);
    free(loader);
}

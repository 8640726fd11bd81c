/*
 * Batches in step order, read ahead by one thread so that page faults on the mapped shards happen
 * there.
 *
 * batch(step, micro, rank) is a pure function: row b of micro-batch m on rank r of step s is sample
 *   g = shift + s * (micro_batches * ranks * rows) + (m * ranks + r) * rows + b.
 * The thread only runs ahead of it. Owned by the trainer; one loader feeds one device.
 */
#ifndef DEEPWELL_DATA_LOADER_H_
#define DEEPWELL_DATA_LOADER_H_

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "data/dataset.h"

struct loader_shape {
    size_t rows;          /* sequences of one micro-batch on one rank */
    size_t micro_batches; /* of one step on one rank */
    size_t rank, ranks;
    uint64_t shift;       /* modulo 2^64; not 0 where earlier steps had another number of sequences:
                             the next step goes on behind the last sample that was read */
};

/* Sample of row 0 of a micro-batch. */
static inline uint64_t loader_first_sample(const struct loader_shape *shape, uint64_t step,
                                           uint64_t micro) {
    return shape->shift + step * (shape->micro_batches * shape->ranks * shape->rows) +
           (micro * shape->ranks + shape->rank) * shape->rows;
}

struct batch {
    const int32_t *inputs;  /* (rows, T); valid until the next loader_next */
    const int32_t *targets; /* (rows, T) */
};

struct loader;

/* Starts the thread at micro-batch 0 of `first_step`. The dataset must outlive the loader. */
enum status loader_open(struct loader **loader, const struct dataset *dataset,
                        const struct loader_shape *shape, uint64_t first_step);

/* The next micro-batch in order (micro 0, 1, ... of first_step, then the next step). Waits if the
 * thread has not read it yet. */
enum status loader_next(struct loader *loader, struct batch *batch);

/* Seconds that loader_next has waited since the loader was opened. */
double loader_waited_seconds(const struct loader *loader);

void loader_close(struct loader *loader);

#endif

/*
 * What every command of several ranks begins and ends with: the ranks meet (ranks_open.h), all but
 * the first fall silent, and what they were started with is compared. Called by the trainer and by
 * bench.
 */
#ifndef DEEPWELL_TRAIN_RANKS_START_H_
#define DEEPWELL_TRAIN_RANKS_START_H_

#include "train/engine.h"

/* ranks_open(); then only the first rank prints: what the others say of the run is the same. Errors
 * are not silenced. */
enum status ranks_start(struct ranks *ranks, struct comm *comm, const struct config *config);

/* STATUS_CONFIG on all ranks where they run another configuration; a difference is named by its
 * key. */
enum status ranks_check_alike(struct comm *comm, const struct config *config);

/* Before a command that ends with `status` closes what it has open: of a failure that all ranks
 * know the first rank speaks; one that befell a rank by itself (`shared` false, and no
 * ranks_agree() has told the others) ends it at once, for the others wait for it. */
void ranks_leave(const struct ranks *ranks, struct comm *comm, enum status status, bool shared);

/* "2 through Open MPI 4.1.4; sharing optimizer (train.zero 1); sums in fp32, in any order": for
 * headers. */
enum { RANKS_DESCRIBED_BYTES = 256 };
const char *ranks_described(char text[RANKS_DESCRIBED_BYTES], const struct engine *engine);

/* "exposed     1.20 ms of communication in a step of 110.00: 1.09 %, the mean over 8 steps on rank
 * 0": of steps that took `seconds` in all. Of one rank, or no step, nothing. */
void ranks_print_exposed(const struct ranks *ranks, double exposed_seconds, double seconds,
                         int64_t steps);

#endif

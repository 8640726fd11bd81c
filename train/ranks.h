/*
 * The ranks of a run as the engine and the trainer see them: which one this is, and what all must
 * have in common. Errors that any rank may meet by itself, at points that all ranks reach, are
 * shared by ranks_agree(); errors elsewhere end the process, and with it the run (comm_abort).
 */
#ifndef DEEPWELL_TRAIN_RANKS_H_
#define DEEPWELL_TRAIN_RANKS_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "train/comm.h"

struct ranks {
    int rank, world; /* 0 <= rank < world; {0, 1}: the one rank of its run */
    int local_rank;  /* on this host: which device */
    int threads;     /* CPU ranks: for `threads = 0`; 0: all that the process may use */
};

static inline struct ranks ranks_one(void) { return (struct ranks){.world = 1}; }

/* Every rank calls it with its own status (and message); every rank gets the same one back. All
 * fine: STATUS_OK. Else the status and message of the lowest rank that failed, "rank 2: ..." where
 * there are several ranks, from then on whenever it is called again: a rank that fails goes to the
 * next call that the others make, whichever that is. No collective may lie between. */
enum status ranks_agree(struct comm *comm, enum status own);

/* Something that must be the same on all ranks. */
struct ranks_check {
    const char *what; /* "the configuration" */
    uint64_t value;   /* a hash of it */
};

/* STATUS_CONFIG on every rank, naming the ranks that differ from rank 0 and in what. */
enum status ranks_check(struct comm *comm, const struct ranks_check *checks, size_t count);

#endif

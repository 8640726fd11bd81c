/*
 * How many CPU threads a rank may start where `threads = 0` leaves it to us: ranks of one host that
 * may run on the same processors divide them. Called by ranks_open.c.
 */
#ifndef DEEPWELL_TRAIN_RANKS_CORES_H_
#define DEEPWELL_TRAIN_RANKS_CORES_H_

#include <sched.h>
#include <stdbool.h>

#include "train/comm.h"
#include "train/rendezvous.h"

/* What a rank knows by itself. */
struct rank_cores {
    char host[RENDEZVOUS_NAME_BYTES]; /* the running kernel's, which containers share: its boot */
    cpu_set_t processors;             /* the affinity mask */
    int threads;                      /* host_threads() */
    bool told; /* OMP_NUM_THREADS says how many: for this process, by who started it */
};

/* The threads of one of the ranks: its own, by the number of ranks on its host whose processors
 * overlap with its; at least 1. 0: all that it may use, for nobody shares them, or it was told. */
int rank_cores_share(const struct rank_cores *all, int world, int rank);

/* The same for this rank, after asking the others. */
enum status ranks_share_cores(struct comm *comm, int *threads);

#endif

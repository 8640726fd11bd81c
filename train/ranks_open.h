/*
 * The start of a run of many ranks: which rank this is (rank_environment.h), how it finds the
 * others (rendezvous.h), what they talk through (NCCL between GPUs, MPI between CPUs), and who
 * watches (watchdog.h). Called by the trainer before anything is opened.
 */
#ifndef DEEPWELL_TRAIN_RANKS_OPEN_H_
#define DEEPWELL_TRAIN_RANKS_OPEN_H_

#include "train/comm_watched.h"
#include "train/config.h"
#include "train/ranks.h"

/* All ranks are there on return, all of this very build of the program (else STATUS_CONFIG);
 * comm_close() ends it. With one rank comm_open_single(). The device is not open yet: set
 * comm.device when it is, and call comm_self_test() then. On failure *comm is all zero, nothing is
 * left open, and the message is the same on all ranks that came. */
enum status ranks_open(struct ranks *ranks, struct comm *comm, const struct config *config);

#endif

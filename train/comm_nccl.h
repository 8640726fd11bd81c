/*
 * Communication between GPUs through NCCL, behind train/comm.h: one process a GPU, collectives on a
 * stream of their own. The communicator does not block: a call that waits for other ranks can be
 * broken off from the watchdog's thread. Called by who opens a run of many ranks; without NCCL in
 * the build opening is refused.
 */
#ifndef DEEPWELL_TRAIN_COMM_NCCL_H_
#define DEEPWELL_TRAIN_COMM_NCCL_H_

#include "train/comm.h"
#include "train/watchdog.h"

enum { COMM_NCCL_ID_BYTES = 128 };

struct comm_nccl_options {
    unsigned char id[COMM_NCCL_ID_BYTES]; /* rank 0's, by rendezvous.h */
    int max_ctas;           /* blocks that a collective's kernel may take; 0: NCCL's choice */
    double start_seconds;   /* for all ranks to join */
    double timeout_seconds; /* for a call on host memory */
};

/* What rank 0 hands to all. STATUS_DEVICE in a build without NCCL. */
enum status comm_nccl_id(unsigned char id[COMM_NCCL_ID_BYTES]);

/* The ranks join when the first collective on device memory is asked for:
 * comm.device is then a GPU, another on each rank. Calls on host memory go over `talk`, and need
 * none. `talk` must outlive the communicator. */
enum status comm_open_nccl(struct comm *comm, const struct comm_nccl_options *options,
                           const struct rendezvous *talk);

/* For struct watchdog_options; `comm` is the struct comm. From any thread. Progress of the device
 * is added to what the host entered and left. */
void comm_nccl_progress(void *comm, struct watchdog_progress *progress);
void comm_nccl_break_off(void *comm);

#endif

/*
 * Host memory between ranks over the TCP connections of a rendezvous, a star around rank 0: for
 * starting, agreeing and saving, before a device is open and beside what it does. Called by
 * comm_nccl.c.
 */
#ifndef DEEPWELL_TRAIN_STAR_H_
#define DEEPWELL_TRAIN_STAR_H_

#include "train/rendezvous.h"

/* out (world * bytes): part r is what rank r has at `in` (bytes); bytes 0: a barrier. All ranks
 * with the same bytes. STATUS_RANKS with the rank that was lost, or did not come in time. */
enum status star_gather(const struct rendezvous *talk, void *out, const void *in, size_t bytes,
                        double timeout_seconds);

/* data (bytes) of rank `root` on all ranks. Waits for root alone. STATUS_RANKS as above. */
enum status star_broadcast(const struct rendezvous *talk, void *data, size_t bytes, int root,
                           double timeout_seconds);

/* Lets a rank that waits in one of these go, with STATUS_RANKS. From any thread. */
void star_break_off(const struct rendezvous *talk);

#endif

/*
 * Watches what a rank waits for together with others. Each rank says when it enters and leaves a
 * collective; a thread tells rank 0 how far it is, over the connections of rendezvous.h. If a
 * collective does not finish in time, rank 0 knows who did not arrive, and every rank gets that as
 * its failure; a rank whose process ends is noticed at once, by its connection.
 *
 * The wait itself is not the watchdog's. Where it can be broken off (NCCL), `abort` does it; where
 * the caller polls (MPI_Test), it asks watchdog_check(). A rank that has not left by itself within
 * grace_seconds of a failure is ended: message on standard error, exit code STATUS_RANKS.
 *
 *   watchdog_enter(w, "all_reduce");
 *   while (!done) { MPI_Test(...); TRY(watchdog_check(w)); }
 *   watchdog_leave(w);
 *
 * Collectives that run on a stream while the host goes on, and again with a recording, the host
 * does not enter: `progress` says how far the device is.
 * All ranks enter the same collectives in the same order.
 */
#ifndef DEEPWELL_TRAIN_WATCHDOG_H_
#define DEEPWELL_TRAIN_WATCHDOG_H_

#include "train/rendezvous.h"

struct watchdog;

enum { WATCHDOG_WHAT_BYTES = 64 };

/* How far a rank is in the one order of collectives that all follow. */
struct watchdog_progress {
    uint64_t entered, left; /* so far; entered == left: it waits for nobody */
    char what[WATCHDOG_WHAT_BYTES]; /* the one that it is in, or the last: "all_reduce of 5 MiB" */
};

struct watchdog_options {
    const struct rendezvous *meeting; /* must outlive the watchdog; of world 1: nobody to ask */
    double timeout_seconds;           /* comm.timeout */
    double grace_seconds;
    double beat_seconds;              /* between two reports to rank 0 */
    /* Of the device, on the watchdog's thread, at every beat; NULL: what was entered and left. */
    void (*progress)(void *context, struct watchdog_progress *progress);
    void (*abort)(void *context);     /* NULL: none; called once, after a failure, there too */
    void *context;
};

enum status watchdog_open(struct watchdog **out, const struct watchdog_options *options);

/* For messages: the step that the rank works on; -1, as it begins: before the first. */
void watchdog_at_step(struct watchdog *w, int64_t step);

/* From here on this rank waits as long before it is overdue; all ranks say so at the same place. */
void watchdog_allow(struct watchdog *w, double seconds);

/* One after the other, never one within another; `what` as WATCHDOG_WHAT_BYTES hold it. */
void watchdog_enter(struct watchdog *w, const char *what);
void watchdog_leave(struct watchdog *w);

/* STATUS_RANKS with the message once something failed. Cheap: for polling loops. */
enum status watchdog_check(struct watchdog *w);

/* Ends the watch. `status` says how this rank ends: with STATUS_OK or STATUS_INTERRUPTED quietly;
 * else the others are told this thread's message, and fail by it. */
void watchdog_close(struct watchdog *w, enum status status);

#endif

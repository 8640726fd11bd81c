/*
 * A communicator with a watchdog in front: whatever the host waits for is entered and left there,
 * and a failure that the watchdog knows of is what the caller is told. It owns the communicator
 * behind it, the watchdog, and the connections between the ranks. Made by ranks_open.c.
 */
#ifndef DEEPWELL_TRAIN_COMM_WATCHED_H_
#define DEEPWELL_TRAIN_COMM_WATCHED_H_

#include "train/comm.h"
#include "train/watchdog.h"

struct comm_watched {
    struct comm inner;
    struct watchdog *watchdog;
    struct rendezvous watched, talk; /* of the watchdog; of host memory where inner needs it */
    bool waits;                      /* collectives of inner are done on return */
    bool aborted;
};

/* Puts *watched (from calloc; owned from here on) behind *comm. */
void comm_watch(struct comm *comm, struct comm_watched *watched);

/* The step that comes now, for the watchdog's messages; and whether the run still holds together:
 * STATUS_RANKS with the watchdog's message. Without a watchdog STATUS_OK. Cheap: once a step, also
 * where recordings run without asking for a collective. */
enum status comm_at_step(struct comm *comm, int64_t step);

/* How long a rank waits for others from here on (watchdog_allow). Without a watchdog nothing. */
void comm_allow(struct comm *comm, double seconds);

#endif

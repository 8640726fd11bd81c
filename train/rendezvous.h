/*
 * How the ranks of a run find each other: every rank connects to rank 0, says who and what it is,
 * and is let in with a few bytes from rank 0 (NCCL's id) or refused with everybody else. After it
 * every rank ends with the same answer. The connections stay open, a star around rank 0, for
 * watchdog.h.
 *
 * Rank 0 is found at HOST:PORT, or through a file on storage that all share (file:PATH), into which
 * it writes where it listens. Strangers who connect are turned away; the rank environment's run
 * number, or a number in the file, tells the ranks of another run from ours. It keeps out mistakes,
 * not attackers: run it in a network that is your own.
 *
 * Called at the start of a run of many ranks, before memory is taken.
 */
#ifndef DEEPWELL_TRAIN_RENDEZVOUS_H_
#define DEEPWELL_TRAIN_RENDEZVOUS_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/file.h"
#include "base/status.h"
#include "train/rank_environment.h"

enum {
    RENDEZVOUS_BLOB_BYTES = 256, /* at most */
    RENDEZVOUS_NAME_BYTES = 64, /* of hosts and devices in messages */
};

struct rendezvous_options {
    int rank, world;
    const char *place;  /* "HOST:PORT" or "file:PATH" */
    uint64_t run;       /* rank_environment.run */
    uint64_t program;   /* a hash of what runs here: all ranks must be the same build */
    double timeout_seconds;
    int listener;       /* rank 0: a socket that listens at `place` already (wire_listen), which
                         * becomes this call's; 0: none yet */
    const char *device; /* "0000:4c:00.0": no two ranks of a host may have the same; "": any */
};

struct rendezvous {
    int rank, world;
    int *connections; /* rank 0: (world), its own is -1; others: (1), to rank 0. NULL: world 1 */
    char (*hosts)[RENDEZVOUS_NAME_BYTES]; /* rank 0: (world); others: (1), rank 0's */
};

/* Rank 0 hands `blob` (blob_bytes) to all others, where it is written. Returns when all ranks are
 * in, or with the same failure on every rank that came: STATUS_CONFIG (a rank twice, another size
 * of the world, another build of the program), STATUS_DEVICE (a device twice), STATUS_RANKS (ranks
 * that did not come within timeout_seconds, by number; no way to rank 0). Rank 0 counts the time
 * from its own start, so another may wait up to twice as long. */
enum status rendezvous_open(struct rendezvous *r, const struct rendezvous_options *options,
                            void *blob, size_t blob_bytes);
void rendezvous_close(struct rendezvous *r);

/* The name of this host, for messages. */
void rendezvous_own_host(char host[RENDEZVOUS_NAME_BYTES]);

/* STATUS_CONFIG: the rank on that host runs another build than rank 0. */
enum status rendezvous_other_build(int rank, const char *host, const char *first_host);

/* options.place: the configured one where there is one, else the environment's. STATUS_CONFIG if
 * neither says where rank 0 is. */
enum status rendezvous_place(char place[PATH_BYTES], const char *configured,
                             const struct rank_environment *environment);

/* "rank 3", "ranks 1, 2 and 7": those of named[0..world) that are true. Writes into `text` and
 * returns it. */
enum { RANKS_TEXT_BYTES = 160 };
const char *ranks_text(char text[RANKS_TEXT_BYTES], const bool *named, int world);

#endif

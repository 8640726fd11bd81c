/*
 * One process a run folder: whoever saves into or prunes a run holds RUN/.lock from its first look
 * at the folder to its end. The kernel drops the lock when the process dies, however it dies, so a
 * lock is never stale. Held by train; the functions of checkpoint.h rely on it and do not take it
 * themselves.
 */
#ifndef DEEPWELL_CHECKPOINTS_RUN_LOCK_H_
#define DEEPWELL_CHECKPOINTS_RUN_LOCK_H_

#include "base/status.h"

struct run_lock {
    int file; /* -1: not held */
};

#define RUN_LOCK_NONE ((struct run_lock){.file = -1})

/* Creates the run folder if need be and takes its lock. STATUS_IO with the process id of the holder
 * if another process (or another lock of this one) has it; never waits. The lock is not inherited
 * over exec, but a forked child shares it. */
enum status run_lock_acquire(struct run_lock *lock, const char *run_folder);

/* Fine on a lock that is not held. The file stays: removing it would let two processes in. */
void run_lock_release(struct run_lock *lock);

#endif

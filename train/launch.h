/*
 * Several processes of one program on this host, one a rank, as `deepwell train --gpus N` starts
 * itself N times: their output line by line, and one fate. If one fails, all end. Signals that ask
 * to leave are passed on once each, so that ranks save and leave together; where all processes get
 * a signal, ranks take the launcher's for a second one only when it passes on two (signals.h).
 *
 * The caller gets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT and
 * DEEPWELL_RUN into its children's environment, which rank_environment.h reads. Owns the children
 * and their pipes while it runs; called by command_train.c.
 */
#ifndef DEEPWELL_TRAIN_LAUNCH_H_
#define DEEPWELL_TRAIN_LAUNCH_H_

#include "base/status.h"

enum { LAUNCH_RANKS_MAX = 64 };

struct launch {
    int ranks;                /* 1 to LAUNCH_RANKS_MAX */
    const char *program;      /* path; "/proc/self/exe": this program */
    char *const *arguments;   /* its argv, ends with NULL */
    double grace_seconds;     /* from the first failure's SIGTERM to SIGKILL */
    int out, err;             /* file descriptors that the ranks' output goes to */
    const char *note;         /* at the first signal: signals_note() */
};

/* Starts the ranks and returns when all have ended. Standard output and error of rank 0 come as
 * they are, of rank R each line behind "[R] ". STATUS_OK if all ended with 0. Else the exit code of
 * the first to fail (128 + n for signal n, as a shell counts) with a message that names the rank
 * and the cause; a rank that ended only because another did (STATUS_RANKS) is first only among its
 * like. STATUS_INTERNAL, with nothing left running, if a process cannot be started. */
enum status launch_processes(const struct launch *launch);

#endif

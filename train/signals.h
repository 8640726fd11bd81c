/*
 * SIGINT, SIGTERM, SIGHUP (the terminal has gone) and SIGPIPE (the reader of the output has gone)
 * ask a run to finish its step, save and leave; a second one but SIGPIPE ends the process at once.
 * The one global of the program: a signal handler can reach nothing else. Used by trainer.c and the
 * commands that run long.
 */
#ifndef DEEPWELL_TRAIN_SIGNALS_H_
#define DEEPWELL_TRAIN_SIGNALS_H_

#include "base/status.h"

enum status signals_install(void);

/* The first signal's name ("SIGTERM"), or NULL if none has come. */
const char *signals_received(void);

#endif

/*
 * SIGINT and SIGTERM ask a run to finish its step, save and leave; a second one ends the process at
 * once. The one global of the program: a signal handler can reach nothing else. Used by trainer.c
 * and command_train.c.
 */
#ifndef DEEPWELL_TRAIN_SIGNALS_H_
#define DEEPWELL_TRAIN_SIGNALS_H_

#include "base/status.h"

enum status signals_install(void);

/* The first signal's name ("SIGTERM"), or NULL if none has come. */
const char *signals_received(void);

#endif

/*
 * SIGINT, SIGTERM, SIGHUP (the terminal has gone) and SIGPIPE (the reader of the output has gone)
 * ask a run to finish its step, save and leave; a second one but SIGPIPE ends the process at once.
 * In a rank that `--gpus N` started a second one counts only if both came from the launcher, which
 * passes on each that it gets: what signals all processes of a job (a batch system, a container)
 * reaches the rank twice, and asked once.
 * What has come is kept in globals: a handler can reach nothing else. Used by trainer.c and the
 * commands that run long.
 */
#ifndef DEEPWELL_TRAIN_SIGNALS_H_
#define DEEPWELL_TRAIN_SIGNALS_H_

#include <stdbool.h>

#include "base/status.h"

/* `saves`: the run is saved before it leaves; what is printed at the first signal says so. */
enum status signals_install(bool saves);

/* What the first signal prints, with its line's end. */
const char *signals_note(bool saves);

/* From now on the first signal is taken without a word. For a rank of several: a launcher that ends
 * the others because one failed would have them speak after that one's reason. */
void signals_be_silent(void);

/* The first signal's name ("SIGTERM"), or NULL if none has come. */
const char *signals_received(void);

#endif

/*
 * What a person sees while a run goes on. On a terminal one line is rewritten in place, as many of
 * its fields as the window is wide; in a pipe a plain line comes every log_every steps. Messages print above the
 * line.
 *
 *   step 120/2000  loss 2.3456  lr 1.00e-03  norm 0.712  45,678 tokens/s  0.4100 TFLOPS  mfu n/a
 *   12:34 left  (all on one line)
 *
 * With several ranks "exposed 1.2 ms" stands behind the rate: communication that nothing hid.
 *
 * Owned by the trainer of rank 0; one at a time on one stream.
 */
#ifndef DEEPWELL_TRAIN_PROGRESS_H_
#define DEEPWELL_TRAIN_PROGRESS_H_

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "train/metrics.h"

enum { PROGRESS_LINE_BYTES = 512, PROGRESS_WINDOW = 64 };

struct progress {
    FILE *out;
    bool terminal;           /* rewrite one line; chosen by progress_open from `out` */
    int64_t steps;           /* of the whole run */
    int64_t log_every;
    bool show_loss_scale;
    double recent_ms[PROGRESS_WINDOW]; /* of the last steps: step k at k % PROGRESS_WINDOW */
    int64_t seen;            /* steps since progress_open */
    double drawn_seconds;    /* clock of the last redraw */
    char line[PROGRESS_LINE_BYTES]; /* what stands on the terminal's last line; "" if nothing */
};

struct progress progress_open(FILE *out, int64_t steps, int64_t log_every, bool show_loss_scale);

/* After each step. The first and the last are always shown. */
void progress_step(struct progress *progress, const struct step_record *record);

/* Prints a whole line above the progress line; a newline is added. */
void progress_message(struct progress *progress, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Leaves the last line standing and ends it. */
void progress_close(struct progress *progress);

/* The line for a record, uncut: for tests and for lines in a pipe. Writes into `line` and returns
 * it. */
const char *progress_line(const struct progress *progress, const struct step_record *record,
                          char line[PROGRESS_LINE_BYTES]);

#endif

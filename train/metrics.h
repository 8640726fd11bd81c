/*
 * RUN/metrics.jsonl: one JSON object a line, for machines (docs/formats.md). Lines are flushed as
 * they are written, numbers read back to the same bits, and what is not finite becomes null beside
 * "<name>_text".
 *
 * `step` in every record is the number of optimizer steps done, so the first step record has 1.
 * When a run continues after `steps_done` steps, the lines beyond that are dropped, so that a step
 * stands in the file once however often the run was killed.
 *
 * Owned by the trainer of rank 0.
 */
#ifndef DEEPWELL_TRAIN_METRICS_H_
#define DEEPWELL_TRAIN_METRICS_H_

#include <stddef.h>
#include <stdint.h>

#include <cjson/cJSON.h>

#include "base/status.h"
#include "kernels/step_control.h"
#include "train/peak.h"

/* One optimizer step: what the metrics file and the progress line show. */
struct step_record {
    int64_t step;          /* done, this one included */
    double loss;           /* mean, nats a token */
    double learning_rate;
    double gradient_norm;  /* before clipping */
    double loss_scale;
    double loss_z, norm_z;
    enum step_skip skip;
    int64_t tokens;        /* of this step */
    double step_ms;        /* whole step: data, reduction, clip and update inside; the device's */
    double data_wait_ms;   /* of step_ms, waiting for the loader */
    int ranks;             /* that took the step together */
    double comm_exposed_ms; /* of step_ms, standing still for collectives (comm.h), on this rank;
                             * only with several */
    double tokens_per_s, tflops;
    struct mfu mfu;
    double gpu_power_w, gpu_clock_mhz; /* the latest look, four a second at most; 0: not known */
};

/* What this process took from its first step to its end, all in between included. */
struct run_energy {
    double joules, seconds;
    int64_t tokens;
};

struct metrics;

/* Opens the file for appending. Lines of steps beyond `steps_done` and a torn last line are
 * dropped: the rest is written beside the file and renamed, so a crash leaves the old or the new
 * one. With steps_done 0 only the run records of earlier attempts stay. A line that is no record
 * elsewhere: STATUS_DATA. */
enum status metrics_open(struct metrics **metrics, const char *path, int64_t steps_done);

/* A header for this process: configuration, versions, device... `details` is copied. */
enum status metrics_run(struct metrics *metrics, int64_t step, const cJSON *details);
enum status metrics_step(struct metrics *metrics, const struct step_record *record);
/* loss in nats a token; bits_per_byte NaN: not known (null). The perplexity is exp(loss). */
enum status metrics_validation(struct metrics *metrics, int64_t step, double loss,
                               double bits_per_byte, int64_t tokens);
/* Multiple choice: shares of right answers (train/choices_eval.h). */
enum status metrics_choices(struct metrics *metrics, int64_t step, const char *file,
                            int64_t examples, double accuracy, double accuracy_norm);
/* Bytes that are not UTF-8 become U+FFFD. */
enum status metrics_sample(struct metrics *metrics, int64_t step, const char *prompt,
                           const char *text);
/* stall_ms: that training stood still for it; the rest of ms went on beside the steps. */
enum status metrics_checkpoint(struct metrics *metrics, int64_t step, const char *path, double ms,
                               double stall_ms);
enum status metrics_energy(struct metrics *metrics, int64_t step, const struct run_energy *energy);
enum status metrics_event(struct metrics *metrics, int64_t step, const char *what);

/* fsyncs and releases; NULL is fine. */
enum status metrics_close(struct metrics *metrics);

#endif

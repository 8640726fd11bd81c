/*
 * A training run: the step, and the loop around it.
 *
 * Order of a step (ask_step in trainer.c, step.h): batch -> forward, loss and backward of each
 * micro-batch -> gradient norm -> decide (overflow, clip, outlier) -> AdamW. Around it
 * (trainer_run): log, validation, sample, checkpoint, signals. The host asks for a step before it
 * has seen the outcome of the one before, so that an accelerator never waits for it; whatever needs
 * the weights (validation, samples, checkpoints, the end) waits until every step is seen. Called by
 * command_train.c.
 */
#ifndef DEEPWELL_TRAIN_TRAINER_H_
#define DEEPWELL_TRAIN_TRAINER_H_

#include "checkpoints/run_lock.h"
#include "checkpoints/saver.h"
#include "data/choices.h"
#include "data/loader.h"
#include "kernels/cuda/power.h"
#include "train/engine.h"
#include "train/flops.h"
#include "train/metrics.h"
#include "train/progress.h"
#include "train/ranks.h"
#include "train/run_state.h"

/* A step that the device was asked for and whose outcome the host has not seen yet. */
struct trainer_pending {
    struct step_state control; /* there once device_read_end says so */
    double waited_seconds;     /* for its data */
};

struct trainer {
    const struct config *config;
    struct ranks ranks;
    struct comm comm;
    bool leaving;                  /* a signal reached some rank */
    struct engine engine;
    struct dataset train_data, validation_data; /* validation_data.shards NULL: none */
    struct choices choices; /* of eval.file; count 0: none */
    struct loader *loader;
    struct loader_shape shape;
    struct flops flops;
    struct tokenizer_files tokenizer; /* for every checkpoint */
    struct run_lock lock;
    struct metrics *metrics;
    struct progress progress;
    struct speed_limit speed_limit;
    int64_t asked;                 /* steps asked of the device so far; state.step are seen */
    struct trainer_pending pending[DEVICE_READS]; /* of step s: [s % DEVICE_READS] */
    struct run_state state;        /* as of the newest step whose outcome is known */
    struct run_state before;       /* as of the one before it */
    struct saver *saver;           /* NULL: checkpoints are written between two steps */
    int64_t saved_step;            /* of the newest checkpoint, whole or being written; -1: none */
    double save_stall_seconds;     /* that the run stood still for that checkpoint */
    int64_t validated_step;        /* -1: none */
    int64_t scored_step;           /* of the choices; -1: none */
    char begun_from[PATH_BYTES]; /* the weights that the run began with; "": random ones */
    char continued[RUN_CHANGES_BYTES + PATH_BYTES + 64]; /* what this run continues; "": nothing */
    double stepped_seconds;        /* of the steps that this process has seen; and of that */
    double exposed_seconds;        /* exposed communication */
    bool paused;                   /* the device has had no step since the newest seen one */
    struct gpu_power power;        /* started before the first step of this process */
    int64_t powered_step;          /* the step that it was started at */
    double looked_seconds;         /* clock of the last look at power */
    unsigned gpu_watts, gpu_mhz;   /* that look; 0: not known */
};

/* Opens everything for `config` (checked before), continues from a checkpoint where train.resume
 * says so, and prints the header. `config` must outlive the trainer, which is to be closed also
 * where opening failed. */
enum status trainer_open(struct trainer *trainer, const struct config *config);

/* Steps until train.steps or a signal. STATUS_INTERRUPTED after a signal, with everything saved. */
enum status trainer_run(struct trainer *trainer);

enum status trainer_close(struct trainer *trainer);

#endif

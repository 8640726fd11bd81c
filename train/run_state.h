/*
 * What a run must remember besides weights and moments: state.json of a checkpoint. Written and
 * read by trainer.c; read by eval and sample for the configuration.
 */
#ifndef DEEPWELL_TRAIN_RUN_STATE_H_
#define DEEPWELL_TRAIN_RUN_STATE_H_

#include <stdint.h>

#include <cjson/cJSON.h>

#include "base/status.h"
#include "kernels/step_control.h"
#include "train/config.h"

struct run_state {
    int64_t step;          /* optimizer steps done, skipped ones counted */
    int64_t sequences;     /* read by them: the position in the data */
    char fingerprint[33];  /* of the training data (data/dataset.h) */
    struct step_state control;
};

/* NULL when out of memory. */
cJSON *run_state_to_json(const struct run_state *state, const struct config *config);

/* STATUS_CHECKPOINT naming the field that is missing or no number. */
enum status run_state_from_json(const cJSON *json, struct run_state *state);

/* The configuration that the checkpoint was trained with. */
enum status run_state_config(const cJSON *json, struct config *config);

/* Compares the configuration of a checkpoint with that of the run that continues it. What would
 * break the promise of the same data order or the same model is refused by name with both values;
 * what may change (learning rate, batch, steps, recipe, intervals...) is listed in `changes` ("" if
 * nothing), for the log. Another batch goes on behind the last sequence that was read. */
enum { RUN_CHANGES_BYTES = 1024 };
enum status run_state_compare(const struct config *saved, const struct config *now,
                              char changes[RUN_CHANGES_BYTES]);

#endif

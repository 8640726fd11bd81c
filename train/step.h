/*
 * One optimizer step as operations on the device, without data, logs or files: what the trainer
 * runs, bench times and plan records.
 *
 *   step_begin -> step_micro_batch (inputs and targets uploaded before each) ... -> step_update
 */
#ifndef DEEPWELL_TRAIN_STEP_H_
#define DEEPWELL_TRAIN_STEP_H_

#include "train/engine.h"

/* Bounds of dynamic loss scaling. Below 1 a scale would only lose gradients; 2^40, the largest
 * initial scale too, is far beyond what FP16's largest number leaves for any gradient worth
 * scaling. */
#define LOSS_SCALE_MIN 1.0f
#define LOSS_SCALE_MAX 0x1p40f

/* The policy of step `step`: everything in it but the learning rate is constant over a run. It
 * travels to the device with step_begin, so that a recorded update reads the present one. */
struct step_policy step_policy(const struct config *config, int64_t step);

/* Tokens of a whole step, all micro-batches. */
int64_t step_tokens(const struct config *config);

/* The policy of the step, and sums of zero. */
enum status step_begin(struct engine *engine, const struct step_policy *policy);

/* Forward and backward of the uploaded micro-batch; the first overwrites the gradients, the others
 * add. */
enum status step_micro_batch(struct engine *engine, const struct step_policy *policy, bool first);

/* Gradient norm, decision, AdamW. `config` is that of the engine's first update. */
enum status step_update(struct engine *engine, const struct config *config);

#endif

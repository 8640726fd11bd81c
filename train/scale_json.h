/*
 * The scale states of a narrow recipe in state.json of a checkpoint: what delayed scaling and
 * stochastic rounding need to go on bit for bit. Written and read by the trainer.
 *
 *   "scales": {"block.0.mlp.fc.input": [seen, draws, amax of history[0], ...], ...}
 *
 * As they were after the last step that was applied; the scale follows from the history. Weights
 * have no entry: their scales follow from the weights.
 */
#ifndef DEEPWELL_TRAIN_SCALE_JSON_H_
#define DEEPWELL_TRAIN_SCALE_JSON_H_

#include <cjson/cJSON.h>

#include "train/engine.h"

/* Adds "scales" to `json`; nothing for an engine without narrow recipe. */
enum status scales_to_json(struct engine *engine, cJSON *json);

/* Sets the engine's states and quantises its weights anew. Without "scales" (the checkpoint was
 * made by another recipe) they stay as they start. STATUS_CHECKPOINT naming the tensor whose entry
 * is missing, of another length or no valid state. */
enum status scales_from_json(struct engine *engine, const cJSON *json);

#endif

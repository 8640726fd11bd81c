/*
 * The logits of a model as a file, to hold against another implementation's
 * (tools/check_transformers.py). Called by command_eval.c.
 */
#ifndef DEEPWELL_TRAIN_LOGITS_H_
#define DEEPWELL_TRAIN_LOGITS_H_

#include "data/dataset.h"
#include "train/engine.h"

/* Runs the inputs of the dataset's first `sequences` (at least 1) sequences of T tokens through the
 * model and writes a new safetensors file with "logits" of shape [sequences, T, V], FP32: for each
 * position those of the token that follows. The engine needs ENGINE_GENERATE. */
enum status logits_write(struct engine *engine, const struct dataset *dataset, size_t sequences,
                         const char *path);

#endif

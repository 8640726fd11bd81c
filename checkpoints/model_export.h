/*
 * A model as a folder for others: what from_pretrained() loads and nothing of the training run.
 * Called by `deepwell convert`.
 */
#ifndef DEEPWELL_CHECKPOINTS_MODEL_EXPORT_H_
#define DEEPWELL_CHECKPOINTS_MODEL_EXPORT_H_

#include "base/status.h"
#include "checkpoints/hf_config.h"
#include "checkpoints/safetensors.h"
#include "checkpoints/tokenizer_files.h"
#include "kernels/param_table.h"

struct model_export {
    struct hf_config model;
    const struct param_table *params;
    const float *masters; /* flat, laid out by the table */
    enum safetensors_dtype dtype;
    const struct tokenizer_files *tokenizer;
};

/* STATUS_CONFIG if the folder exists: asked before the model is read. */
enum status model_export_check(const char *folder);

/* Writes config.json, model.safetensors and the tokenizer's files into a new folder, complete and
 * durable or not at all. STATUS_CONFIG if the folder exists, STATUS_NUMERICS for a number that the
 * type cannot hold. */
enum status model_export_write(const char *folder, const struct model_export *model);

#endif

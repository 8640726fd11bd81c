/*
 * A trained model to start from, whoever trained it: shape and weights, nothing else. For
 * `deepwell convert` and train.init.
 *
 *   a folder with config.json     Hugging Face's GPT-2 (hf_weights.h), or a checkpoint of this
 *                                 program, which is verified against its manifest
 *   any other folder              a run: its newest checkpoint
 *   a file                        a model of llm.c (llmc_model.h)
 */
#ifndef DEEPWELL_CHECKPOINTS_MODEL_SOURCE_H_
#define DEEPWELL_CHECKPOINTS_MODEL_SOURCE_H_

#include "checkpoints/hf_weights.h"
#include "checkpoints/llmc_model.h"

enum model_kind { MODEL_HUGGING_FACE, MODEL_LLMC };

struct model_source {
    enum model_kind kind;
    char path[PATH_BYTES]; /* what was opened: the file, or the folder with config.json */
    struct hf_config model;
    struct hf_weights weights; /* MODEL_HUGGING_FACE */
    struct llmc_model llmc;    /* MODEL_LLMC */
};

/* STATUS_CHECKPOINT with the reason. Checkpoints of a run that were passed over are named through
 * `warn` (may be NULL). */
enum status model_source_open(struct model_source *source, const char *path,
                              void (*warn)(const char *message));
void model_source_close(struct model_source *source);

/* Fills `masters` (flat, laid out by the table). The table may have up to
 * VOCABULARY_PADDING_ROWS_MAX tokens fewer than the file: what was padding there. */
enum status model_source_load(const struct model_source *source, const struct param_table *params,
                              float *masters);

#endif

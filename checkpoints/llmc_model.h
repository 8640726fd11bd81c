/*
 * llm.c's model file (github.com/karpathy/llm.c: gpt2_124M.bin, gpt2_124M_bf16.bin and what its
 * trainers save): 256 int32 of header, then all parameters without gaps, each kind of parameter for
 * all layers together, matrices [out, in] as here. Used by model_source.c.
 *
 *   header[0] 20240326   [1] version: 3 is FP32, 5 is BF16   [2] context   [3] vocabulary
 *   [4] layers   [5] heads   [6] width   [7] rows of the token embedding: the vocabulary, padded
 */
#ifndef DEEPWELL_CHECKPOINTS_LLMC_MODEL_H_
#define DEEPWELL_CHECKPOINTS_LLMC_MODEL_H_

#include <stddef.h>

#include "base/file.h"
#include "base/status.h"
#include "checkpoints/hf_config.h"
#include "checkpoints/safetensors.h"
#include "kernels/param_table.h"

struct llmc_model {
    char path[PATH_BYTES];
    struct file_map map;
    struct hf_config model;
    size_t embedding_rows;
    enum safetensors_dtype dtype;
};

/* STATUS_CHECKPOINT for another magic, version or an impossible shape, and for a file that is not
 * exactly as long as its header says. */
enum status llmc_model_open(struct llmc_model *file, const char *path);
void llmc_model_close(struct llmc_model *file);

/* Fills `masters` (flat, laid out by the table). STATUS_CHECKPOINT if the table is of another
 * model. */
enum status llmc_model_load(const struct llmc_model *file, const struct param_table *params,
                            float *masters);

#endif

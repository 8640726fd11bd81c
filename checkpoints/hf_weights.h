/*
 * The weights of a GPT-2 that another program saved in Hugging Face's layout: one
 * model.safetensors, or several files that model.safetensors.index.json names. Used by
 * model_source.c.
 *
 * What other programs do differently and is taken all the same: names without the prefix
 * "transformer." (GPT2Model's own), attention masks saved as tensors (".attn.bias",
 * ".attn.masked_bias"), an output layer that is stored although it equals the token embedding, and
 * a token embedding padded with rows for tokens that do not exist.
 */
#ifndef DEEPWELL_CHECKPOINTS_HF_WEIGHTS_H_
#define DEEPWELL_CHECKPOINTS_HF_WEIGHTS_H_

#include <stddef.h>

#include "base/file.h"
#include "base/status.h"
#include "checkpoints/safetensors.h"
#include "kernels/param_table.h"

#define HF_INDEX_NAME "model.safetensors.index.json"

enum { HF_FILE_NAME_BYTES = 128, HF_FILES_MAX = 1024 };

/* Vocabularies are padded to a multiple of 64 or 128: as many rows may be left out. */
enum { VOCABULARY_PADDING_ROWS_MAX = 127 };

/* model.safetensors.index.json: which file holds which tensor. */
struct hf_index {
    struct hf_index_entry {
        char tensor[SAFETENSORS_NAME_BYTES];
        size_t file; /* place in files */
    } * entries;     /* sorted by tensor */
    size_t count;
    char (*files)[HF_FILE_NAME_BYTES]; /* names in the index's own folder, each once */
    size_t file_count;
};

/* STATUS_CHECKPOINT for what is no index, lists no tensor, or names files that could lie outside
 * its folder. Release with hf_index_free(). */
enum status hf_index_read(struct hf_index *index, const char *path);
void hf_index_free(struct hf_index *index);

struct hf_weights {
    char folder[PATH_BYTES];
    struct safetensors *files;
    size_t count;
};

/* STATUS_CHECKPOINT where the folder has neither kind of file, a tensor stands in two files, or the
 * index and the files do not list the same tensors. */
enum status hf_weights_open(struct hf_weights *weights, const char *folder);
void hf_weights_close(struct hf_weights *weights);

/* Fills `masters` (flat, laid out by the table) as weights_load() does. STATUS_CHECKPOINT, and
 * masters untouched, for a tensor that is missing, unknown or of another shape, and for an output
 * layer that differs from the token embedding. */
enum status hf_weights_load(const struct hf_weights *weights, const struct param_table *params,
                            float *masters);

#endif

/* Hugging Face's config.json of the GPT-2 family: what a model's shape is called there. */
#ifndef DEEPWELL_CHECKPOINTS_HF_CONFIG_H_
#define DEEPWELL_CHECKPOINTS_HF_CONFIG_H_

#include <stddef.h>

#include "base/status.h"

struct hf_config {
    size_t vocab_size, n_positions, n_embd, n_layer, n_head;
    int bos_token_id, eos_token_id; /* -1: none */
};

/* STATUS_CHECKPOINT naming the field for a shape that no model can have: a size that is 0 or beyond
 * the bounds at the top of hf_config.c, heads that do not divide the width, a token id outside the
 * vocabulary. */
enum status hf_config_check(const char *where, const struct hf_config *config);

/* STATUS_CHECKPOINT naming the key for a file that is not a GPT-2 that this program can run
 * (model_type, activation_function gelu_new, layer_norm_epsilon 1e-5, tied embeddings, n_inner 4
 * n_embd or absent, scaling options at their defaults). */
enum status hf_config_read(const char *path, struct hf_config *config);

/* The JSON text; release with free(). NULL when out of memory. `dtype`: what the weights are stored
 * in, in PyTorch's word ("float32", "bfloat16", "float16"), which from_pretrained(dtype="auto")
 * goes by. */
char *hf_config_text(const struct hf_config *config, const char *dtype);

#endif

/*
 * GPT-2 (Radford et al., 2019): its shape, its tensor table, and its layers as views into flat
 * buffers.
 *
 * Data structures, in the order to read them: struct gpt_config (the shape) -> struct param_table
 * (every parameter, kernels/param_table.h) -> struct gpt (layers bound to a flat weight and a flat
 * gradient buffer) -> struct gpt_training (gpt_train.h: activations, forward, backward) or struct
 * gpt_generation (gpt_generate.h: key-value cache). The trainer owns the flat buffers; a gpt only
 * points into them.
 */
#ifndef DEEPWELL_LAYERS_GPT_H_
#define DEEPWELL_LAYERS_GPT_H_

#include "kernels/param_table.h"
#include "layers/attention.h"
#include "layers/embedding.h"
#include "layers/linear.h"
#include "layers/mlp.h"
#include "layers/norm.h"

enum {
    VOCABULARY_PADDING = 128
}; /* the head's rows are padded to it: aligned GEMMs on every device */

struct gpt_config {
    size_t layers, heads, width, context, vocabulary;
    size_t bucket_multiple; /* numbers of a bucket are padded to a multiple of it; 0: not */
};

static inline size_t gpt_padded_vocabulary(const struct gpt_config *config) {
    const size_t unit = VOCABULARY_PADDING;
    return (config->vocabulary + unit - 1) / unit * unit;
}

struct gpt_block {
    struct norm norm1;
    struct attention attention;
    struct tensor attention_bias;   /* (1, C): the projection's, added by norm2 */
    float *attention_bias_gradient;
    struct norm norm2;
    struct mlp mlp;
    struct tensor mlp_bias;         /* (1, C): the projection's, added by the next norm */
    float *mlp_bias_gradient;
};

/* A stretch of the flat buffers whose gradients backward finishes together: what ranks exchange as
 * one. Both embeddings, each block, the final norm: in the order of the tensor table. */
struct gpt_bucket {
    size_t first_param, params; /* rows of the table */
    size_t offset, count;       /* numbers, padding counted */
};

struct gpt {
    struct gpt_config config;
    struct param_table table;
    struct embedding embedding;
    struct gpt_block *blocks; /* (layers) */
    struct gpt_bucket *buckets; /* (gpt_bucket_count) */
    struct norm final_norm;
    struct linear head;       /* tied: the token embedding */
    struct precision precision; /* gpt_narrow.h; all zero: no linear is narrow */
};

/* Builds the table and the unbound layers. decay_roles: bit r set means weight decay for enum
 * param_role r. STATUS_CONFIG for a shape that makes no model. */
enum status gpt_open(struct gpt *gpt, const struct gpt_config *config, unsigned decay_roles);
void gpt_close(struct gpt *gpt);

/* Points the layers into `weights` (flat, table.elements numbers of any dtype) and `gradients`
 * (flat FP32, or NULL for a model that only runs forward). */
void gpt_bind(struct gpt *gpt, struct tensor weights, float *gradients);

/* The same for one bucket, whose numbers lie by themselves: weights (1, count), gradients (count)
 * or NULL. Buckets may share memory where their numbers are not wanted at the same time. */
void gpt_bind_bucket(struct gpt *gpt, size_t bucket, struct tensor weights, float *gradients);

/* Buckets by what is in them. */
enum { GPT_EMBEDDING_BUCKET };
static inline size_t gpt_block_bucket(size_t layer) { return 1 + layer; }
static inline size_t gpt_norm_bucket(const struct gpt *gpt) { return 1 + gpt->config.layers; }
static inline size_t gpt_bucket_count(const struct gpt *gpt) { return 2 + gpt->config.layers; }

#endif

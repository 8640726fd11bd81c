/*
 * Causal multi-head self-attention: packed query-key-value linear, attention, projection. The
 * projection's bias is added by the norm behind it (norm.h, struct branch). Called by gpt_train.c.
 */
#ifndef DEEPWELL_LAYERS_ATTENTION_H_
#define DEEPWELL_LAYERS_ATTENTION_H_

#include "layers/linear.h"

struct attention {
    struct linear qkv;        /* (3 C, C) with bias */
    struct linear projection; /* (C, C), bias elsewhere */
    size_t heads;
};

struct attention_activations {
    struct tensor qkv;  /* (N, 3 C) */
    struct tensor out;  /* (N, C): heads side by side, before the projection */
    float *log_sum_exp; /* (B, H, T) */
    struct narrow narrow;              /* of out, for the projection */
    struct narrow qkv_gradient;        /* out_gradient of qkv: what attention's backward makes */
    struct narrow projection_gradient; /* out_gradient of the projection: the residual's */
};

/* out (N, C) from in (N, C), N = batch * sequence_length. */
enum status attention_layer_forward(struct device *device, const struct attention *layer,
                                    const struct attention_activations *activations,
                                    struct tensor out, struct linear_operand in, size_t batch,
                                    size_t sequence_length);

/* in_gradient (N, C) from out_gradient (N, C), whose copies activations->projection_gradient holds
 * where it is narrow. `wide` (N, >= 3 C) is overwritten; in_gradient is
 * also used as working memory before it is filled. */
enum status attention_layer_backward(struct device *device, const struct attention *layer,
                                     const struct attention_activations *activations,
                                     struct tensor in_gradient, struct tensor wide,
                                     struct tensor out_gradient, struct linear_operand in,
                                     size_t batch, size_t sequence_length, bool accumulate);

#endif

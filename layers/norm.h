/*
 * Layer norm with the residual addition that precedes it. Called by gpt_train.c and gpt_generate.c.
 *
 * The residual stream is only ever written here: residual = residual_in + delta + delta_bias, where
 * delta is the branch (attention or MLP) just computed and delta_bias its projection's bias.
 */
#ifndef DEEPWELL_LAYERS_NORM_H_
#define DEEPWELL_LAYERS_NORM_H_

#include "layers/narrow.h"

struct norm {
    struct tensor weight, bias;             /* (1, C) */
    float *weight_gradient, *bias_gradient; /* (C) FP32 */
};

struct norm_activations {
    struct tensor out;      /* (N, C) */
    struct narrow narrow;   /* of out, for the linear that reads it */
    struct tensor residual; /* (N, C): what was normalised */
    float *mean, *rstd;     /* (N) */
};

/* What a branch hands to the norm behind it; delta.data NULL: nothing to add. */
struct branch {
    struct tensor residual_in;  /* (N, C) */
    struct tensor delta;        /* (N, C) */
    struct tensor bias;         /* (1, C) */
    float *bias_gradient;       /* (C) FP32; NULL where there is no branch */
};

enum status norm_layer_forward(struct device *device, const struct norm *layer,
                               const struct norm_activations *activations, const struct branch *in);

/* `narrow` (or NULL): copies of residual_gradient for the linear of the branch before.
 * residual_gradient (N, C) += what flows through the norm, or = where nothing flowed past it
 * (`first`: the norm before the head, where backward starts). `bias_gradient`: the preceding
 * branch's, or NULL. */
enum status norm_layer_backward(struct device *device, const struct norm *layer,
                                const struct norm_activations *activations,
                                struct tensor residual_gradient, const struct narrow *narrow,
                                struct tensor out_gradient, float *bias_gradient, bool first,
                                bool accumulate);

#endif

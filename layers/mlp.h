/*
 * The MLP: linear to 4 C, bias and GELU, linear back. The second linear's bias is added by the norm
 * behind it (norm.h, struct branch). Called by gpt_train.c and gpt_generate.c.
 */
#ifndef DEEPWELL_LAYERS_MLP_H_
#define DEEPWELL_LAYERS_MLP_H_

#include "layers/linear.h"

struct mlp {
    struct linear fc;         /* (4 C, C); its bias is added by the GELU */
    struct tensor fc_bias;    /* (1, 4 C) */
    float *fc_bias_gradient;  /* (4 C) FP32 */
    struct linear projection; /* (C, 4 C), bias elsewhere */
};

struct mlp_activations {
    struct tensor fc;   /* (N, 4 C), before bias and GELU */
    struct tensor gelu; /* (N, 4 C) */
    struct narrow narrow;              /* of gelu, for the projection */
    struct narrow fc_gradient;         /* out_gradient of fc: what the GELU's backward makes */
    struct narrow projection_gradient; /* out_gradient of the projection: the residual's */
};

/* fc and gelu from in (N, C): all that backward needs. */
enum status mlp_layer_expand(struct device *device, const struct mlp *layer,
                             const struct mlp_activations *activations, struct linear_operand in);

/* gelu from fc again, the same bits: for recomputation. */
enum status mlp_layer_gelu(struct device *device, const struct mlp *layer,
                           const struct mlp_activations *activations);

/* out (N, C) from gelu. */
enum status mlp_layer_contract(struct device *device, const struct mlp *layer,
                               const struct mlp_activations *activations, struct tensor out);

/* in_gradient (N, C) from out_gradient (N, C), whose copies activations->projection_gradient holds
 * where it is narrow. `wide` (N, 4 C) is overwritten. */
enum status mlp_layer_backward(struct device *device, const struct mlp *layer,
                               const struct mlp_activations *activations,
                               struct tensor in_gradient, struct tensor wide,
                               struct tensor out_gradient, struct linear_operand in,
                               bool accumulate);

#endif

/*
 * A linear layer: out = in W^T [+ bias]. W is [out, in]. Called by attention.c, mlp.c and loss.c.
 *
 * Some linears carry no bias here because the operation that follows adds it for nothing (the fused
 * residual and norm, the GELU); that operation then owns the bias and its gradient.
 */
#ifndef DEEPWELL_LAYERS_LINEAR_H_
#define DEEPWELL_LAYERS_LINEAR_H_

#include "kernels/ops.h"

struct linear {
    struct tensor weight;   /* (out, in) */
    struct tensor bias;     /* (1, out), or data NULL */
    float *weight_gradient; /* (out, in) FP32 */
    float *bias_gradient;   /* (out) FP32; used where bias is */
};

/* out (N, out) from in (N, in). */
enum status linear_forward(struct device *device, const struct linear *layer, struct tensor out,
                           struct tensor in);

/* in_gradient (N, in) from out_gradient (N, out); parameter gradients (+)= theirs. `in` is what
 * forward read. in_gradient must not overlap out_gradient. */
enum status linear_backward(struct device *device, const struct linear *layer,
                            struct tensor in_gradient, struct tensor out_gradient, struct tensor in,
                            bool accumulate);

#endif

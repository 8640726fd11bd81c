/*
 * A linear layer: out = in W^T [+ bias]. W is [out, in]. Called by attention.c, mlp.c and loss.c.
 *
 * Some linears carry no bias here because the operation that follows adds it for nothing (the fused
 * residual and norm, the GELU); that operation then owns the bias and its gradient.
 */
#ifndef DEEPWELL_LAYERS_LINEAR_H_
#define DEEPWELL_LAYERS_LINEAR_H_

#include "layers/narrow.h"

struct linear {
    struct tensor weight;   /* (out, in) */
    struct tensor bias;     /* (1, out), or data NULL */
    float *weight_gradient; /* (out, in) FP32 */
    float *bias_gradient;   /* (out) FP32; used where bias is */
    struct narrow narrow_weight; /* copies of weight; active: a narrow recipe */
    bool fast_fprop;
};

/* A matrix that a linear multiplies: as it is, or by its copies where they are active. */
struct linear_operand {
    struct tensor values;
    const struct narrow *narrow; /* NULL: never */
};

/* out (N, out) from in (N, in); on copies if `in` has them. */
enum status linear_forward(struct device *device, const struct linear *layer, struct tensor out,
                           struct linear_operand in);

/* in_gradient (N, in) from out_gradient (N, out); parameter gradients (+)= theirs. `in` is what
 * forward read. in_gradient must not overlap out_gradient. The bias's gradient comes from here
 * where out_gradient is multiplied as it is, otherwise from narrow_make_gradient. */
enum status linear_backward(struct device *device, const struct linear *layer,
                            struct tensor in_gradient, struct linear_operand out_gradient,
                            struct linear_operand in, bool accumulate);

#endif

/* Layer norm over the fused operations of kernels/ops.h. */
#include "layers/norm.h"

enum status norm_layer_forward(struct device *device, const struct norm *layer,
                               const struct norm_activations *activations,
                               const struct branch *in) {
    const bool add = in->delta.data != NULL;
    const struct norm_forward op = {
        .out = activations->out,
        .residual = activations->residual,
        .residual_in = in->residual_in,
        .delta = add ? &in->delta : NULL,
        .delta_bias = add ? &in->bias : NULL,
        .weight = layer->weight,
        .bias = layer->bias,
        .mean = activations->mean,
        .rstd = activations->rstd,
    };
    return device->ops->norm_forward(device, &op);
}

enum status norm_layer_backward(struct device *device, const struct norm *layer,
                                const struct norm_activations *activations,
                                struct tensor residual_gradient, struct tensor out_gradient,
                                float *bias_gradient, bool first, bool accumulate) {
    const struct norm_backward op = {
        .residual_gradient = residual_gradient,
        .out_gradient = out_gradient,
        .residual = activations->residual,
        .weight = layer->weight,
        .mean = activations->mean,
        .rstd = activations->rstd,
        .weight_gradient = layer->weight_gradient,
        .bias_gradient = layer->bias_gradient,
        .delta_bias_gradient = bias_gradient,
        .overwrite_residual_gradient = first,
        .accumulate = accumulate,
    };
    return device->ops->norm_backward(device, &op);
}

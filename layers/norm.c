/* Layer norm over the fused operations of kernels/ops.h. */
#include "layers/norm.h"

enum status norm_layer_forward(struct device *device, const struct norm *layer,
                               const struct norm_activations *activations,
                               const struct branch *in) {
    const bool add = in->delta.data != NULL;
    const struct norm_forward op = {
        .out = narrow_values(&activations->narrow, activations->out),
        .residual = activations->residual,
        .residual_in = in->residual_in,
        .delta = add ? &in->delta : NULL,
        .delta_bias = add ? &in->bias : NULL,
        .weight = layer->weight,
        .bias = layer->bias,
        .mean = activations->mean,
        .rstd = activations->rstd,
        .quantise = narrow_output(&activations->narrow),
    };
    TRY(device->ops->norm_forward(device, &op));
    return narrow_make(device, &activations->narrow, activations->out, true);
}

enum status norm_layer_backward(struct device *device, const struct norm *layer,
                                const struct norm_activations *activations,
                                struct tensor residual_gradient, const struct narrow *narrow,
                                struct tensor out_gradient, float *bias_gradient, bool first,
                                bool accumulate) {
    struct norm_backward op = {
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
    if (narrow == NULL) return device->ops->norm_backward(device, &op);
    op.quantise = narrow_output(narrow);
    TRY(device->ops->norm_backward(device, &op));
    return narrow_make(device, narrow, residual_gradient, true);
}

/* MLP layer: two linears around the fused bias and GELU. */
#include "layers/mlp.h"

enum status mlp_layer_gelu(struct device *device, const struct mlp *layer,
                           const struct mlp_activations *activations) {
    const struct gelu_forward op = {
        .out = narrow_values(&activations->narrow, activations->gelu),
        .x = activations->fc,
        .bias = layer->fc_bias,
        .quantise = narrow_output(&activations->narrow),
    };
    TRY(device->ops->gelu_forward(device, &op));
    return narrow_make(device, &activations->narrow, activations->gelu, true);
}

enum status mlp_layer_expand(struct device *device, const struct mlp *layer,
                             const struct mlp_activations *activations, struct linear_operand in) {
    TRY(linear_forward(device, &layer->fc, activations->fc, in));
    return mlp_layer_gelu(device, layer, activations);
}

static struct linear_operand gelu_operand(const struct mlp_activations *activations) {
    return (struct linear_operand){activations->gelu, &activations->narrow};
}

enum status mlp_layer_contract(struct device *device, const struct mlp *layer,
                               const struct mlp_activations *activations, struct tensor out) {
    return linear_forward(device, &layer->projection, out, gelu_operand(activations));
}

enum status mlp_layer_backward(struct device *device, const struct mlp *layer,
                               const struct mlp_activations *activations,
                               struct tensor in_gradient, struct tensor wide,
                               struct tensor out_gradient, struct linear_operand in,
                               bool accumulate) {
    const struct narrow *fc_gradient = &activations->fc_gradient;
    const struct linear_operand projection = {out_gradient, &activations->projection_gradient};
    const struct gelu_backward gelu = {
        .x_gradient = narrow_values(fc_gradient, wide),
        .out_gradient = wide,
        .x = activations->fc,
        .bias = layer->fc_bias,
        .bias_gradient = layer->fc_bias_gradient,
        .accumulate = accumulate,
        .quantise = narrow_output(fc_gradient),
    };
    TRY(linear_backward(device, &layer->projection, wide, projection, gelu_operand(activations),
                        accumulate));
    TRY(device->ops->gelu_backward(device, &gelu));
    TRY(narrow_make(device, fc_gradient, wide, true));
    return linear_backward(device, &layer->fc, in_gradient,
                           (struct linear_operand){wide, fc_gradient}, in, accumulate);
}

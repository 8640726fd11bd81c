/* MLP layer: two linears around the fused bias and GELU. */
#include "layers/mlp.h"

enum status mlp_layer_gelu(struct device *device, const struct mlp *layer,
                           const struct mlp_activations *activations) {
    const struct gelu_forward op = {
        .out = activations->gelu, .x = activations->fc, .bias = layer->fc_bias,
    };
    return device->ops->gelu_forward(device, &op);
}

enum status mlp_layer_expand(struct device *device, const struct mlp *layer,
                             const struct mlp_activations *activations, struct tensor in) {
    TRY(linear_forward(device, &layer->fc, activations->fc, in));
    return mlp_layer_gelu(device, layer, activations);
}

enum status mlp_layer_contract(struct device *device, const struct mlp *layer,
                               const struct mlp_activations *activations, struct tensor out) {
    return linear_forward(device, &layer->projection, out, activations->gelu);
}

enum status mlp_layer_backward(struct device *device, const struct mlp *layer,
                               const struct mlp_activations *activations,
                               struct tensor in_gradient, struct tensor wide,
                               struct tensor out_gradient, struct tensor in, bool accumulate) {
    const struct gelu_backward gelu = {
        .x_gradient = wide,
        .out_gradient = wide,
        .x = activations->fc,
        .bias = layer->fc_bias,
        .bias_gradient = layer->fc_bias_gradient,
        .accumulate = accumulate,
    };
    TRY(linear_backward(device, &layer->projection, wide, out_gradient, activations->gelu,
                        accumulate));
    TRY(device->ops->gelu_backward(device, &gelu));
    return linear_backward(device, &layer->fc, in_gradient, wide, in, accumulate);
}

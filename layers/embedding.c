/* Embedding layer over the operations of kernels/ops.h. */
#include "layers/embedding.h"

enum status embedding_layer_forward(struct device *device, const struct embedding *layer,
                                    struct tensor out, const int32_t *tokens,
                                    size_t sequence_length, size_t first_position) {
    const struct embedding_forward op = {
        .out = out,
        .tokens = tokens,
        .token_weight = layer->token_weight,
        .position_weight = layer->position_weight,
        .sequence_length = sequence_length,
        .first_position = first_position,
    };
    return device->ops->embedding_forward(device, &op);
}

enum status embedding_layer_backward(struct device *device, const struct embedding *layer,
                                     struct tensor out_gradient, const int32_t *tokens,
                                     size_t sequence_length, bool accumulate) {
    const struct tensor tokens_weight = layer->token_weight, positions = layer->position_weight;
    const struct embedding_backward op = {
        .token_gradient = tensor_make(layer->token_gradient, DTYPE_F32, tokens_weight.rows,
                                      tokens_weight.columns),
        .position_gradient = tensor_make(layer->position_gradient, DTYPE_F32, positions.rows,
                                         positions.columns),
        .out_gradient = out_gradient,
        .tokens = tokens,
        .sequence_length = sequence_length,
        .accumulate = accumulate,
    };
    return device->ops->embedding_backward(device, &op);
}

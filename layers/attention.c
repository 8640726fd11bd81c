/* Attention layer: linears around the attention operation. */
#include "layers/attention.h"

enum status attention_layer_forward(struct device *device, const struct attention *layer,
                                    const struct attention_activations *activations,
                                    struct tensor out, struct tensor in, size_t batch,
                                    size_t sequence_length) {
    const struct attention_forward op = {
        .out = activations->out,
        .log_sum_exp = activations->log_sum_exp,
        .qkv = activations->qkv,
        .batch = batch,
        .sequence_length = sequence_length,
        .heads = layer->heads,
    };
    TRY(linear_forward(device, &layer->qkv, activations->qkv, in));
    TRY(device->ops->attention_forward(device, &op));
    return linear_forward(device, &layer->projection, out, activations->out);
}

enum status attention_layer_backward(struct device *device, const struct attention *layer,
                                     const struct attention_activations *activations,
                                     struct tensor in_gradient, struct tensor wide,
                                     struct tensor out_gradient, struct tensor in, size_t batch,
                                     size_t sequence_length, bool accumulate) {
    const struct tensor heads_gradient = in_gradient; /* free until the last line fills it */
    const struct tensor qkv_gradient = tensor_make(wide.data, wide.dtype, in.rows, 3 * in.columns);
    const struct attention_backward op = {
        .qkv_gradient = qkv_gradient,
        .out_gradient = heads_gradient,
        .qkv = activations->qkv,
        .out = activations->out,
        .log_sum_exp = activations->log_sum_exp,
        .batch = batch,
        .sequence_length = sequence_length,
        .heads = layer->heads,
    };
    TRY(linear_backward(device, &layer->projection, heads_gradient, out_gradient, activations->out,
                        accumulate));
    TRY(device->ops->attention_backward(device, &op));
    return linear_backward(device, &layer->qkv, in_gradient, qkv_gradient, in, accumulate);
}

/* Attention layer: linears around the attention operation. */
#include "layers/attention.h"

static struct linear_operand out_operand(const struct attention_activations *activations) {
    return (struct linear_operand){activations->out, &activations->narrow};
}

enum status attention_layer_forward(struct device *device, const struct attention *layer,
                                    const struct attention_activations *activations,
                                    struct tensor out, struct linear_operand in, size_t batch,
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
    TRY(narrow_make(device, &activations->narrow, activations->out, false));
    return linear_forward(device, &layer->projection, out, out_operand(activations));
}

enum status attention_layer_backward(struct device *device, const struct attention *layer,
                                     const struct attention_activations *activations,
                                     struct tensor in_gradient, struct tensor wide,
                                     struct tensor out_gradient, struct linear_operand in,
                                     size_t batch, size_t sequence_length, bool accumulate) {
    const struct tensor heads_gradient = in_gradient; /* free until the last line fills it */
    const struct tensor qkv_gradient = tensor_make(
        wide.data, wide.dtype, in_gradient.rows, 3 * in_gradient.columns);
    const struct linear_operand projection = {out_gradient, &activations->projection_gradient};
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
    TRY(linear_backward(device, &layer->projection, heads_gradient, projection,
                        out_operand(activations), accumulate));
    TRY(device->ops->attention_backward(device, &op));
    TRY(narrow_make_gradient(device, &activations->qkv_gradient, qkv_gradient,
                             layer->qkv.bias_gradient, accumulate));
    return linear_backward(device, &layer->qkv, in_gradient,
                           (struct linear_operand){qkv_gradient, &activations->qkv_gradient}, in,
                           accumulate);
}

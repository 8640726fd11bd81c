/* Head, softmax and cross-entropy, chunk by chunk. */
#include "layers/loss.h"

#include "base/checked.h"

enum status loss_layer_run(struct device *device, const struct loss_layer *layer,
                           const struct loss_request *request) {
    const bool backward = request->in_gradient.data != NULL;
    const size_t tokens = request->in.rows;
    for (size_t first = 0; first < tokens; first += layer->logits.rows) {
        const size_t rows = size_min(layer->logits.rows, tokens - first);
        const struct tensor logits = tensor_rows(layer->logits, 0, rows);
        const struct tensor in = tensor_rows(request->in, first, rows);
        const struct narrow narrow_in = narrow_rows(&layer->in, rows);
        const struct narrow narrow_gradient = narrow_rows(&layer->logits_gradient, rows);
        const struct linear_operand operand = {in, &narrow_in};
        const struct cross_entropy op = {
            .logits = logits,
            .targets = request->targets + first,
            .losses = request->losses + first,
            .vocabulary = layer->vocabulary,
            .write_gradient = backward,
            .gradient_scale = request->gradient_scale,
            .loss_scale = request->loss_scale,
            .quantise = backward ? narrow_output(&narrow_gradient) : (struct quantise_output){0},
        };
        TRY(narrow_make(device, &narrow_in, in, false));
        TRY(linear_forward(device, &layer->head, logits, operand));
        TRY(device->ops->cross_entropy(device, &op));
        if (!backward) continue;
        TRY(narrow_make(device, &narrow_gradient, logits, true));
        TRY(linear_backward(device, &layer->head, tensor_rows(request->in_gradient, first, rows),
                            (struct linear_operand){logits, &narrow_gradient}, operand,
                            request->accumulate || first > 0));
    }
    return STATUS_OK;
}

/* Copies of tensors for linears in narrow recipes. */
#include "layers/narrow.h"

struct narrow narrow_rows(const struct narrow *tensor, size_t rows) {
    struct narrow some = *tensor;
    some.copies.row.rows = rows;
    some.copies.transposed.columns = rows;
    return some;
}

/* The operation that makes the tensor writes the copies: it knows the scale. */
static bool fused(const struct narrow *tensor) {
    return narrow_active(tensor) && tensor->form.mode == SCALE_TENSOR &&
           tensor->scaling == SCALING_DELAYED;
}

static bool wants_amax(const struct narrow *tensor) {
    return narrow_active(tensor) && tensor->form.mode == SCALE_TENSOR &&
           tensor->scaling == SCALING_CURRENT;
}

struct quantise_output narrow_output(const struct narrow *tensor) {
    return (struct quantise_output){
        .copies = fused(tensor) ? &tensor->copies : NULL,
        .amax = wants_amax(tensor) ? tensor->copies.row.state : NULL,
    };
}

struct tensor narrow_values(const struct narrow *tensor, struct tensor values) {
    if (fused(tensor) && !tensor->keep_values) values.data = NULL;
    return values;
}

struct quantise narrow_quantise(const struct narrow *tensor, struct tensor values,
                                bool after_output) {
    return (struct quantise){
        .out = tensor->copies,
        .in = values,
        .scaling = tensor->scaling,
        .amax_known = after_output && wants_amax(tensor),
        .square = tensor->form.square,
        .hadamard = tensor->form.hadamard,
        .stochastic = tensor->form.stochastic,
        .seed = tensor->seed,
        .tensor = tensor->number,
    };
}

enum status narrow_make(struct device *device, const struct narrow *tensor, struct tensor values,
                        bool after_output) {
    if (!narrow_active(tensor) || (after_output && fused(tensor))) return STATUS_OK;
    const struct quantise op = narrow_quantise(tensor, values, after_output);
    return device->ops->quantise(device, &op, 1);
}

enum status narrow_make_gradient(struct device *device, const struct narrow *tensor,
                                 struct tensor values, float *bias_gradient, bool accumulate) {
    if (!narrow_active(tensor)) return STATUS_OK;
    struct quantise op = narrow_quantise(tensor, values, false);
    op.bias_gradient = bias_gradient;
    op.accumulate = accumulate;
    return device->ops->quantise(device, &op, 1);
}

/* The three GEMMs of a linear layer: fprop, dgrad, wgrad. */
#include "layers/linear.h"

static bool multiplies_copies(const struct linear_operand *operand) {
    return operand->narrow != NULL && narrow_active(operand->narrow);
}

enum status linear_forward(struct device *device, const struct linear *layer, struct tensor out,
                           struct linear_operand in) {
    const struct tensor *bias = layer->bias.data != NULL ? &layer->bias : NULL;
    if (multiplies_copies(&in)) {
        const struct quantised_gemm fprop = {
            .c = out, .a = in.narrow->copies.row, .b = layer->narrow_weight.copies.row,
            .fast = layer->fast_fprop, .bias = bias,
        };
        return device->ops->quantised_gemm(device, &fprop);
    }
    const struct gemm fprop = {
        .c = out, .a = in.values, .b = layer->weight, .transpose_b = true, .bias = bias,
    };
    return device->ops->gemm(device, &fprop);
}

static struct tensor weight_gradient(const struct linear *layer) {
    return tensor_make(layer->weight_gradient, DTYPE_F32, layer->weight.rows,
                       layer->weight.columns);
}

static enum status backward_on_copies(struct device *device, const struct linear *layer,
                                      struct tensor in_gradient,
                                      const struct quantised *out_gradient,
                                      const struct quantised *in, bool accumulate) {
    const struct quantised_gemm dgrad = {
        .c = in_gradient, .a = out_gradient->row, .b = layer->narrow_weight.copies.transposed,
    };
    const struct quantised_gemm wgrad = {
        .c = weight_gradient(layer), .a = out_gradient->transposed, .b = in->transposed,
        .accumulate = accumulate,
    };
    TRY(device->ops->quantised_gemm(device, &dgrad));
    return device->ops->quantised_gemm(device, &wgrad);
}

enum status linear_backward(struct device *device, const struct linear *layer,
                            struct tensor in_gradient, struct linear_operand out_gradient,
                            struct linear_operand in, bool accumulate) {
    if (multiplies_copies(&out_gradient)) {
        return backward_on_copies(device, layer, in_gradient, &out_gradient.narrow->copies,
                                  &in.narrow->copies, accumulate);
    }
    const struct gemm dgrad = {.c = in_gradient, .a = out_gradient.values, .b = layer->weight};
    const struct gemm wgrad = {
        .c = weight_gradient(layer),
        .a = out_gradient.values,
        .transpose_a = true,
        .b = in.values,
        .accumulate = accumulate,
    };
    TRY(device->ops->gemm(device, &dgrad));
    TRY(device->ops->gemm(device, &wgrad));
    if (layer->bias.data != NULL) {
        const struct bias_backward bias = {
            .bias_gradient = layer->bias_gradient, .out_gradient = out_gradient.values,
            .accumulate = accumulate,
        };
        TRY(device->ops->bias_backward(device, &bias));
    }
    return STATUS_OK;
}

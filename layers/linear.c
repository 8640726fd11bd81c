/* The three GEMMs of a linear layer: fprop, dgrad, wgrad. */
#include "layers/linear.h"

enum status linear_forward(struct device *device, const struct linear *layer, struct tensor out,
                           struct tensor in) {
    const struct gemm fprop = {
        .c = out, .a = in, .b = layer->weight, .transpose_b = true,
        .bias = layer->bias.data != NULL ? &layer->bias : NULL,
    };
    return device->ops->gemm(device, &fprop);
}

enum status linear_backward(struct device *device, const struct linear *layer,
                            struct tensor in_gradient, struct tensor out_gradient, struct tensor in,
                            bool accumulate) {
    const struct gemm dgrad = {.c = in_gradient, .a = out_gradient, .b = layer->weight};
    const struct gemm wgrad = {
        .c = tensor_make(layer->weight_gradient, DTYPE_F32, layer->weight.rows,
                         layer->weight.columns),
        .a = out_gradient,
        .transpose_a = true,
        .b = in,
        .accumulate = accumulate,
    };
    TRY(device->ops->gemm(device, &dgrad));
    TRY(device->ops->gemm(device, &wgrad));
    if (layer->bias.data != NULL) {
        const struct bias_backward bias = {
            .bias_gradient = layer->bias_gradient, .out_gradient = out_gradient,
            .accumulate = accumulate,
        };
        TRY(device->ops->bias_backward(device, &bias));
    }
    return STATUS_OK;
}

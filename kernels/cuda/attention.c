/*
 * Which attention runs: cuDNN for BF16 and FP16, the own kernels of attention_simple.cu for FP32
 * and where there is no cuDNN, which device.note says. Plans are built when the scratch memory
 * is measured.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "kernels/cuda/attention_cudnn.h"
#include "kernels/cuda/cuda.h"

struct attention_service {
    struct cudnn_attention *cudnn; /* NULL: own kernels */
    bool deterministic;
};

enum status attention_service_open(struct device *device) {
    struct attention_service *service = calloc(1, sizeof *service);
    char why[CUDNN_WHY_BYTES] = "";
    if (service == NULL) return status_set(STATUS_MEMORY, "out of host memory for attention");
    backend_of(device)->attention = service;
    /* Bits that repeat cost 1 % of a step; only who asks by name gives them up. */
    const char *fast = getenv("DEEPWELL_ATTENTION_BACKWARD");
    service->deterministic = fast == NULL || strcmp(fast, "fast") != 0;
    TRY(cudnn_attention_open(&service->cudnn, backend_of(device)->stream, why));
    if (service->cudnn == NULL) {
        snprintf(device->note, sizeof device->note,
                 "attention in bf16 and fp16 runs on own kernels, some "
                 "ten times slower than cuDNN's: %s",
                 why);
    } else if (!service->deterministic) {
        snprintf(device->note, sizeof device->note,
                 "attention's backward pass is not deterministic "
                 "(DEEPWELL_ATTENTION_BACKWARD=fast)");
    }
    return STATUS_OK;
}

void attention_service_close(struct attention_service *service) {
    if (service == NULL) return;
    cudnn_attention_close(service->cudnn);
    free(service);
}

/* Width times heads, and whether cuDNN takes these heads: multiples of 8 numbers (16 bytes). */
static bool on_cudnn(const struct device *device, enum dtype dtype, size_t head_width) {
    const struct attention_service *service = backend_of(device)->attention;
    return service->cudnn != NULL && dtype != DTYPE_F32 && head_width % 8 == 0;
}

static struct cudnn_attention_shape shape_of(const struct device *device, size_t batch,
                                             size_t length, size_t heads, size_t head_width,
                                             enum dtype dtype, bool backward) {
    return (struct cudnn_attention_shape){
        .batch = batch,
        .sequence_length = length,
        .heads = heads,
        .head_width = head_width,
        .dtype = dtype,
        .backward = backward,
        .deterministic = backend_of(device)->attention->deterministic,
    };
}

/* A shape that cuDNN refuses is refused again, with its reason, when the operation is asked for. */
size_t cuda_attention_scratch_bytes(const struct device *device, const struct op_limits *limits) {
    const size_t own = limits->tokens * limits->heads * sizeof(float);
    const size_t length = limits->sequence_length;
    if (!on_cudnn(device, limits->dtype, limits->head_width) || limits->tokens < length ||
        limits->tokens % length != 0) {
        return own;
    }
    size_t most = own;
    for (int backward = 0; backward < 2; backward++) {
        const struct cudnn_attention_shape shape = shape_of(device, limits->tokens / length, length,
                                                            limits->heads, limits->head_width,
                                                            limits->dtype, backward == 1);
        size_t bytes = 0;
        if (cudnn_attention_plan(backend_of(device)->attention->cudnn, &shape, &bytes) ==
            STATUS_OK) {
            most = size_max(most, bytes);
        }
    }
    return most;
}

static enum status run_cudnn(struct device *device, const char *name,
                             const struct cudnn_attention_shape *shape,
                             struct cudnn_attention_data *data) {
    struct cudnn_attention *cudnn = backend_of(device)->attention->cudnn;
    size_t bytes = 0;
    TRY(cudnn_attention_plan(cudnn, shape, &bytes));
    TRY(cuda_scratch(device, name, bytes));
    data->workspace = device->scratch;
    data->workspace_bytes = device->scratch_bytes;
    return cudnn_attention_run(cudnn, shape, data);
}

enum status cuda_attention_forward(struct device *device, const struct attention_forward *op) {
    const char *const name = "attention_forward";
    const size_t rows = op->batch * op->sequence_length, columns = op->out.columns;
    const size_t head_width = op->heads == 0 ? 0 : columns / op->heads;
    if (!on_cudnn(device, op->out.dtype, head_width)) return simple_attention_forward(device, op);
    TRY(cuda_shape(name, "out", op->out, op->out.dtype, rows, op->heads * head_width));
    TRY(cuda_shape(name, "qkv", op->qkv, op->out.dtype, rows, 3 * columns));
    const struct cudnn_attention_shape shape = shape_of(device, op->batch, op->sequence_length,
                                                        op->heads, head_width, op->out.dtype,
                                                        false);
    struct cudnn_attention_data data = {
        .qkv = op->qkv.data,
        .out = op->out.data,
        .log_sum_exp = op->log_sum_exp,
    };
    return run_cudnn(device, name, &shape, &data);
}

enum status cuda_attention_backward(struct device *device, const struct attention_backward *op) {
    const char *const name = "attention_backward";
    const size_t rows = op->batch * op->sequence_length, columns = op->out.columns;
    const size_t head_width = op->heads == 0 ? 0 : columns / op->heads;
    if (!on_cudnn(device, op->out.dtype, head_width)) return simple_attention_backward(device, op);
    TRY(cuda_shape(name, "out", op->out, op->out.dtype, rows, op->heads * head_width));
    TRY(cuda_shape(name, "qkv", op->qkv, op->out.dtype, rows, 3 * columns));
    TRY(cuda_shape(name, "qkv_gradient", op->qkv_gradient, op->out.dtype, rows, 3 * columns));
    TRY(cuda_shape(name, "out_gradient", op->out_gradient, op->out.dtype, rows, columns));
    const struct cudnn_attention_shape shape = shape_of(device, op->batch, op->sequence_length,
                                                        op->heads, head_width, op->out.dtype, true);
    float *log_sum_exp = NULL; /* the frontend takes no const */
    memcpy(&log_sum_exp, &op->log_sum_exp, sizeof log_sum_exp);
    struct cudnn_attention_data data = {
        .qkv = op->qkv.data,
        .out = op->out.data,
        .log_sum_exp = log_sum_exp,
        .out_gradient = op->out_gradient.data,
        .qkv_gradient = op->qkv_gradient.data,
    };
    return run_cudnn(device, name, &shape, &data);
}

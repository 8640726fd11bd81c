/*
 * Which attention runs: cuDNN for BF16 and FP16, the own kernels of attention_simple.cu for FP32
 * and where options.own_attention asks for them. Without cuDNN, and for a shape that cuDNN refuses,
 * the two-byte formats are refused: the own kernels are ten times slower. Plans are built when
 * limits are checked.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "kernels/cuda/attention_cudnn.h"
#include "kernels/cuda/cuda.h"

struct attention_service {
    struct cudnn_attention *cudnn; /* NULL: none, for the reason in `why` */
    bool own;                      /* own kernels in every format */
    bool deterministic;
    char why[CUDNN_WHY_BYTES];
};

enum status attention_service_open(struct device *device) {
    const struct device_options *options = &backend_of(device)->options;
    struct attention_service *service = calloc(1, sizeof *service);
    if (service == NULL) return status_set(STATUS_MEMORY, "out of host memory for attention");
    backend_of(device)->attention = service;
    service->deterministic = !options->attention_any_order;
    service->own = options->own_attention;
    if (service->own) return STATUS_OK;
    TRY(cudnn_attention_open(&service->cudnn, backend_of(device)->stream, service->why));
    if (service->cudnn == NULL) {
        cuda_note(device, "no attention in bf16 and fp16: %s", service->why);
    } else if (!service->deterministic) {
        cuda_note(device, "not deterministic: attention's backward pass in bf16 and fp16 adds in "
                          "any order (attention.backward = fast)");
    }
    return STATUS_OK;
}

void attention_service_close(struct attention_service *service) {
    if (service == NULL) return;
    cudnn_attention_close(service->cudnn);
    free(service);
}

/* FP32 has own kernels only. */
static bool on_cudnn(const struct device *device, enum dtype dtype) {
    return !backend_of(device)->attention->own && dtype != DTYPE_F32;
}

static enum status need_cudnn(const struct device *device, enum dtype dtype) {
    const struct attention_service *service = backend_of(device)->attention;
    if (service->cudnn != NULL) return STATUS_OK;
    return status_set(STATUS_DEVICE,
                      "attention in %s on a GPU runs on cuDNN, the own kernels being ten times "
                      "slower: %s; or set precision.recipe = fp32",
                      dtype_name(dtype), service->why);
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

/* Whole sequences pass through attention; else the limits are those of generation, whose attention
 * over caches is an own kernel. */
static bool whole_sequences(const struct op_limits *limits) {
    return limits->tokens >= limits->sequence_length &&
           limits->tokens % limits->sequence_length == 0;
}

static struct cudnn_attention_shape shape_of_limits(const struct device *device,
                                                    const struct op_limits *limits, bool backward) {
    return shape_of(device, limits->tokens / limits->sequence_length, limits->sequence_length,
                    limits->heads, limits->head_width, limits->dtype, backward);
}

static enum status check_own(const struct device *device, const struct op_limits *limits,
                             bool backward) {
    const size_t batch = whole_sequences(limits) ? limits->tokens / limits->sequence_length : 1;
    if (limits->head_width > ATTENTION_WIDTH_MAX || limits->heads * batch > ATTENTION_HEADS_MAX) {
        return status_set(STATUS_DEVICE,
                          "expected at most %d columns a head and %d heads in all sequences "
                          "together for attention in %s, found %zu columns, %zu heads in %zu "
                          "sequences: change model.heads, or lower train.micro_batch",
                          ATTENTION_WIDTH_MAX, ATTENTION_HEADS_MAX, dtype_name(limits->dtype),
                          limits->head_width, limits->heads, batch);
    }
    const size_t wanted = simple_attention_shared_bytes(limits->head_width, backward);
    if (wanted <= backend_of(device)->shared_bytes) return STATUS_OK;
    return status_set(STATUS_DEVICE,
                      "attention in %s with heads of %zu columns needs %zu bytes of shared memory "
                      "a block, %s has %zu: raise model.heads",
                      dtype_name(limits->dtype), limits->head_width, wanted, device->name,
                      backend_of(device)->shared_bytes);
}

enum status cuda_attention_check(const struct device *device, const struct op_limits *limits,
                                 bool backward) {
    if (!on_cudnn(device, limits->dtype) || !whole_sequences(limits)) {
        return check_own(device, limits, backward);
    }
    TRY(need_cudnn(device, limits->dtype));
    if (limits->head_width % 8 != 0) { /* cuDNN loads 16 bytes at a time */
        return status_set(STATUS_DEVICE,
                          "expected heads of a multiple of 8 columns for attention in %s on a GPU, "
                          "found %zu heads of %zu: change model.heads, or set precision.recipe = "
                          "fp32, which has a kernel for any width",
                          dtype_name(limits->dtype), limits->heads, limits->head_width);
    }
    for (int pass = 0; pass < (backward ? 2 : 1); pass++) {
        const struct cudnn_attention_shape shape = shape_of_limits(device, limits, pass == 1);
        size_t bytes = 0;
        TRY(cudnn_attention_plan(backend_of(device)->attention->cudnn, &shape, &bytes));
    }
    return STATUS_OK;
}

/* Only what the check built counts: a plan of a pass that nobody runs takes seconds to build. */
size_t cuda_attention_scratch_bytes(const struct device *device, const struct op_limits *limits) {
    const struct cudnn_attention *cudnn = backend_of(device)->attention->cudnn;
    size_t most = limits->tokens * limits->heads * sizeof(float);
    if (cudnn == NULL || !on_cudnn(device, limits->dtype) || !whole_sequences(limits)) return most;
    for (int pass = 0; pass < 2; pass++) {
        const struct cudnn_attention_shape shape = shape_of_limits(device, limits, pass == 1);
        most = size_max(most, cudnn_attention_workspace_bytes(cudnn, &shape));
    }
    return most;
}

static enum status run_cudnn(struct device *device, const char *name,
                             const struct cudnn_attention_shape *shape,
                             struct cudnn_attention_data *data) {
    struct cudnn_attention *cudnn = backend_of(device)->attention->cudnn;
    size_t bytes = 0;
    TRY(need_cudnn(device, shape->dtype));
    TRY(cudnn_attention_plan(cudnn, shape, &bytes));
    TRY(cuda_attention_scratch(device, name, bytes));
    data->workspace = device->scratch;
    data->workspace_bytes = device->attention_scratch_bytes;
    return cudnn_attention_run(cudnn, shape, data);
}

enum status cuda_attention_forward(struct device *device, const struct attention_forward *op) {
    const char *const name = "attention_forward";
    const size_t rows = op->batch * op->sequence_length, columns = op->out.columns;
    const size_t head_width = op->heads == 0 ? 0 : columns / op->heads;
    if (!on_cudnn(device, op->out.dtype)) return simple_attention_forward(device, op);
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
    if (!on_cudnn(device, op->out.dtype)) return simple_attention_backward(device, op);
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

/* Quantisation errors of a step, measured where they are made. */
#include "train/quantise_probe.h"

#include <math.h>
#include <stdlib.h>

/* A row copy and what it was made from, in host memory. */
struct copied {
    void *values, *codes, *scales;
    struct scale_state state;
};

static enum status download(struct device *device, const void *from, size_t bytes, void **out) {
    *out = malloc(bytes > 0 ? bytes : 1);
    if (*out == NULL) return status_set(STATUS_MEMORY, "out of memory for a copy of a tensor");
    return bytes == 0 ? STATUS_OK : device_download(device, *out, from, bytes);
}

static enum status copy_to_host(struct device *device, const struct quantise *op,
                                struct copied *c) {
    const struct operand *row = &op->out.row;
    TRY(download(device, op->in.data, tensor_bytes(op->in), &c->values));
    TRY(download(device, row->codes, operand_code_bytes(row), &c->codes));
    TRY(download(device, row->scales, operand_scale_bytes(row), &c->scales));
    if (row->state == NULL) return STATUS_OK;
    return device_download(device, &c->state, row->state, sizeof c->state);
}

static float value_at(const struct copied *c, enum dtype dtype, size_t i) {
    switch (dtype) {
    case DTYPE_F32: return ((const float *)c->values)[i];
    case DTYPE_BF16: return float_from_bf16(((const uint16_t *)c->values)[i]);
    case DTYPE_F16: return float_from_f16(((const uint16_t *)c->values)[i]);
    }
    return NAN;
}

static float scale_at(const struct copied *c, const struct operand *o, size_t row, size_t column) {
    const size_t at = scale_index(o->mode, o->rows, o->columns, row, column);
    switch (o->mode) {
    case SCALE_TENSOR: return c->state.inverse;
    case SCALE_1X128:
    case SCALE_128X128: return ((const float *)c->scales)[at];
    case SCALE_MX: return float_from_ue8m0(((const uint8_t *)c->scales)[at]);
    case SCALE_NV: return float_from_e4m3(((const uint8_t *)c->scales)[at]) * c->state.inverse;
    }
    return NAN;
}

static void add_errors(const struct copied *c, const struct quantise *op,
                       struct quantise_error *error) {
    const struct operand *o = &op->out.row;
    const float largest = format_max(o->format);
    for (size_t row = 0; row < o->rows; row++) {
        for (size_t column = 0; column < o->columns; column++) {
            const size_t i = row * o->columns + column;
            const uint8_t *codes = c->codes;
            const uint8_t code = (uint8_t)(o->format == FORMAT_E2M1
                                               ? codes[i / 2] >> (i % 2 * 4) & 0xF : codes[i]);
            const float decoded = format_decode(o->format, code), x = value_at(c, op->in.dtype, i);
            const double d = (double)decoded * (double)scale_at(c, o, row, column) - (double)x;
            error->difference += d * d;
            error->size += (double)x * (double)x;
            error->saturated += fabsf(decoded) == largest;
            error->zeroed += decoded == 0.0f && x != 0.0f;
        }
    }
    error->numbers += o->rows * o->columns;
}

static enum status measure(struct quantise_probe *probe, struct device *device,
                           const struct quantise *op) {
    struct copied copied = {0};
    if (op->tensor >= probe->count || op->out.row.codes == NULL) return STATUS_OK;
    const enum status status = copy_to_host(device, op, &copied);
    if (status == STATUS_OK) add_errors(&copied, op, &probe->tensors[op->tensor]);
    free(copied.values);
    free(copied.codes);
    free(copied.scales);
    return status;
}

static enum status probed_quantise(struct device *device, const struct quantise *ops,
                                   size_t count) {
    struct quantise_probe *probe = device->interposed;
    TRY(probe->own->quantise(device, ops, count));
    for (size_t i = 0; i < count; i++) TRY(measure(probe, device, &ops[i]));
    return STATUS_OK;
}

enum status quantise_probe_attach(struct quantise_probe *probe, struct engine *engine) {
    *probe = (struct quantise_probe){.own = engine->device.ops, .ops = *engine->device.ops};
    probe->count = gpt_scale_count(&engine->gpt) / 2;
    probe->tensors = calloc(probe->count, sizeof *probe->tensors);
    if (probe->tensors == NULL) return status_set(STATUS_MEMORY, "out of memory for a probe");
    probe->ops.quantise = probed_quantise;
    engine->device.ops = &probe->ops;
    engine->device.interposed = probe;
    return STATUS_OK;
}

void quantise_probe_detach(struct quantise_probe *probe, struct engine *engine) {
    engine->device.ops = probe->own;
    engine->device.interposed = NULL;
}

void quantise_probe_close(struct quantise_probe *probe) {
    free(probe->tensors);
    *probe = (struct quantise_probe){0};
}

void quantise_error_add(struct quantise_error *to, const struct quantise_error *error) {
    to->difference += error->difference;
    to->size += error->size;
    to->numbers += error->numbers;
    to->saturated += error->saturated;
    to->zeroed += error->zeroed;
}

double quantise_error_relative(const struct quantise_error *error) {
    return error->size > 0.0 ? sqrt(error->difference / error->size) : 0.0;
}

/*
 * GEMMs of quantised operands: natively through cuBLASLt where the device multiplies their scale
 * mode, else emulated: operands are expanded to BF16, which holds them exactly as kernels/ops.h
 * says, and multiplied by the plain GEMM under the tensors' scales. The 128 modes' FP32 scales do
 * not fit BF16: no emulation.
 */
#include <limits.h>

#include "base/checked.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/quantise.h"

/* Of an expanded `a` at a time: rows enough to fill the GPU. `b` is expanded whole. */
static const size_t expanded_bytes_max = (size_t)512 << 20;
enum { ALIGNMENT = 256 };

/* cuBLASLt's table of scale modes by compute capability ("Narrow precision data types usage"). */
enum support cuda_scale_support(const struct device *device, enum scale_mode mode) {
    const struct cuda_backend *backend = backend_of(device);
    const int capability = backend->capability;
    switch (mode) {
    case SCALE_TENSOR:
        return capability >= 89 ? SUPPORT_NATIVE : SUPPORT_EMULATED;
    case SCALE_1X128:
    case SCALE_128X128:
        return capability == 90 ? SUPPORT_NATIVE : SUPPORT_NONE;
    case SCALE_MX:
    case SCALE_NV:
        return capability >= 100 ? SUPPORT_NATIVE : SUPPORT_EMULATED;
    }
    return SUPPORT_NONE;
}

static bool scales_match(enum scale_mode a, enum scale_mode b) {
    const bool wide_a = a == SCALE_1X128 || a == SCALE_128X128;
    const bool wide_b = b == SCALE_1X128 || b == SCALE_128X128;
    if (wide_a && wide_b) return a == SCALE_1X128 || b == SCALE_1X128;
    return a == b;
}

static bool scales_there(const struct operand *o) {
    if (o->mode == SCALE_TENSOR) return o->state != NULL;
    return o->scales != NULL && (o->mode == SCALE_NV) == (o->state != NULL);
}

static enum status check(const struct quantised_gemm *op) {
    const struct operand *a = &op->a, *b = &op->b;
    const bool formats = (a->format == FORMAT_E2M1) == (b->format == FORMAT_E2M1) &&
                         !(a->format == FORMAT_E5M2 && b->format == FORMAT_E5M2);
    const bool shapes = a->columns == b->columns && op->c.rows == a->rows &&
                        op->c.columns == b->rows && a->columns > 0 && a->rows > 0 && b->rows > 0 &&
                        size_max(size_max(a->rows, b->rows), a->columns) <= INT_MAX;
    const bool result = op->c.dtype == DTYPE_BF16 || op->c.dtype == DTYPE_F32;
    const bool bias = op->bias == NULL ||
                      (tensor_count(*op->bias) == b->rows && op->bias->dtype == op->c.dtype);
    if (formats && shapes && result && bias && scales_match(a->mode, b->mode) && a->codes != NULL &&
        b->codes != NULL && scales_there(a) && scales_there(b)) {
        return STATUS_OK;
    }
    return status_set(
        STATUS_INTERNAL,
        "quantised_gemm: (%zu, %zu) of %s, %s by (%zu, %zu) of %s, %s into (%zu, %zu) "
        "of %s, bias %s",
        a->rows, a->columns, format_name(a->format), scale_mode_name(a->mode), b->rows, b->columns,
        format_name(b->format), scale_mode_name(b->mode), op->c.rows, op->c.columns,
        dtype_name(op->c.dtype), op->bias == NULL ? "none" : dtype_name(op->bias->dtype));
}

static struct gemm_operand narrow_operand(const struct operand *o) {
    return (struct gemm_operand){
        .data = o->codes,
        .rows = o->rows,
        .columns = o->columns,
        .kind = gemm_narrow_kind(o->format, o->mode),
        .scales = o->mode == SCALE_TENSOR ? (const void *)&o->state->inverse : o->scales,
    };
}

/* Behind what GEMMs and their check use of scratch memory. */
static float *alpha_place(const struct device *device) {
    return (float *)(void *)((char *)device->scratch +
                             align_up(cuda_gemm_scratch_bytes(), ALIGNMENT));
}

/* Where the operands of emulated products are expanded begins here. */
static size_t fixed_bytes(void) {
    return align_up(cuda_gemm_scratch_bytes(), ALIGNMENT) + ALIGNMENT;
}

static bool emulates_one(const struct device *device, unsigned scale_modes) {
    for (int mode = SCALE_TENSOR; mode <= SCALE_NV; mode++) {
        if ((scale_modes & 1u << mode) != 0 &&
            cuda_scale_support(device, (enum scale_mode)mode) == SUPPORT_EMULATED) {
            return true;
        }
    }
    return false;
}

size_t cuda_quantised_gemm_scratch_bytes(const struct device *device,
                                         const struct op_limits *limits) {
    const size_t number_bytes = dtype_bytes(DTYPE_BF16);
    if (!emulates_one(device, limits->scale_modes)) return fixed_bytes();
    return fixed_bytes() + align_up(limits->quantised_b * number_bytes, ALIGNMENT) +
           size_min(limits->quantised_a * number_bytes, expanded_bytes_max);
}

static enum status set_alpha(struct device *device, const struct quantised_gemm *op,
                             const float **alpha_beta) {
    TRY(cuda_scratch(device, "quantised_gemm", fixed_bytes()));
    *alpha_beta = alpha_place(device);
    return operand_alpha(device, &op->a, &op->b, op->accumulate ? 1.0f : 0.0f, alpha_place(device));
}

static enum status run_native(struct device *device, const struct quantised_gemm *op) {
    struct gemm_call call = {
        .c = op->c,
        .a = narrow_operand(&op->a),
        .b = narrow_operand(&op->b),
        .transpose_b = true,
        .accumulate = op->accumulate,
        .fast = op->fast && op->a.mode == SCALE_TENSOR,
        .bias = op->bias,
    };
    if (op->a.mode == SCALE_NV) TRY(set_alpha(device, op, &call.alpha_beta));
    return gemm_call_run(device, &call);
}

static enum status run_emulated(struct device *device, const struct quantised_gemm *op) {
    const enum dtype dtype = DTYPE_BF16;
    const size_t k = op->a.columns, row_bytes = k * dtype_bytes(dtype);
    const size_t most = size_max(1, expanded_bytes_max / row_bytes);
    const size_t part = size_min(op->a.rows, most);
    const size_t b_bytes = align_up(op->b.rows * row_bytes, ALIGNMENT);
    char *room = (char *)device->scratch + fixed_bytes();
    TRY(cuda_scratch(device, "quantised_gemm", fixed_bytes() + b_bytes + part * row_bytes));
    const struct tensor b = tensor_make(room, dtype, op->b.rows, k);
    struct gemm_call call = {
        .b = gemm_plain_operand(b),
        .transpose_b = true,
        .accumulate = op->accumulate,
        .bias = op->bias,
    };
    TRY(set_alpha(device, op, &call.alpha_beta));
    TRY(operand_expand(device, &op->b, 0, op->b.rows, b));
    for (size_t first = 0; first < op->a.rows; first += part) {
        const size_t rows = size_min(part, op->a.rows - first);
        const struct tensor a = tensor_make(room + b_bytes, dtype, rows, k);
        char *c = (char *)op->c.data + first * op->c.columns * dtype_bytes(op->c.dtype);
        TRY(operand_expand(device, &op->a, first, rows, a));
        call.a = gemm_plain_operand(a);
        call.c = tensor_make(c, op->c.dtype, rows, op->c.columns);
        TRY(gemm_call_run(device, &call));
    }
    return STATUS_OK;
}

enum status cuda_quantised_gemm(struct device *device, const struct quantised_gemm *op) {
    TRY(check(op));
    switch (cuda_scale_support(device, op->a.mode)) {
    case SUPPORT_NATIVE:
        return run_native(device, op);
    case SUPPORT_EMULATED:
        return run_emulated(device, op);
    case SUPPORT_NONE:
        break;
    }
    return status_set(STATUS_DEVICE,
                      "%s does not multiply operands of scale mode %s: choose "
                      "another precision.recipe",
                      device->name, scale_mode_name(op->a.mode));
}

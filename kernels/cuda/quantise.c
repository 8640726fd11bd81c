/* Checks of what is to be quantised, and which kernels do it. Behind kernels/cuda/quantise.h. */
#include "kernels/cuda/quantise.h"

#include "base/checked.h"

/* Kernels with scales of blocks: a tile of 128 rows for each block in y, of which a grid has
 * 65535. */
static const size_t BLOCK_ROWS_MAX = 65535 * (size_t)128;

static enum status check_copy(const struct quantise *op, const struct operand *o, bool transposed) {
    const size_t rows = transposed ? op->in.columns : op->in.rows;
    const size_t columns = transposed ? op->in.rows : op->in.columns;
    const size_t block = scale_block(o->mode);
    const bool packed = o->mode == SCALE_MX || o->mode == SCALE_NV;
    const bool scaled = o->mode == SCALE_TENSOR || o->mode == SCALE_NV;
    if (o->rows == rows && o->columns == columns && rows % COPY_UNIT == 0 &&
        columns % COPY_UNIT == 0 && (!packed || columns % block == 0) &&
        (o->mode == SCALE_NV) == (o->format == FORMAT_E2M1) && (scaled ? o->state != NULL : true) &&
        (o->mode == SCALE_TENSOR || o->scales != NULL)) {
        return STATUS_OK;
    }
    return status_set(STATUS_INTERNAL,
                      "quantise: (%zu, %zu) into a%s copy (%zu, %zu) of %s, %s: expected multiples "
                      "of %d",
                      op->in.rows, op->in.columns, transposed ? " transposed" : "", o->rows,
                      o->columns, format_name(o->format), scale_mode_name(o->mode), COPY_UNIT);
}

static enum scale_mode mode_of(const struct quantise *op) {
    return op->out.row.codes != NULL ? op->out.row.mode : op->out.transposed.mode;
}

static enum status check_op(const struct quantise *op) {
    const struct operand *row = &op->out.row, *transposed = &op->out.transposed;
    if (row->codes != NULL) TRY(check_copy(op, row, false));
    if (transposed->codes != NULL) TRY(check_copy(op, transposed, true));
    const bool both = row->codes != NULL && transposed->codes != NULL;
    const bool alike = !both ||
                       (row->mode == transposed->mode && row->format == transposed->format &&
                        (row->mode != SCALE_TENSOR || row->state == transposed->state));
    if (op->in.data != NULL && alike && (row->codes != NULL || transposed->codes != NULL)) {
        return STATUS_OK;
    }
    return status_set(STATUS_INTERNAL, "quantise: two copies of (%zu, %zu) in %s, %s and %s, %s",
                      op->in.rows, op->in.columns, format_name(row->format),
                      scale_mode_name(row->mode), format_name(transposed->format),
                      scale_mode_name(transposed->mode));
}

/* How many from the first on one launch can do. */
static size_t run_length(const struct quantise *ops, size_t count) {
    const size_t most = size_min(count, quantise_tensors_most());
    size_t length = 1;
    while (length < most && ops[length - 1].bias_gradient == NULL &&
           mode_of(&ops[length]) == SCALE_TENSOR && ops[length].in.dtype == ops[0].in.dtype) {
        length++;
    }
    return length;
}

static enum status quantise_one_in_blocks(struct device *device, const struct quantise *op) {
    if (op->in.rows > BLOCK_ROWS_MAX) {
        return status_set(STATUS_INTERNAL, "quantise: %zu rows, expected at most %zu", op->in.rows,
                          BLOCK_ROWS_MAX);
    }
    TRY(mode_of(op) == SCALE_1X128 && op->in.dtype == DTYPE_BF16 ? quantise_128(device, op)
                                                                 : quantise_blocks(device, op));
    if (op->bias_gradient == NULL) return STATUS_OK;
    const struct bias_backward bias = {
        .bias_gradient = op->bias_gradient,
        .out_gradient = op->in,
        .accumulate = op->accumulate,
    };
    return cuda_bias_backward(device, &bias);
}

enum status cuda_quantise(struct device *device, const struct quantise *ops, size_t count) {
    for (size_t i = 0; i < count; i++) TRY(check_op(&ops[i]));
    for (size_t i = 0, length; i < count; i += length) {
        length = mode_of(&ops[i]) == SCALE_TENSOR ? run_length(ops + i, count - i) : 1;
        TRY(mode_of(&ops[i]) == SCALE_TENSOR ? quantise_tensors(device, ops + i, length)
                                             : quantise_one_in_blocks(device, &ops[i]));
    }
    return STATUS_OK;
}

enum status cuda_output_check(const char *operation, const struct quantise_output *output,
                              bool only, enum dtype dtype, size_t rows, size_t columns) {
    const struct quantised *copies = output->copies;
    if (copies == NULL && only) {
        return status_set(STATUS_INTERNAL, "%s: no result is wanted", operation);
    }
    if (copies == NULL && output->amax == NULL) return STATUS_OK;
    const bool fits = dtype == DTYPE_BF16 && rows % COPY_UNIT == 0 && columns % COPY_UNIT == 0;
    if (copies == NULL) {
        if (fits) return STATUS_OK;
        return status_set(STATUS_INTERNAL,
                          "%s: amax of (%zu, %zu) in %s: expected bf16, multiples "
                          "of %d",
                          operation, rows, columns, dtype_name(dtype), COPY_UNIT);
    }
    const struct operand *row = &copies->row, *transposed = &copies->transposed;
    const bool first = row->codes != NULL && row->rows == rows && row->columns == columns &&
                       row->mode == SCALE_TENSOR && row->state != NULL &&
                       row->format != FORMAT_E2M1;
    const bool other = transposed->codes == NULL ||
                       (transposed->rows == columns && transposed->columns == rows &&
                        transposed->mode == SCALE_TENSOR && transposed->format == row->format);
    if (fits && first && other && output->amax == NULL) return STATUS_OK;
    return status_set(STATUS_INTERNAL,
                      "%s: copies (%zu, %zu) of %s, %s for (%zu, %zu) in %s: expected bf16, "
                      "multiples of %d",
                      operation, row->rows, row->columns, format_name(row->format),
                      scale_mode_name(row->mode), rows, columns, dtype_name(dtype), COPY_UNIT);
}

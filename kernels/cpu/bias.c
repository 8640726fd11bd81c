/* Gradient of a bias: column sums. */
#include "base/checked.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"

size_t column_sums_scratch_bytes(const struct op_limits *limits) {
    return buffers_bytes(row_chunks_max(limits->tokens), limits->width);
}

static void bias_backward_chunk(const struct bias_backward *op, struct row_chunk chunk,
                                float *sums) {
    const size_t width = op->out_gradient.columns;
    for (size_t i = 0; i < width; i++) sums[i] = 0.0f;
    for (size_t n = chunk.first; n < chunk.end; n++) {
        for (size_t j = 0; j < width; j += ROW_TILE) {
            float buffer[ROW_TILE];
            const size_t count = size_min(ROW_TILE, width - j);
            row_add(sums + j, row_read(&op->out_gradient, n * width + j, count, buffer), count);
        }
    }
}

enum status cpu_bias_backward(struct device *device, const struct bias_backward *op) {
    const size_t tokens = op->out_gradient.rows, width = op->out_gradient.columns;
    const size_t chunks = row_chunks(tokens);
    struct scratch scratch = scratch_begin(device);
    struct buffers sums = {0};
    TRY(scratch_take(&scratch, "bias_backward", chunks, width, &sums));
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (size_t chunk = 0; chunk < chunks; chunk++) {
        bias_backward_chunk(op, row_chunk_at(tokens, chunk), buffer_at(sums, chunk));
    }
    column_sums_finish(device, &op->bias_gradient, 1, sums, chunks, width, op->accumulate);
    return STATUS_OK;
}

/* The CPU's table of operations, and the scratch and partition helpers that its files share. */
#include <cblas.h>
#include <omp.h>
#include <string.h>

#include "base/checked.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"

/* Every shape that there is memory for. */
static enum status cpu_check(const struct device *device, const struct op_limits *limits,
                             bool backward) {
    (void)device;
    (void)limits;
    (void)backward;
    return STATUS_OK;
}

static size_t cpu_scratch_bytes(const struct device *device, const struct op_limits *limits) {
    size_t bytes = gemm_scratch_bytes(limits);
    bytes = size_max(bytes, norm_scratch_bytes(device->threads, limits));
    bytes = size_max(bytes, column_sums_scratch_bytes(limits));
    return size_max(bytes, attention_scratch_bytes(device->threads, limits));
}

const struct ops cpu_ops = {
    .check = cpu_check,
    .scale_support = cpu_scale_support,
    .scratch_bytes = cpu_scratch_bytes,
    .gemm = cpu_gemm,
    .quantised_gemm = cpu_quantised_gemm,
    .quantise = cpu_quantise,
    .embedding_forward = cpu_embedding_forward,
    .embedding_backward = cpu_embedding_backward,
    .norm_forward = cpu_norm_forward,
    .norm_backward = cpu_norm_backward,
    .attention_forward = cpu_attention_forward,
    .attention_backward = cpu_attention_backward,
    .attention_cached = cpu_attention_cached,
    .gelu_forward = cpu_gelu_forward,
    .gelu_backward = cpu_gelu_backward,
    .bias_backward = cpu_bias_backward,
    .cross_entropy = cpu_cross_entropy,
    .convert = cpu_convert,
    .loss_sum = cpu_loss_sum,
    .gradient_sumsq = cpu_gradient_sumsq,
    .sum_parts = cpu_sum_parts,
    .block_sumsq = cpu_block_sumsq,
    .total_sumsq = cpu_total_sumsq,
    .step_begin = cpu_step_begin,
    .scales_begin = cpu_scales_begin,
    .scales_update = cpu_scales_update,
    .step_decide = cpu_step_decide,
    .adamw = cpu_adamw,
    .stream = cpu_stream,
    .find_nonfinite = cpu_find_nonfinite,
};

enum status cpu_threads_start(int threads) {
    enum { BUILT_ON_OPENMP = 2 };
    if (openblas_get_parallel() != BUILT_ON_OPENMP) {
        return status_set(STATUS_DEVICE,
                          "expected an OpenBLAS built on OpenMP, found %s: install it "
                          "(Debian: libopenblas-openmp-dev)",
                          openblas_get_config());
    }
    omp_set_num_threads(threads);
    openblas_set_num_threads(threads);
    return STATUS_OK;
}

struct scratch scratch_begin(const struct device *device) {
    return (struct scratch){device->scratch, device->scratch_bytes};
}

struct scratch scratch_begin_attention(const struct device *device) {
    return (struct scratch){device->scratch, device->attention_scratch_bytes};
}

static size_t buffer_stride(size_t floats) {
    return align_up(floats, SCRATCH_ALIGNMENT / sizeof(float));
}

size_t buffers_bytes(size_t count, size_t floats) {
    return count * buffer_stride(floats) * sizeof(float);
}

enum status scratch_take(struct scratch *scratch, const char *operation, size_t count,
                         size_t floats, struct buffers *out) {
    const size_t bytes = buffers_bytes(count, floats);
    if (bytes > scratch->left_bytes) {
        return status_set(STATUS_INTERNAL, "%s: %zu bytes of scratch memory wanted, %zu left",
                          operation, bytes, scratch->left_bytes);
    }
    *out = (struct buffers){(float *)(void *)scratch->next, buffer_stride(floats)};
    scratch->next += bytes;
    scratch->left_bytes -= bytes;
    return STATUS_OK;
}

size_t row_chunks_max(size_t rows) { return size_min(CHUNKS_MAX, ceil_div(rows, CHUNK_ROWS)); }

static size_t chunk_rows(size_t rows) { return size_max(CHUNK_ROWS, ceil_div(rows, CHUNKS_MAX)); }

size_t row_chunks(size_t rows) { return ceil_div(rows, chunk_rows(rows)); }

struct row_chunk row_chunk_at(size_t rows, size_t chunk) {
    const size_t first = chunk * chunk_rows(rows);
    return (struct row_chunk){first, size_min(rows, first + chunk_rows(rows))};
}

void column_sums_finish(const struct device *device, float *const *outs, size_t out_count,
                        struct buffers partials, size_t chunks, size_t columns, bool accumulate) {
    enum { TILE = 256 };
    const size_t tiles = ceil_div(columns, TILE);
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (size_t i = 0; i < out_count * tiles; i++) {
        float *out = outs[i / tiles];
        const size_t first = i % tiles * TILE, count = size_min(TILE, columns - first);
        if (out == NULL) continue;
        if (!accumulate) memset(out + first, 0, count * sizeof *out);
        for (size_t chunk = 0; chunk < chunks; chunk++) {
            row_add(out + first, buffer_at(partials, chunk) + i / tiles * columns + first, count);
        }
    }
}

enum status shape_check(const char *operation, const char *what, struct tensor t, size_t rows,
                        size_t columns) {
    if (t.rows == rows && t.columns == columns && t.data != NULL) return STATUS_OK;
    return status_set(STATUS_INTERNAL, "%s: expected %s (%zu, %zu), found (%zu, %zu) at %p",
                      operation, what, rows, columns, t.rows, t.columns, t.data);
}

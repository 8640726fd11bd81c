/*
 * What the files of kernels/cpu share: the entry points that ops.c gathers into a table, the
 * scratch memory, and the fixed partition of rows that makes column sums independent of the number
 * of threads.
 */
#ifndef DEEPWELL_KERNELS_CPU_CPU_H_
#define DEEPWELL_KERNELS_CPU_CPU_H_

#include <stddef.h>

#include "base/status.h"
#include "kernels/device.h"
#include "kernels/ops.h"

extern const struct ops cpu_ops;

/* Tells OpenMP and OpenBLAS how many threads to use; STATUS_DEVICE if this OpenBLAS is not built on
 * OpenMP: its own threads would multiply with ours inside parallel loops. */
enum status cpu_threads_start(int threads);

/* Each takes what ops.h says. */
enum support cpu_scale_support(const struct device *device, enum scale_mode mode);
enum status cpu_gemm(struct device *device, const struct gemm *op);
enum status cpu_quantised_gemm(struct device *device, const struct quantised_gemm *op);
enum status cpu_quantise(struct device *device, const struct quantise *ops, size_t count);
enum status cpu_embedding_forward(struct device *device, const struct embedding_forward *op);
enum status cpu_embedding_backward(struct device *device, const struct embedding_backward *op);
enum status cpu_norm_forward(struct device *device, const struct norm_forward *op);
enum status cpu_norm_backward(struct device *device, const struct norm_backward *op);
enum status cpu_attention_forward(struct device *device, const struct attention_forward *op);
enum status cpu_attention_backward(struct device *device, const struct attention_backward *op);
enum status cpu_attention_cached(struct device *device, const struct attention_cached *op);
enum status cpu_gelu_forward(struct device *device, const struct gelu_forward *op);
enum status cpu_gelu_backward(struct device *device, const struct gelu_backward *op);
enum status cpu_bias_backward(struct device *device, const struct bias_backward *op);
enum status cpu_cross_entropy(struct device *device, const struct cross_entropy *op);
enum status cpu_convert(struct device *device, struct tensor out, struct tensor in);
enum status cpu_loss_sum(struct device *device, struct step_state *state, const float *losses,
                         size_t count);
enum status cpu_gradient_sumsq(struct device *device, struct step_state *state,
                               const float *gradients, size_t count);
enum status cpu_sum_parts(struct device *device, float *out, struct tensor parts, bool accumulate);
enum status cpu_block_sumsq(struct device *device, double *out, const float *x, size_t count);
enum status cpu_total_sumsq(struct device *device, struct step_state *state, const double *sums,
                            size_t count);
enum status cpu_scales_begin(struct device *device, struct scale_state *states, size_t count,
                             bool clear_amax);
enum status cpu_scales_update(struct device *device, struct step_state *state,
                              struct scale_state *states, size_t count, bool enter);
enum status cpu_step_begin(struct device *device, struct step_state *state,
                            const struct step_policy *policy);
enum status cpu_step_decide(struct device *device, struct step_state *state);
enum status cpu_adamw(struct device *device, const struct adamw *op);
enum status cpu_stream(struct device *device, const struct stream *op);
enum status cpu_find_nonfinite(struct device *device, struct tensor in, size_t *index);

/* What each family needs of the scratch memory, in bytes, at most. */
size_t gemm_scratch_bytes(const struct op_limits *limits);
size_t norm_scratch_bytes(int threads, const struct op_limits *limits);
size_t column_sums_scratch_bytes(const struct op_limits *limits);
size_t attention_scratch_bytes(int threads, const struct op_limits *limits);

/* Takes parts of device.scratch one after the other; every operation starts anew. */
struct scratch {
    char *next;
    size_t left_bytes;
};
struct scratch scratch_begin(const struct device *device);
struct scratch scratch_begin_attention(const struct device *device);

/* `count` buffers of `floats` numbers, each at a multiple of SCRATCH_ALIGNMENT. STATUS_INTERNAL,
 * naming the operation, if they do not fit. */
enum { SCRATCH_ALIGNMENT = 64 };
struct buffers {
    float *first;
    size_t stride; /* numbers from one buffer to the next */
};
size_t buffers_bytes(size_t count, size_t floats);
enum status scratch_take(struct scratch *scratch, const char *operation, size_t count,
                         size_t floats, struct buffers *out);

static inline float *buffer_at(struct buffers buffers, size_t i) {
    return buffers.first + i * buffers.stride;
}

/* Rows are summed in chunks: row_chunks(rows) of them, CHUNK_ROWS rows each or more. The partition
 * depends on the number of rows alone, and so do the bits of the sums. */
enum { CHUNK_ROWS = 32, CHUNKS_MAX = 256 };
size_t row_chunks_max(size_t rows);
struct row_chunk {
    size_t first, end;
};
size_t row_chunks(size_t rows);
struct row_chunk row_chunk_at(size_t rows, size_t chunk);

/* outs[i][j] (+)= partials[0][i * columns + j] + partials[1][i * columns + j] + ..., in this order.
 * An entry of outs that is NULL is not wanted. */
void column_sums_finish(const struct device *device, float *const *outs, size_t out_count,
                        struct buffers partials, size_t chunks, size_t columns, bool accumulate);

/* STATUS_INTERNAL with the shape unless t is (rows, columns). */
enum status shape_check(const char *operation, const char *what, struct tensor t, size_t rows,
                        size_t columns);

#endif

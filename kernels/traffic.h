/*
 * The least bytes that each operation of kernels/ops.h must move between memory and processor:
 * every input read once, every output written once, what is added to read as well. A measured time
 * divided into it gives the share of memory speed (`bench`); `plan` sums it over a step. Statistics
 * and vectors count; scratch memory does not, for a perfect implementation has none.
 */
#ifndef DEEPWELL_KERNELS_TRAFFIC_H_
#define DEEPWELL_KERNELS_TRAFFIC_H_

#include <stddef.h>

#include "kernels/ops.h"

size_t gemm_bytes(const struct gemm *op);
size_t quantised_gemm_bytes(const struct quantised_gemm *op);

/* In one pass where the amax is known or none is needed; numbers whose amax must be found first are
 * read twice. */
size_t quantise_bytes(const struct quantise *op);
size_t scales_bytes(size_t count);
size_t embedding_forward_bytes(const struct embedding_forward *op);
size_t embedding_backward_bytes(const struct embedding_backward *op);
size_t norm_forward_bytes(const struct norm_forward *op);
size_t norm_backward_bytes(const struct norm_backward *op);
size_t attention_forward_bytes(const struct attention_forward *op);
size_t attention_backward_bytes(const struct attention_backward *op);
size_t attention_cached_bytes(const struct attention_cached *op);
size_t gelu_forward_bytes(const struct gelu_forward *op);
size_t gelu_backward_bytes(const struct gelu_backward *op);
size_t bias_backward_bytes(const struct bias_backward *op);
size_t cross_entropy_bytes(const struct cross_entropy *op);
size_t convert_bytes(struct tensor out, struct tensor in);
size_t loss_sum_bytes(size_t count);
size_t gradient_sumsq_bytes(size_t count);
size_t sum_parts_bytes(struct tensor parts, bool accumulate);
size_t block_sumsq_bytes(size_t count);
size_t total_sumsq_bytes(size_t count);
size_t adamw_bytes(const struct adamw *op);
size_t stream_bytes(const struct stream *op);

/* How many of these are written; the others are read. */
size_t gemm_written_bytes(const struct gemm *op);
size_t quantised_gemm_written_bytes(const struct quantised_gemm *op);
size_t quantise_written_bytes(const struct quantise *op);
size_t scales_written_bytes(size_t count);
size_t embedding_forward_written_bytes(const struct embedding_forward *op);
size_t embedding_backward_written_bytes(const struct embedding_backward *op);
size_t norm_forward_written_bytes(const struct norm_forward *op);
size_t norm_backward_written_bytes(const struct norm_backward *op);
size_t attention_forward_written_bytes(const struct attention_forward *op);
size_t attention_backward_written_bytes(const struct attention_backward *op);
size_t attention_cached_written_bytes(const struct attention_cached *op);
size_t gelu_forward_written_bytes(const struct gelu_forward *op);
size_t gelu_backward_written_bytes(const struct gelu_backward *op);
size_t bias_backward_written_bytes(const struct bias_backward *op);
size_t cross_entropy_written_bytes(const struct cross_entropy *op);
size_t adamw_written_bytes(const struct adamw *op);

#endif

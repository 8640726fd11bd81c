/*
 * The quantisers of the GPU: quantise.c checks and sorts what is asked for, quantise.cu does
 * SCALE_TENSOR, quantise_128.cu SCALE_1X128 of BF16, quantise_blocks.cu the other scales of
 * blocks and the way back to BF16.
 */
#ifndef DEEPWELL_KERNELS_CUDA_QUANTISE_H_
#define DEEPWELL_KERNELS_CUDA_QUANTISE_H_

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Rows and columns of every copy are multiples of it: 16-byte accesses, whole runs of a
 * transposition, and what the tensor cores take. */
enum { COPY_UNIT = 16 };

/* SCALE_TENSOR, all from one dtype, at most quantise_tensors_most() of them. */
enum status quantise_tensors(struct device *device, const struct quantise *ops, size_t count);
size_t quantise_tensors_most(void);

/* SCALE_1X128, from BF16; bias gradients not counted. */
enum status quantise_128(struct device *device, const struct quantise *op);

/* The other modes, and other types; bias gradients not counted. */
enum status quantise_blocks(struct device *device, const struct quantise *op);

/* `to` (rows, o->columns) receives the numbers of `rows` rows from `first` on, times the scales of
 * their blocks but not the tensor's. */
enum status operand_expand(struct device *device, const struct operand *o, size_t first,
                           size_t rows, struct tensor to);

/* alpha_beta[0] = the product of the tensors' scales, alpha_beta[1] = beta. Device memory. */
enum status operand_alpha(struct device *device, const struct operand *a, const struct operand *b,
                          float beta, float *alpha_beta);

/* STATUS_INTERNAL unless the output's copies are of a matrix (rows, columns) of this dtype that
 * these kernels can make; or if there are none where they are the only result. */
enum status cuda_output_check(const char *operation, const struct quantise_output *output,
                              bool only, enum dtype dtype, size_t rows, size_t columns);

static inline bool quantise_output_set(const struct quantise_output *output) {
    return output->copies != NULL || output->amax != NULL;
}

#ifdef __cplusplus
}
#endif
#endif

/*
 * What the CPU's quantiser and the operations that quantise their own results share. An operation
 * with a struct quantise_output calls quantise_output_row for every stretch of its result, in any
 * order, keeps the largest of the values returned, and gives it to quantise_output_finish.
 */
#ifndef DEEPWELL_KERNELS_CPU_QUANTISE_H_
#define DEEPWELL_KERNELS_CPU_QUANTISE_H_

#include "kernels/ops.h"

/* codes[i] = encode(x[i] * factor), E4M3 or E5M2. */
void encode_row(enum number_format format, uint8_t *codes, const float *x, float factor,
                size_t count);

/* The larger of `start` and the FP32 bits of the largest magnitude; a NaN is above all. */
uint32_t amax_bits_row(const float *x, uint32_t start, size_t count);

/* STATUS_INTERNAL unless the copies are of a matrix (rows, columns), SCALE_TENSOR, with a row copy;
 * or if there are none where they are the only result. */
enum status quantise_output_check(const char *operation, const struct quantise_output *output,
                                  bool only, size_t rows, size_t columns);

/* `count` numbers x at `first` of the result; `stored` is the result as the operation keeps it.
 * Returns the larger of `amax` and theirs, in bits. */
uint32_t quantise_output_row(const struct quantise_output *output, const struct tensor *stored,
                             size_t first, const float *x, size_t count, uint32_t amax);

void quantise_output_finish(const struct device *device, const struct quantise_output *output,
                            uint32_t amax);

/* `count` numbers of a row, times the scales of their blocks but not the tensor's. `column` is a
 * multiple of the block. */
void operand_decode(const struct operand *o, size_t row, size_t column, float *to, size_t count);

#endif

/*
 * Optimizer state by tensor name and flat range, so that any number of ranks loads what any other
 * number wrote. A key is exp_avg:NAME:BEGIN-END or exp_avg_sq:NAME:BEGIN-END with our name of the
 * parameter and a half-open range of its numbers in row-major order, padding not counted; the
 * tensor is flat, FP32. Called by checkpoint.c and open.c.
 */
#ifndef DEEPWELL_CHECKPOINTS_MOMENTS_H_
#define DEEPWELL_CHECKPOINTS_MOMENTS_H_

#include <stddef.h>

#include "base/status.h"
#include "checkpoints/digest.h"
#include "checkpoints/safetensors.h"
#include "kernels/param_table.h"

/* Writes both moments of these ranges, padding and gaps left out, to a new file. */
enum status moments_write(const char *path, const struct param_table *params,
                          struct flat_ranges ranges, const float *moments1,
                          const float *moments2, struct file_digest *digest);

/* Assembles both moments of these ranges from all files together; padding and alignment gaps
 * become zero. STATUS_CHECKPOINT, and the moments untouched, for a key that is not understood
 * or names no parameter, a tensor that is not as long as its range, and files that leave a gap in a
 * parameter or overlap. */
enum status moments_load(const struct safetensors *files, size_t file_count,
                         const struct param_table *params, struct flat_ranges ranges,
                         float *moments1, float *moments2);

#endif

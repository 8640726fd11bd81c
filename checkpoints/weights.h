/*
 * model.safetensors: the master weights in Hugging Face's names and layout, FP32. What is [out, in]
 * here is [in, out] there where hf_transposed says so; padded rows stay here; vectors have one
 * dimension. Called by checkpoint.c and open.c, and by whoever has such a file without a checkpoint
 * around it.
 */
#ifndef DEEPWELL_CHECKPOINTS_WEIGHTS_H_
#define DEEPWELL_CHECKPOINTS_WEIGHTS_H_

#include "base/status.h"
#include "checkpoints/digest.h"
#include "checkpoints/safetensors.h"
#include "kernels/param_table.h"

/* Writes `masters` (flat, laid out by the table) to a new file at `path`. */
enum status weights_write(const char *path, const struct param_table *params, const float *masters,
                          struct file_digest *digest);

/* Fills `masters` (flat, params->elements numbers) from the file; F16 and BF16 are widened, padding
 * and alignment gaps become zero. STATUS_CHECKPOINT, and masters untouched, if a tensor is missing,
 * unknown or of another shape; the message has both shapes. */
enum status weights_load(const struct safetensors *file, const struct param_table *params,
                         float *masters);

#endif

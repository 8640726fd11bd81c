/*
 * model.safetensors: the master weights in Hugging Face's names and layout. What is [out, in]
 * here is [in, out] there where hf_transposed says so; padded rows stay here; vectors have one
 * dimension. Called by checkpoint.c and open.c (FP32), model_export.c and hf_weights.c.
 */
#ifndef DEEPWELL_CHECKPOINTS_WEIGHTS_H_
#define DEEPWELL_CHECKPOINTS_WEIGHTS_H_

#include "base/status.h"
#include "checkpoints/digest.h"
#include "checkpoints/safetensors.h"
#include "kernels/param_table.h"

/* Where a write finds its numbers, a parameter at a time in the order of the table: *numbers are
 * padded_rows * columns, there until the next call. */
struct weights_source {
    enum status (*fetch)(void *context, const struct param *param, const float **numbers);
    void *context;
};

/* Writes all weights of a source to a new file at `path`; the rest as below. */
enum status weights_write_from(const char *path, const struct param_table *params,
                               struct weights_source source, enum safetensors_dtype dtype,
                               struct file_digest *digest);

/* Writes `masters` (flat, laid out by the table) to a new file at `path`, rounded to `dtype` (one
 * of the three that hold weights). STATUS_NUMERICS for a number that overflows it. */
enum status weights_write(const char *path, const struct param_table *params, const float *masters,
                          enum safetensors_dtype dtype, struct file_digest *digest);

/* Fills `masters` (flat, params->elements numbers) from the file; F16 and BF16 are widened, padding
 * and alignment gaps become zero. STATUS_CHECKPOINT, and masters untouched, if a tensor is missing,
 * unknown or of another shape; the message has both shapes. */
enum status weights_load(const struct safetensors *file, const struct param_table *params,
                         float *masters);

/* The same for one parameter of a file that was checked: its `count` numbers into `values`, padding
 * zero. */
enum status weights_check_all(const struct safetensors *file, const struct param_table *params);
void weights_load_one(const struct safetensors *file, const struct param *param, float *values);

/* One parameter at a time, for files that differ from our own in more than numbers (hf_weights.c).
 * The entry (NULL: there is none) has the shape that `param` must have; a matrix may have up to
 * padding_rows_max rows more. */
enum status weights_check(const struct safetensors *file, const struct safetensors_entry *entry,
                          const struct param *param, size_t padding_rows_max);
/* Copies a checked entry to its place in `masters`; rows beyond the parameter's are left out. */
void weights_read(const struct safetensors *file, const struct safetensors_entry *entry,
                  const struct param *param, float *masters);

/* Number `index` of stored numbers; their address need not be aligned. */
float weights_number(const unsigned char *data, enum safetensors_dtype dtype, size_t index);

#endif

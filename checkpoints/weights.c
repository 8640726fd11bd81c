/* Master weights to and from Hugging Face's layout: behind checkpoints/weights.h. */
#include "checkpoints/weights.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "kernels/tensor.h"

enum {
    TILE = 32,                  /* 32 x 32 floats of both sides fit in the first-level cache */
    TRANSPOSE_FLOATS = 1 << 18, /* of a buffer between a tensor and its file: 1 MiB */
};

/* What transformers looks for before it takes a file for PyTorch's. */
static const char *const metadata[] = {"format", "pt"};

/* The entry that `param` has in the file: name, dtype, rank and shape. */
static void describe(const struct param *param, enum safetensors_dtype dtype,
                     struct safetensors_entry *entry) {
    const bool vector = param->rows == 1 && (param->role == ROLE_BIAS || param->role == ROLE_NORM);
    _Static_assert((int)PARAM_NAME_BYTES <= (int)SAFETENSORS_NAME_BYTES, "every name fits");
    memset(entry, 0, sizeof *entry);
    strcpy(entry->name, param->hf_name);
    entry->dtype = dtype;
    entry->rank = vector ? 1 : 2;
    entry->shape[0] = vector || param->hf_transposed ? param->columns : param->rows;
    entry->shape[1] = vector ? 0 : param->hf_transposed ? param->rows : param->columns;
}

/* out (columns, rows): out[c][r] = in[r][c] for columns [c0, c1) and rows [r0, r1) of in, whose
 * rows have `width` numbers. out begins at its row c0 and column r0, and its rows have r1 - r0
 * numbers. */
static void transpose_block(float *out, const float *in, size_t width, size_t c0, size_t c1,
                            size_t r0, size_t r1) {
    const size_t height = r1 - r0;
    for (size_t rt = r0; rt < r1; rt += TILE) {
        for (size_t ct = c0; ct < c1; ct += TILE) {
            const size_t r_end = size_min(rt + TILE, r1), c_end = size_min(ct + TILE, c1);
            for (size_t c = ct; c < c_end; c++) {
                for (size_t r = rt; r < r_end; r++) {
                    out[(c - c0) * height + (r - r0)] = in[r * width + c];
                }
            }
        }
    }
}

/* Appends `count` numbers in the file's type, at most TRANSPOSE_FLOATS, through `narrow`. */
static enum status append_numbers(struct safetensors_writer *writer, const struct param *param,
                                  enum safetensors_dtype dtype, const float *in, size_t count,
                                  uint16_t *narrow) {
    if (dtype == SAFETENSORS_F32) {
        return safetensors_writer_append(writer, in, count * sizeof *in);
    }
    for (size_t i = 0; i < count; i++) {
        narrow[i] = dtype == SAFETENSORS_BF16 ? bf16_from_float(in[i]) : f16_from_float(in[i]);
        const float stored = dtype == SAFETENSORS_BF16 ? float_from_bf16(narrow[i])
                                                       : float_from_f16(narrow[i]);
        if (isfinite(in[i]) && !isfinite(stored)) {
            return status_set(STATUS_NUMERICS,
                              "%s holds %g, which %s cannot: choose a type of a wider range",
                              param->name, (double)in[i], safetensors_dtype_name(dtype));
        }
    }
    return safetensors_writer_append(writer, narrow, count * sizeof *narrow);
}

/* Working memory of a write, TRANSPOSE_FLOATS numbers each. */
struct write_buffers {
    float *transposed;
    uint16_t *narrow;
};

/* Appends in (rows, columns) as (columns, rows). */
static enum status append_transposed(struct safetensors_writer *writer, const struct param *param,
                                     enum safetensors_dtype dtype, const float *in,
                                     const struct write_buffers *buffers) {
    const size_t rows = size_min(param->rows,
                                 TRANSPOSE_FLOATS); /* a part of one column if it is longer */
    const size_t columns = TRANSPOSE_FLOATS / rows;
    for (size_t c0 = 0; c0 < param->columns; c0 += columns) {
        const size_t c1 = size_min(c0 + columns, param->columns);
        for (size_t r0 = 0; r0 < param->rows; r0 += rows) {
            const size_t r1 = size_min(r0 + rows, param->rows);
            transpose_block(buffers->transposed, in, param->columns, c0, c1, r0, r1);
            TRY(append_numbers(writer, param, dtype, buffers->transposed, (c1 - c0) * (r1 - r0),
                               buffers->narrow));
        }
    }
    return STATUS_OK;
}

static enum status append_param(struct safetensors_writer *writer, const struct param *param,
                                enum safetensors_dtype dtype, const float *in,
                                const struct write_buffers *buffers) {
    if (param->hf_transposed) return append_transposed(writer, param, dtype, in, buffers);
    const size_t count = param_count(param);
    for (size_t done = 0; done < count; done += TRANSPOSE_FLOATS) {
        TRY(append_numbers(writer, param, dtype, in + done,
                           size_min(count - done, TRANSPOSE_FLOATS), buffers->narrow));
    }
    return STATUS_OK;
}

static enum status fetch_flat(void *context, const struct param *param, const float **numbers) {
    *numbers = (const float *)*(const void **)context + param->offset;
    return STATUS_OK;
}

enum status weights_write(const char *path, const struct param_table *params, const float *masters,
                          enum safetensors_dtype dtype, struct file_digest *digest) {
    const void *flat = masters;
    return weights_write_from(path, params, (struct weights_source){fetch_flat, &flat}, dtype,
                              digest);
}

enum status weights_write_from(const char *path, const struct param_table *params,
                               struct weights_source source, enum safetensors_dtype dtype,
                               struct file_digest *digest) {
    enum status status = STATUS_OK;
    struct safetensors_writer *writer = NULL;
    struct safetensors_entry *entries = calloc(params->length + 1, sizeof *entries);
    const struct write_buffers buffers = {
        .transposed = malloc(TRANSPOSE_FLOATS * sizeof(float)),
        .narrow = malloc(TRANSPOSE_FLOATS * sizeof(uint16_t)),
    };
    if (entries == NULL || buffers.transposed == NULL || buffers.narrow == NULL) {
        status = status_set(STATUS_MEMORY, "out of memory writing %s", path);
        goto done;
    }
    for (size_t i = 0; i < params->length; i++) describe(&params->params[i], dtype, &entries[i]);
    TRY_GOTO(safetensors_writer_open(&writer, path, entries, params->length, metadata, 1), done);
    for (size_t i = 0; i < params->length; i++) {
        const struct param *param = &params->params[i];
        const float *numbers = NULL;
        TRY_GOTO(source.fetch(source.context, param, &numbers), done);
        TRY_GOTO(append_param(writer, param, dtype, numbers, &buffers), done);
    }
    status = safetensors_writer_finish(writer, digest);
    writer = NULL;

done:
    safetensors_writer_abandon(writer);
    free(buffers.narrow);
    free(buffers.transposed);
    free(entries);
    return status;
}

enum status weights_check(const struct safetensors *file, const struct safetensors_entry *entry,
                          const struct param *param, size_t padding_rows_max) {
    struct safetensors_entry expected;
    char expected_text[SAFETENSORS_SHAPE_BYTES], found_text[SAFETENSORS_SHAPE_BYTES];
    describe(param, SAFETENSORS_F32, &expected);
    safetensors_shape_text(expected_text, expected.rank, expected.shape);
    if (entry == NULL) {
        return status_set(STATUS_CHECKPOINT,
                          "%s has no tensor %s of shape %s: it is of another model, or "
                          "of another one than the configuration describes",
                          file->path, param->hf_name, expected_text);
    }
    const bool padded = entry->rank == expected.rank && entry->shape[0] > expected.shape[0] &&
                        entry->shape[0] - expected.shape[0] <= padding_rows_max;
    if (padded) expected.shape[0] = entry->shape[0];
    if (entry->rank != expected.rank || !safetensors_dtype_real(entry->dtype) ||
        memcmp(entry->shape, expected.shape, sizeof(size_t) * (size_t)expected.rank) != 0) {
        return status_set(STATUS_CHECKPOINT,
                          "%s: expected %s of shape %s, found shape %s in %s: the "
                          "configuration describes another model",
                          file->path, param->hf_name, expected_text,
                          safetensors_shape_text(found_text, entry->rank, entry->shape),
                          safetensors_dtype_name(entry->dtype));
    }
    return STATUS_OK;
}

/* Every parameter is there as it must be, and nothing else is. */
enum status weights_check_all(const struct safetensors *file, const struct param_table *params) {
    for (size_t i = 0; i < params->length; i++) {
        const struct param *param = &params->params[i];
        TRY(weights_check(file, safetensors_find(file, param->hf_name), param, 0));
    }
    for (size_t i = 0; i < file->count; i++) {
        bool known = false;
        for (size_t p = 0; p < params->length && !known; p++) {
            known = strcmp(params->params[p].hf_name, file->entries[i].name) == 0;
        }
        if (!known) {
            return status_set(STATUS_CHECKPOINT,
                              "%s has a tensor %s that the model does not: the "
                              "configuration describes another model",
                              file->path, file->entries[i].name);
        }
    }
    return STATUS_OK;
}

float weights_number(const unsigned char *data, enum safetensors_dtype dtype, size_t index) {
    if (dtype == SAFETENSORS_F32) {
        float value;
        memcpy(&value, data + index * sizeof value, sizeof value);
        return value;
    }
    uint16_t bits;
    memcpy(&bits, data + index * sizeof bits, sizeof bits);
    return dtype == SAFETENSORS_BF16 ? float_from_bf16(bits) : float_from_f16(bits);
}

/* out (rows, columns) from the file's (columns, rows). */
static void read_transposed(float *out, const unsigned char *data, enum safetensors_dtype dtype,
                            size_t rows, size_t columns) {
    for (size_t rt = 0; rt < rows; rt += TILE) {
        for (size_t ct = 0; ct < columns; ct += TILE) {
            const size_t r_end = size_min(rt + TILE, rows), c_end = size_min(ct + TILE, columns);
            for (size_t r = rt; r < r_end; r++) {
                for (size_t c = ct; c < c_end; c++) {
                    out[r * columns + c] = weights_number(data, dtype, c * rows + r);
                }
            }
        }
    }
}

void weights_read(const struct safetensors *file, const struct safetensors_entry *entry,
                  const struct param *param, float *masters) {
    const unsigned char *data = file->data + entry->offset;
    float *out = masters + param->offset;
    if (param->hf_transposed) {
        read_transposed(out, data, entry->dtype, param->rows, param->columns);
    } else if (entry->dtype == SAFETENSORS_F32) {
        memcpy(out, data, param_count(param) * sizeof *out);
    } else {
        for (size_t n = 0; n < param_count(param); n++) {
            out[n] = weights_number(data, entry->dtype, n);
        }
    }
}

void weights_load_one(const struct safetensors *file, const struct param *param, float *values) {
    struct param here = *param;
    here.offset = 0;
    memset(values, 0, param->count * sizeof *values);
    weights_read(file, safetensors_find(file, param->hf_name), &here, values);
}

enum status weights_load(const struct safetensors *file, const struct param_table *params,
                         float *masters) {
    TRY(weights_check_all(file, params));
    memset(masters, 0, params->elements * sizeof *masters);
    for (size_t i = 0; i < params->length; i++) {
        const struct param *param = &params->params[i];
        weights_read(file, safetensors_find(file, param->hf_name), param, masters);
    }
    return STATUS_OK;
}

/* Master weights to and from Hugging Face's layout: behind checkpoints/weights.h. */
#include "checkpoints/weights.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "kernels/tensor.h"

enum {
    TILE = 32,                  /* 32 x 32 floats of both sides fit in the first-level cache */
    TRANSPOSE_FLOATS = 1 << 18, /* the buffer between a transposed tensor and its file: 1 MiB */
};

/* What transformers looks for before it takes a file for PyTorch's. */
static const char *const metadata[] = {"format", "pt"};

/* The entry that `param` has in the file: name, dtype, rank and shape. */
static void describe(const struct param *param, struct safetensors_entry *entry) {
    const bool vector = param->rows == 1 && (param->role == ROLE_BIAS || param->role == ROLE_NORM);
    _Static_assert((int)PARAM_NAME_BYTES <= (int)SAFETENSORS_NAME_BYTES, "every name fits");
    memset(entry, 0, sizeof *entry);
    strcpy(entry->name, param->hf_name);
    entry->dtype = SAFETENSORS_F32;
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

/* Appends in (rows, columns) as (columns, rows), through buffer[TRANSPOSE_FLOATS]. */
static enum status append_transposed(struct safetensors_writer *writer, const struct param *param,
                                     const float *in, float *buffer) {
    const size_t rows =
        size_min(param->rows, TRANSPOSE_FLOATS); /* a part of one column if it is longer */
    const size_t columns = TRANSPOSE_FLOATS / rows;
    for (size_t c0 = 0; c0 < param->columns; c0 += columns) {
        const size_t c1 = size_min(c0 + columns, param->columns);
        for (size_t r0 = 0; r0 < param->rows; r0 += rows) {
            const size_t r1 = size_min(r0 + rows, param->rows);
            transpose_block(buffer, in, param->columns, c0, c1, r0, r1);
            TRY(safetensors_writer_append(writer, buffer, (c1 - c0) * (r1 - r0) * sizeof *buffer));
        }
    }
    return STATUS_OK;
}

enum status weights_write(const char *path, const struct param_table *params, const float *masters,
                          struct file_digest *digest) {
    enum status status = STATUS_OK;
    struct safetensors_writer *writer = NULL;
    struct safetensors_entry *entries = calloc(params->length + 1, sizeof *entries);
    float *buffer = malloc(TRANSPOSE_FLOATS * sizeof *buffer);
    if (entries == NULL || buffer == NULL) {
        status = status_set(STATUS_MEMORY, "out of memory writing %s", path);
        goto done;
    }
    for (size_t i = 0; i < params->length; i++) describe(&params->params[i], &entries[i]);
    TRY_GOTO(safetensors_writer_open(&writer, path, entries, params->length, metadata, 1), done);
    for (size_t i = 0; i < params->length; i++) {
        const struct param *param = &params->params[i];
        const float *in = masters + param->offset;
        if (param->hf_transposed) {
            TRY_GOTO(append_transposed(writer, param, in, buffer), done);
        } else {
            TRY_GOTO(safetensors_writer_append(writer, in, entries[i].bytes), done);
        }
    }
    status = safetensors_writer_finish(writer, digest);
    writer = NULL;

done:
    safetensors_writer_abandon(writer);
    free(buffer);
    free(entries);
    return status;
}

/* The file's entry for `param`, with the shape that it must have. */
static enum status find_checked(const struct safetensors *file, const struct param *param,
                                const struct safetensors_entry **found) {
    struct safetensors_entry expected;
    char expected_text[SAFETENSORS_SHAPE_BYTES], found_text[SAFETENSORS_SHAPE_BYTES];
    describe(param, &expected);
    const struct safetensors_entry *entry = safetensors_find(file, param->hf_name);
    safetensors_shape_text(expected_text, expected.rank, expected.shape);
    if (entry == NULL) {
        return status_set(STATUS_CHECKPOINT,
                          "%s has no tensor %s of shape %s: it is of another model, or "
                          "of another one than the configuration describes",
                          file->path, param->hf_name, expected_text);
    }
    if (entry->rank != expected.rank ||
        memcmp(entry->shape, expected.shape, sizeof(size_t) * (size_t)expected.rank) != 0) {
        return status_set(STATUS_CHECKPOINT,
                          "%s: expected %s of shape %s, found shape %s: the "
                          "configuration describes another model",
                          file->path, param->hf_name, expected_text,
                          safetensors_shape_text(found_text, entry->rank, entry->shape));
    }
    *found = entry;
    return STATUS_OK;
}

/* Every parameter is there as it must be, and nothing else is. */
static enum status check_all(const struct safetensors *file, const struct param_table *params) {
    const struct safetensors_entry *entry = NULL;
    for (size_t i = 0; i < params->length; i++) TRY(find_checked(file, &params->params[i], &entry));
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

/* Number `index` of a tensor in the file; its address need not be aligned. */
static float read_number(const unsigned char *data, enum safetensors_dtype dtype, size_t index) {
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
                    out[r * columns + c] = read_number(data, dtype, c * rows + r);
                }
            }
        }
    }
}

enum status weights_load(const struct safetensors *file, const struct param_table *params,
                         float *masters) {
    TRY(check_all(file, params));
    memset(masters, 0, params->elements * sizeof *masters);
    for (size_t i = 0; i < params->length; i++) {
        const struct param *param = &params->params[i];
        const struct safetensors_entry *entry = safetensors_find(file, param->hf_name);
        const unsigned char *data = file->data + entry->offset;
        float *out = masters + param->offset;
        if (param->hf_transposed) {
            read_transposed(out, data, entry->dtype, param->rows, param->columns);
        } else if (entry->dtype == SAFETENSORS_F32) {
            memcpy(out, data, entry->bytes);
        } else {
            for (size_t n = 0; n < param_count(param); n++)
                out[n] = read_number(data, entry->dtype, n);
        }
    }
    return STATUS_OK;
}

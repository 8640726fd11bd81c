/*
 * The safetensors format: 8-byte little-endian header length, JSON header, data. Reading treats the
 * file as hostile: header length, JSON, dtypes, shapes (overflow) and offsets (in range, no
 * overlap, no gap) are checked at open, with expected and found. Format: docs/checkpoints.md.
 */
#ifndef DEEPWELL_CHECKPOINTS_SAFETENSORS_H_
#define DEEPWELL_CHECKPOINTS_SAFETENSORS_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/file.h"
#include "base/status.h"
#include "checkpoints/digest.h"

enum { SAFETENSORS_NAME_BYTES = 128, SAFETENSORS_RANK_MAX = 4 };

/* Weights are of the first three; the others are met in buffers that other programs save along. */
enum safetensors_dtype {
    SAFETENSORS_F32,
    SAFETENSORS_F16,
    SAFETENSORS_BF16,
    SAFETENSORS_U8,
    SAFETENSORS_BOOL,
    SAFETENSORS_DTYPES
};

const char *safetensors_dtype_name(enum safetensors_dtype dtype); /* "F32", as in the header */
size_t safetensors_dtype_bytes(enum safetensors_dtype dtype);
bool safetensors_dtype_real(enum safetensors_dtype dtype); /* F32, F16, BF16: can be a weight */

struct safetensors_entry {
    char name[SAFETENSORS_NAME_BYTES];
    enum safetensors_dtype dtype;
    int rank;
    size_t shape[SAFETENSORS_RANK_MAX];
    size_t offset; /* from the start of the data */
    size_t bytes;
};

struct safetensors {
    char path[PATH_BYTES];
    struct file_map map;
    const unsigned char *data;
    struct safetensors_entry *entries; /* sorted by offset */
    size_t count;
};

/* "[768, 2304]" */
enum { SAFETENSORS_SHAPE_BYTES = 96 };
const char *safetensors_shape_text(char text[SAFETENSORS_SHAPE_BYTES], int rank,
                                   const size_t *shape);

/* *bytes = product of the shape times the size of the dtype; STATUS_CHECKPOINT naming the entry if
 * that does not fit in size_t. Reads name, dtype, rank and shape. */
enum status safetensors_entry_bytes(const char *where, const struct safetensors_entry *entry,
                                    size_t *bytes);

/* STATUS_CHECKPOINT for what is not the format, STATUS_IO where the file cannot be read. Tensors of
 * other dtypes than those above are an error that names the tensor. */
enum status safetensors_open(struct safetensors *file, const char *path);
void safetensors_close(struct safetensors *file);
const struct safetensors_entry *safetensors_find(const struct safetensors *file, const char *name);

/* Writing: the whole header is known first (fill name, dtype, rank, shape; offset and bytes are
 * computed in order), then the data of each entry follows in order, streamed through a bounded
 * buffer. An existing file is refused; so are names that do not end within SAFETENSORS_NAME_BYTES,
 * are not printable ASCII or stand twice. metadata: metadata_pairs times key, value. */
struct safetensors_writer;
enum status safetensors_writer_open(struct safetensors_writer **writer, const char *path,
                                    struct safetensors_entry *entries, size_t count,
                                    const char *const *metadata, size_t metadata_pairs);
enum status safetensors_writer_append(struct safetensors_writer *writer, const void *data,
                                      size_t bytes);
/* fsyncs and closes; fails if less or more than the header promised was appended. Always releases;
 * after a failure the file is gone. *digest tells size and checksum of the file. */
enum status safetensors_writer_finish(struct safetensors_writer *writer,
                                      struct file_digest *digest);
/* Closes and removes the unfinished file. NULL is fine. */
void safetensors_writer_abandon(struct safetensors_writer *writer);

#endif

/*
 * manifest.json: what a checkpoint consists of, written last. Nothing that it does not list is
 * read, and a folder that does not match it to the byte is no checkpoint. Written by checkpoint.c,
 *   read by open.c. {"version": 1, "step": 1000, "files": [{"name": ..., "bytes": ..., "xxh3_128":
 *   ...}, ...]}
 */
#ifndef DEEPWELL_CHECKPOINTS_MANIFEST_H_
#define DEEPWELL_CHECKPOINTS_MANIFEST_H_

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "checkpoints/digest.h"

#define MANIFEST_NAME "manifest.json"

enum { MANIFEST_VERSION = 1, MANIFEST_FILE_NAME_BYTES = 128 };

struct manifest_file {
    char name[MANIFEST_FILE_NAME_BYTES];
    struct file_digest digest;
};

struct manifest {
    int64_t step;
    struct manifest_file *files;
    size_t count;
};

/* The JSON text; release with free(). NULL when out of memory. */
char *manifest_text(const struct manifest *manifest);

/* Reads the file at `path`. STATUS_CHECKPOINT if it is missing, no manifest of this version, lists
 * names that could lead out of the folder, or differs by one byte from what manifest_text() makes
 * of it: so an altered byte is found even where it changes no value. Release with
 * manifest_free(). */
enum status manifest_read(const char *path, struct manifest *manifest);
void manifest_free(struct manifest *manifest);

/* The folder holds the listed files, and each has its size and checksum; what else lies there is
 * not read. STATUS_CHECKPOINT with the first file that is missing or different; STATUS_IO
 * where a file cannot be read. Reads every byte, through bounded buffers, on a few threads. */
enum status manifest_verify(const struct manifest *manifest, const char *folder);

/* The listed file of that name, or NULL. */
const struct manifest_file *manifest_find(const struct manifest *manifest, const char *name);

#endif

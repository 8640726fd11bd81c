/*
 * The text files under a list of inputs: found, looked through once, and read again in pieces, so
 * that memory is bounded by the number of files and not by their size. Used by prepare.c only.
 */
#ifndef DEEPWELL_DATA_DOCUMENTS_H_
#define DEEPWELL_DATA_DOCUMENTS_H_

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct document {
    char *path;
    size_t bytes;
    uint64_t hash; /* XXH3-64 of the content */
};

/* The first binaries that were passed over, "a.bin, b.bin, c.bin and 2 more"; "" if none was. */
enum { DOCUMENTS_NAMED = 3, DOCUMENTS_NAMES_BYTES = 512 };

struct document_list {
    struct document *items;
    size_t count, capacity;
    size_t skipped_binary, skipped_empty, skipped_hidden, skipped_special;
    char binary_names[DOCUMENTS_NAMES_BYTES];
};

/* Finds and looks through all files of the inputs, in the order of the inputs and, below a folder,
 * in byte order of path. Passed over and counted below a folder: hidden names, and what is neither
 * file nor folder (symbolic links too); everywhere: files that are empty or hold a zero byte. The
 * folder `out_folder`, if it exists below an input, is passed over. On failure the list is
 * released. */
enum status documents_find(struct document_list *list, const char *const *inputs,
                           size_t input_count, const char *out_folder);
void documents_release(struct document_list *list);

/* Hands the content to `take` in pieces. STATUS_DATA if it is not what documents_find saw. */
enum status document_read(const struct document *document,
                          enum status (*take)(void *context, const unsigned char *text,
                                              size_t bytes),
                          void *context);

#endif

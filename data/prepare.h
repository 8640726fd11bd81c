/*
 * Text files and folders to training and validation shards, with the byte tokenizer.
 *
 * A document is one file. Folders are walked in byte order of path; hidden names, symbolic links
 * and files that hold a zero byte (binaries) are passed over and counted. Every document is
 * followed by the end-of-text token. Split: with one document, its last `validation_fraction` (cut
 * at a line end where one is near); with several, by a hash of each document's content, so that
 * adding a file moves no other (few documents: one always goes to each side). Output:
 * OUT/train.bin, OUT/validation.bin, OUT/dataset.json; deterministic.
 */
#ifndef DEEPWELL_DATA_PREPARE_H_
#define DEEPWELL_DATA_PREPARE_H_

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"
#include "data/documents.h"

struct prepare_options {
    const char *const *inputs; /* files and folders */
    size_t input_count;
    const char *out_folder;
    double validation_fraction; /* in (0, 1) */
    bool overwrite;             /* replace shards that are there; otherwise refused */
};

struct prepare_report {
    size_t documents, skipped_binary, skipped_empty;
    char binary_names[DOCUMENTS_NAMES_BYTES]; /* of the first of those */
    size_t skipped_hidden;  /* names with a leading dot: a hidden folder counts once */
    size_t skipped_special; /* symbolic links, pipes, sockets, devices */
    size_t train_tokens, validation_tokens;
    size_t left_behind; /* OUT.unfinished-PID of preparations that were killed: removed */
};

enum status prepare_text(const struct prepare_options *options, struct prepare_report *report);

#endif

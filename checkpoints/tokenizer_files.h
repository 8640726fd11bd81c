/*
 * The files of a Hugging Face tokenizer, which lie beside the weights so that AutoTokenizer loads
 * the same folder. They are carried along as they are: nothing here understands them. Read when a
 * run begins, held in memory, written into every checkpoint (checkpoint.c) or exported model
 * (model_export.c).
 */
#ifndef DEEPWELL_CHECKPOINTS_TOKENIZER_FILES_H_
#define DEEPWELL_CHECKPOINTS_TOKENIZER_FILES_H_

#include <stddef.h>

#include "base/status.h"

enum { TOKENIZER_FILES_MAX = 6 };

struct tokenizer_files {
    struct tokenizer_file {
        const char *name; /* "tokenizer.json" */
        char *text;
        size_t bytes;
    } files[TOKENIZER_FILES_MAX];
    size_t count; /* 0: none */
};

/* Those that are in the folder; all may be missing. A tokenizer.json without a
 * tokenizer_config.json gets one that names the class that reads it. Release with
 * tokenizer_files_free(). */
enum status tokenizer_files_read(struct tokenizer_files *files, const char *folder);

/* For a configuration: `path` is a tokenizer.json, or a folder that must hold one. STATUS_CONFIG
 * if there is none. */
enum status tokenizer_files_require(struct tokenizer_files *files, const char *path);

/* The file of this name, or NULL. */
const struct tokenizer_file *tokenizer_files_find(const struct tokenizer_files *files,
                                                  const char *name);
void tokenizer_files_free(struct tokenizer_files *files);

#endif

/* A tokenizer's files, carried along: behind checkpoints/tokenizer_files.h. */
#include "checkpoints/tokenizer_files.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "checkpoints/layout.h"

enum { TOKENIZER_BYTES_MAX = 256 << 20 };

#define TOKENIZER_NAME "tokenizer.json"
#define TOKENIZER_CONFIG_NAME "tokenizer_config.json"

static const char *const names[TOKENIZER_FILES_MAX] = {
    TOKENIZER_NAME,      TOKENIZER_CONFIG_NAME, "special_tokens_map.json",
    "added_tokens.json", "vocab.json",          "merges.txt",
};

/* Without it, transformers looks for the files of the model's own tokenizer class. */
static const char default_config[] = "{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\",\n"
                                     "  \"clean_up_tokenization_spaces\": false\n}\n";

const struct tokenizer_file *tokenizer_files_find(const struct tokenizer_files *files,
                                                  const char *name) {
    for (size_t i = 0; i < files->count; i++) {
        if (strcmp(files->files[i].name, name) == 0) return &files->files[i];
    }
    return NULL;
}

static bool has(const struct tokenizer_files *files, const char *name) {
    return tokenizer_files_find(files, name) != NULL;
}

static enum status read_all(struct tokenizer_files *files, const char *folder) {
    char path[PATH_BYTES];
    for (size_t i = 0; i < TOKENIZER_FILES_MAX; i++) {
        struct tokenizer_file *file = &files->files[files->count];
        TRY(path_join(path, folder, names[i]));
        if (!path_is_file(path)) continue;
        TRY(file_read(path, TOKENIZER_BYTES_MAX, &file->text, &file->bytes));
        file->name = names[i];
        files->count++;
    }
    if (!has(files, TOKENIZER_NAME) || has(files, TOKENIZER_CONFIG_NAME)) return STATUS_OK;
    struct tokenizer_file *file = &files->files[files->count];
    file->text = strdup(default_config);
    if (file->text == NULL) return status_set(STATUS_MEMORY, "out of memory reading %s", folder);
    file->name = TOKENIZER_CONFIG_NAME;
    file->bytes = sizeof default_config - 1;
    files->count++;
    return STATUS_OK;
}

enum status tokenizer_files_read(struct tokenizer_files *files, const char *folder) {
    memset(files, 0, sizeof *files);
    const enum status status = read_all(files, folder);
    if (status != STATUS_OK) tokenizer_files_free(files);
    return status;
}

enum status tokenizer_files_require(struct tokenizer_files *files, const char *path) {
    char folder[PATH_BYTES], name[PATH_BYTES];
    memset(files, 0, sizeof *files);
    if (path_is_folder(path)) {
        TRY(tokenizer_files_read(files, path));
    } else if (path_is_file(path)) {
        TRY(layout_split(path, folder, name));
        if (strcmp(name, TOKENIZER_NAME) == 0) TRY(tokenizer_files_read(files, folder));
    }
    if (has(files, TOKENIZER_NAME)) return STATUS_OK;
    tokenizer_files_free(files);
    return status_set(STATUS_CONFIG,
                      "data.tokenizer: expected a " TOKENIZER_NAME " or a folder with one, found "
                      "none at %.1000s",
                      path);
}

void tokenizer_files_free(struct tokenizer_files *files) {
    for (size_t i = 0; i < files->count; i++) free(files->files[i].text);
    memset(files, 0, sizeof *files);
}

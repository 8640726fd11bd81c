/* Behind checkpoints/model_export.h. */
#include "checkpoints/model_export.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "checkpoints/layout.h"
#include "checkpoints/text_file.h"
#include "checkpoints/weights.h"

enum { SHOWN_MESSAGE_BYTES = 1024 };

/* PyTorch's words for the types that hold weights. */
static const char *const torch_dtypes[] = {
    [SAFETENSORS_F32] = "float32",
    [SAFETENSORS_F16] = "float16",
    [SAFETENSORS_BF16] = "bfloat16",
};

static enum status write_files(const char *folder, const struct model_export *model) {
    char path[PATH_BYTES];
    struct file_digest digest;
    TRY(path_join(path, folder, LAYOUT_CONFIG));
    TRY(text_file_write_config(path, &model->model, torch_dtypes[model->dtype], &digest));
    for (size_t i = 0; i < model->tokenizer->count; i++) {
        const struct tokenizer_file *file = &model->tokenizer->files[i];
        TRY(path_join(path, folder, file->name));
        TRY(text_file_write(path, file->text, file->bytes, &digest));
    }
    TRY(path_join(path, folder, LAYOUT_WEIGHTS));
    TRY(weights_write(path, model->params, model->masters, model->dtype, &digest));
    return folder_sync(folder);
}

/* Removes what a failed export left. Keeps the message. */
static enum status discard(const char *temporary, enum status code) {
    char reason[SHOWN_MESSAGE_BYTES];
    snprintf(reason, sizeof reason, "%s", status_message());
    (void)folder_remove(temporary);
    return status_set(code, "%s", reason);
}

/* The folder's path without a slash at its end, and the folder it is to lie in. */
static enum status find_place(const char *folder, char full[PATH_BYTES], char parent[PATH_BYTES]) {
    char name[PATH_BYTES];
    struct stat info;
    TRY(layout_split(folder, parent, name));
    TRY(path_join(full, parent, name));
    if (lstat(full, &info) != 0) return STATUS_OK;
    return status_set(STATUS_CONFIG, "%s exists: name a new folder, nothing is overwritten", full);
}

enum status model_export_check(const char *folder) {
    char full[PATH_BYTES], parent[PATH_BYTES];
    return find_place(folder, full, parent);
}

enum status model_export_write(const char *folder, const struct model_export *model) {
    char parent[PATH_BYTES], temporary[PATH_BYTES], full[PATH_BYTES];
    TRY(find_place(folder, full, parent));
    const int length = snprintf(temporary, sizeof temporary, "%s.tmp-%ld", full, (long)getpid());
    if (length < 0 || (size_t)length >= sizeof temporary) {
        return status_set(STATUS_CONFIG, "the path %.100s... is too long", full);
    }
    TRY(layout_create_durable(parent));
    if (mkdir(temporary, 0777) != 0) {
        return status_set(STATUS_IO, "cannot create the folder %s: %s", temporary, strerror(errno));
    }
    const enum status status = write_files(temporary, model);
    if (status != STATUS_OK) return discard(temporary, status);
    if (rename(temporary, full) != 0) {
        return discard(temporary, status_set(STATUS_IO, "cannot rename %s to %s: %s", temporary,
                                             full, strerror(errno)));
    }
    return folder_sync(parent);
}

/* Behind checkpoints/text_file.h. */
#include "checkpoints/text_file.h"

#include <stdlib.h>
#include <string.h>

enum status text_file_write(const char *path, const void *text, size_t bytes,
                            struct file_digest *digest) {
    struct digest_writer *writer = NULL;
    TRY(digest_writer_open(&writer, path));
    const enum status status = digest_writer_append(writer, text, bytes);
    if (status != STATUS_OK) {
        digest_writer_abandon(writer);
        return status;
    }
    return digest_writer_finish(writer, digest);
}

enum status text_file_write_config(const char *path, const struct hf_config *model,
                                   const char *dtype, struct file_digest *digest) {
    char *text = hf_config_text(model, dtype);
    if (text == NULL) return status_set(STATUS_MEMORY, "out of memory writing %s", path);
    const enum status status = text_file_write(path, text, strlen(text), digest);
    free(text);
    return status;
}

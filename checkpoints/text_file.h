/* Texts as files of a checkpoint: written once, durable, hashed on the way. For checkpoint.c and
 * model_export.c. */
#ifndef DEEPWELL_CHECKPOINTS_TEXT_FILE_H_
#define DEEPWELL_CHECKPOINTS_TEXT_FILE_H_

#include "checkpoints/digest.h"
#include "checkpoints/hf_config.h"

/* A new file. */
enum status text_file_write(const char *path, const void *text, size_t bytes,
                            struct file_digest *digest);

/* config.json; `dtype` as in hf_config_text(). */
enum status text_file_write_config(const char *path, const struct hf_config *model,
                                   const char *dtype, struct file_digest *digest);

#endif

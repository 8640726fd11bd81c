/* What reader (safetensors.c) and writer (safetensors_writer.c) of the safetensors format share. */
#ifndef DEEPWELL_CHECKPOINTS_SAFETENSORS_INTERNAL_H_
#define DEEPWELL_CHECKPOINTS_SAFETENSORS_INTERNAL_H_

#include "checkpoints/safetensors.h"

/* The data start at LENGTH_BYTES plus the header length. A header of 4 MiB describes some 30,000
 * tensors; the limit keeps a hostile header from claiming gigabytes of parsed JSON. */
enum { SAFETENSORS_LENGTH_BYTES = 8, SAFETENSORS_HEADER_BYTES_MAX = 4 << 20 };

#define SAFETENSORS_METADATA_KEY "__metadata__"

/* Refuses an empty or overlong name, and bytes that are not printable ASCII (they reach
 * terminals). */
enum status safetensors_name_check(const char *where, const char *name);

/* Refuses a name that two entries share. */
enum status safetensors_names_unique(const char *where, const struct safetensors_entry *entries,
                                     size_t count);

#endif

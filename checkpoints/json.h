/*
 * JSON files as this room meets them: hostile when read, exact when written. Thin helpers over
 * cJSON for hf_config.c, manifest.c, safetensors.c and the trainer's state.
 */
#ifndef DEEPWELL_CHECKPOINTS_JSON_H_
#define DEEPWELL_CHECKPOINTS_JSON_H_

#include <stddef.h>
#include <stdint.h>

#include <cjson/cJSON.h>

#include "base/status.h"

#define JSON_INTEGER_MAX ((int64_t)1 << 53) /* a double holds every integer up to here */

/* The object in text[0..bytes), which needs no NUL at its end. Refused with STATUS_CHECKPOINT: what
 * is no JSON, a NUL byte, anything but white space after the object, another value than an object.
 * Release with cJSON_Delete(). */
enum status json_parse(const char *where, const char *text, size_t bytes, cJSON **root);

/* The object in a file of at most limit_bytes. STATUS_IO if the file cannot be read. */
enum status json_read(const char *path, size_t limit_bytes, cJSON **root);

/* *item = the value of `key`, NULL if there is none. A key that stands twice is refused: which of
 * the two counts depends on the reader. */
enum status json_find(const char *where, const cJSON *object, const char *key, const cJSON **item);

/* The integer at `key`, from `least` to `most`; anything else is refused with both bounds and what
 * was found. */
enum status json_integer(const char *where, const cJSON *object, const char *key, int64_t least,
                         int64_t most, int64_t *value);

/* The same for a value that the caller found; `what` names it. */
enum status json_integer_of(const char *where, const char *what, const cJSON *item, int64_t least,
                            int64_t most, int64_t *value);

/* The string at `key`, printable ASCII or refused (it reaches messages, and messages reach
 * terminals). It lives as long as the object. */
enum status json_string(const char *where, const cJSON *object, const char *key,
                        const char **value);

/* The text of a tree in which every number reads back as the same double, bit for bit: cJSON_Print
 * stops at 15 digits when the rest looks like rounding, which is one bit too early for a resumed
 * run. STATUS_NUMERICS for NaN and infinity, which JSON does not have. Release with free(). */
enum status json_text_exact(const char *where, const cJSON *root, char **text);

#endif

/* Values of a hostile tokenizer.json. Shared by tokenizer_json.c, tokenizer_steps.c
 * and choices_lines.c only. */
#ifndef DEEPWELL_DATA_TOKENIZER_JSON_H_
#define DEEPWELL_DATA_TOKENIZER_JSON_H_

#include <cjson/cJSON.h>

#include "data/tokenizer_parts.h"

/* STATUS_DATA if JSON text holds the character U+0000, as a byte or escaped: cJSON would end a text
 * there without a word. */
enum status tokenizer_json_refuse_zero(const char *text, size_t bytes);

/* *item = the value of `key`; NULL if there is none or it is null. A key that stands twice is
 * refused. */
enum status tokenizer_json_find(const cJSON *object, const char *key, const cJSON **item);

/* *value = true or false at `key`, left alone if there is none. */
enum status tokenizer_json_flag(const cJSON *object, const char *key, bool *value);

/* The text at `key`, which must be there. It lives as long as the object. */
enum status tokenizer_json_text(const cJSON *object, const char *key, const char **value);

/* The "pre_tokenizer": fills tokenizer->steps. */
enum status tokenizer_read_steps(struct tokenizer *tokenizer, const cJSON *root);

#endif

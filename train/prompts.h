/*
 * The prompts of a call: one, or those of a file, one a line. All are made into tokens before the
 * first is continued, so that a bad one is found before anything is printed. Used by
 * command_sample.c.
 */
#ifndef DEEPWELL_TRAIN_PROMPTS_H_
#define DEEPWELL_TRAIN_PROMPTS_H_

#include "train/vocabulary.h"

enum { PROMPTS_BYTES_MAX = 1 << 26 }; /* of a file */

struct prompt {
    char *text;
    size_t line; /* in its file, from 1; 0: it was given by itself */
    int32_t *tokens;
    size_t token_count;
};

struct prompt_list {
    struct prompt *items;
    size_t count, capacity;
};

/* Adds one prompt: prompt_tokens (token_text.h) says what it means and when it is refused. On
 * failure, here and below, the list is to be freed all the same. */
enum status prompt_list_add(struct prompt_list *list, const struct vocabulary *vocabulary,
                            const char *text);

/* Adds the lines of a text; `label` stands for the file in messages, which name the line. A line is
 * what stands before a newline, or a carriage return and a newline; the last needs neither. An
 * empty one is an empty prompt. STATUS_DATA for no line at all or a zero byte. */
enum status prompt_list_parse(struct prompt_list *list, const struct vocabulary *vocabulary,
                              const char *label, const char *text, size_t bytes);
enum status prompt_list_read(struct prompt_list *list, const struct vocabulary *vocabulary,
                             const char *path);
void prompt_list_free(struct prompt_list *list);

#endif

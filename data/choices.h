/*
 * Multiple-choice questions as tokens: llm.c's evaluation file (its hellaswag_val.bin). A context,
 * completions of it, and which one is right.
 *
 *   256 int32: magic 20240522, version 1, number of examples, bytes of the longest one
 *   then uint16, an example after the other:
 *   65535, bytes of the example, its index, label, number of completions,
 *   length of the context, its tokens, then length and tokens of each completion
 *
 * Used by train/choices_eval.c.
 */
#ifndef DEEPWELL_DATA_CHOICES_H_
#define DEEPWELL_DATA_CHOICES_H_

#include <stddef.h>
#include <stdint.h>

#include "base/file.h"
#include "base/status.h"

enum { CHOICES_COMPLETIONS_MAX = 64 };

struct choices {
    char path[PATH_BYTES];
    struct file_map map;
    size_t *offsets; /* of each example, in uint16 behind the header */
    size_t count;
    size_t longest_tokens; /* context and completion together */
    size_t completions;    /* in all examples together */
};

/* One example; the pointers are into the mapped file. */
struct choice_example {
    size_t label;
    const uint16_t *context;
    size_t context_tokens;   /* at least 1 */
    size_t completion_count; /* 2 to CHOICES_COMPLETIONS_MAX */
    const uint16_t *completions[CHOICES_COMPLETIONS_MAX];
    size_t completion_tokens[CHOICES_COMPLETIONS_MAX]; /* at least 1 each */
};

/* Every example is checked: STATUS_DATA for another magic or version, lengths that lie, a label
 * that is no completion, a token that is not below the vocabulary. */
enum status choices_open(struct choices *choices, const char *path, size_t vocabulary);
void choices_close(struct choices *choices);

struct choice_example choices_get(const struct choices *choices, size_t index);

#endif

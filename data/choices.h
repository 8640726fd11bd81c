/*
 * Multiple-choice questions as tokens: a context, completions of it, and which one is right. Two
 * kinds of file.
 *
 * llm.c's evaluation file (its hellaswag_val.bin):
 *
 *   256 int32: magic 20240522, version 1, number of examples, bytes of the longest one
 *   then uint16, an example after the other:
 *   65535, bytes of the example, its index, label, number of completions,
 *   length of the context, its tokens, then length and tokens of each completion
 *
 * Text, if the name ends in .jsonl: a JSON object a line with the fields of HellaSwag's own files,
 *
 *   "ctx": the context, "endings": a list of texts, "label": the number of the right one, from 0
 *
 * of which the label may be written as text ("3"); other fields are passed over, as are blank
 * lines. The tokens are those that llm.c makes: the context's, and apart from them those of each
 * ending behind one space.
 *
 * Used by train/choices_eval.c.
 */
#ifndef DEEPWELL_DATA_CHOICES_H_
#define DEEPWELL_DATA_CHOICES_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/file.h"
#include "base/status.h"
#include "data/tokenizer.h"

enum {
    CHOICES_COMPLETIONS_MAX = 64,
    CHOICES_LINES_BYTES_MAX = 1 << 28, /* of a .jsonl file */
    CHOICES_PLACE_BYTES = PATH_BYTES + 32,
};

struct choices {
    char path[PATH_BYTES];
    char *lines; /* a .jsonl file whose tokens are not made yet; otherwise NULL */
    size_t line_bytes;
    int32_t *words; /* the examples; data/choices_parts.h has their form */
    size_t word_count, word_capacity;
    size_t *offsets; /* of each example in words */
    size_t count, offset_capacity;
    size_t completions;    /* in all examples together */
    size_t longest_tokens; /* context and completion together; 0 without tokens */
};

/* One example; the pointers are good until choices_close. */
struct choice_example {
    size_t label;
    const int32_t *context;
    size_t context_tokens;   /* at least 1 */
    size_t completion_count; /* 2 to CHOICES_COMPLETIONS_MAX */
    const int32_t *completions[CHOICES_COMPLETIONS_MAX];
    size_t completion_tokens[CHOICES_COMPLETIONS_MAX]; /* at least 1 each */
};

/* Whether the name says that the file is text, whose tokens choices_tokenise has to make. */
bool choices_is_text(const char *path);

/* Every example is checked: STATUS_DATA for another magic or version, lengths that lie, a label
 * that is no completion, a token that is not below the vocabulary; for a line that is no such
 * object, named by file and line. */
enum status choices_open(struct choices *choices, const char *path, size_t vocabulary);

/* A .jsonl file from memory; `label` stands for the file in messages. */
enum status choices_parse(struct choices *choices, const char *label, const char *text,
                          size_t bytes);
void choices_close(struct choices *choices);

/* Makes the tokens of a text (tokenizer NULL: its bytes); where there are tokens, nothing. What is
 * written like a special token is text. STATUS_DATA for a context or an ending without a token. */
enum status choices_tokenise(struct choices *choices, const struct tokenizer *tokenizer);

/* Not before there are tokens. */
struct choice_example choices_get(const struct choices *choices, size_t index);

/* Where the example stands, for messages: "FILE:LINE" or "FILE: example N". Writes into `text` and
 * returns it. */
const char *choices_place(const struct choices *choices, size_t index,
                          char text[CHOICES_PLACE_BYTES]);

#endif

/*
 * How the two readers of data/choices.h (choices.c for llm.c's files, choices_lines.c for text) lay
 * down what they read. An example in choices.words:
 *
 *   line in the file (0: it has no lines), label, number of completions,
 *   length of the context, its tokens, then length and tokens of each completion
 */
#ifndef DEEPWELL_DATA_CHOICES_PARTS_H_
#define DEEPWELL_DATA_CHOICES_PARTS_H_

#include "data/choices.h"

/* Begins an example; choices->count counts it once choices_end_example was called. */
enum status choices_begin_example(struct choices *choices, size_t line, size_t label,
                                  size_t completions);

/* Appends a length and room for as many tokens, which *tokens points to until the next call. */
enum status choices_add_tokens(struct choices *choices, size_t count, int32_t **tokens);

void choices_end_example(struct choices *choices);

/* Reads choices->lines: without `encode` it checks and counts, with it it makes the tokens too. */
enum status choices_read_lines(struct choices *choices, bool encode,
                               const struct tokenizer *tokenizer);

#endif

/*
 * Accuracy on multiple-choice questions, HellaSwag's way: each completion is scored by the loss of
 * its tokens behind the context, and the completion of the least loss is the model's answer. Called
 * by trainer_report.c and command_eval.c.
 */
#ifndef DEEPWELL_TRAIN_CHOICES_EVAL_H_
#define DEEPWELL_TRAIN_CHOICES_EVAL_H_

#include "data/choices.h"
#include "train/engine.h"

struct choices_score {
    size_t examples;
    double accuracy;      /* by the sum of a completion's losses */
    double accuracy_norm; /* by their mean: what llm.c reports and tables call acc_norm */
};

/* Makes the tokens of questions that are text, by the tokenizer or as bytes; STATUS_CONFIG where
 * the vocabulary has neither. Before the first choices_evaluate, which works on tokens. */
enum status choices_prepare(struct choices *choices, const struct vocabulary *vocabulary);

/* The first `examples` (0: all). A context that is too long for the engine's evaluation loses its
 * beginning; a completion that is longer than that: STATUS_DATA. With `until_signal` it fails with
 * STATUS_INTERRUPTED once a signal has come. */
enum status choices_evaluate(struct engine *engine, struct choices *choices, size_t examples,
                             bool until_signal, struct choices_score *score);

#endif

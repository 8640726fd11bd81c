/*
 * Text generation: the next token from logits, and whole continuations. Called by command_sample.c
 * and by trainer.c for samples inside a run. The same seed, prompt and weights give the same
 * tokens.
 */
#ifndef DEEPWELL_TRAIN_SAMPLER_H_
#define DEEPWELL_TRAIN_SAMPLER_H_

#include <stddef.h>
#include <stdint.h>

#include "train/engine.h"

struct sampling {
    double temperature; /* 0: the most likely token, always */
    size_t top_k;       /* only the k most likely; 0: all */
    double top_p;       /* only the most likely that together reach this probability; 1: all
                           (Holtzman et al., "The curious case of neural text degeneration") */
    uint64_t seed;
};

struct sampling sampling_from_config(const struct config *config);

/* Working memory of sampler_pick: one entry a token of the vocabulary. */
struct candidate {
    float logit;
    int32_t token;
};

/* A token drawn from softmax(logits / temperature), cut by top_k and then top_p. `index` counts the
 * draws of a seed. Equal logits are taken in the order of their tokens. */
int32_t sampler_pick(const struct sampling *sampling, const float *logits, size_t vocabulary,
                     uint64_t index, struct candidate *candidates);

/* Called with every new token; returning false ends the text. */
typedef bool (*sampler_emit)(void *context, int32_t token);

struct generation_request {
    const int32_t *prompt;
    size_t prompt_count; /* at least 1 */
    size_t tokens;       /* at most so many new ones */
    int32_t stop;        /* ends the text, and is not emitted; -1: none */
    struct sampling sampling;
    sampler_emit emit;
    void *context;
};

/* Continues the prompt. When the context is full, its second half is kept as the new past. */
enum status sampler_generate(struct engine *engine, const struct generation_request *request);

#endif

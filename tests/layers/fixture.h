/*
 * A small GPT with random weights, memory and tokens for the tests in this folder. No size is
 * round: width 24 in 3 heads, context 9, vocabulary 37 (padded to 128), sequences of 7.
 */
#ifndef DEEPWELL_TESTS_LAYERS_FIXTURE_H_
#define DEEPWELL_TESTS_LAYERS_FIXTURE_H_

#include "layers/gpt_train.h"
#include "tests/kernels/testing.h"

enum { LAYERS = 2, HEADS = 3, WIDTH = 24, CONTEXT = 9, VOCABULARY = 37, LENGTH = 7, BATCH = 2 };

static const struct gpt_config small_config = {
    .layers = LAYERS, .heads = HEADS, .width = WIDTH, .context = CONTEXT, .vocabulary = VOCABULARY,
};

/* BATCH sequences of LENGTH in FP32, everything kept, forward and backward. */
static const struct gpt_training_shape small_shape = {
    .batch = BATCH, .sequence_length = LENGTH, .backward = true,
};

struct model {
    struct device device;
    struct gpt gpt;
    float *masters;        /* (elements) */
    struct tensor weights; /* the masters rounded to the shape's dtype */
    float *gradients;      /* (elements), all NaN at first */
    struct arena arena;
    struct gpt_training training;
    size_t tokens;         /* of a micro-batch */
};

/* Every parameter is random, of a size that lets all of them matter; padding is zero. */
void model_open(struct model *model, const struct gpt_training_shape *shape);
void model_close(struct model *model);

/* Token n of the test's one stream; every token of the vocabulary comes up, some several times. */
int32_t stream_token(size_t n);

/* Sequence s of the stream: inputs and targets (LENGTH each). */
void stream_sequence(size_t s, int32_t *inputs, int32_t *targets);

/* Uploads sequences first, first + 1, ... as the micro-batch. */
void model_upload(struct model *model, size_t first);

/* One forward and backward pass; `scale` multiplies every gradient. */
void model_run(struct model *model, float scale, bool accumulate);

#endif

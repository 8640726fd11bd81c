/*
 * A GPT that continues texts: forward only, a few tokens at a time, keys and values of the past
 * cached. Called by train/sampler.c.
 */
#ifndef DEEPWELL_LAYERS_GPT_GENERATE_H_
#define DEEPWELL_LAYERS_GPT_GENERATE_H_

#include "kernels/arena.h"
#include "layers/gpt.h"

struct gpt_generation {
    struct gpt *gpt;
    struct device *device;
    size_t batch;    /* sequences continued side by side, all of the same length */
    size_t chunk;    /* most tokens of one sequence that gpt_generation_feed takes at once */
    size_t past;     /* tokens of each sequence in the caches; at most the model's context */
    struct tensor *keys, *values; /* (layers) tensors of (batch * context, C) */
    struct tensor residual[2];    /* (batch * chunk, C) */
    struct tensor normed, heads, branch;
    struct tensor qkv;            /* (batch * chunk, 3 C) */
    struct tensor fc, gelu;       /* (batch * chunk, 4 C) */
    struct tensor logits;         /* (batch, padded V) FP32 */
    float *mean, *rstd;
    int32_t *tokens;              /* (batch * chunk), device memory */
};

/* Lays out in `arena` (measuring or real). `dtype`: of activations and caches. The gpt must be
 * bound. */
enum status gpt_generation_open(struct gpt_generation *generation, struct gpt *gpt,
                                struct device *device, enum dtype dtype, size_t batch, size_t chunk,
                                struct arena *arena);
void gpt_generation_close(struct gpt_generation *generation);

struct op_limits gpt_generation_limits(const struct gpt *gpt, enum dtype dtype, size_t batch,
                                       size_t chunk);

/* Appends `count` tokens (1 to chunk) of each sequence: tokens (batch, count) in host memory.
 * STATUS_CONFIG when the context is full; gpt_generation_reset starts anew. */
enum status gpt_generation_feed(struct gpt_generation *generation, const int32_t *tokens,
                                size_t count);

/* Appends one token of each sequence and gives the logits (batch, padded V) of the next in device
 * memory, FP32; columns beyond the vocabulary mean nothing. */
enum status gpt_generation_step(struct gpt_generation *generation, const int32_t *tokens,
                                struct tensor *logits);

void gpt_generation_reset(struct gpt_generation *generation);

#endif

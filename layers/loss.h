/*
 * The head and the loss. Logits are made for `logits.rows` tokens at a time, turned into losses and
 * their own gradient where they lie, and multiplied on at once, so that their memory does not grow
 * with the batch and nothing of them is kept. Called by gpt_train.c.
 */
#ifndef DEEPWELL_LAYERS_LOSS_H_
#define DEEPWELL_LAYERS_LOSS_H_

#include "layers/linear.h"

struct loss_layer {
    struct linear head;   /* (padded V, C), no bias */
    size_t vocabulary;    /* V: columns beyond it are padding */
    struct tensor logits; /* (chunk, padded V), working memory */
    struct narrow in, logits_gradient; /* of a chunk, where the head is narrow */
};

struct loss_request {
    struct tensor in;            /* (N, C): the final norm's output */
    const int32_t *targets;      /* (N) */
    float *losses;               /* (N) out, nats */
    struct tensor in_gradient;   /* (N, C) out; data NULL: losses only */
    float gradient_scale;        /* 1 / tokens of the whole step */
    const float *loss_scale;     /* device memory */
    bool accumulate;             /* of the head's gradient */
};

enum status loss_layer_run(struct device *device, const struct loss_layer *layer,
                           const struct loss_request *request);

#endif

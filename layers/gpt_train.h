/*
 * Forward and backward of a GPT over one micro-batch, and the activations between them. Called by
 * the trainer, by evaluation (forward only) and by tests.
 *
 * Activation memory a block, in numbers a token (C width), and in bytes in BF16 and in FP8:
 *   RECOMPUTE_NONE   16 C + statistics: everything that backward reads is kept      32 C   27 C
 *   RECOMPUTE_GELU   12 C: the GELU's output is made again from its input           24 C   23 C
 *   RECOMPUTE_BLOCK     C: only the block's input is kept; the block runs forward
 *                       again in backward                                            2 C    2 C
 * The bits of losses and gradients are the same in all three.
 *
 * In a narrow recipe the inputs of linears are kept as their transposed copies, which wgrad reads;
 * row copies, and the BF16 numbers that the copies are made from, share one place for all blocks.
 */
#ifndef DEEPWELL_LAYERS_GPT_TRAIN_H_
#define DEEPWELL_LAYERS_GPT_TRAIN_H_

#include "kernels/arena.h"
#include "layers/gpt.h"
#include "layers/gpt_narrow.h"
#include "layers/loss.h"

enum recompute { RECOMPUTE_NONE, RECOMPUTE_GELU, RECOMPUTE_BLOCK };

struct gpt_training_shape {
    size_t batch;           /* sequences of a micro-batch */
    size_t sequence_length; /* T <= context */
    size_t logits_chunk;    /* tokens whose logits exist at once; 0: automatic */
    enum dtype dtype;       /* of activations */
    enum recompute recompute;
    bool backward;          /* false: evaluation, no gradient buffers, one block's activations */
    struct scale_state *scales; /* device memory, gpt_scale_count(); NULL: measuring, or no narrow
                                 * recipe. Evaluation has an array of its own: its amaxes and scales
                                 * are none of training's business */
};

struct block_activations {
    struct norm_activations norm1; /* .residual: the block's input */
    struct attention_activations attention;
    struct norm_activations norm2;
    struct mlp_activations mlp;
};

/* Sees every activation tensor as forward makes it; layer -1 outside the blocks. For diagnosis. */
struct gpt_observer {
    enum status (*see)(struct gpt_observer *self, const char *what, int layer,
                       struct tensor tensor);
};

/* What ranks that share a model do at its buckets (gpt.h), in the order of a pass. */
struct gpt_exchange {
    /* Before the bucket's weights are read: in forward each bucket once, the final norm's and the
     * embeddings' for the whole pass; in backward each block's again. A block reads the one before
     * it too, in forward. */
    enum status (*need_weights)(struct gpt_exchange *self, size_t bucket, bool backward);
    /* Nothing of this pass writes the bucket's gradients any more. Final norm, blocks from the last
     * on, embeddings. While a block's are made, the one before it gets its first. */
    enum status (*gradients_ready)(struct gpt_exchange *self, size_t bucket);
};

struct gpt_training {
    struct gpt *gpt;
    struct device *device;
    struct gpt_training_shape shape;
    struct gpt_observer *observer;       /* usually NULL */
    struct gpt_exchange *exchange;       /* NULL: the weights are there, gradients stay */
    struct tensor embedded;              /* (N, C): the residual stream's first value */
    struct block_activations *blocks; /* (layers); memory shared between them as recompute allows */
    struct norm_activations final_norm;
    struct tensor branch;                /* (N, C): branch output, and gradients on the way back */
    struct tensor wide;                  /* (N, 4 C): gradient inside attention and MLP */
    struct tensor residual_gradient;     /* (N, C) */
    struct tensor normed;                /* (N, C): norms' outputs before they are quantised */
    struct copy_memory input_row;        /* row copies, of whatever linear is at work */
    struct copy_memory gradient_row, gradient_transposed;
    bool scaled;                         /* the states hold scales of a micro-batch or checkpoint */
    struct loss_layer loss;
    int32_t *inputs, *targets;           /* (N), device memory; the caller uploads */
    float *losses;                       /* (N) FP32, nats */
};

/* Lays the activations out in `arena` (measuring or real) and allocates the table of blocks; the
 * logits and copies of the head in `loss_arena`, which may lie where attention works: nobody needs
 * them while blocks run. The gpt must be bound before forward. */
enum status gpt_training_open(struct gpt_training *training, struct gpt *gpt, struct device *device,
                              const struct gpt_training_shape *shape, struct arena *arena,
                              struct arena *loss_arena);
void gpt_training_close(struct gpt_training *training);

/* What the operations' scratch memory must be sized for. The gpt's
 * precision is set. */
struct op_limits gpt_training_limits(const struct gpt *gpt, const struct gpt_training_shape *shape);

/* losses[n] of the uploaded inputs and targets; no gradients. */
enum status gpt_evaluate(struct gpt_training *training);

struct gpt_gradient_request {
    float gradient_scale;    /* 1 / tokens of the whole step */
    const float *loss_scale; /* device memory */
    bool accumulate;         /* add to the gradients: every micro-batch but the first */
};

/* losses[n], and every parameter's gradient. */
enum status gpt_forward_backward(struct gpt_training *training,
                                 const struct gpt_gradient_request *request);

#endif

/*
 * What the ranks of a run exchange within a step, and the memory that it takes: gradients summed,
 * optimizer, gradients and parameters sharded (ZeRO: Rajbhandari et al., "ZeRO: Memory
 * Optimizations Toward Training Trillion Parameter Models", SC 2020). docs/many_ranks.md.
 *
 * Every bucket of the model (layers/gpt.h) is padded to world equal parts; rank r owns part r of
 * each. Owned numbers lie one after the other: what is at `offset` in the flat buffers is at offset
 * / world there, for offsets where a bucket begins. All ranks together own every number once.
 *
 *   train.zero                 0          1          2          3
 *   masters, moments           all        owned      owned      owned
 *   weights                    all        all        all        embeddings, norm, 3 blocks
 *   gradients of a pass        all        all        embeddings, norm, 3 blocks
 *   summed gradients           owned, in all of them
 *
 * A bucket's gradients leave as soon as backward has made them (train.zero 3: as soon as the next
 * block has its weights, so that it waits for those alone): on the last micro-batch of a step,
 * or, where they are not kept (train.zero 2 and 3, comm.order = fixed), on each. With
 * comm.order = fixed the owner of a part fetches every rank's and adds them in the order of ranks,
 * micro-batch by micro-batch: the order of one rank, whatever the number of ranks.
 *
 * Part of the engine; called by engine.c, step.c and, through struct gpt_exchange, by the model.
 */
#ifndef DEEPWELL_TRAIN_EXCHANGE_H_
#define DEEPWELL_TRAIN_EXCHANGE_H_

#include <stdbool.h>
#include <stddef.h>

#include "kernels/arena.h"
#include "kernels/ops.h"
#include "layers/gpt_train.h"
#include "train/comm.h"
#include "train/config.h"
#include "train/ranks.h"

enum { EXCHANGE_SLOTS = 3 }; /* blocks in memory: two at work, one on its way */

struct engine;

extern const struct gpt_exchange exchange_calls;

struct exchange {
    struct gpt_exchange calls; /* first: the model's exchange is this one */
    struct engine *engine;
    bool active;               /* more than one rank, or comm.order = fixed; else nothing below */
    int zero;                  /* train.zero */
    bool fixed, bf16;          /* comm.order, comm.reduction */
    size_t micro_batches;      /* of a step on this rank */
    size_t owned;              /* numbers that this rank owns */

    struct tensor source;      /* (1, owned): what weights are gathered from; the masters in fp32 */
    void **weights;            /* (buckets) where each bucket's weights lie */
    float **gradients;         /* (buckets) and the gradients of a pass */
    float *summed;             /* (owned) gradients of the step, over all ranks; zero 0: also
                                * gathered where the gradients of a pass lie */
    struct tensor staging;     /* parts on their way to `summed` */
    struct tensor outgoing;    /* BF16: a bucket's gradients, rounded */
    double *sums, *all_sums;   /* fixed: squares by blocks, of the owned and of all numbers */
    float *losses;             /* fixed: of a micro-batch, of all ranks */

    size_t micro_batch;        /* of the step, counted from 1 */
    bool reduce, add;          /* this pass's gradients leave; they are added to `summed` */
    enum status (*look)(void *context, size_t bucket); /* instead: sees a bucket's gradients, for
                                                        * diagnosis; NULL: none */
    void *look_context;
    bool training;             /* this pass belongs to a step */
    bool gather_all;           /* this pass fetches embeddings and final norm too */
    bool fetching;             /* this pass fetches weights */
    bool stale;                /* weights are those before the last update */
    size_t leaving;            /* bucket whose staged parts are not in `summed` yet; SIZE_MAX */
    size_t pending;            /* bucket that leaves behind the next wait for weights; SIZE_MAX */
    size_t held[EXCHANGE_SLOTS]; /* layers whose weights the slots hold in this pass; SIZE_MAX */
};

/* What the configuration and the ranks make of it, before the model is opened. STATUS_CONFIG for
 * what does not go together. */
enum status exchange_plan(struct exchange *x, const struct config *config,
                          const struct ranks *ranks);

/* Numbers of a bucket must be a multiple of this; 0: of nothing. */
size_t exchange_bucket_multiple(const struct exchange *x, const struct ranks *ranks);

/* Parameters, gradients and moments of an engine whose exchange is active, in measuring or real
 * arenas; binds the model. */
enum status exchange_lay_out(struct engine *engine, size_t micro_batch_tokens,
                             struct arena *parameters, struct arena *gradients,
                             struct arena *optimizer);
void exchange_close(struct exchange *x);

/* The next micro-batch of a step, and which of the recordings it is: one for each kind of beginning
 * and end. */
enum { EXCHANGE_KINDS = 4 };
void exchange_count(struct exchange *x, bool first);
size_t exchange_kind(const struct exchange *x);

/* A micro-batch begins: sets what its passes do with weights and gradients. *accumulate: they are
 * added to those of the pass before. */
void exchange_begin(struct exchange *x, bool first, bool *accumulate);
/* And ends: everything that left is summed; the loss is added to the step's. */
enum status exchange_end(struct exchange *x, const float *losses, size_t tokens);

/* Squares of all gradients, the loss and the amaxes of narrow recipes, the same on all ranks. */
enum status exchange_sums(struct exchange *x);

/* Gradients for an update of everything (zero 0), before it. After it the weights of all are
 * gathered by the next pass, block by block, unless quantised copies of all are kept: then at once.
 * exchange_updated() follows every update on the host, also one that is replayed. */
enum status exchange_gradients(struct exchange *x);
enum status exchange_update_weights(struct exchange *x);
void exchange_updated(struct exchange *x);

/* Gathers all weights now; the second where it was not done since the last update, for what reads
 * them without a pass of struct gpt_training. */
enum status exchange_weights(struct exchange *x);
enum status exchange_refresh(struct exchange *x);

/* FP32 numbers that each rank owns (`owned`), of one bucket, gathered where the bucket's gradients
 * lie: for checkpoints, between steps. */
enum status exchange_gather_bucket(struct exchange *x, const float *owned, size_t bucket,
                                   const float **out);

/* This rank's part of a bucket: where it lies in buffers of owned numbers, and in flat ones. */
struct flat_range exchange_part(const struct exchange *x, size_t bucket);

#endif

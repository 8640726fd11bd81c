/* The exchange of a step in order; its memory: exchange_memory.c. */
#include "train/exchange.h"

#include <stdint.h>

#include "train/engine.h"

static struct ranks ranks_of(const struct exchange *x) { return x->engine->ranks; }

struct flat_range exchange_part(const struct exchange *x, size_t bucket) {
    const struct gpt_bucket *b = &x->engine->gpt.buckets[bucket];
    const size_t world = (size_t)ranks_of(x).world, rank = (size_t)ranks_of(x).rank;
    const size_t count = b->count / world;
    return (struct flat_range){b->offset / world, b->offset + rank * count, count};
}

/* ---- weights ---- */

static enum status gather_weights(struct exchange *x, size_t bucket) {
    const struct flat_range part = exchange_part(x, bucket);
    const size_t size = dtype_bytes(x->source.dtype);
    return comm_all_gather(x->engine->comm, x->weights[bucket],
                           (const char *)x->source.data + part.at * size, part.count * size);
}

/* With quantised copies of all weights, they are gathered at once; else by the next forward pass,
 * one block ahead. */
static bool lazy(const struct exchange *x) { return x->zero > 0 && x->engine->scales == NULL; }

enum status exchange_update_weights(struct exchange *x) {
    return lazy(x) ? STATUS_OK : exchange_weights(x);
}

void exchange_updated(struct exchange *x) { x->stale = lazy(x); }

enum status exchange_refresh(struct exchange *x) {
    return x->active && x->stale ? exchange_weights(x) : STATUS_OK;
}

enum status exchange_weights(struct exchange *x) {
    struct comm *comm = x->engine->comm;
    x->stale = false;
    if (x->zero == 0 || x->zero == 3) return STATUS_OK; /* they are there; or fetched as needed */
    TRY(comm_after_compute(comm));
    for (size_t i = 0; i < gpt_bucket_count(&x->engine->gpt); i++) TRY(gather_weights(x, i));
    return compute_after_comm(comm);
}

/* The weights of a block into its slot, unless they are there. */
static enum status fetch_block(struct exchange *x, size_t layer) {
    size_t *held = &x->held[layer % EXCHANGE_SLOTS];
    if (layer >= x->engine->gpt.config.layers || *held == layer) return STATUS_OK;
    *held = layer;
    TRY(comm_after_compute(x->engine->comm)); /* whoever used the slot is done */
    return gather_weights(x, gpt_block_bucket(layer));
}

/* Start of a pass: nothing is known of the slots, so that a recording does not depend on what ran
 * before it. */
static enum status begin_pass(struct exchange *x) {
    struct comm *comm = x->engine->comm;
    for (size_t i = 0; i < EXCHANGE_SLOTS; i++) x->held[i] = SIZE_MAX;
    x->fetching = x->zero == 3 || (lazy(x) && (x->training ? x->gather_all : x->stale));
    if (!x->training) x->stale = false;
    if (!x->fetching) return STATUS_OK;
    if (x->gather_all) {
        TRY(comm_after_compute(comm));
        TRY(gather_weights(x, GPT_EMBEDDING_BUCKET));
        TRY(gather_weights(x, gpt_norm_bucket(&x->engine->gpt)));
        TRY(compute_after_comm(comm));
    }
    return fetch_block(x, 0);
}

/* ---- gradients ---- */

/* Gradients are not kept from one micro-batch to the next. */
static bool leaves_always(const struct exchange *x) { return x->fixed || x->zero >= 2; }

/* They arrive beside where they are summed. */
static bool staged(const struct exchange *x) { return leaves_always(x) || x->bf16; }

/* Adds what has arrived. */
static enum status arrive(struct exchange *x) {
    struct device *device = &x->engine->device;
    if (x->leaving == SIZE_MAX) return STATUS_OK;
    const struct flat_range part = exchange_part(x, x->leaving);
    x->leaving = SIZE_MAX;
    TRY(compute_after_comm(x->engine->comm));
    const struct tensor parts = tensor_make(x->staging.data, x->staging.dtype,
                                            x->fixed ? (size_t)ranks_of(x).world : 1, part.count);
    return device->ops->sum_parts(device, x->summed + part.at, parts, x->add);
}

static enum status leave(struct exchange *x, size_t bucket) {
    struct device *device = &x->engine->device;
    struct comm *comm = x->engine->comm;
    const struct flat_range part = exchange_part(x, bucket);
    const size_t count = x->engine->gpt.buckets[bucket].count;
    const void *from = x->gradients[bucket];
    if (staged(x)) x->leaving = bucket;
    if (x->bf16) {
        const struct tensor to = tensor_make(x->outgoing.data, DTYPE_BF16, 1, count);
        TRY(device->ops->convert(device, to, tensor_make(x->gradients[bucket], DTYPE_F32, 1,
                                                         count)));
        from = to.data;
    }
    TRY(comm_after_compute(comm));
    if (x->fixed) {
        return comm_exchange(comm, x->staging.data, from,
                             part.count * dtype_bytes(x->staging.dtype));
    }
    return comm_reduce_scatter(comm, staged(x) ? x->staging.data : x->summed + part.at, from,
                               part.count, x->bf16 ? COMM_BF16 : COMM_F32);
}

/* Stage 3 waits for weights before each block of backward, and a wait is for all that was asked
 * for: gradients asked for before it would be waited for too, and travel while nothing is at work.
 */
static bool leaves_behind_wait(const struct exchange *x, size_t bucket) {
    return x->zero == 3 && bucket != GPT_EMBEDDING_BUCKET && bucket != gpt_block_bucket(0);
}

static enum status gradients_ready(struct gpt_exchange *self, size_t bucket) {
    struct exchange *x = (struct exchange *)self;
    if (x->look != NULL) return x->look(x->look_context, bucket);
    if (!x->reduce) return STATUS_OK;
    TRY(arrive(x)); /* of the bucket before: it had this one's time to travel */
    if (!leaves_behind_wait(x, bucket)) return leave(x, bucket);
    x->pending = bucket;
    return STATUS_OK;
}

/* ---- both ---- */

/* The block's weights are there; while it is at work the gradients of the one before it in this
 * pass and the weights of the next are on their way. */
static enum status need_weights(struct gpt_exchange *self, size_t bucket, bool backward) {
    struct exchange *x = (struct exchange *)self;
    if (bucket == GPT_EMBEDDING_BUCKET) return begin_pass(x);
    if (!x->fetching || bucket == gpt_norm_bucket(&x->engine->gpt)) return STATUS_OK;
    if (backward && x->zero < 3) return STATUS_OK; /* still there */
    const size_t layer = bucket - gpt_block_bucket(0);
    TRY(fetch_block(x, layer));
    TRY(compute_after_comm(x->engine->comm));
    if (x->pending != SIZE_MAX) {
        const size_t pending = x->pending;
        x->pending = SIZE_MAX;
        TRY(leave(x, pending));
    }
    return fetch_block(x, backward ? layer - 1 : layer + 1); /* 0 - 1: none */
}

const struct gpt_exchange exchange_calls = {need_weights, gradients_ready};

void exchange_begin(struct exchange *x, bool first, bool *accumulate) {
    const bool always = leaves_always(x);
    x->reduce = always || x->micro_batch == x->micro_batches;
    x->add = always && !first;
    x->gather_all = first;
    x->training = true;
    x->leaving = x->pending = SIZE_MAX;
    *accumulate = !always && !first;
}

void exchange_count(struct exchange *x, bool first) {
    x->micro_batch = first ? 1 : x->micro_batch + 1;
    x->stale = false; /* this pass, or the first one of the step, fetches them */
}

size_t exchange_kind(const struct exchange *x) {
    const bool first = x->micro_batch == 1, last = x->micro_batch == x->micro_batches;
    return (size_t)(first ? 0 : 1) + (size_t)(last ? 2 : 0);
}

/* fixed: every rank's losses in the order of ranks, so that the sum is that of one rank. */
static enum status add_losses(struct exchange *x, const float *losses, size_t tokens) {
    struct device *device = &x->engine->device;
    struct comm *comm = x->engine->comm;
    if (!x->fixed) return device->ops->loss_sum(device, x->engine->state, losses, tokens);
    TRY(comm_after_compute(comm));
    TRY(comm_all_gather(comm, x->losses, losses, tokens * sizeof *losses));
    TRY(compute_after_comm(comm));
    for (size_t rank = 0; rank < (size_t)ranks_of(x).world; rank++) {
        TRY(device->ops->loss_sum(device, x->engine->state, x->losses + rank * tokens, tokens));
    }
    return STATUS_OK;
}

enum status exchange_end(struct exchange *x, const float *losses, size_t tokens) {
    TRY(arrive(x));
    /* Nothing may be waited for that was not asked for here: it may be a recording. */
    if (x->reduce && !staged(x)) TRY(compute_after_comm(x->engine->comm));
    x->gather_all = true; /* for passes that nothing begins: evaluation */
    x->training = false;
    return add_losses(x, losses, tokens);
}

/* ---- the update ---- */

/* By blocks, so that the sum does not depend on who owns which. */
static enum status fixed_sumsq(struct exchange *x) {
    struct device *device = &x->engine->device;
    struct comm *comm = x->engine->comm;
    const struct gpt *gpt = &x->engine->gpt;
    TRY(device->ops->block_sumsq(device, x->sums, x->summed, x->owned));
    TRY(comm_after_compute(comm));
    for (size_t i = 0; i < gpt_bucket_count(gpt); i++) {
        const struct flat_range part = exchange_part(x, i);
        TRY(comm_all_gather(comm, x->all_sums + gpt->buckets[i].offset / SUMSQ_BLOCK,
                            x->sums + part.at / SUMSQ_BLOCK,
                            part.count / SUMSQ_BLOCK * sizeof *x->sums));
    }
    TRY(compute_after_comm(comm));
    return device->ops->total_sumsq(device, x->engine->state, x->all_sums,
                                    gpt->table.elements / SUMSQ_BLOCK);
}

enum status exchange_sums(struct exchange *x) {
    struct engine *engine = x->engine;
    struct comm *comm = engine->comm;
    struct step_state *state = engine->state;
    _Static_assert(offsetof(struct step_state, gradient_sumsq) ==
                           offsetof(struct step_state, loss_sum) + sizeof(double) &&
                       offsetof(struct step_state, leaving) ==
                           offsetof(struct step_state, loss_sum) + 2 * sizeof(double),
                   "the sums are reduced as one array");
    if (x->fixed) TRY(fixed_sumsq(x));
    else TRY(engine->device.ops->gradient_sumsq(&engine->device, state, x->summed, x->owned));
    TRY(comm_after_compute(comm));
    if (x->fixed) TRY(comm_all_reduce(comm, &state->leaving, 1, COMM_F64, COMM_SUM));
    else TRY(comm_all_reduce(comm, &state->loss_sum, 3, COMM_F64, COMM_SUM));
    if (engine->scales != NULL) {
        /* The bits of amaxes are ordered as their numbers (kernels/quantised.h). Scales that ranks
         * took from their own tensors (current scaling; the first pass under delayed) differ, and
         * the largest scale and the largest inverse are two ranks': the history or the next pass
         * makes both anew, scale_state_drop the inverse. The rest is the same on all ranks. */
        const size_t words = sizeof *engine->scales / sizeof(uint32_t);
        TRY(comm_all_reduce(comm, engine->scales, gpt_scale_count(&engine->gpt) * words, COMM_U32,
                            COMM_MAX));
    }
    return compute_after_comm(comm);
}

enum status exchange_gradients(struct exchange *x) {
    if (x->zero > 0) return STATUS_OK;
    TRY(comm_after_compute(x->engine->comm));
    for (size_t i = 0; i < gpt_bucket_count(&x->engine->gpt); i++) {
        const struct flat_range part = exchange_part(x, i);
        TRY(comm_all_gather(x->engine->comm, x->gradients[i], x->summed + part.at,
                            part.count * sizeof(float)));
    }
    return compute_after_comm(x->engine->comm);
}

enum status exchange_gather_bucket(struct exchange *x, const float *owned, size_t bucket,
                                   const float **out) {
    const struct flat_range part = exchange_part(x, bucket);
    TRY(comm_after_compute(x->engine->comm));
    TRY(comm_all_gather(x->engine->comm, x->gradients[bucket], owned + part.at,
                        part.count * sizeof(float)));
    *out = x->gradients[bucket];
    return compute_after_comm(x->engine->comm);
}

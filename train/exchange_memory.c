/* Which ranks exchange what, and the memory of it; behind train/exchange.h. */
#include <stdint.h>
#include <stdlib.h>

#include "base/checked.h"
#include "train/engine.h"
#include "train/exchange.h"

enum status exchange_plan(struct exchange *x, const struct config *config,
                          const struct ranks *ranks) {
    const int64_t world = ranks->world;
    const bool fixed = config->comm.order == CONFIG_ORDER_FIXED;
    *x = (struct exchange){
        .calls = exchange_calls,
        .active = world > 1 || fixed,
        .zero = (int)config->train.zero,
        .fixed = fixed,
        .bf16 = config->comm.reduction == CONFIG_REDUCTION_BF16,
        .gather_all = true,
        .leaving = SIZE_MAX,
        .pending = SIZE_MAX,
    };
    if (!x->active) return STATUS_OK;
    TRY(config_check_ranks(config, world));
    x->micro_batches = (size_t)config_micro_batches(config, world);
    const struct precision precision = engine_precision(config);
    if (x->zero == 3 && precision_narrow(&precision)) {
        return status_set(STATUS_CONFIG, "train.zero = 3 keeps no weights, but recipe %s keeps "
                          "quantised copies of all: set train.zero = 2, or precision.recipe = bf16",
                          recipe_row(precision.recipe)->name);
    }
    if (x->zero == 3 && config->sample.every > 0) {
        return status_set(STATUS_CONFIG, "train.zero = 3 keeps no weights to sample from: set "
                          "sample.every = 0, or train.zero = 2");
    }
    return STATUS_OK;
}

size_t exchange_bucket_multiple(const struct exchange *x, const struct ranks *ranks) {
    return x->active ? (size_t)ranks->world * SUMSQ_BLOCK : 0;
}

static enum status take_floats(struct arena *arena, size_t count, float **out) {
    void *memory = NULL;
    TRY(arena_take(arena, count, sizeof(float), &memory));
    *out = memory;
    return STATUS_OK;
}

static enum status take_doubles(struct arena *arena, size_t count, double **out) {
    void *memory = NULL;
    TRY(arena_take(arena, count, sizeof(double), &memory));
    *out = memory;
    return STATUS_OK;
}

/* Memory of all buckets one after the other, or of the embeddings, the norm and a few blocks. */
static enum status take_buckets(const struct gpt *gpt, struct arena *arena, size_t size, bool all,
                                void **out) {
    const size_t buckets = gpt_bucket_count(gpt), layers = gpt->config.layers;
    char *flat = NULL;
    if (all) {
        void *memory = NULL;
        TRY(arena_take(arena, gpt->table.elements, size, &memory));
        flat = memory;
    }
    for (size_t i = 0; i < buckets; i++) {
        const struct gpt_bucket *bucket = &gpt->buckets[i];
        const bool shares = i >= gpt_block_bucket(EXCHANGE_SLOTS) && i < gpt_block_bucket(layers);
        if (all) out[i] = flat == NULL ? NULL : flat + bucket->offset * size;
        else if (shares) out[i] = out[i - EXCHANGE_SLOTS];
        else TRY(arena_take(arena, bucket->count, size, &out[i]));
    }
    return STATUS_OK;
}

static enum status take_gradients(struct engine *engine, size_t tokens, struct arena *arena) {
    struct exchange *x = &engine->exchange;
    const struct gpt *gpt = &engine->gpt;
    const size_t world = (size_t)engine->ranks.world;
    const enum dtype travels = x->bf16 ? DTYPE_BF16 : DTYPE_F32;
    size_t largest = 0;
    for (size_t i = 0; i < gpt_bucket_count(gpt); i++) {
        largest = size_max(largest, gpt->buckets[i].count);
    }
    void **gradients = calloc(gpt_bucket_count(gpt), sizeof *gradients);
    if (gradients == NULL) return status_set(STATUS_MEMORY, "out of memory for buckets");
    const enum status status = take_buckets(gpt, arena, sizeof(float), x->zero < 2, gradients);
    for (size_t i = 0; i < gpt_bucket_count(gpt); i++) x->gradients[i] = gradients[i];
    free(gradients);
    TRY(status);
    TRY(take_floats(arena, x->owned, &x->summed));
    if (x->fixed || x->zero >= 2 || x->bf16) {
        TRY(arena_tensor(arena, travels, 1, x->fixed ? largest : largest / world, &x->staging));
    }
    if (x->bf16) TRY(arena_tensor(arena, DTYPE_BF16, 1, largest, &x->outgoing));
    if (!x->fixed) return STATUS_OK;
    TRY(take_doubles(arena, x->owned / SUMSQ_BLOCK, &x->sums));
    TRY(take_doubles(arena, gpt->table.elements / SUMSQ_BLOCK, &x->all_sums));
    return take_floats(arena, world * tokens, &x->losses);
}

static enum status take_parameters(struct engine *engine, struct arena *arena) {
    struct exchange *x = &engine->exchange;
    const bool fp32 = engine->dtype == DTYPE_F32;
    TRY(take_floats(arena, engine->owned, &engine->masters));
    if (x->zero == 0 && fp32) {
        for (size_t i = 0; i < gpt_bucket_count(&engine->gpt); i++) {
            const size_t offset = engine->gpt.buckets[i].offset;
            x->weights[i] = engine->masters == NULL ? NULL : engine->masters + offset;
        }
    } else {
        TRY(take_buckets(&engine->gpt, arena, dtype_bytes(engine->dtype), x->zero < 3,
                         x->weights));
    }
    if (x->zero < 3) { /* bucket 0 begins the flat buffer */
        engine->weights = tensor_make(x->weights[0], engine->dtype, 1, engine->gpt.table.elements);
    }
    x->source = tensor_make(engine->masters, DTYPE_F32, 1, engine->owned);
    if (x->zero == 0 || fp32) return STATUS_OK;
    return arena_tensor(arena, engine->dtype, 1, engine->owned, &x->source);
}

enum status exchange_lay_out(struct engine *engine, size_t tokens, struct arena *parameters,
                             struct arena *gradients, struct arena *optimizer) {
    struct exchange *x = &engine->exchange;
    const struct gpt *gpt = &engine->gpt;
    const size_t buckets = gpt_bucket_count(gpt);
    x->engine = engine;
    x->owned = gpt->table.elements / (size_t)engine->ranks.world;
    engine->owned = x->zero == 0 ? gpt->table.elements : x->owned;
    if (x->weights == NULL) x->weights = calloc(buckets, sizeof *x->weights);
    if (x->gradients == NULL) x->gradients = calloc(buckets, sizeof *x->gradients);
    if (x->weights == NULL || x->gradients == NULL) {
        return status_set(STATUS_MEMORY, "out of memory for %zu buckets", buckets);
    }
    TRY(take_parameters(engine, parameters));
    TRY(take_gradients(engine, tokens, gradients));
    if (x->zero < 2) engine->gradients = x->gradients[0];
    TRY(take_floats(optimizer, engine->owned, &engine->moments1));
    TRY(take_floats(optimizer, engine->owned, &engine->moments2));
    for (size_t i = 0; i < buckets; i++) {
        const size_t count = gpt->buckets[i].count;
        gpt_bind_bucket(&engine->gpt, i, tensor_make(x->weights[i], engine->dtype, 1, count),
                        x->gradients[i]);
    }
    return STATUS_OK;
}

void exchange_close(struct exchange *x) {
    free(x->weights);
    free(x->gradients);
    *x = (struct exchange){0};
}

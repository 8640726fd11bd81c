/* The memory of gpt_train.h: which activations are kept for each block and which are shared. */
#include "layers/gpt_train.h"

#include <stdlib.h>

#include "base/checked.h"

/* Where one block's activations may lie: taken anew for every block, or shared by all. */
struct layout {
    struct arena *arena;
    enum dtype dtype;
    size_t tokens, width, batch, heads, sequence_length;
};

static enum status take_floats(const struct layout *l, size_t count, float **out) {
    void *memory = NULL;
    TRY(arena_take(l->arena, count, sizeof(float), &memory));
    *out = memory;
    return STATUS_OK;
}

static enum status take_norm(const struct layout *l, struct norm_activations *norm) {
    TRY(arena_tensor(l->arena, l->dtype, l->tokens, l->width, &norm->out));
    TRY(take_floats(l, l->tokens, &norm->mean));
    return take_floats(l, l->tokens, &norm->rstd);
}

static enum status take_residual(const struct layout *l, struct tensor *residual) {
    return arena_tensor(l->arena, l->dtype, l->tokens, l->width, residual);
}

static enum status take_gelu(const struct layout *l, struct block_activations *a) {
    return arena_tensor(l->arena, l->dtype, l->tokens, 4 * l->width, &a->mlp.gelu);
}

/* All but the block's input and the GELU output. */
static enum status take_block(const struct layout *l, struct block_activations *a) {
    TRY(take_norm(l, &a->norm1));
    TRY(arena_tensor(l->arena, l->dtype, l->tokens, 3 * l->width, &a->attention.qkv));
    TRY(arena_tensor(l->arena, l->dtype, l->tokens, l->width, &a->attention.out));
    TRY(take_floats(l, l->batch * l->heads * l->sequence_length, &a->attention.log_sum_exp));
    TRY(take_norm(l, &a->norm2));
    TRY(take_residual(l, &a->norm2.residual));
    return arena_tensor(l->arena, l->dtype, l->tokens, 4 * l->width, &a->mlp.fc);
}

static enum status take_blocks(struct gpt_training *t, const struct layout *l) {
    const bool share_block = !t->shape.backward || t->shape.recompute == RECOMPUTE_BLOCK;
    const bool share_gelu = share_block || t->shape.recompute == RECOMPUTE_GELU;
    for (size_t layer = 0; layer < t->gpt->config.layers; layer++) {
        struct block_activations *a = &t->blocks[layer];
        if (layer > 0 && share_block) *a = t->blocks[0];
        else TRY(take_block(l, a));
        if (layer > 0 && share_gelu) a->mlp.gelu = t->blocks[0].mlp.gelu;
        else TRY(take_gelu(l, a));
        /* The first block's input is the embedding itself; nothing has to be added to it. */
        if (layer == 0) a->norm1.residual = t->embedded;
        else if (!t->shape.backward) a->norm1.residual = t->final_norm.residual;
        else TRY(take_residual(l, &a->norm1.residual));
    }
    return STATUS_OK;
}

static enum status take_loss(struct gpt_training *t, const struct layout *l) {
    const size_t padded = gpt_padded_vocabulary(&t->gpt->config);
    size_t chunk = t->shape.logits_chunk;
    if (chunk == 0) { /* as few as the device's measure allows, all alike */
        const size_t most = size_max(1, t->device->logits_bytes / (padded * dtype_bytes(l->dtype)));
        chunk = ceil_div(l->tokens, ceil_div(l->tokens, most));
    }
    t->loss.head = t->gpt->head;
    t->loss.vocabulary = t->gpt->config.vocabulary;
    return arena_tensor(l->arena, l->dtype, size_min(chunk, l->tokens), padded, &t->loss.logits);
}

static enum status take_tokens(const struct layout *l, int32_t **out) {
    void *memory = NULL;
    TRY(arena_take(l->arena, l->tokens, sizeof(int32_t), &memory));
    *out = memory;
    return STATUS_OK;
}

static enum status take_all(struct gpt_training *t, const struct layout *l) {
    TRY(take_residual(l, &t->embedded));
    TRY(take_norm(l, &t->final_norm));
    TRY(take_residual(l, &t->final_norm.residual));
    TRY(take_blocks(t, l));
    TRY(take_residual(l, &t->branch));
    if (t->shape.backward) {
        TRY(arena_tensor(l->arena, l->dtype, l->tokens, 4 * l->width, &t->wide));
        TRY(take_residual(l, &t->residual_gradient));
    }
    TRY(take_loss(t, l));
    TRY(take_tokens(l, &t->inputs));
    TRY(take_tokens(l, &t->targets));
    return take_floats(l, l->tokens, &t->losses);
}

enum status gpt_training_open(struct gpt_training *t, struct gpt *gpt, struct device *device,
                              const struct gpt_training_shape *shape, struct arena *arena) {
    const struct gpt_config *config = &gpt->config;
    size_t tokens = 0;
    *t = (struct gpt_training){.gpt = gpt, .device = device, .shape = *shape};
    if (shape->sequence_length == 0 || shape->sequence_length > config->context) {
        return status_set(STATUS_CONFIG,
                          "expected a sequence length of 1 to %zu (model.context), found "
                          "%zu",
                          config->context, shape->sequence_length);
    }
    if (shape->batch == 0 || !size_mul(shape->batch, shape->sequence_length, &tokens)) {
        return status_set(STATUS_CONFIG,
                          "expected at least one sequence in a micro-batch, and fewer than "
                          "2^64 tokens; found %zu sequences",
                          shape->batch);
    }
    t->blocks = calloc(config->layers, sizeof *t->blocks);
    if (t->blocks == NULL)
        return status_set(STATUS_MEMORY, "out of memory for the table of activations");
    const struct layout layout = {
        .arena = arena, .dtype = shape->dtype, .tokens = tokens, .width = config->width,
        .batch = shape->batch, .heads = config->heads, .sequence_length = shape->sequence_length,
    };
    const enum status status = take_all(t, &layout);
    if (status != STATUS_OK) gpt_training_close(t);
    return status;
}

void gpt_training_close(struct gpt_training *t) {
    free(t->blocks);
    *t = (struct gpt_training){0};
}

struct op_limits gpt_training_limits(const struct gpt *gpt,
                                     const struct gpt_training_shape *shape) {
    return (struct op_limits){
        .tokens = shape->batch * shape->sequence_length,
        .width = 4 * gpt->config.width,
        .sequence_length = shape->sequence_length,
        .heads = gpt->config.heads,
        .head_width = gpt->config.width / gpt->config.heads,
        .dtype = shape->dtype,
    };
}

/* Generation with a key-value cache. */
#include "layers/gpt_generate.h"

#include <stdlib.h>

#include "base/checked.h"

static enum status take_caches(struct gpt_generation *g, enum dtype dtype, struct arena *arena) {
    const struct gpt_config *config = &g->gpt->config;
    size_t rows = 0;
    if (!size_mul(g->batch, config->context, &rows)) {
        return status_set(STATUS_CONFIG, "too many sequences to continue at once: %zu", g->batch);
    }
    for (size_t layer = 0; layer < config->layers; layer++) {
        TRY(arena_tensor(arena, dtype, rows, config->width, &g->keys[layer]));
        TRY(arena_tensor(arena, dtype, rows, config->width, &g->values[layer]));
    }
    return STATUS_OK;
}

static enum status take_activations(struct gpt_generation *g, enum dtype dtype,
                                    struct arena *arena) {
    const size_t rows = g->batch * g->chunk, width = g->gpt->config.width;
    void *mean = NULL, *rstd = NULL, *tokens = NULL;
    TRY(arena_tensor(arena, dtype, rows, width, &g->residual[0]));
    TRY(arena_tensor(arena, dtype, rows, width, &g->residual[1]));
    TRY(arena_tensor(arena, dtype, rows, width, &g->normed));
    TRY(arena_tensor(arena, dtype, rows, width, &g->heads));
    TRY(arena_tensor(arena, dtype, rows, width, &g->branch));
    TRY(arena_tensor(arena, dtype, rows, 3 * width, &g->qkv));
    TRY(arena_tensor(arena, dtype, rows, 4 * width, &g->fc));
    TRY(arena_tensor(arena, dtype, rows, 4 * width, &g->gelu));
    TRY(arena_tensor(arena, DTYPE_F32, g->batch, gpt_padded_vocabulary(&g->gpt->config),
                     &g->logits));
    TRY(arena_take(arena, rows, sizeof(float), &mean));
    TRY(arena_take(arena, rows, sizeof(float), &rstd));
    TRY(arena_take(arena, rows, sizeof(int32_t), &tokens));
    g->mean = mean;
    g->rstd = rstd;
    g->tokens = tokens;
    return STATUS_OK;
}

enum status gpt_generation_open(struct gpt_generation *g, struct gpt *gpt, struct device *device,
                                enum dtype dtype, size_t batch, size_t chunk, struct arena *arena) {
    enum status status = STATUS_OK;
    *g = (struct gpt_generation){
        .gpt = gpt, .device = device, .batch = batch, .chunk = size_min(chunk, gpt->config.context),
    };
    g->keys = calloc(gpt->config.layers, sizeof *g->keys);
    g->values = calloc(gpt->config.layers, sizeof *g->values);
    if (g->keys == NULL || g->values == NULL) {
        status = status_set(STATUS_MEMORY, "out of memory for the table of caches");
    }
    if (status == STATUS_OK) status = take_caches(g, dtype, arena);
    if (status == STATUS_OK) status = take_activations(g, dtype, arena);
    if (status != STATUS_OK) gpt_generation_close(g);
    return status;
}

void gpt_generation_close(struct gpt_generation *g) {
    free(g->keys);
    free(g->values);
    *g = (struct gpt_generation){0};
}

struct op_limits gpt_generation_limits(const struct gpt *gpt, enum dtype dtype, size_t batch,
                                       size_t chunk) {
    return (struct op_limits){
        .tokens = batch * size_min(chunk, gpt->config.context),
        .width = 4 * gpt->config.width,
        .model_width = gpt->config.width,
        .sequence_length = gpt->config.context,
        .heads = gpt->config.heads,
        .head_width = gpt->config.width / gpt->config.heads,
        .dtype = dtype,
    };
}

void gpt_generation_reset(struct gpt_generation *g) { g->past = 0; }

/* Sampling multiplies BF16 weights in every narrow recipe. */
static struct linear_operand plain(struct tensor values) {
    return (struct linear_operand){.values = values};
}

/* The activations cut to the rows of this call. */
static struct gpt_generation cut_rows(const struct gpt_generation *g, size_t rows) {
    struct gpt_generation cut = *g;
    struct tensor *const all[] = {&cut.residual[0], &cut.residual[1], &cut.normed, &cut.heads,
                                  &cut.branch, &cut.qkv, &cut.fc, &cut.gelu};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) all[i]->rows = rows;
    return cut;
}

/* The norm's input is residual[0] plus the branch; the sum lands in residual[1], and the two
 * swap. */
static enum status norm_step(struct gpt_generation *g, const struct norm *norm,
                             struct tensor bias) {
    const bool add = bias.data != NULL;
    const struct norm_activations out = {
        .out = g->normed, .residual = g->residual[1], .mean = g->mean, .rstd = g->rstd,
    };
    const struct branch in = {
        .residual_in = g->residual[0], .delta = add ? g->branch : (struct tensor){0}, .bias = bias,
    };
    TRY(norm_layer_forward(g->device, norm, &out, &in));
    if (add) {
        const struct tensor sum = g->residual[1];
        g->residual[1] = g->residual[0];
        g->residual[0] = sum;
    }
    return STATUS_OK;
}

static enum status block_step(struct gpt_generation *g, size_t layer, size_t count) {
    const struct gpt_block *block = &g->gpt->blocks[layer];
    const struct tensor none = {0};
    const struct attention_cached attention = {
        .out = g->heads, .qkv = g->qkv, .keys = g->keys[layer], .values = g->values[layer],
        .batch = g->batch, .sequence_length = count, .heads = g->gpt->config.heads,
        .past = g->past, .capacity = g->gpt->config.context,
    };
    const struct mlp_activations mlp = {.fc = g->fc, .gelu = g->gelu};
    TRY(norm_step(g, &block->norm1, layer == 0 ? none : g->gpt->blocks[layer - 1].mlp_bias));
    TRY(linear_forward(g->device, &block->attention.qkv, g->qkv, plain(g->normed)));
    TRY(g->device->ops->attention_cached(g->device, &attention));
    TRY(linear_forward(g->device, &block->attention.projection, g->branch, plain(g->heads)));
    TRY(norm_step(g, &block->norm2, block->attention_bias));
    TRY(mlp_layer_expand(g->device, &block->mlp, &mlp, plain(g->normed)));
    return mlp_layer_contract(g->device, &block->mlp, &mlp, g->branch);
}

/* Runs the blocks and the final norm over `count` tokens of each sequence; `work` receives the cut
 * buffers, whose .normed is the final norm's output. */
static enum status run_blocks(struct gpt_generation *g, const int32_t *tokens, size_t count,
                              struct gpt_generation *work) {
    const struct gpt_config *config = &g->gpt->config;
    if (count == 0 || count > g->chunk || g->past + count > config->context) {
        return status_set(STATUS_CONFIG,
                          "expected at least 1 and at most %zu tokens at a time, in a context of "
                          "%zu of which %zu are taken; found %zu",
                          g->chunk, config->context, g->past, count);
    }
    *work = cut_rows(g, g->batch * count);
    TRY(device_upload(g->device, g->tokens, tokens, g->batch * count * sizeof *tokens));
    TRY(embedding_layer_forward(g->device, &g->gpt->embedding, work->residual[0], g->tokens, count,
                                g->past));
    for (size_t layer = 0; layer < config->layers; layer++) TRY(block_step(work, layer, count));
    TRY(norm_step(work, &g->gpt->final_norm, g->gpt->blocks[config->layers - 1].mlp_bias));
    g->past += count;
    return STATUS_OK;
}

enum status gpt_generation_feed(struct gpt_generation *g, const int32_t *tokens, size_t count) {
    struct gpt_generation work;
    return run_blocks(g, tokens, count, &work);
}

enum status gpt_generation_step(struct gpt_generation *g, const int32_t *tokens,
                                struct tensor *logits) {
    struct gpt_generation work;
    TRY(run_blocks(g, tokens, 1, &work));
    TRY(linear_forward(g->device, &g->gpt->head, g->logits, plain(work.normed)));
    *logits = g->logits;
    return STATUS_OK;
}

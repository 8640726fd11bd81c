/* GPT-2's tensor table and the binding of layers to flat buffers. */
#include "layers/gpt.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

/* What a block's parameters are called, here and in Hugging Face's GPT2LMHeadModel. The order is
 * that of the tensor table, and of enum block_param. */
struct block_row {
    const char *name, *hf_name;
    enum param_role role;
    size_t rows, columns; /* in units of the width; rows 0: a vector */
    enum param_init init;
    bool residual; /* writes to the residual stream: initialised 1 / sqrt(2 layers) smaller */
};

enum block_param {
    NORM1_WEIGHT, NORM1_BIAS, QKV_WEIGHT, QKV_BIAS, ATTENTION_WEIGHT, ATTENTION_BIAS,
    NORM2_WEIGHT, NORM2_BIAS, FC_WEIGHT, FC_BIAS, MLP_WEIGHT, MLP_BIAS, BLOCK_PARAMS,
};

static const struct block_row block_rows[BLOCK_PARAMS] = {
    [NORM1_WEIGHT] = {"norm1.weight", "ln_1.weight", ROLE_NORM, 0, 1, INIT_ONE, false},
    [NORM1_BIAS] = {"norm1.bias", "ln_1.bias", ROLE_NORM, 0, 1, INIT_ZERO, false},
    [QKV_WEIGHT] = {"attention.qkv.weight", "attn.c_attn.weight", ROLE_LINEAR, 3, 1, INIT_NORMAL,
                    false},
    [QKV_BIAS] = {"attention.qkv.bias", "attn.c_attn.bias", ROLE_BIAS, 0, 3, INIT_ZERO, false},
    [ATTENTION_WEIGHT] = {"attention.projection.weight", "attn.c_proj.weight", ROLE_LINEAR, 1, 1,
                          INIT_NORMAL, true},
    [ATTENTION_BIAS] = {"attention.projection.bias", "attn.c_proj.bias", ROLE_BIAS, 0, 1, INIT_ZERO,
                        false},
    [NORM2_WEIGHT] = {"norm2.weight", "ln_2.weight", ROLE_NORM, 0, 1, INIT_ONE, false},
    [NORM2_BIAS] = {"norm2.bias", "ln_2.bias", ROLE_NORM, 0, 1, INIT_ZERO, false},
    [FC_WEIGHT] = {"mlp.fc.weight", "mlp.c_fc.weight", ROLE_LINEAR, 4, 1, INIT_NORMAL, false},
    [FC_BIAS] = {"mlp.fc.bias", "mlp.c_fc.bias", ROLE_BIAS, 0, 4, INIT_ZERO, false},
    [MLP_WEIGHT] = {"mlp.projection.weight", "mlp.c_proj.weight", ROLE_LINEAR, 1, 4, INIT_NORMAL,
                    true},
    [MLP_BIAS] = {"mlp.projection.bias", "mlp.c_proj.bias", ROLE_BIAS, 0, 1, INIT_ZERO, false},
};

/* The rows of the table around the blocks. */
enum { TOKEN_ROW, POSITION_ROW, FIRST_BLOCK_ROW };

static const float init_std = 0.02f; /* GPT-2's, for every random matrix */

static size_t block_row_index(size_t layer, enum block_param param) {
    return FIRST_BLOCK_ROW + layer * BLOCK_PARAMS + param;
}

static size_t final_norm_index(const struct gpt_config *config) {
    return FIRST_BLOCK_ROW + config->layers * BLOCK_PARAMS;
}

static enum status add_row(struct gpt *gpt, struct param row, unsigned decay_roles) {
    row.decay = (decay_roles >> row.role & 1u) != 0;
    return param_table_add(&gpt->table, &row);
}

static enum status add_block(struct gpt *gpt, size_t layer, unsigned decay_roles) {
    const size_t width = gpt->config.width;
    for (size_t i = 0; i < BLOCK_PARAMS; i++) {
        const struct block_row *row = &block_rows[i];
        struct param param = {
            .role = row->role,
            .layer = (int)layer,
            .rows = row->rows == 0 ? 1 : row->rows * width,
            .columns = row->columns * width,
            .hf_transposed = row->role == ROLE_LINEAR, /* transformers' Conv1D */
            .init = row->init,
            .init_std = row->residual ? init_std / sqrtf(2.0f * (float)gpt->config.layers)
                                      : init_std,
        };
        snprintf(param.name, sizeof param.name, "block.%zu.%s", layer, row->name);
        snprintf(param.hf_name, sizeof param.hf_name, "transformer.h.%zu.%s", layer, row->hf_name);
        TRY(add_row(gpt, param, decay_roles));
    }
    return STATUS_OK;
}

/* The bucket of all rows that are in none yet. */
static enum status end_bucket(struct gpt *gpt, size_t index) {
    struct param_table *table = &gpt->table;
    const struct gpt_bucket none = {0}, *before = index > 0 ? &gpt->buckets[index - 1] : &none;
    if (gpt->config.bucket_multiple > 0) {
        TRY(param_table_pad(table, gpt->config.bucket_multiple));
    }
    const size_t first = before->first_param + before->params;
    const size_t offset = before->offset + before->count;
    gpt->buckets[index] = (struct gpt_bucket){
        .first_param = first, .params = table->length - first,
        .offset = offset, .count = table->elements - offset,
    };
    return STATUS_OK;
}

static enum status build_table(struct gpt *gpt, unsigned decay_roles) {
    const struct gpt_config *config = &gpt->config;
    const struct param token = {
        .name = "token_embedding", .hf_name = "transformer.wte.weight", .role = ROLE_EMBEDDING,
        .layer = -1, .rows = config->vocabulary, .columns = config->width,
        .padded_rows = gpt_padded_vocabulary(config), .init = INIT_NORMAL, .init_std = init_std,
    };
    const struct param position = {
        .name = "position_embedding", .hf_name = "transformer.wpe.weight", .role = ROLE_POSITION,
        .layer = -1, .rows = config->context, .columns = config->width, .init = INIT_NORMAL,
        .init_std = init_std,
    };
    const struct param scale = {
        .name = "final_norm.weight", .hf_name = "transformer.ln_f.weight", .role = ROLE_NORM,
        .layer = -1, .rows = 1, .columns = config->width, .init = INIT_ONE,
    };
    const struct param shift = {
        .name = "final_norm.bias", .hf_name = "transformer.ln_f.bias", .role = ROLE_NORM,
        .layer = -1, .rows = 1, .columns = config->width, .init = INIT_ZERO,
    };
    TRY(add_row(gpt, token, decay_roles));
    TRY(add_row(gpt, position, decay_roles));
    TRY(end_bucket(gpt, GPT_EMBEDDING_BUCKET));
    for (size_t layer = 0; layer < config->layers; layer++) {
        TRY(add_block(gpt, layer, decay_roles));
        TRY(end_bucket(gpt, gpt_block_bucket(layer)));
    }
    TRY(add_row(gpt, scale, decay_roles));
    TRY(add_row(gpt, shift, decay_roles));
    return end_bucket(gpt, gpt_norm_bucket(gpt));
}

static enum status check_config(const struct gpt_config *c) {
    /* Bounds that keep every product below 2^63 and every GEMM dimension inside an int. */
    const size_t dimension_max = (size_t)1 << 24;
    if (c->layers == 0 || c->heads == 0 || c->width == 0 || c->context == 0 || c->vocabulary == 0 ||
        c->layers > 4096 || c->width > dimension_max / 4 || c->context > dimension_max ||
        c->vocabulary > dimension_max) {
        return status_set(
            STATUS_CONFIG,
            "expected a model of 1 to 4096 layers, width 1 to %zu, context "
            "and vocabulary 1 to %zu; found %zu layers, %zu heads, width %zu, context %zu, "
            "vocabulary %zu",
            dimension_max / 4, dimension_max, c->layers, c->heads, c->width, c->context,
            c->vocabulary);
    }
    if (c->width % c->heads != 0) {
        return status_set(STATUS_CONFIG,
                          "expected model.width to be a multiple of model.heads, found %zu "
                          "and %zu",
                          c->width, c->heads);
    }
    return STATUS_OK;
}

enum status gpt_open(struct gpt *gpt, const struct gpt_config *config, unsigned decay_roles) {
    *gpt = (struct gpt){.config = *config};
    TRY(check_config(config));
    enum status status = STATUS_OK;
    gpt->blocks = calloc(config->layers, sizeof *gpt->blocks);
    gpt->buckets = calloc(gpt_bucket_count(gpt), sizeof *gpt->buckets);
    if (gpt->blocks == NULL || gpt->buckets == NULL) {
        status = status_set(STATUS_MEMORY, "out of memory for a model of %zu layers",
                            config->layers);
    }
    if (status == STATUS_OK) status = build_table(gpt, decay_roles);
    if (status != STATUS_OK) gpt_close(gpt);
    return status;
}

void gpt_close(struct gpt *gpt) {
    free(gpt->blocks);
    free(gpt->buckets);
    param_table_free(&gpt->table);
    *gpt = (struct gpt){0};
}

/* The numbers of a bucket while its layers are bound. */
struct buffers {
    const struct param_table *table;
    size_t offset; /* of the bucket in the flat buffers */
    struct tensor weights;
    float *gradients;
};

static struct tensor weight_at(const struct buffers *buffers, size_t index) {
    const struct param *param = &buffers->table->params[index];
    const enum dtype dtype = buffers->weights.dtype;
    char *base = buffers->weights.data; /* NULL while measuring */
    return tensor_make(base == NULL ? NULL
                                    : base + (param->offset - buffers->offset) * dtype_bytes(dtype),
                       dtype, param->padded_rows, param->columns);
}

static float *gradient_at(const struct buffers *buffers, size_t index) {
    if (buffers->gradients == NULL) return NULL;
    return buffers->gradients + (buffers->table->params[index].offset - buffers->offset);
}

static struct norm bind_norm(const struct buffers *buffers, size_t index) {
    return (struct norm){
        .weight = weight_at(buffers, index),
        .bias = weight_at(buffers, index + 1),
        .weight_gradient = gradient_at(buffers, index),
        .bias_gradient = gradient_at(buffers, index + 1),
    };
}

/* A linear without bias; the caller adds one where the layer owns it. */
static struct linear bind_linear(const struct buffers *buffers, size_t index) {
    return (struct linear){
        .weight = weight_at(buffers, index),
        .weight_gradient = gradient_at(buffers, index),
    };
}

static void bind_block(struct gpt *gpt, const struct buffers *buffers, size_t layer) {
    struct gpt_block *block = &gpt->blocks[layer];
    const size_t first = block_row_index(layer, (enum block_param)0);
    block->norm1 = bind_norm(buffers, first + NORM1_WEIGHT);
    block->attention.heads = gpt->config.heads;
    block->attention.qkv = bind_linear(buffers, first + QKV_WEIGHT);
    block->attention.qkv.bias = weight_at(buffers, first + QKV_BIAS);
    block->attention.qkv.bias_gradient = gradient_at(buffers, first + QKV_BIAS);
    block->attention.projection = bind_linear(buffers, first + ATTENTION_WEIGHT);
    block->attention_bias = weight_at(buffers, first + ATTENTION_BIAS);
    block->attention_bias_gradient = gradient_at(buffers, first + ATTENTION_BIAS);
    block->norm2 = bind_norm(buffers, first + NORM2_WEIGHT);
    block->mlp.fc = bind_linear(buffers, first + FC_WEIGHT);
    block->mlp.fc_bias = weight_at(buffers, first + FC_BIAS);
    block->mlp.fc_bias_gradient = gradient_at(buffers, first + FC_BIAS);
    block->mlp.projection = bind_linear(buffers, first + MLP_WEIGHT);
    block->mlp_bias = weight_at(buffers, first + MLP_BIAS);
    block->mlp_bias_gradient = gradient_at(buffers, first + MLP_BIAS);
}

void gpt_bind_bucket(struct gpt *gpt, size_t bucket, struct tensor weights, float *gradients) {
    const struct buffers buffers = {&gpt->table, gpt->buckets[bucket].offset, weights, gradients};
    if (bucket == GPT_EMBEDDING_BUCKET) {
        gpt->embedding = (struct embedding){
            .token_weight = weight_at(&buffers, TOKEN_ROW),
            .position_weight = weight_at(&buffers, POSITION_ROW),
            .token_gradient = gradient_at(&buffers, TOKEN_ROW),
            .position_gradient = gradient_at(&buffers, POSITION_ROW),
        };
        gpt->head = bind_linear(&buffers, TOKEN_ROW);
    } else if (bucket == gpt_norm_bucket(gpt)) {
        gpt->final_norm = bind_norm(&buffers, final_norm_index(&gpt->config));
    } else {
        bind_block(gpt, &buffers, bucket - gpt_block_bucket(0));
    }
}

void gpt_bind(struct gpt *gpt, struct tensor weights, float *gradients) {
    for (size_t i = 0; i < gpt_bucket_count(gpt); i++) {
        const struct gpt_bucket *bucket = &gpt->buckets[i];
        char *base = weights.data; /* NULL while measuring */
        char *own = base == NULL ? NULL : base + bucket->offset * dtype_bytes(weights.dtype);
        gpt_bind_bucket(gpt, i, tensor_make(own, weights.dtype, 1, bucket->count),
                        gradients == NULL ? NULL : gradients + bucket->offset);
    }
}

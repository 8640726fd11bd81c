/* Forward and backward through all blocks, with recomputation. Memory: gpt_memory.c. */
#include "layers/gpt_train.h"

static enum status observe(const struct gpt_training *t, const char *what, int layer,
                           struct tensor tensor) {
    return t->observer == NULL ? STATUS_OK : t->observer->see(t->observer, what, layer, tensor);
}

static enum status need_weights(const struct gpt_training *t, size_t bucket, bool backward) {
    struct gpt_exchange *exchange = t->exchange;
    return exchange == NULL ? STATUS_OK : exchange->need_weights(exchange, bucket, backward);
}

static enum status gradients_ready(const struct gpt_training *t, size_t bucket) {
    return t->exchange == NULL ? STATUS_OK : t->exchange->gradients_ready(t->exchange, bucket);
}

/* What stands before block `layer` (or the final norm, layer = layers): the embedding, or the MLP
 * branch of the block before. */
static struct branch branch_before(const struct gpt_training *t, size_t layer) {
    if (layer == 0) return (struct branch){.residual_in = t->embedded};
    return (struct branch){
        .residual_in = t->blocks[layer - 1].norm2.residual,
        .delta = t->branch,
        .bias = t->gpt->blocks[layer - 1].mlp_bias,
        .bias_gradient = t->gpt->blocks[layer - 1].mlp_bias_gradient,
    };
}

static struct linear_operand norm_operand(const struct norm_activations *norm) {
    return (struct linear_operand){norm->out, &norm->narrow};
}

/* norm1 to the GELU: everything that the block's backward reads. */
static enum status block_forward(struct gpt_training *t, size_t layer, const struct branch *in) {
    const struct gpt_block *block = &t->gpt->blocks[layer];
    const struct block_activations *a = &t->blocks[layer];
    const int l = (int)layer;
    TRY(norm_layer_forward(t->device, &block->norm1, &a->norm1, in));
    TRY(observe(t, "norm1 output", l, a->norm1.out));
    TRY(attention_layer_forward(t->device, &block->attention, &a->attention, t->branch,
                                norm_operand(&a->norm1), t->shape.batch,
                                t->shape.sequence_length));
    TRY(observe(t, "query, key and value", l, a->attention.qkv));
    TRY(observe(t, "attention output", l, a->attention.out));
    TRY(observe(t, "attention projection", l, t->branch));
    const struct branch attention = {
        .residual_in = a->norm1.residual, .delta = t->branch, .bias = block->attention_bias,
    };
    TRY(norm_layer_forward(t->device, &block->norm2, &a->norm2, &attention));
    TRY(observe(t, "norm2 output", l, a->norm2.out));
    TRY(mlp_layer_expand(t->device, &block->mlp, &a->mlp, norm_operand(&a->norm2)));
    TRY(observe(t, "MLP fc output", l, a->mlp.fc));
    return observe(t, "GELU output", l, a->mlp.gelu);
}

/* Embedding to final norm. */
static enum status forward(struct gpt_training *t) {
    struct gpt *gpt = t->gpt;
    TRY(need_weights(t, GPT_EMBEDDING_BUCKET, false));
    TRY(embedding_layer_forward(t->device, &gpt->embedding, t->embedded, t->inputs,
                                t->shape.sequence_length, 0));
    TRY(observe(t, "embedding", -1, t->embedded));
    for (size_t layer = 0; layer < gpt->config.layers; layer++) {
        const struct branch in = branch_before(t, layer);
        TRY(need_weights(t, gpt_block_bucket(layer), false));
        TRY(block_forward(t, layer, &in));
        TRY(mlp_layer_contract(t->device, &gpt->blocks[layer].mlp, &t->blocks[layer].mlp,
                               t->branch));
        TRY(observe(t, "MLP projection", (int)layer, t->branch));
    }
    const struct branch last = branch_before(t, gpt->config.layers);
    TRY(need_weights(t, gpt_norm_bucket(gpt), false));
    TRY(norm_layer_forward(t->device, &gpt->final_norm, &t->final_norm, &last));
    return observe(t, "final norm output", -1, t->final_norm.out);
}

/* Makes the shared activations those of this block again. The last block's are still there. */
static enum status block_recompute(struct gpt_training *t, size_t layer) {
    if (layer + 1 == t->gpt->config.layers) return STATUS_OK;
    if (t->shape.recompute == RECOMPUTE_GELU) {
        return mlp_layer_gelu(t->device, &t->gpt->blocks[layer].mlp, &t->blocks[layer].mlp);
    }
    if (t->shape.recompute == RECOMPUTE_BLOCK) {
        const struct branch kept = {.residual_in = t->blocks[layer].norm1.residual};
        return block_forward(t, layer, &kept);
    }
    return STATUS_OK;
}

/* The narrow gradient of the linear that block `layer`'s input came from: the MLP projection of the
 * block before. */
static const struct narrow *gradient_before(const struct gpt_training *t, size_t layer) {
    return layer == 0 ? NULL : &t->blocks[layer - 1].mlp.projection_gradient;
}

/* residual_gradient holds the gradient of the block's output on entry, of its input on return. */
static enum status block_backward(struct gpt_training *t, size_t layer, bool accumulate) {
    const struct gpt_block *block = &t->gpt->blocks[layer];
    const struct block_activations *a = &t->blocks[layer];
    const struct branch before = branch_before(t, layer);
    TRY(need_weights(t, gpt_block_bucket(layer), true));
    TRY(block_recompute(t, layer));
    TRY(mlp_layer_backward(t->device, &block->mlp, &a->mlp, t->branch, t->wide,
                           t->residual_gradient, norm_operand(&a->norm2), accumulate));
    TRY(norm_layer_backward(t->device, &block->norm2, &a->norm2, t->residual_gradient,
                            &a->attention.projection_gradient, t->branch,
                            block->attention_bias_gradient, false, accumulate));
    TRY(attention_layer_backward(t->device, &block->attention, &a->attention, t->branch, t->wide,
                                 t->residual_gradient, norm_operand(&a->norm1), t->shape.batch,
                                 t->shape.sequence_length, accumulate));
    return norm_layer_backward(t->device, &block->norm1, &a->norm1, t->residual_gradient,
                               gradient_before(t, layer), t->branch, before.bias_gradient, false,
                               accumulate);
}

static struct loss_request loss_request(const struct gpt_training *t) {
    return (struct loss_request){
        .in = t->final_norm.out, .targets = t->targets, .losses = t->losses,
    };
}

/* How this pass scales: as configured once there are scales to go on from, before that (and in
 * evaluation always) by each tensor's own amax. */
static enum status begin_scales(struct gpt_training *t) {
    const struct precision *precision = &t->gpt->precision;
    if (!precision_narrow(precision)) return STATUS_OK;
    const bool delayed = t->shape.backward && t->scaled;
    const enum scaling scaling = delayed ? precision->scaling : SCALING_CURRENT;
    for (size_t layer = 0; layer < t->gpt->config.layers; layer++) {
        struct block_activations *a = &t->blocks[layer];
        struct narrow *const tensors[] = {
            &a->norm1.narrow, &a->attention.narrow, &a->norm2.narrow, &a->mlp.narrow,
            &a->attention.qkv_gradient, &a->attention.projection_gradient, &a->mlp.fc_gradient,
            &a->mlp.projection_gradient,
        };
        for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++) {
            tensors[i]->scaling = scaling;
            tensors[i]->keep_values = t->observer != NULL;
        }
    }
    t->loss.in.scaling = t->loss.logits_gradient.scaling = scaling;
    t->scaled = t->shape.backward;
    return t->device->ops->scales_begin(t->device, t->shape.scales, gpt_scale_count(t->gpt),
                                        scaling == SCALING_CURRENT);
}

enum status gpt_evaluate(struct gpt_training *t) {
    const struct loss_request request = loss_request(t);
    TRY(begin_scales(t));
    TRY(forward(t));
    return loss_layer_run(t->device, &t->loss, &request);
}

enum status gpt_forward_backward(struct gpt_training *t,
                                 const struct gpt_gradient_request *request) {
    struct gpt *gpt = t->gpt;
    struct loss_request loss = loss_request(t);
    loss.in_gradient = t->branch;
    loss.gradient_scale = request->gradient_scale;
    loss.loss_scale = request->loss_scale;
    loss.accumulate = request->accumulate;

    TRY(begin_scales(t));
    TRY(forward(t));
    TRY(loss_layer_run(t->device, &t->loss, &loss));
    const struct branch last = branch_before(t, gpt->config.layers);
    TRY(norm_layer_backward(t->device, &gpt->final_norm, &t->final_norm, t->residual_gradient,
                            gradient_before(t, gpt->config.layers), t->branch, last.bias_gradient,
                            true, request->accumulate));
    TRY(gradients_ready(t, gpt_norm_bucket(gpt)));
    for (size_t layer = gpt->config.layers; layer-- > 0;) {
        TRY(block_backward(t, layer, request->accumulate));
        TRY(gradients_ready(t, gpt_block_bucket(layer)));
    }
    TRY(embedding_layer_backward(t->device, &gpt->embedding, t->residual_gradient, t->inputs,
                                 t->shape.sequence_length, request->accumulate));
    return gradients_ready(t, GPT_EMBEDDING_BUCKET);
}

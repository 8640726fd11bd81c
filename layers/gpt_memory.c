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

/* `shared`: where all narrow blocks put a norm's output before it is quantised, or NULL. */
static enum status take_norm(const struct layout *l, struct norm_activations *norm,
                             const struct tensor *shared) {
    if (shared != NULL) norm->out = *shared;
    else TRY(arena_tensor(l->arena, l->dtype, l->tokens, l->width, &norm->out));
    TRY(take_floats(l, l->tokens, &norm->mean));
    return take_floats(l, l->tokens, &norm->rstd);
}

static enum status take_residual(const struct layout *l, struct tensor *residual) {
    return arena_tensor(l->arena, l->dtype, l->tokens, l->width, residual);
}

/* A block's activations and the transposed copies of its linears' inputs; what blocks of one recipe
 * may share is handed on from the first of them. */
struct block_memory {
    struct block_activations activations;
    struct copy_memory inputs[BLOCK_LINEARS];
    bool taken;
};

static size_t in_width(const struct layout *l, size_t linear) {
    return linear == LINEAR_MLP_PROJECTION ? 4 * l->width : l->width;
}

static size_t out_width(const struct layout *l, size_t linear) {
    return linear == LINEAR_QKV ? 3 * l->width : linear == LINEAR_FC ? 4 * l->width : l->width;
}

/* Evaluation reads no transposed copy. */
static enum status take_input(const struct gpt_training *t, const struct layout *l,
                              const struct recipe *recipe, size_t linear,
                              struct block_memory *memory) {
    if (!recipe->narrow || !t->shape.backward) return STATUS_OK;
    return copy_take(l->arena, copy_bytes_of(&recipe->input, in_width(l, linear), l->tokens),
                     &memory->inputs[linear]);
}

/* The GELU's output; in a narrow block it is quantised at once, and the widest buffer is free. */
static enum status take_gelu(const struct gpt_training *t, const struct layout *l,
                             const struct recipe *recipe, struct block_memory *memory) {
    TRY(take_input(t, l, recipe, LINEAR_MLP_PROJECTION, memory));
    struct tensor *gelu = &memory->activations.mlp.gelu;
    if (recipe->narrow && t->shape.backward) {
        *gelu = t->wide;
        return STATUS_OK;
    }
    return arena_tensor(l->arena, l->dtype, l->tokens, 4 * l->width, gelu);
}

/* All but the block's input and the GELU output. */
static enum status take_block(const struct gpt_training *t, const struct layout *l,
                              const struct recipe *recipe, struct block_memory *memory) {
    struct block_activations *a = &memory->activations;
    const struct tensor *shared = recipe->narrow ? &t->normed : NULL;
    TRY(take_norm(l, &a->norm1, shared));
    TRY(arena_tensor(l->arena, l->dtype, l->tokens, 3 * l->width, &a->attention.qkv));
    TRY(arena_tensor(l->arena, l->dtype, l->tokens, l->width, &a->attention.out));
    TRY(take_floats(l, l->batch * l->heads * l->sequence_length, &a->attention.log_sum_exp));
    TRY(take_norm(l, &a->norm2, shared));
    TRY(take_residual(l, &a->norm2.residual));
    TRY(arena_tensor(l->arena, l->dtype, l->tokens, 4 * l->width, &a->mlp.fc));
    for (size_t linear = 0; linear < LINEAR_MLP_PROJECTION; linear++) {
        TRY(take_input(t, l, recipe, linear, memory));
    }
    return STATUS_OK;
}

/* The copies of a block's tensors, each with its own scale state, in the memory given. */
static void bind_copies(const struct gpt_training *t, const struct layout *l, size_t layer,
                        const struct block_memory *memory) {
    struct block_activations *a = &t->blocks[layer];
    struct narrow *const inputs[BLOCK_LINEARS] = {
        [LINEAR_QKV] = &a->norm1.narrow, [LINEAR_ATTENTION_PROJECTION] = &a->attention.narrow,
        [LINEAR_FC] = &a->norm2.narrow, [LINEAR_MLP_PROJECTION] = &a->mlp.narrow,
    };
    struct narrow *const gradients[BLOCK_LINEARS] = {
        [LINEAR_QKV] = &a->attention.qkv_gradient,
        [LINEAR_ATTENTION_PROJECTION] = &a->attention.projection_gradient,
        [LINEAR_FC] = &a->mlp.fc_gradient,
        [LINEAR_MLP_PROJECTION] = &a->mlp.projection_gradient,
    };
    for (size_t linear = 0; linear < BLOCK_LINEARS; linear++) {
        struct tensor_place place = {layer, (enum block_linear)linear, TENSOR_INPUT};
        *inputs[linear] = gpt_narrow_tensor(t->gpt, t->shape.scales, place, l->tokens,
                                            in_width(l, linear), t->input_row,
                                            memory->inputs[linear]);
        place.tensor = TENSOR_OUT_GRADIENT;
        if (!t->shape.backward) continue;
        *gradients[linear] = gpt_narrow_tensor(t->gpt, t->shape.scales, place, l->tokens,
                                               out_width(l, linear), t->gradient_row,
                                               t->gradient_transposed);
    }
}

/* Row copies of inputs and both copies of gradients live shortly: one place each, large enough for
 * every linear of every block. */
static enum status take_copies(struct gpt_training *t, const struct layout *l) {
    struct copy_bytes input = {0}, gradient = {0}, transposed = {0};
    bool narrow = false;
    for (size_t layer = 0; layer < t->gpt->config.layers; layer++) {
        const struct recipe recipe = gpt_recipe_at(t->gpt, layer);
        if (!recipe.narrow) continue;
        narrow = true;
        for (size_t linear = 0; linear < BLOCK_LINEARS; linear++) {
            const size_t in = in_width(l, linear), out = out_width(l, linear);
            const struct recipe_form *form = &recipe.out_gradient;
            input = copy_bytes_max(input, copy_bytes_of(&recipe.input, l->tokens, in));
            gradient = copy_bytes_max(gradient, copy_bytes_of(form, l->tokens, out));
            transposed = copy_bytes_max(transposed, copy_bytes_of(form, out, l->tokens));
        }
    }
    if (!narrow) return STATUS_OK;
    TRY(arena_tensor(l->arena, l->dtype, l->tokens, l->width, &t->normed));
    TRY(copy_take(l->arena, input, &t->input_row));
    if (!t->shape.backward) return STATUS_OK;
    TRY(copy_take(l->arena, gradient, &t->gradient_row));
    return copy_take(l->arena, transposed, &t->gradient_transposed);
}

static enum status take_blocks(struct gpt_training *t, const struct layout *l) {
    const bool share_block = !t->shape.backward || t->shape.recompute == RECOMPUTE_BLOCK;
    const bool share_gelu = share_block || t->shape.recompute == RECOMPUTE_GELU;
    const char *name = recipe_row(t->gpt->precision.recipe)->name;
    struct block_memory firsts[2] = {0}; /* of the blocks in the recipe, and of the others */
    for (size_t layer = 0; layer < t->gpt->config.layers; layer++) {
        struct block_activations *a = &t->blocks[layer];
        const struct recipe recipe = gpt_recipe_at(t->gpt, layer);
        struct block_memory *first = &firsts[recipe.name != name];
        struct block_memory memory = {0};
        if (first->taken && share_block) memory = *first;
        else TRY(take_block(t, l, &recipe, &memory));
        if (first->taken && share_gelu) {
            memory.activations.mlp.gelu = first->activations.mlp.gelu;
            memory.inputs[LINEAR_MLP_PROJECTION] = first->inputs[LINEAR_MLP_PROJECTION];
        } else {
            TRY(take_gelu(t, l, &recipe, &memory));
        }
        memory.taken = true;
        if (!first->taken) *first = memory;
        *a = memory.activations;
        if (recipe.narrow) bind_copies(t, l, layer, &memory);
        /* The first block's input is the embedding itself; nothing has to be added to it. */
        if (layer == 0) a->norm1.residual = t->embedded;
        else if (!t->shape.backward) a->norm1.residual = t->final_norm.residual;
        else TRY(take_residual(l, &a->norm1.residual));
    }
    return STATUS_OK;
}

/* Copies of a chunk's input and of the gradient of its logits. */
static enum status take_head_copies(struct gpt_training *t, const struct layout *l,
                                    struct arena *arena) {
    const struct recipe recipe = gpt_recipe_at(t->gpt, t->gpt->config.layers);
    const size_t rows = t->loss.logits.rows;
    struct {
        enum linear_tensor tensor;
        size_t columns;
        struct narrow *out;
    } const tensors[] = {
        {TENSOR_INPUT, l->width, &t->loss.in},
        {TENSOR_OUT_GRADIENT, t->loss.logits.columns, &t->loss.logits_gradient},
    };
    if (!recipe.narrow) return STATUS_OK;
    for (size_t i = 0; i < 2; i++) {
        const struct recipe_form *form = recipe_form_of(&recipe, tensors[i].tensor);
        const size_t columns = tensors[i].columns;
        const struct tensor_place place = {t->gpt->config.layers, LINEAR_QKV, tensors[i].tensor};
        struct copy_memory row = {0}, transposed = {0};
        if (tensors[i].tensor == TENSOR_OUT_GRADIENT && !t->shape.backward) continue;
        TRY(copy_take(arena, copy_bytes_of(form, rows, columns), &row));
        if (t->shape.backward) {
            TRY(copy_take(arena, copy_bytes_of(form, columns, rows), &transposed));
        }
        *tensors[i].out = gpt_narrow_tensor(t->gpt, t->shape.scales, place, rows, columns, row,
                                            transposed);
    }
    return STATUS_OK;
}

/* Logits of so many tokens keep any device busy: two chunks of as many take half the memory, and
 * read and write the head's gradient once more. */
enum { LOGITS_TOKENS = 16384 };

static enum status take_loss(struct gpt_training *t, const struct layout *l,
                             struct arena *arena) {
    const size_t padded = gpt_padded_vocabulary(&t->gpt->config);
    size_t chunk = t->shape.logits_chunk;
    if (chunk == 0) { /* as few as the device's measure allows, all alike */
        const size_t most = size_max(1, t->device->logits_bytes / (padded * dtype_bytes(l->dtype)));
        const size_t least = l->tokens / LOGITS_TOKENS >= 2 ? 2 : 1;
        chunk = ceil_div(l->tokens, size_max(least, ceil_div(l->tokens, most)));
    }
    const struct recipe recipe = gpt_recipe_at(t->gpt, t->gpt->config.layers);
    if (recipe.narrow) chunk = align_up(chunk, recipe.multiple);
    t->loss.head = t->gpt->head;
    t->loss.vocabulary = t->gpt->config.vocabulary;
    TRY(arena_tensor(arena, l->dtype, size_min(chunk, l->tokens), padded, &t->loss.logits));
    return take_head_copies(t, l, arena);
}

static enum status take_tokens(const struct layout *l, int32_t **out) {
    void *memory = NULL;
    TRY(arena_take(l->arena, l->tokens, sizeof(int32_t), &memory));
    *out = memory;
    return STATUS_OK;
}

static enum status take_all(struct gpt_training *t, const struct layout *l,
                            struct arena *loss) {
    TRY(take_residual(l, &t->embedded));
    TRY(take_norm(l, &t->final_norm, NULL));
    TRY(take_residual(l, &t->final_norm.residual));
    if (t->shape.backward) {
        TRY(arena_tensor(l->arena, l->dtype, l->tokens, 4 * l->width, &t->wide));
        TRY(take_residual(l, &t->residual_gradient));
    }
    TRY(take_copies(t, l));
    TRY(take_blocks(t, l));
    TRY(take_residual(l, &t->branch));
    TRY(take_loss(t, l, loss));
    TRY(take_tokens(l, &t->inputs));
    TRY(take_tokens(l, &t->targets));
    return take_floats(l, l->tokens, &t->losses);
}

enum status gpt_training_open(struct gpt_training *t, struct gpt *gpt, struct device *device,
                              const struct gpt_training_shape *shape, struct arena *arena,
                              struct arena *loss_arena) {
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
    const enum status status = take_all(t, &layout, loss_arena);
    if (status != STATUS_OK) gpt_training_close(t);
    return status;
}

void gpt_training_close(struct gpt_training *t) {
    free(t->blocks);
    *t = (struct gpt_training){0};
}

/* Operands of one linear's quantised products (linear.c): fprop multiplies input by weight, dgrad
 * out_gradient by weight, wgrad out_gradient by input. */
static void count_operands(size_t tokens, size_t in, size_t out, bool backward,
                           struct op_limits *limits) {
    const size_t widest = backward ? size_max(in, out) : in;
    limits->quantised_a = size_max(limits->quantised_a, tokens * widest);
    limits->quantised_b = size_max(limits->quantised_b, backward ? size_max(out, tokens) * in
                                                                 : out * in);
}

struct op_limits gpt_training_limits(const struct gpt *gpt,
                                     const struct gpt_training_shape *shape) {
    const size_t tokens = shape->batch * shape->sequence_length;
    const struct layout layout = {.width = gpt->config.width};
    struct op_limits limits = {
        .tokens = tokens,
        .width = 4 * gpt->config.width,
        .model_width = gpt->config.width,
        .sequence_length = shape->sequence_length,
        .heads = gpt->config.heads,
        .head_width = gpt->config.width / gpt->config.heads,
        .dtype = shape->dtype,
        .scale_modes = precision_scale_modes(&gpt->precision),
    };
    for (size_t layer = 0; layer < gpt->config.layers; layer++) {
        if (!gpt_recipe_at(gpt, layer).narrow) continue;
        for (size_t linear = 0; linear < BLOCK_LINEARS; linear++) {
            count_operands(tokens, in_width(&layout, linear), out_width(&layout, linear),
                           shape->backward, &limits);
        }
    }
    if (gpt_recipe_at(gpt, gpt->config.layers).narrow) { /* as if it were not run in chunks */
        count_operands(tokens, layout.width, gpt_padded_vocabulary(&gpt->config), shape->backward,
                       &limits);
    }
    return limits;
}

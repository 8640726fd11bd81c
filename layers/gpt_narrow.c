/* Scale states and copies of a GPT's tensors in narrow recipes. */
#include "layers/gpt_narrow.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/checked.h"

enum { COPIES = 2 }; /* states of a tensor: row, transposed */

static const char *const linear_names[BLOCK_LINEARS] = {
    [LINEAR_QKV] = "attention.qkv", [LINEAR_ATTENTION_PROJECTION] = "attention.projection",
    [LINEAR_FC] = "mlp.fc", [LINEAR_MLP_PROJECTION] = "mlp.projection",
};
static const char *const tensor_names[LINEAR_TENSORS] = {
    [TENSOR_INPUT] = "input", [TENSOR_WEIGHT] = "weight", [TENSOR_OUT_GRADIENT] = "out_gradient",
};

static size_t linear_count(const struct gpt *gpt) {
    return gpt->config.layers * BLOCK_LINEARS + 1;
}

static size_t linear_index(const struct gpt *gpt, struct tensor_place place) {
    const size_t layers = gpt->config.layers;
    return place.layer == layers ? layers * BLOCK_LINEARS
                                 : place.layer * BLOCK_LINEARS + (size_t)place.linear;
}

static size_t tensor_index(const struct gpt *gpt, struct tensor_place place) {
    return linear_index(gpt, place) * LINEAR_TENSORS + (size_t)place.tensor;
}

size_t gpt_scale_count(const struct gpt *gpt) {
    return linear_count(gpt) * LINEAR_TENSORS * COPIES;
}

struct tensor_place gpt_scale_place(const struct gpt *gpt, size_t index) {
    const size_t linear = index / (LINEAR_TENSORS * COPIES);
    const size_t layer = linear / BLOCK_LINEARS;
    return (struct tensor_place){
        .layer = layer,
        .linear = layer == gpt->config.layers ? LINEAR_QKV
                                              : (enum block_linear)(linear % BLOCK_LINEARS),
        .tensor = (enum linear_tensor)(index / COPIES % LINEAR_TENSORS),
    };
}

const char *gpt_scale_name(char text[TENSOR_PLACE_BYTES], const struct gpt *gpt, size_t index) {
    const struct tensor_place place = gpt_scale_place(gpt, index);
    const char *tensor = tensor_names[place.tensor];
    const char *copy = index % COPIES == 0 ? "" : "_transposed";
    if (place.layer == gpt->config.layers) {
        snprintf(text, TENSOR_PLACE_BYTES, "head.%s%s", tensor, copy);
    } else {
        snprintf(text, TENSOR_PLACE_BYTES, "block.%zu.%s.%s%s", place.layer,
                 linear_names[place.linear], tensor, copy);
    }
    return text;
}

struct recipe gpt_recipe_at(const struct gpt *gpt, size_t layer) {
    const size_t layers = gpt->config.layers;
    return layer == layers ? precision_of_head(&gpt->precision)
                           : precision_of_layer(&gpt->precision, layer, layers);
}

const struct recipe_form *recipe_form_of(const struct recipe *recipe, enum linear_tensor tensor) {
    return tensor == TENSOR_INPUT    ? &recipe->input
           : tensor == TENSOR_WEIGHT ? &recipe->weight : &recipe->out_gradient;
}

void gpt_scales_initialise(const struct gpt *gpt, struct scale_state *states) {
    for (size_t i = 0; i < gpt_scale_count(gpt); i++) {
        const struct tensor_place place = gpt_scale_place(gpt, i);
        const struct recipe recipe = gpt_recipe_at(gpt, place.layer);
        const struct recipe_form *form = recipe_form_of(&recipe, place.tensor);
        states[i] = (struct scale_state){
            .scale = 1.0f, .inverse = 1.0f,
            .largest = form->mode == SCALE_NV ? NVFP4_MAX : format_max(form->format),
        };
    }
}

static struct operand operand_of(const struct recipe_form *form, size_t rows, size_t columns,
                                 struct copy_memory memory, struct scale_state *state) {
    const bool tensor_scale = form->mode == SCALE_TENSOR || form->mode == SCALE_NV;
    return (struct operand){
        .codes = memory.codes, .scales = memory.scales, .state = tensor_scale ? state : NULL,
        .format = form->format, .mode = form->mode, .rows = rows, .columns = columns,
    };
}

struct copy_bytes copy_bytes_of(const struct recipe_form *form, size_t rows, size_t columns) {
    const struct copy_memory nowhere = {0};
    const struct operand operand = operand_of(form, rows, columns, nowhere, NULL);
    return (struct copy_bytes){operand_code_bytes(&operand), operand_scale_bytes(&operand)};
}

struct copy_bytes copy_bytes_max(struct copy_bytes a, struct copy_bytes b) {
    return (struct copy_bytes){size_max(a.codes, b.codes), size_max(a.scales, b.scales)};
}

enum status copy_take(struct arena *arena, struct copy_bytes bytes, struct copy_memory *out) {
    TRY(arena_take(arena, bytes.codes, 1, &out->codes));
    return arena_take(arena, bytes.scales, 1, &out->scales);
}

struct narrow gpt_narrow_tensor(const struct gpt *gpt, struct scale_state *states,
                                struct tensor_place place, size_t rows, size_t columns,
                                struct copy_memory row, struct copy_memory transposed) {
    const struct recipe recipe = gpt_recipe_at(gpt, place.layer);
    const struct recipe_form *form = recipe_form_of(&recipe, place.tensor);
    const size_t number = tensor_index(gpt, place);
    struct scale_state *first = states == NULL ? NULL : states + number * COPIES;
    struct scale_state *second = first != NULL && form->mode == SCALE_NV ? first + 1 : first;
    return (struct narrow){
        .copies = {.row = operand_of(form, rows, columns, row, first),
                   .transposed = operand_of(form, columns, rows, transposed, second)},
        .form = *form,
        .scaling = SCALING_CURRENT,
        .seed = gpt->precision.seed,
        .number = (uint32_t)number,
    };
}

static struct linear *linear_at(struct gpt *gpt, size_t layer, enum block_linear linear) {
    if (layer == gpt->config.layers) return &gpt->head;
    struct gpt_block *block = &gpt->blocks[layer];
    switch (linear) {
    case LINEAR_QKV: return &block->attention.qkv;
    case LINEAR_ATTENTION_PROJECTION: return &block->attention.projection;
    case LINEAR_FC: return &block->mlp.fc;
    default: return &block->mlp.projection;
    }
}

/* The linears one after the other; head last. */
static struct tensor_place weight_place(const struct gpt *gpt, size_t index) {
    return gpt_scale_place(gpt, (index * LINEAR_TENSORS + TENSOR_WEIGHT) * COPIES);
}

enum status gpt_narrow_open(struct gpt *gpt, const struct precision *precision,
                            struct scale_state *states, struct arena *arena) {
    gpt->precision = *precision;
    for (size_t i = 0; i < linear_count(gpt); i++) {
        const struct tensor_place place = weight_place(gpt, i);
        const struct recipe recipe = gpt_recipe_at(gpt, place.layer);
        struct linear *linear = linear_at(gpt, place.layer, place.linear);
        const size_t rows = linear->weight.rows, columns = linear->weight.columns;
        struct copy_memory row = {0}, transposed = {0};
        linear->narrow_weight = (struct narrow){0};
        if (!recipe.narrow) continue;
        TRY(copy_take(arena, copy_bytes_of(&recipe.weight, rows, columns), &row));
        TRY(copy_take(arena, copy_bytes_of(&recipe.weight, columns, rows), &transposed));
        linear->narrow_weight = gpt_narrow_tensor(gpt, states, place, rows, columns, row,
                                                  transposed);
        linear->fast_fprop = recipe.fast_fprop;
    }
    return STATUS_OK;
}

enum status gpt_narrow_weights(struct gpt *gpt, struct device *device) {
    enum { BATCH = 64 };
    struct quantise ops[BATCH];
    size_t count = 0;
    for (size_t i = 0; i < linear_count(gpt); i++) {
        const struct tensor_place place = weight_place(gpt, i);
        const struct linear *linear = linear_at(gpt, place.layer, place.linear);
        if (!narrow_active(&linear->narrow_weight)) continue;
        ops[count++] = narrow_quantise(&linear->narrow_weight, linear->weight, false);
        if (count < BATCH) continue;
        TRY(device->ops->quantise(device, ops, count));
        count = 0;
    }
    return count == 0 ? STATUS_OK : device->ops->quantise(device, ops, count);
}

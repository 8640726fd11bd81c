/* The table of recipes and what a model's precision makes of it. */
#include "layers/recipe.h"

#define E4M3_OF(scale) {.format = FORMAT_E4M3, .mode = scale}

static const struct recipe recipes[RECIPE_COUNT] = {
    [RECIPE_FP32] = {.name = "fp32", .dtype = DTYPE_F32},
    [RECIPE_BF16] = {.name = "bf16", .dtype = DTYPE_BF16},
    [RECIPE_FP16] = {.name = "fp16", .dtype = DTYPE_F16},
    [RECIPE_FP8] = {
        .name = "fp8", .dtype = DTYPE_BF16, .narrow = true,
        .input = E4M3_OF(SCALE_TENSOR), .weight = E4M3_OF(SCALE_TENSOR),
        .out_gradient = {.format = FORMAT_E5M2, .mode = SCALE_TENSOR}, /* or precision's */
        .fast_fprop = true,
        .multiple = 16, /* Hopper's FP8 operands: rows of 16 bytes */
    },
    [RECIPE_FP8_BLOCK] = {
        .name = "fp8_block", .dtype = DTYPE_BF16, .narrow = true,
        .input = E4M3_OF(SCALE_1X128), .weight = E4M3_OF(SCALE_128X128),
        .out_gradient = E4M3_OF(SCALE_1X128),
        .multiple = 16, /* the last block of a row may be short */
    },
    [RECIPE_MXFP8] = {
        .name = "mxfp8", .dtype = DTYPE_BF16, .narrow = true,
        .input = E4M3_OF(SCALE_MX), .weight = E4M3_OF(SCALE_MX), .out_gradient = E4M3_OF(SCALE_MX),
        .multiple = 32,
    },
    [RECIPE_NVFP4] = {
        .name = "nvfp4", .dtype = DTYPE_BF16, .narrow = true,
        .input = {.format = FORMAT_E2M1, .mode = SCALE_NV, .hadamard = true},
        .weight = {.format = FORMAT_E2M1, .mode = SCALE_NV, .square = true},
        .out_gradient = {.format = FORMAT_E2M1, .mode = SCALE_NV, .hadamard = true,
                         .stochastic = true},
        .multiple = 32, /* two codes a byte: rows of 16 bytes */
    },
};

const struct recipe *recipe_row(enum recipe_kind kind) { return &recipes[kind]; }

static struct recipe recipe_in(const struct precision *precision, enum recipe_kind kind) {
    struct recipe recipe = recipes[kind];
    if (kind == RECIPE_FP8) recipe.out_gradient.format = precision->gradient_format;
    return recipe;
}

struct recipe precision_of_layer(const struct precision *precision, size_t layer, size_t layers) {
    const bool end = layer < precision->first_layers || layers - layer <= precision->last_layers;
    return recipe_in(precision, end ? precision->end_layers : precision->recipe);
}

struct recipe precision_of_head(const struct precision *precision) {
    return recipe_in(precision, precision->lm_head);
}

enum support recipe_support(const struct device *device, enum recipe_kind kind) {
    const struct recipe *recipe = &recipes[kind];
    const enum scale_mode modes[] = {recipe->input.mode, recipe->weight.mode,
                                     recipe->out_gradient.mode};
    enum support least = SUPPORT_NATIVE;
    if (!recipe->narrow) {
        return device->kind == DEVICE_CPU && recipe->dtype != DTYPE_F32 ? SUPPORT_EMULATED
                                                                        : SUPPORT_NATIVE;
    }
    for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
        const enum support support = device->ops->scale_support(device, modes[i]);
        if (support < least) least = support;
    }
    return least;
}

const char *support_name(enum support support) {
    static const char *const names[] = {
        [SUPPORT_NONE] = "refused", [SUPPORT_EMULATED] = "emulated", [SUPPORT_NATIVE] = "native",
    };
    return names[support];
}

static enum status check_recipe(const char *key, enum recipe_kind kind, size_t width,
                                size_t tokens) {
    const struct recipe *recipe = &recipes[kind];
    if (!recipe->narrow) return STATUS_OK;
    if (width % recipe->multiple != 0) {
        return status_set(STATUS_CONFIG,
                          "%s = %s needs model.width to be a multiple of %zu, found %zu: change "
                          "the width or the recipe",
                          key, recipe->name, recipe->multiple, width);
    }
    if (tokens % recipe->multiple != 0) {
        return status_set(STATUS_CONFIG,
                          "%s = %s needs the tokens of a micro-batch (train.micro_batch or "
                          "validation.micro_batch times train.sequence_length) to be a multiple of "
                          "%zu, found %zu: change one of them or the recipe",
                          key, recipe->name, recipe->multiple, tokens);
    }
    return STATUS_OK;
}

bool precision_narrow(const struct precision *p) {
    return recipes[p->recipe].narrow || recipes[p->lm_head].narrow ||
           (p->first_layers + p->last_layers > 0 && recipes[p->end_layers].narrow);
}

static unsigned scale_modes(enum recipe_kind kind) {
    const struct recipe *recipe = &recipes[kind];
    if (!recipe->narrow) return 0;
    return 1u << recipe->input.mode | 1u << recipe->weight.mode | 1u << recipe->out_gradient.mode;
}

unsigned precision_scale_modes(const struct precision *p) {
    const bool ends = p->first_layers + p->last_layers > 0;
    return scale_modes(p->recipe) | scale_modes(p->lm_head) |
           (ends ? scale_modes(p->end_layers) : 0);
}

enum status precision_check(const struct precision *p, size_t width, size_t tokens) {
    const bool ends = p->first_layers + p->last_layers > 0;
    if (precision_narrow(p) && recipes[p->recipe].dtype != DTYPE_BF16) {
        return status_set(STATUS_CONFIG,
                          "precision.recipe = %s computes in %s, and %s = %s in bf16 between its "
                          "linears: set precision.recipe to bf16 or to a narrow recipe, or the "
                          "other to bf16",
                          recipes[p->recipe].name, recipes[p->recipe].name,
                          recipes[p->lm_head].narrow ? "precision.lm_head" : "precision.end_layers",
                          recipes[recipes[p->lm_head].narrow ? p->lm_head : p->end_layers].name);
    }
    TRY(check_recipe("precision.recipe", p->recipe, width, tokens));
    TRY(check_recipe("precision.lm_head", p->lm_head, width, tokens));
    return ends ? check_recipe("precision.end_layers", p->end_layers, width, tokens) : STATUS_OK;
}

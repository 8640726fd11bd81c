/* What a configuration, a model and a device make of the precision recipes. */
#include <stdio.h>

#include "train/engine.h"

_Static_assert((int)CONFIG_RECIPE_NVFP4 == (int)RECIPE_NVFP4 &&
                   (int)CONFIG_RECIPE_FP16 == (int)RECIPE_FP16,
               "enum config_recipe follows enum recipe_kind");

struct precision engine_precision(const struct config *config) {
    const struct config_precision *p = &config->precision;
    return (struct precision){
        .recipe = (enum recipe_kind)p->recipe,
        .lm_head = (enum recipe_kind)p->lm_head,
        .first_layers = (size_t)p->first_layers,
        .last_layers = (size_t)p->last_layers,
        .end_layers = (enum recipe_kind)p->end_layers,
        .scaling = p->scaling == CONFIG_FP8_CURRENT ? SCALING_CURRENT : SCALING_DELAYED,
        .gradient_format = p->gradient_format == CONFIG_GRADIENT_E4M3 ? FORMAT_E4M3 : FORMAT_E5M2,
        .seed = (uint64_t)config->train.seed,
    };
}

enum support engine_support(const struct engine *engine) {
    const struct precision *p = &engine->precision;
    const enum recipe_kind ends = p->first_layers + p->last_layers > 0 ? p->end_layers : p->recipe;
    const enum recipe_kind used[] = {p->recipe, p->lm_head, ends};
    enum support least = recipe_support(&engine->device, used[0]);
    for (size_t i = 1; i < sizeof used / sizeof used[0]; i++) {
        if (!recipe_row(used[i])->narrow) continue;
        const enum support support = recipe_support(&engine->device, used[i]);
        if (support < least) least = support;
    }
    return least;
}

static enum peak_type recipe_peak_type(const struct recipe *recipe) {
    if (!recipe->narrow) return engine_peak_type(recipe->dtype);
    return recipe->weight.format == FORMAT_E2M1 ? PEAK_FP4 : PEAK_FP8;
}

struct speed_limit engine_speed_limit(const struct engine *engine, const struct config *config,
                                      const struct flops *flops) {
    const struct precision *p = &engine->precision;
    const enum peak_type wide = engine_peak_type(engine->dtype);
    const size_t layers = engine->gpt.config.layers;
    const double total = (double)flops->total;
    const struct recipe head = precision_of_head(p);
    const struct peak *peak = engine_peak(&engine->device);
    struct speed_limit limit = {
        .tflops = peak == NULL ? 0.0 : peak->tflops[wide],
        .types = 1u << wide,
    };
    if (precision_narrow(p)) {
        double share[PEAK_TYPE_COUNT] = {0};
        share[wide] = (double)flops->attention / total;
        share[head.narrow ? recipe_peak_type(&head) : wide] += (double)flops->head / total;
        for (size_t layer = 0; layer < layers; layer++) {
            const struct recipe recipe = precision_of_layer(p, layer, layers);
            share[recipe.narrow ? recipe_peak_type(&recipe) : wide] +=
                (double)flops->linear / (double)layers / total;
        }
        limit = speed_limit_mixed(peak, share);
    }
    if (config->mfu.peak > 0.0) limit.tflops = config->mfu.peak;
    limit.emulated = engine_support(engine) == SUPPORT_EMULATED;
    return limit;
}

const char *engine_precision_text(char text[PRECISION_TEXT_BYTES], const struct engine *engine) {
    const struct precision *p = &engine->precision;
    const size_t ends = p->first_layers + p->last_layers;
    char fp8[64] = "", end_layers[64] = "", head[32] = "";
    if (p->recipe == RECIPE_FP8) {
        snprintf(fp8, sizeof fp8, ", %s scaling, gradients %s",
                 p->scaling == SCALING_DELAYED ? "delayed" : "current",
                 format_name(p->gradient_format));
    }
    if (precision_narrow(p)) {
        snprintf(head, sizeof head, ", head %s", recipe_row(p->lm_head)->name);
    }
    if (precision_narrow(p) && ends > 0) {
        snprintf(end_layers, sizeof end_layers, ", %zu first and %zu last layers %s",
                 p->first_layers, p->last_layers, recipe_row(p->end_layers)->name);
    }
    snprintf(text, PRECISION_TEXT_BYTES, "%s%s%s%s%s", recipe_row(p->recipe)->name, fp8, head,
             end_layers, engine_support(engine) == SUPPORT_EMULATED ? " (emulated)" : "");
    return text;
}

/* What this model and device make of the recipes, before any memory is taken. */
enum status engine_check_precision(const struct engine *engine, const struct config *config) {
    const struct precision p = engine_precision(config);
    const size_t length = (size_t)config_sequence_length(config);
    const bool ends = p.first_layers + p.last_layers > 0;
    const enum recipe_kind used[] = {p.recipe, p.lm_head, ends ? p.end_layers : p.recipe};
    if (!(engine->parts & (ENGINE_TRAIN | ENGINE_EVALUATE))) return STATUS_OK;
    if (engine->parts & ENGINE_TRAIN) {
        TRY(precision_check(&p, engine->gpt.config.width,
                            (size_t)config_micro_batch(config) * length));
    }
    for (size_t i = 0; i < sizeof used / sizeof used[0]; i++) {
        const struct recipe *recipe = recipe_row(used[i]);
        if (!recipe->narrow || recipe_support(&engine->device, used[i]) != SUPPORT_NONE) continue;
        return status_set(STATUS_CONFIG,
                          "recipe %s can run neither natively nor emulated on %s: choose another, "
                          "or --device cpu, which emulates it", recipe->name, engine->device.name);
    }
    return STATUS_OK;
}

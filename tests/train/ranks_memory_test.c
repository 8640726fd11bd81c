/*
 * Memory a rank, by train.zero and the number of ranks. Oracle: the table of docs/many_ranks.md, in
 * closed form, within 3 % of what the engine lays out: padding of buckets to whole parts and of
 * arenas to 256 bytes is all that it leaves out.
 */
#include <math.h>
#include <stdio.h>

#include "kernels/param_table.h"
#include "tests/train/small_run.h"
#include "train/exchange.h"

enum { ARENA_PARAMETERS, ARENA_GRADIENTS, ARENA_OPTIMIZER };

/* GPT-2 124M: large enough that padding is little. Nothing is allocated. */
static struct config model(enum config_recipe recipe, int zero, enum config_reduction reduction,
                           int64_t ranks) {
    struct config config;
    small_config(&config, recipe);
    config.model.layers = 12;
    config.model.heads = 12;
    config.model.width = 768;
    config.model.context = 1024;
    config.model.vocabulary = 50257;
    config.train.sequence_length = 16;
    config.train.micro_batch = 1;
    config.train.batch = 2 * ranks;
    config.train.zero = zero;
    config.comm.reduction = (int)reduction;
    return config;
}

/* All numbers, those of one block, and those of none. */
static void count(const struct config *config, double *all, double *block, double *ends) {
    const struct gpt_config shape = engine_model(config);
    struct gpt gpt;
    assert_int_equal(gpt_open(&gpt, &shape, 0), STATUS_OK);
    *ends = 0.0;
    for (size_t i = 0; i < gpt.table.length; i++) {
        const struct param *p = &gpt.table.params[i];
        if (p->layer < 0) *ends += (double)p->count;
    }
    *all = (double)gpt.table.elements;
    *block = (*all - *ends) / (double)shape.layers;
    gpt_close(&gpt);
}

/* The table: w bytes a weight, g a gradient on its way. */
static double expected_bytes(const struct config *config, double n) {
    const double w = config->precision.recipe == CONFIG_RECIPE_FP32 ? 4.0 : 2.0;
    const double g = config->comm.reduction == CONFIG_REDUCTION_BF16 ? 2.0 : 4.0;
    const bool fp32 = w > 2.0;
    double P, p, e;
    count(config, &P, &p, &e);
    const double owned = P / n, slots = e + EXCHANGE_SLOTS * p, largest = fmax(p, e);
    double bytes = 0.0;
    switch (config->train.zero) {
    case 0: bytes = 12 * P + (fp32 ? 0.0 : w * P) + 4 * P + 4 * owned; break;
    case 1: bytes = 12 * owned + w * P + (fp32 ? 0.0 : w * owned) + 4 * P + 4 * owned; break;
    case 2: bytes = 12 * owned + w * P + (fp32 ? 0.0 : w * owned) + 4 * slots + 4 * owned; break;
    default: bytes = 12 * owned + w * slots + (fp32 ? 0.0 : w * owned) + 4 * slots + 4 * owned;
    }
    const bool fixed = config->comm.order == CONFIG_ORDER_FIXED;
    if (fixed) bytes += g * largest; /* all ranks' parts of a bucket */
    else if (config->train.zero >= 2 || g < 4.0) bytes += g * largest / n; /* staged */
    if (g < 4.0) bytes += g * largest;                                     /* on its way out */
    if (fixed) {
        const double tokens = (double)(config->train.micro_batch * config->train.sequence_length);
        bytes += 8 * (P + owned) / 1024 + 4 * tokens * n;
    }
    return bytes;
}

static void the_documents_table(void **state) {
    (void)state;
    static const enum config_recipe recipes[] = {CONFIG_RECIPE_FP32, CONFIG_RECIPE_BF16};
    struct device device;
    assert_int_equal(device_open_cpu(&device, 1), STATUS_OK);
    for (int i = 0; i < 2 * 4 * 2 * 3 * 2; i++) {
        const int ranks = 2 << (i / 16 % 3) * 2; /* 2, 8, 32 */
        struct config config = model(recipes[i % 2], i / 2 % 4,
                                           (enum config_reduction)(i / 8 % 2), ranks);
        const struct ranks one_of = {.world = ranks};
        config.comm.order = i / 48 == 0 ? CONFIG_ORDER_FAST : CONFIG_ORDER_FIXED;
        struct engine_memory_plan plan;
        if (engine_plan_rank(&config, ENGINE_TRAIN, &device, &one_of, &plan) != STATUS_OK) {
            fail_msg("%s", status_message());
        }
        const double found = (double)(plan.bytes[ARENA_PARAMETERS] + plan.bytes[ARENA_GRADIENTS] +
                                      plan.bytes[ARENA_OPTIMIZER]);
        const double expected = expected_bytes(&config, ranks);
        if (fabs(found - expected) > 0.03 * expected) {
            fail_msg("%d ranks, zero %lld, recipe %d, reduction %d, order %d: %.0f bytes, expected "
                     "%.0f", ranks, (long long)config.train.zero, config.precision.recipe,
                     config.comm.reduction, config.comm.order, found, expected);
        }
    }
    device_close(&device);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_documents_table)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

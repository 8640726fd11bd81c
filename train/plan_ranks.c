/* Predictions for many ranks, behind train/plan_ranks.h: what scaling.h makes of this model. */
#include "train/plan_ranks.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "base/text.h"
#include "train/exchange.h"
#include "train/scaling.h"
#include "train/step.h"

static const double latency_us_usual = 5.0;

_Static_assert((int)SCALING_SLOTS == (int)EXCHANGE_SLOTS, "the engine keeps so many blocks");

enum status plan_ranks_check(const struct plan_ranks *options, struct config *config) {
    const bool others = options->link_GBps > 0.0 || options->latency_us > 0.0 ||
                        options->step_ms > 0.0 || options->memory_GBps > 0.0;
    if (options->ranks == 0) {
        if (!others) return STATUS_OK;
        return status_set(STATUS_CONFIG, "--link-GBps, --latency-us, --step-ms and --memory-GBps "
                          "are for a plan of many ranks: give --ranks N too");
    }
    if (options->link_GBps <= 0.0) {
        return status_set(STATUS_CONFIG,
                          "--ranks %" PRId64 " needs --link-GBps: the bus rate of "
                          "the slowest link that a ring of all ranks passes; `deepwell bench comm` "
                          "on those ranks measures it",
                          options->ranks);
    }
    TRY(config_check_ranks(config, options->ranks));
    config->train.batch /= options->ranks;
    return STATUS_OK;
}

/* Numbers, gaps counted, that belong to no block. */
static size_t end_elements(const struct param_table *table) {
    size_t sum = 0;
    for (size_t i = 0; i < table->length; i++) {
        if (table->params[i].layer < 0) sum += align_up(table->params[i].count, PARAM_ALIGNMENT);
    }
    return sum;
}

static struct scaling_work work_of(const struct config *config, const struct engine *engine) {
    const struct param_table *table = &engine->gpt.table;
    const size_t layers = engine->gpt.config.layers, ends = end_elements(table);
    const bool bf16 = config->comm.reduction == CONFIG_REDUCTION_BF16;
    return (struct scaling_work){
        .micro_batches = (size_t)config_micro_batches(config, 1),
        .micro_batch_tokens = (size_t)(config_micro_batch(config) * config_sequence_length(config)),
        .layers = layers,
        .layer_elements = (table->elements - ends) / layers,
        .end_elements = ends,
        .weight_bytes_each = dtype_bytes(engine->dtype),
        .reduce_bytes_each = bf16 ? 2 : sizeof(float),
        /* narrow copies are made of all weights at once, which waits for them */
        .gather_ahead = !precision_narrow(&engine->precision),
        .fixed = config->comm.order == CONFIG_ORDER_FIXED,
    };
}

/* What a rank of so many takes with this stage, as the engine itself lays it out; "refused" where
 * this configuration cannot have the stage. */
static enum status memory_of(const struct config *config, const struct engine *engine,
                             size_t ranks, int stage, char text[TEXT_BYTES]) {
    const struct ranks one_of = {.rank = 0, .world = (int)ranks};
    struct config staged = *config;
    struct engine_memory_plan plan;
    staged.train.zero = stage;
    staged.train.batch = config->train.batch * (int64_t)ranks;
    const enum status status =
        engine_plan_rank(&staged, engine->parts, &engine->device, &one_of, &plan);
    if (status == STATUS_CONFIG) snprintf(text, TEXT_BYTES, "refused");
    if (status == STATUS_OK) text_bytes(text, plan.total_bytes);
    return status == STATUS_CONFIG ? STATUS_OK : status;
}

/* Bytes that the update passes over: the norm, and AdamW. */
static double update_bytes(const struct op_trace *trace) {
    static const char *const names[] = {"gradient_sumsq", "block_sumsq", "total_sumsq", "adamw"};
    double sum = 0.0;
    for (size_t i = 0; i < trace->op_count; i++) {
        const struct op_total *op = &trace->ops[i];
        for (size_t n = 0; n < sizeof names / sizeof names[0]; n++) {
            if (strcmp(op->name, names[n]) == 0) sum += op->bytes;
        }
    }
    return sum;
}

/* Forward and backward of one rank alone, and on what they stand. */
static enum status time_compute(const struct plan_ranks *options, const struct config *config,
                                const struct engine *engine, const struct op_trace *trace,
                                const struct flops *flops, struct scaling_work *work) {
    const struct speed_limit limit = engine_speed_limit(engine, config, flops);
    const double tokens = (double)step_tokens(config);
    if (options->memory_GBps > 0.0) {
        work->update_seconds = update_bytes(trace) / (options->memory_GBps * 1e9);
    }
    if (options->step_ms > 0.0) {
        work->compute_seconds = options->step_ms * 1e-3 - work->update_seconds;
        if (work->compute_seconds > 0.0) return STATUS_OK;
        return status_set(STATUS_CONFIG, "--step-ms %g is less than the update alone takes at "
                          "--memory-GBps %g: %.3g ms", options->step_ms, options->memory_GBps,
                          work->update_seconds * 1e3);
    }
    if (limit.tflops <= 0.0) {
        return status_set(STATUS_CONFIG, "how long a step takes on one rank is not known: give "
                          "--step-ms (`deepwell bench step` with train.batch = %" PRId64 "), or "
                          "--mfu.peak for a lower bound", config->train.batch);
    }
    work->compute_seconds = (double)flops->total * tokens / (limit.tflops * 1e12);
    return STATUS_OK;
}

/* The head's part as large as its part of the operations. */
static enum status time_alone(const struct plan_ranks *options, const struct config *config,
                              const struct engine *engine, const struct op_trace *trace,
                              const struct flops *flops, struct scaling_work *work) {
    TRY(time_compute(options, config, engine, trace, flops, work));
    work->head_seconds = work->compute_seconds * (double)flops->head / (double)flops->total;
    return STATUS_OK;
}

/* What all rows are computed from. */
struct prediction {
    const struct config *config;
    const struct engine *engine;
    struct scaling_work work;
    struct scaling_link link;
};

static enum status print_stages(const struct prediction *p, size_t ranks) {
    char sent[TEXT_BYTES], memory[TEXT_BYTES];
    printf("  %4s %10s %10s %14s %14s %16s %12s %14s\n", "zero", "step ms", "efficiency",
           "reduce exposed", "gather exposed", "communication ms", "sent a rank",
           "memory a rank");
    for (int stage = 0; stage < SCALING_STAGES; stage++) {
        const struct scaling_point at = scaling_predict(&p->work, &p->link, ranks, stage);
        TRY(memory_of(p->config, p->engine, ranks, stage, memory));
        printf("  %4d %10.2f %9.1f%% %14.2f %14.2f %16.2f %12s %14s\n", stage,
               at.step_seconds * 1e3, at.efficiency * 100.0, at.exposed_reduce_seconds * 1e3,
               at.exposed_gather_seconds * 1e3, at.communication_seconds * 1e3,
               text_bytes(sent, (size_t)at.sent_bytes), memory);
    }
    return STATUS_OK;
}

static enum status print_row(const struct prediction *p, size_t ranks) {
    char memory[TEXT_BYTES];
    printf("  %8zu", ranks);
    for (int stage = 0; stage < SCALING_STAGES; stage++) {
        const struct scaling_point at = scaling_predict(&p->work, &p->link, ranks, stage);
        TRY(memory_of(p->config, p->engine, ranks, stage, memory));
        printf(" %9.2f %5.1f%% %10s", at.step_seconds * 1e3, at.efficiency * 100.0,
               memory);
    }
    printf("\n");
    return STATUS_OK;
}

/* Powers of two up to the number, and itself. */
static enum status print_growth(const struct prediction *p, size_t ranks) {
    printf("  the same share a rank on fewer: step ms, efficiency, memory a rank for zero 0, 1, 2, "
           "3\n");
    for (size_t n = 1; n < ranks; n *= 2) TRY(print_row(p, n));
    return print_row(p, ranks);
}

enum status plan_ranks_print(const struct plan_ranks *options, const struct config *config,
                             const struct engine *engine, const struct op_trace *trace,
                             const struct flops *flops) {
    const double latency_us = options->latency_us > 0.0 ? options->latency_us : latency_us_usual;
    struct prediction p = {
        .config = config,
        .engine = engine,
        .work = work_of(config, engine),
        .link = {.bytes_per_second = options->link_GBps * 1e9,
                 .latency_seconds = latency_us * 1e-6},
    };
    TRY(time_alone(options, config, engine, trace, flops, &p.work));
    printf("ranks       %" PRId64 ", each with %" PRId64 " sequences a step in %zu micro-batch%s; "
           "%g GB/s, %g us a hop\n", options->ranks, config->train.batch, p.work.micro_batches,
           p.work.micro_batches == 1 ? "" : "es", options->link_GBps, latency_us);
    printf("  one rank alone takes %.2f ms, %s\n",
           (p.work.compute_seconds + p.work.update_seconds) * 1e3,
           options->step_ms > 0.0 ? "as given" : "at the device's peak, which no step reaches: a "
                                                 "lower bound (--step-ms takes a measured one)");
    if (p.work.fixed) {
        printf("  comm.order = fixed: all micro-batches' gradients travel, and losses and squares; "
               "the time of adding them is left out\n");
    }
    printf("  what follows is predicted, not measured (docs/many_ranks.md); memory is counted for "
           "%s\n", engine->device.name);
    TRY(print_stages(&p, (size_t)options->ranks));
    return print_growth(&p, (size_t)options->ranks);
}

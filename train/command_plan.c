/* deepwell plan */
#include <stdio.h>

#include "base/text.h"
#include "train/cli.h"
#include "train/commands.h"
#include "train/engine.h"
#include "train/flops.h"
#include "train/op_report.h"
#include "train/plan_ranks.h"
#include "train/rank_environment.h"
#include "train/step.h"
#include "train/step_trace.h"

enum { RATE_MAX = 1000000000 };

static const char usage[] =
    "usage: deepwell plan [CONFIG] [--tensors] [--section.key VALUE ...]\n"
    "\n"
    "What a run will be, without running it: parameters, memory by lifetime, work, and the\n"
    "operations of a step with their sizes. The operations are recorded from the code that\n"
    "trains, not written down twice. Where the memory does not suffice it says with which\n"
    "train.micro_batch and train.recompute it would.\n"
    "\n"
    "  --tensors            every tensor: shape, role, weight decay, Hugging Face's name\n"
    "  --ranks N            what a step takes on N ranks, predicted for each stage of ZeRO\n"
    "  --link-GBps X        bus rate between them (as nccl-tests' busbw): `deepwell bench comm`\n"
    "                       measures it\n"
    "  --latency-us X       of one hop of a collective (default 5)\n"
    "  --step-ms X          measured on one rank with its share of train.batch; else the device's\n"
    "                       peak is taken\n"
    "  --memory-GBps X      rate of an update, which a sharded optimizer divides (default: the\n"
    "                       update is not told from the rest)\n"
    "\n"
    "  deepwell plan configs/gpt2_124m.conf --train.micro_batch 4 --train.sequence_length 64\n"
    "  deepwell plan configs/gpt2_1558m.conf --train.batch 256 --train.micro_batch 32 \\\n"
    "      --ranks 8 --link-GBps 300 --step-ms 598\n";

static void print_model(const struct engine *engine) {
    const struct param_table *table = &engine->gpt.table;
    const struct gpt_config *model = &engine->gpt.config;
    size_t counts[ROLE_COUNT] = {0}, decayed = 0;
    char text[TEXT_BYTES], precision[PRECISION_TEXT_BYTES];
    for (size_t i = 0; i < table->length; i++) {
        counts[table->params[i].role] += param_count(&table->params[i]);
        if (table->params[i].decay) decayed += param_count(&table->params[i]);
    }
    printf(
        "model       GPT-2, %zu layers, %zu heads, width %zu, context %zu, vocabulary %zu (padded "
        "to %zu)\n",
        model->layers, model->heads, model->width, model->context, model->vocabulary,
        gpt_padded_vocabulary(model));
    printf("precision   %s\n", engine_precision_text(precision, engine));
    printf("parameters  %s in %zu tensors\n", text_count(text, param_table_count(table)),
           table->length);
    for (int role = 0; role < ROLE_COUNT; role++) {
        printf("  %-22s %s\n", param_role_name((enum param_role)role),
               text_count(text, counts[role]));
    }
    printf("  %-22s %s\n", "with weight decay", text_count(text, decayed));
}

static void print_tensors(const struct param_table *table) {
    printf("tensors\n");
    for (size_t i = 0; i < table->length; i++) {
        const struct param *param = &table->params[i];
        char shape[48];
        snprintf(shape, sizeof shape, "%zu x %zu", param->rows, param->columns);
        printf("  %-36s %-16s %-10s %-8s %s%s\n", param->name, shape, param_role_name(param->role),
               param->decay ? "decay" : "no decay", param->hf_name,
               param->hf_transposed ? " (transposed)" : "");
    }
}

static void print_memory(const struct engine_memory_plan *plan, const struct device *device) {
    char text[TEXT_BYTES], found[TEXT_BYTES];
    printf("memory\n");
    for (size_t i = 0; i < ENGINE_ARENAS; i++) {
        printf("  %-22s %s\n", plan->names[i], text_bytes(text, plan->bytes[i]));
    }
    printf("  %-22s %s, %s (%s free on %s)\n", "together", text_bytes(text, plan->total_bytes),
           plan->total_bytes <= device->memory_bytes ? "fits" : "DOES NOT FIT",
           text_bytes(found, device->memory_bytes), device->name);
}

/* The largest micro-batch that fits, and a larger one where recomputing makes room for it. */
static void print_what_fits(const struct config *config, unsigned parts,
                            const struct device *device) {
    static const char *const ways[] = {"none", "gelu", "block"};
    struct config other = *config;
    struct engine_memory_plan plan;
    int64_t largest = 0;
    char text[TEXT_BYTES];
    for (int way = config->train.recompute; way <= CONFIG_RECOMPUTE_BLOCK; way++) {
        other.train.recompute = way;
        for (int64_t micro = config_micro_batch(config); micro > largest; micro--) {
            if (config->train.batch % micro != 0) continue;
            other.train.micro_batch = micro;
            if (engine_plan(&other, parts, device, &plan) != STATUS_OK) continue;
            if (plan.total_bytes > device->memory_bytes) continue;
            printf("  %-22s %s with train.micro_batch = %lld, train.recompute = %s\n", "would fit",
                   text_bytes(text, plan.total_bytes), (long long)micro, ways[way]);
            largest = micro;
        }
    }
    if (largest > 0) return;
    printf("  %-22s nothing by train.micro_batch and train.recompute: choose a smaller model, or "
           "share its state among ranks (--ranks N)\n",
           "would fit");
}

static void print_work(const struct config *config, const struct flops *flops) {
    char text[FLOPS_TEXT_BYTES], tokens[TEXT_BYTES], all[TEXT_BYTES];
    const int64_t a_step = step_tokens(config), micro = config_micro_batch(config);
    printf("step        %lld sequences of %lld in %lld micro-batches of %lld: %s tokens\n",
           (long long)config->train.batch, (long long)config_sequence_length(config),
           (long long)config_micro_batches(config, 1), (long long)micro,
           text_count(tokens, (uint64_t)a_step));
    printf("run         %lld steps: %s tokens, %.3g FLOP\n", (long long)config->train.steps,
           text_count(all, (uint64_t)a_step * (uint64_t)config->train.steps),
           (double)flops->total * (double)a_step * (double)config->train.steps);
    printf("work        %s\n", flops_text(text, flops));
}

static enum status plan(const struct config *config, bool tensors,
                        const struct plan_ranks *ranks) {
    struct engine engine;
    struct engine_memory_plan memory;
    struct flops flops;
    struct op_trace trace;
    const unsigned parts = ENGINE_TRAIN |
                           (config->data.validation[0] != '\0' ? ENGINE_EVALUATE : 0) |
                           (config->sample.every > 0 ? ENGINE_GENERATE : 0);
    enum status status = STATUS_OK;
    TRY(engine_open(&engine, config, parts, ENGINE_RESERVED));
    TRY_GOTO(engine_plan(config, parts, &engine.device, &memory), cleanup);
    TRY_GOTO(flops_count(&engine.gpt.table, engine.gpt.config.layers, engine.gpt.config.width,
                         engine.training.shape.sequence_length, &flops), cleanup);
    if (ranks->ranks > 0) {
        printf("One rank by itself, with its share of train.batch and the whole state; then all, "
               "from `ranks` on:\n");
    }
    print_model(&engine);
    if (tensors) print_tensors(&engine.gpt.table);
    print_memory(&memory, &engine.device);
    if (memory.total_bytes > engine.device.memory_bytes) {
        print_what_fits(config, parts, &engine.device);
    }
    print_work(config, &flops);
    TRY_GOTO(step_trace(&engine, config, &trace, NULL), cleanup);
    if (ranks->ranks > 0) {
        TRY_GOTO(plan_ranks_print(ranks, config, &engine, &trace, &flops), cleanup);
    }
    op_report_print(&trace, 1.0, 0.0);
cleanup:
    engine_close(&engine);
    return status;
}

enum status command_plan(int argc, char **argv) {
    bool tensors = false;
    struct plan_ranks ranks = {0};
    const struct cli_option options[] = {
        {.name = "--tensors", .flag = &tensors},
        {.name = "--ranks", .whole = &ranks.ranks, .least = 1, .most = WORLD_MAX},
        {.name = "--link-GBps", .real = &ranks.link_GBps, .most = RATE_MAX},
        {.name = "--latency-us", .real = &ranks.latency_us, .most = RATE_MAX},
        {.name = "--step-ms", .real = &ranks.step_ms, .most = RATE_MAX},
        {.name = "--memory-GBps", .real = &ranks.memory_GBps, .most = RATE_MAX},
    };
    const struct cli cli = {
        .command = "plan", .usage = usage, .options = options,
        .option_count = sizeof options / sizeof options[0], .takes_config = true,
    };
    struct config config;
    bool help = false;
    TRY(cli_one_config(&cli, argc, argv, &config, &help));
    if (help) return STATUS_OK;
    TRY(plan_ranks_check(&ranks, &config));
    return plan(&config, tensors, &ranks);
}

/* deepwell bench */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "base/random.h"
#include "base/text.h"
#include "data/loader.h"
#include "kernels/cuda/power.h"
#include "train/bench_numerics.h"
#include "train/cli.h"
#include "train/commands.h"
#include "train/engine.h"
#include "train/flops.h"
#include "train/op_report.h"
#include "train/op_trace.h"
#include "train/peak.h"
#include "train/signals.h"
#include "train/step.h"

static const char usage[] =
    "usage: deepwell bench step [CONFIG] [options] [--section.key VALUE ...]\n"
    "       deepwell bench numerics CONFIG ... (bench numerics --help)\n"
    "\n"
    "Times whole optimizer steps (data, clip and update inside) of a new model, and leaves\n"
    "nothing behind. Tokens come from data.train; with --data.train= they are random, which the\n"
    "report says.\n"
    "\n"
    "  --steps N            timed steps (default 10)\n"
    "  --warmup N           steps before them (default 2)\n"
    "  --ops                then one more step with every operation timed: where the time goes\n"
    "\n"
    "  deepwell bench step configs/gpt2_124m.conf --data.train= --train.batch 4 --train.micro_batch 4 \\\n"
    "      --train.sequence_length 64 --steps 10 --ops\n";

struct bench {
    const struct config *config;
    struct engine engine;
    struct dataset dataset;
    struct loader *loader; /* NULL: random tokens */
    int32_t *random;       /* (N + 1) */
    uint64_t drawn;        /* random tokens so far */
    int64_t step;
    double warmup_seconds;
    struct gpu_power power;
};

static enum status open_tokens(struct bench *b) {
    const struct config *c = b->config;
    const size_t micro = (size_t)config_micro_batch(c), length = (size_t)config_sequence_length(c);
    const struct loader_shape shape = {
        .rows = micro, .micro_batches = (size_t)c->train.batch / micro, .ranks = 1,
    };
    if (c->data.train[0] != '\0') {
        const enum status opened = dataset_open(&b->dataset, c->data.train, length,
                                                (size_t)c->model.vocabulary, ORDER_SHUFFLED,
                                                (uint64_t)c->train.seed);
        if (opened != STATUS_OK) {
            return status_context(opened, "data.train (--data.train= times random tokens)");
        }
        return loader_open(&b->loader, &b->dataset, &shape, 0);
    }
    b->random = calloc(micro * length + 1, sizeof *b->random);
    if (b->random == NULL) return status_set(STATUS_MEMORY, "out of memory for random tokens");
    return STATUS_OK;
}

/* Fresh ones for every micro-batch: repeated ones would be learned by heart. */
static void draw_tokens(struct bench *b, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const float uniform = random_uniform((uint64_t)b->config->train.seed, RANDOM_TEST, b->drawn++);
        b->random[i] = (int32_t)(uniform * (float)b->config->model.vocabulary);
    }
}

static enum status upload_tokens(struct bench *b) {
    const struct gpt_training *training = &b->engine.training;
    const size_t bytes = training->shape.batch * training->shape.sequence_length * sizeof(int32_t);
    struct batch batch = {.inputs = b->random, .targets = b->random == NULL ? NULL : b->random + 1};
    if (b->loader != NULL) TRY(loader_next(b->loader, &batch));
    else draw_tokens(b, bytes / sizeof(int32_t) + 1);
    TRY(device_upload(&b->engine.device, training->inputs, batch.inputs, bytes));
    return device_upload(&b->engine.device, training->targets, batch.targets, bytes);
}

static enum status run_step(struct bench *b) {
    const struct step_policy policy = step_policy(b->config, b->step++);
    const int64_t micro_batches = b->config->train.batch / config_micro_batch(b->config);
    if (signals_received() != NULL) {
        return status_set(STATUS_INTERRUPTED, "stopped by %s", signals_received());
    }
    TRY(step_begin(&b->engine));
    for (int64_t micro = 0; micro < micro_batches; micro++) {
        TRY(upload_tokens(b));
        TRY(step_micro_batch(&b->engine, &policy, micro == 0));
    }
    return step_update(&b->engine, b->config, &policy);
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The value at this share of the sorted list, the nearest one. */
static double quantile(const double *sorted, size_t count, double share) {
    return sorted[(size_t)(share * (double)(count - 1) + 0.5)];
}

static enum status print_times(const struct bench *b, double *seconds, size_t count,
                               const struct step_state *state) {
    const struct gpt *gpt = &b->engine.gpt;
    struct flops flops;
    struct rusage used;
    char text[MFU_TEXT_BYTES], peak[TEXT_BYTES], planned[TEXT_BYTES];
    size_t memory = 0;
    TRY(flops_count(&gpt->table, gpt->config.layers, gpt->config.width,
                    b->engine.training.shape.sequence_length, &flops));
    qsort(seconds, count, sizeof *seconds, by_value);
    const double median = quantile(seconds, count, 0.5), tokens = (double)step_tokens(b->config);
    const double tflops = flops_tera_per_second(flops.total, tokens, median);
    const enum peak_type type = b->engine.dtype == DTYPE_F32    ? PEAK_FP32
                                : b->engine.dtype == DTYPE_BF16 ? PEAK_BF16 : PEAK_FP16;
    struct mfu mfu = mfu_compute(tflops, engine_peak_tflops(&b->engine, b->config), type);
    mfu.emulated = engine_support(&b->engine) == SUPPORT_EMULATED;
    for (size_t i = 0; i < ENGINE_ARENAS; i++) memory += b->engine.arenas[i].capacity_bytes;
    getrusage(RUSAGE_SELF, &used);
    printf("step        median %.1f ms, p10 %.1f, p90 %.1f over %zu steps\n", median * 1e3,
           quantile(seconds, count, 0.1) * 1e3, quantile(seconds, count, 0.9) * 1e3, count);
    printf("speed       %.0f tokens/s, %.4f TFLOPS, %s\n", tokens / median, tflops,
           mfu_text(text, &mfu));
    printf("memory      %s at most in the process, %s planned\n",
           text_bytes(peak, (size_t)used.ru_maxrss * 1024), text_bytes(planned, memory));
    printf("warm-up     %s with the search for algorithms\n", text_duration(peak, b->warmup_seconds));
    if (b->engine.device.kind == DEVICE_CUDA) {
        char watts[GPU_POWER_TEXT_BYTES];
        printf("power       %s\n", gpu_power_text(watts, &b->power, tokens * (double)count));
    }
    printf("loss        %.4f after %lld steps\n", (double)state->loss, (long long)b->step);
    return STATUS_OK;
}

static void print_header(const struct bench *b) {
    char tokens[TEXT_BYTES], count[TEXT_BYTES], precision[PRECISION_TEXT_BYTES];
    const struct gpt_config *model = &b->engine.gpt.config;
    printf("device      %s\n", b->engine.device.name);
    if (b->engine.device.note[0] != '\0') printf("            %s\n", b->engine.device.note);
    printf("model       GPT-2, %zu layers, %zu heads, width %zu: %s parameters, %s\n",
           model->layers, model->heads, model->width,
           text_count(count, param_table_count(&b->engine.gpt.table)),
           engine_precision_text(precision, &b->engine));
    printf("step        %lld sequences of %lld, %lld at a time: %s tokens from %s\n",
           (long long)b->config->train.batch, (long long)config_sequence_length(b->config),
           (long long)config_micro_batch(b->config),
           text_count(tokens, (uint64_t)step_tokens(b->config)),
           b->loader != NULL ? b->config->data.train
                             : "a uniform random generator (no data.train)");
    fflush(stdout);
}

static enum status bench_ops(struct bench *b) {
    static struct op_trace trace; /* large */
    struct device *device = &b->engine.device;
    double seconds = 0.0;
    TRY(op_trace_attach(&trace, device, false));
    const enum status status = run_step(b);
    const size_t last = trace.last_mark;
    const enum status detached = op_trace_detach(&trace, device);
    TRY(status);
    TRY(detached);
    TRY(device_seconds_between(device, 0, last, &seconds));
    op_report_print(&trace, 1.0, seconds);
    return STATUS_OK;
}

/* The state after what was run so far, which is waited for. */
static enum status read_state(struct bench *b, struct step_state *state) {
    TRY(device_download(&b->engine.device, state, b->engine.state, sizeof *state));
    if (state->skipped_nonfinite == 0) return STATUS_OK;
    return status_set(STATUS_NUMERICS, "%lld of %lld steps are not finite: their time would mean nothing",
                      (long long)state->skipped_nonfinite, (long long)b->step);
}

/* Runs the steps one behind the other, as training does, and then reads the marks between them. */
static enum status time_steps(struct bench *b, double *seconds, size_t steps) {
    struct device *device = &b->engine.device;
    TRY(device_wait(device));
    gpu_power_start(&b->power);
    TRY(device_mark(device, 0));
    for (size_t i = 0; i < steps; i++) {
        TRY(run_step(b));
        TRY(device_mark(device, i + 1));
        gpu_power_look(&b->power);
    }
    TRY(device_wait(device));
    gpu_power_stop(&b->power);
    for (size_t i = 0; i < steps; i++) {
        TRY(device_seconds_between(device, i, i + 1, &seconds[i]));
    }
    return STATUS_OK;
}

static enum status bench_steps(struct bench *b, int64_t warmup, int64_t steps, bool ops) {
    struct step_state state = {0};
    enum status status = STATUS_OK;
    double *seconds = calloc((size_t)steps, sizeof *seconds);
    const double begun = clock_seconds();
    if (seconds == NULL) return status_set(STATUS_MEMORY, "out of memory for %lld times", (long long)steps);
    for (int64_t i = 0; i < warmup; i++) TRY_GOTO(run_step(b), cleanup);
    TRY_GOTO(read_state(b, &state), cleanup);
    b->warmup_seconds = clock_seconds() - begun;
    TRY_GOTO(time_steps(b, seconds, (size_t)steps), cleanup);
    TRY_GOTO(read_state(b, &state), cleanup);
    TRY_GOTO(print_times(b, seconds, (size_t)steps, &state), cleanup);
    if (ops) status = bench_ops(b);
cleanup:
    free(seconds);
    return status;
}

static enum status bench_config(const struct config *config, int64_t warmup, int64_t steps,
                                bool ops) {
    struct bench bench = {.config = config};
    enum status status = STATUS_OK;
    TRY(signals_install());
    TRY_GOTO(open_tokens(&bench), cleanup);
    TRY_GOTO(engine_open(&bench.engine, config, ENGINE_TRAIN, ENGINE_REAL), cleanup);
    TRY_GOTO(engine_initialise(&bench.engine, config), cleanup);
    gpu_power_open(&bench.power);
    print_header(&bench);
    status = bench_steps(&bench, warmup, steps, ops);
cleanup:
    gpu_power_close(&bench.power);
    loader_close(bench.loader);
    dataset_close(&bench.dataset);
    free(bench.random);
    engine_close(&bench.engine);
    return status;
}

enum status command_bench(int argc, char **argv) {
    int64_t steps = 10, warmup = 2;
    bool ops = false;
    const struct cli_option options[] = {
        {.name = "--steps", .whole = &steps, .least = 1, .most = DEVICE_MARKS - 1},
        {.name = "--warmup", .whole = &warmup, .least = 0, .most = 1000000},
        {.name = "--ops", .flag = &ops},
    };
    const struct cli cli = {
        .command = "bench", .usage = usage, .options = options,
        .option_count = sizeof options / sizeof options[0], .takes_config = true,
    };
    struct cli_names names;
    struct config config;
    if (argc > 1 && strcmp(argv[1], "numerics") == 0) return bench_numerics(argc, argv);
    TRY(cli_positionals(&cli, argc, argv, 1, 2, &names));
    if (names.help) return STATUS_OK;
    if (strcmp(names.names[0], "step") != 0) {
        return status_set(STATUS_CONFIG, "bench: expected \"step\" or \"numerics\", found \"%s\"",
                          names.names[0]);
    }
    TRY(cli_config(&cli, names.count > 1 ? names.names[1] : NULL, argc, argv, &config));
    return bench_config(&config, warmup, steps, ops);
}

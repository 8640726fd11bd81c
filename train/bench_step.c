/* deepwell bench step */
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "base/text.h"
#include "train/bench.h"
#include "train/cli.h"
#include "train/launch.h"
#include "train/launch_gpus.h"
#include "train/op_report.h"
#include "train/ranks_start.h"
#include "train/step.h"

static const char usage[] =
    "usage: deepwell bench step [CONFIG] [options] [--section.key VALUE ...]\n"
    "\n"
    "Times whole optimizer steps (data, clip and update inside) of a new model, and leaves\n"
    "nothing behind. Tokens come from data.train; with --data.train= they are random, which the\n"
    "report says.\n"
    "\n"
    "  --steps N            timed steps (default 10)\n"
    "  --warmup N           steps before them, at least (default 2)\n"
    "  --warmup_seconds S   and then for so long: a cool GPU is faster than one that trains\n"
    "                       (default 3 on a GPU; none on the CPU)\n"
    "  --ops                then one more step with every operation timed: where the time goes\n"
    "  --floor              then the floor of this step (`deepwell bench floor --help`) in the\n"
    "                       same process, after the model's memory was released, and the share\n"
    "  --seconds S          how long the floor is timed (default 5)\n"
    "  --gpus N             N ranks on this host, a GPU each; or started by any launcher, as\n"
    "                       `deepwell train` is (docs/many_ranks.md). Says how much of a step\n"
    "                       stood still for communication. --ops and --floor are for one rank\n"
    "\n"
    "  deepwell bench step configs/gpt2_124m.conf --data.train= --train.batch 4 \\\n"
    "      --train.micro_batch 4 --train.sequence_length 64 --steps 10 --ops\n";

struct request {
    int64_t steps, warmup, gpus;
    double warmup_seconds; /* negative: the device's default */
    double floor_seconds;
    bool ops, floor;
};

/* What a step came to; kept after the model is gone. */
struct result {
    double median_seconds, tflops;
    struct mfu mfu;
};

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The value at this share of the sorted list, the nearest one. */
static double quantile(const double *sorted, size_t count, double share) {
    return sorted[(size_t)(share * (double)(count - 1) + 0.5)];
}

/* What was planned, beside what is in use of the memory that was planned for. */
static void print_memory(const struct bench *b) {
    char used_text[TEXT_BYTES], planned_text[TEXT_BYTES];
    size_t planned = 0, used = 0;
    for (size_t i = 0; i < ENGINE_ARENAS; i++) planned += b->engine.arenas[i].capacity_bytes;
    text_bytes(planned_text, planned);
    if (b->engine.device.kind == DEVICE_CPU) {
        struct rusage resources;
        getrusage(RUSAGE_SELF, &resources);
        text_bytes(used_text, (size_t)resources.ru_maxrss * 1024);
        printf("memory      %s at most in the process, %s planned\n", used_text, planned_text);
        return;
    }
    const bool known = gpu_memory_used(&b->power, &used);
    printf("memory      %s in use on the GPU by all that run there, %s planned\n",
           known ? text_bytes(used_text, used) : "n/a", planned_text);
}

static enum status print_times(const struct bench *b, double *seconds, size_t count,
                               double warmup_seconds, const struct step_state *state,
                               struct result *result) {
    const struct gpt *gpt = &b->engine.gpt;
    const double tokens = (double)step_tokens(b->config);
    const double own_tokens = tokens / (double)b->ranks.world; /* of this rank's device */
    struct flops flops;
    char text[MFU_TEXT_BYTES], duration[TEXT_BYTES];
    double sum = 0.0;
    TRY(flops_count(&gpt->table, gpt->config.layers, gpt->config.width,
                    b->engine.training.shape.sequence_length, &flops));
    qsort(seconds, count, sizeof *seconds, by_value);
    const double median = quantile(seconds, count, 0.5);
    const struct speed_limit limit = engine_speed_limit(&b->engine, b->config, &flops);
    *result = (struct result){median, flops_tera_per_second(flops.total, own_tokens, median), {0}};
    result->mfu = mfu_against(result->tflops, &limit);
    for (size_t i = 0; i < count; i++) sum += seconds[i];
    printf("step        median %.1f ms, p10 %.1f, p90 %.1f, mean %.1f over %zu steps\n",
           median * 1e3, quantile(seconds, count, 0.1) * 1e3,
           quantile(seconds, count, 0.9) * 1e3, sum / (double)count * 1e3, count);
    ranks_print_exposed(&b->ranks, comm_waited_seconds(&b->comm, 0, 1), sum, (int64_t)count);
    printf("speed       %.0f tokens/s, %.4f TFLOPS%s, %s\n", tokens / median, result->tflops,
           b->ranks.world > 1 ? " a rank" : "", mfu_text(text, &result->mfu));
    print_memory(b);
    printf("warm-up     %s%s\n", text_duration(duration, warmup_seconds),
           b->engine.device.kind == DEVICE_CPU ? "" : " with the search for algorithms");
    bench_print_power(&b->engine.device, &b->power, own_tokens * (double)count);
    printf("loss        %.4f after %lld steps\n", (double)state->loss, (long long)b->step);
    fflush(stdout);
    return STATUS_OK;
}

static enum status time_ops(struct bench *b) {
    static struct op_trace trace; /* large */
    struct device *device = &b->engine.device;
    double seconds = 0.0;
    TRY(op_trace_attach(&trace, device, false));
    const enum status status = bench_run_step(b);
    const size_t last = trace.last_mark;
    const enum status detached = op_trace_detach(&trace, device);
    TRY(status);
    TRY(detached);
    TRY(device_seconds_between(device, 0, last, &seconds));
    op_report_print(&trace, 1.0, seconds);
    return STATUS_OK;
}

/* Runs the steps one behind the other, as training does, and then reads the marks between them. */
static enum status time_steps(struct bench *b, double *seconds, size_t steps) {
    struct device *device = &b->engine.device;
    TRY(device_wait(device));
    TRY(comm_barrier(&b->comm)); /* no rank's first step waits for another's start */
    gpu_power_start(&b->power);
    TRY(comm_note_waits(&b->comm, 0));
    TRY(device_mark(device, 0));
    for (size_t i = 0; i < steps; i++) {
        TRY(bench_run_step(b));
        TRY(device_mark(device, i + 1));
        gpu_power_look(&b->power);
    }
    TRY(comm_note_waits(&b->comm, 1));
    TRY(device_wait(device));
    gpu_power_stop(&b->power);
    for (size_t i = 0; i < steps; i++) {
        TRY(device_seconds_between(device, i, i + 1, &seconds[i]));
    }
    return STATUS_OK;
}

/* The steps that choose algorithms and record, and then more under load, the device never waiting
 * for the host: a card under its power limit is slower than a cool one, and the floor that the step
 * is held against is warm. */
static enum status warm_up(struct bench *b, const struct request *request) {
    static const double gpu_seconds = 3.0;
    struct device *device = &b->engine.device;
    const double fallback = device->kind == DEVICE_CPU ? 0.0 : gpu_seconds;
    const double wanted = request->warmup_seconds < 0.0 ? fallback : request->warmup_seconds;
    double ignored = 0.0;
    for (int64_t i = 0; i < request->warmup; i++) TRY(bench_run_step(b));
    TRY(device_wait(device));
    const double begun = clock_seconds();
    for (size_t i = 0;; i++) {
        const size_t before = (i + 1) % 2;
        bool go_on = clock_seconds() - begun < wanted; /* the first rank decides for all */
        TRY(comm_broadcast_host(&b->comm, &go_on, sizeof go_on, 0));
        if (!go_on) return STATUS_OK;
        TRY(bench_run_step(b));
        TRY(device_mark(device, i % 2));
        if (i > 0) TRY(device_seconds_between(device, before, before, &ignored)); /* waits */
    }
}

static enum status measure(struct bench *b, const struct request *request, struct result *result) {
    struct step_state state = {0};
    enum status status = STATUS_OK;
    double *seconds = calloc((size_t)request->steps, sizeof *seconds);
    const double begun = clock_seconds();
    if (seconds == NULL) {
        return status_set(STATUS_MEMORY, "out of memory for %lld times", (long long)request->steps);
    }
    TRY_GOTO(warm_up(b, request), cleanup);
    TRY_GOTO(bench_read_state(b, &state), cleanup);
    const double warmup_seconds = clock_seconds() - begun;
    TRY_GOTO(time_steps(b, seconds, (size_t)request->steps), cleanup);
    TRY_GOTO(bench_read_state(b, &state), cleanup);
    TRY_GOTO(print_times(b, seconds, (size_t)request->steps, warmup_seconds, &state, result),
             cleanup);
    if (request->ops) status = time_ops(b);
cleanup:
    free(seconds);
    return status;
}

static enum status compare_floor(const struct config *config, const struct request *request,
                                 const struct result *step) {
    struct bench_floor_result floor;
    TRY(bench_floor_run(config, request->floor_seconds, false, &floor));
    printf("share       step at %.1f %% of the floor: %.0f of %.0f tokens/s in this run, by "
           "the medians\n",
           100.0 * floor.seconds / step->median_seconds,
           (double)step_tokens(config) / step->median_seconds,
           (double)step_tokens(config) / floor.seconds);
    return bench_check_tflops("the step", step->tflops, floor.gemm_tflops,
                              "the rate of its GEMMs alone");
}

static enum status run(const struct config *config, const struct request *request) {
    struct bench bench;
    struct result result = {0};
    enum status status = bench_open_ranks(&bench, config);
    if (status == STATUS_OK && bench.ranks.world > 1 && (request->ops || request->floor)) {
        status = status_set(STATUS_CONFIG, "--ops and --floor take a step of one rank apart: start "
                            "one rank, or leave them out");
        status = ranks_agree(&bench.comm, status);
    }
    if (status == STATUS_OK) status = measure(&bench, request, &result);
    ranks_leave(&bench.ranks, &bench.comm, status, false);
    bench_close(&bench);
    TRY(status);
    TRY(bench_check_tflops("the step", result.tflops, result.mfu.limit.tflops,
                           "the device's peak"));
    return request->floor ? compare_floor(config, request, &result) : STATUS_OK;
}

enum status bench_step(int argc, char **argv) {
    struct request request = {
        .steps = 10, .warmup = 2, .warmup_seconds = -1.0, .floor_seconds = 5.0,
    };
    const struct cli_option options[] = {
        {.name = "--steps", .whole = &request.steps, .least = 1, .most = DEVICE_MARKS - 1},
        {.name = "--warmup", .whole = &request.warmup, .least = 0, .most = 1000000},
        {.name = "--warmup_seconds", .real = &request.warmup_seconds, .most = 3600},
        {.name = "--ops", .flag = &request.ops},
        {.name = "--floor", .flag = &request.floor},
        {.name = "--seconds", .real = &request.floor_seconds, .most = 3600},
        {.name = "--gpus", .whole = &request.gpus, .least = 1, .most = LAUNCH_RANKS_MAX},
    };
    const struct cli cli = {
        .command = "bench step", .usage = usage, .options = options,
        .option_count = sizeof options / sizeof options[0], .takes_config = true,
    };
    struct config config;
    bool help = false;
    TRY(cli_one_config(&cli, argc, argv, &config, &help));
    if (help) return STATUS_OK;
    if (launch_gpus_wanted(request.gpus)) {
        return launch_gpus(&config, request.gpus, "bench", argc, argv);
    }
    return run(&config, &request);
}

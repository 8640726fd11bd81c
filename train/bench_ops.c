/* deepwell bench ops */
#include <stdio.h>
#include <stdlib.h>

#include "base/checked.h"
#include "train/bench.h"
#include "train/ceiling.h"
#include "train/cli.h"
#include "train/step.h"

static const char usage[] =
    "usage: deepwell bench ops [CONFIG] [--seconds S] [--warmup N] [--section.key VALUE ...]\n"
    "\n"
    "Every distinct operation of a step alone, for seconds: its time, the bytes that it must move\n"
    "at least, and the share of this device's copy rate, measured in the same run, that they\n"
    "come to; for GEMMs and attention TFLOPS; power, clock and what limits it. The operands are\n"
    "those of training: a whole step runs before each. What is in a cache when an operation\n"
    "begins is what it left there itself. cross_entropy puts gradients where its logits were:\n"
    "each run comes behind a copy that brings them back, whose own time is taken off.\n"
    "\n"
    "  --seconds S          timed seconds of each (default 1)\n"
    "  --warmup N           steps before the first (default 2)\n"
    "\n"
    "  deepwell bench ops configs/gpt2_124m.conf --data.train= --train.batch 64\n";

struct ops_run {
    struct bench bench;
    struct op_list step;
    struct arena spare; /* for what works in place, and would soon work on zeros: GELU's backward
                         * pass writes here, and here are the logits of cross_entropy */
    struct scale_state *scales; /* as training left them; NULL: no narrow recipe */
    double copy_bytes_per_s;
    double seconds;          /* of each */
    double sum_seconds;      /* of a step, one operation after the other */
    enum status verdict; /* of the first figure that cannot be true: returned when all is printed */
};

/* What is timed: `to` made what it was, and the call; either may be missing. */
struct timed {
    struct tensor to, from; /* data NULL: nothing to make */
    const struct op_call *call;
};

static enum status run_timed(struct device *device, void *context) {
    const struct timed *timed = context;
    if (timed->from.data != NULL) TRY(device->ops->convert(device, timed->to, timed->from));
    return timed->call == NULL ? STATUS_OK : op_call_run(device, timed->call);
}

static enum status open_spare(struct ops_run *run) {
    size_t bytes = 0;
    for (size_t i = 0; i < run->step.count; i++) {
        const struct op_call *call = &run->step.calls[i];
        if (call->kind == OP_GELU_BACKWARD)
            bytes = size_max(bytes, tensor_bytes(call->args.gelu_backward.x_gradient));
        if (call->kind == OP_CROSS_ENTROPY)
            bytes = size_max(bytes, tensor_bytes(call->args.cross_entropy.logits));
    }
    return arena_open(&run->spare, "spare", &run->bench.engine.device, size_max(bytes, 1));
}

/* An operation that runs again and again may leave scales that no training has: sums that grow, an
 * update that finds no amax. */
static enum status keep_scales(struct ops_run *run) {
    struct engine *engine = &run->bench.engine;
    if (engine->scales == NULL) return STATUS_OK;
    run->scales = calloc(gpt_scale_count(&engine->gpt), sizeof *run->scales);
    if (run->scales == NULL) return status_set(STATUS_MEMORY, "out of memory for scale states");
    return engine_read_scales(engine, run->scales);
}

static void print_row(const struct ops_run *run, const struct op_call *call, size_t calls,
                      double seconds) {
    const struct gpu_power *power = &run->bench.power;
    const double watts = gpu_power_mean_watts(power);
    char text[OP_CALL_TEXT_BYTES], tflops[24] = "", drawn[16] = "n/a", mhz[16] = "n/a";
    char limit[GPU_POWER_TEXT_BYTES];
    const double rate = (double)call->bytes / seconds;
    if (call->flops > 0.0) snprintf(tflops, sizeof tflops, "%.4f", call->flops / seconds * 1e-12);
    if (watts >= 0.0) snprintf(drawn, sizeof drawn, "%.0f", watts);
    if (power->looks > 0) snprintf(mhz, sizeof mhz, "%u", gpu_power_median_mhz(power));
    printf("  %-58s %6zu %10.4f %10.3f %10.2f %8.1f %6.1f%% %9s %6s %6s  %s\n",
           op_call_text(text, call), calls, seconds * 1e3, seconds * 1e3 * (double)calls,
           (double)call->bytes * 1e-6, rate * 1e-9, 100.0 * rate / run->copy_bytes_per_s, tflops,
           drawn, mhz, gpu_power_limit_text(limit, power));
    fflush(stdout);
}

/* The logits of a cross_entropy, from the product before it in the step, into spare memory. */
static enum status keep_logits(struct ops_run *run, size_t index, struct timed *timed) {
    struct device *device = &run->bench.engine.device;
    const struct op_call *calls = run->step.calls;
    timed->to = timed->from = calls[index].args.cross_entropy.logits;
    timed->from.data = run->spare.base;
    for (size_t i = index; i-- > 0;) {
        if (!op_call_is_gemm(&calls[i]) || op_call_result(&calls[i]).data != timed->to.data) {
            continue;
        }
        TRY(op_call_run(device, &calls[i]));
        return device->ops->convert(device, timed->from, timed->to);
    }
    return status_set(STATUS_INTERNAL, "cross_entropy: no product of the step makes its logits");
}

/* Seconds of the call alone; power is watched while it and what it needs run. */
static enum status time_call(struct ops_run *run, size_t index, const struct op_call *call,
                             double *seconds) {
    struct bench *b = &run->bench;
    struct timed timed = {0};
    struct sustained times, copy = {0};
    if (call->kind == OP_CROSS_ENTROPY) {
        TRY(keep_logits(run, index, &timed));
        TRY(sustained_run(&b->engine.device, run_timed, &timed, run->seconds, NULL, &copy));
    }
    timed.call = call;
    TRY(sustained_run(&b->engine.device, run_timed, &timed, run->seconds, &b->power, &times));
    *seconds = times.run_seconds - copy.run_seconds;
    if (*seconds > 0.0) return STATUS_OK;
    return status_set(STATUS_CONFIG,
                      "%s took no longer with the copy of its operand than that alone: the device "
                      "does something else too; repeat with more than --seconds %g",
                      call->name, run->seconds);
}

static enum status measure_call(struct ops_run *run, size_t index) {
    struct bench *b = &run->bench;
    struct op_call call = run->step.calls[index];
    struct step_state state;
    double seconds = 0.0;
    size_t calls = 0;
    for (size_t i = index; i < run->step.count; i++) {
        calls += op_call_same(&call, &run->step.calls[i]) ? 1 : 0;
    }
    struct tensor *in_place = &call.args.gelu_backward.x_gradient;
    if (call.kind == OP_GELU_BACKWARD && in_place->data != NULL) in_place->data = run->spare.base;
    TRY(bench_run_step(b));
    TRY(bench_read_state(b, &state));
    TRY(time_call(run, index, &call, &seconds));
    if (run->scales != NULL) TRY(engine_write_scales(&b->engine, run->scales));
    run->sum_seconds += seconds * (double)calls;
    print_row(run, &call, calls, seconds);
    if (op_call_is_gemm(&call) && run->verdict == STATUS_OK) {
        char text[OP_CALL_TEXT_BYTES];
        const struct speed_limit limit = ceiling_of_gemm(&b->engine.device, b->config, &call);
        run->verdict = bench_check_tflops(op_call_text(text, &call),
                                          call.flops / seconds * 1e-12, limit.tflops,
                                          "the device's peak");
    }
    return STATUS_OK;
}

/* The mean of some whole steps, to stand beside the sum. */
static enum status time_step(struct bench *b, double *seconds) {
    enum { STEPS = 3 };
    struct device *device = &b->engine.device;
    TRY(device_mark(device, 0));
    for (int i = 0; i < STEPS; i++) TRY(bench_run_step(b));
    TRY(device_mark(device, 1));
    TRY(device_seconds_between(device, 0, 1, seconds));
    *seconds /= STEPS;
    return STATUS_OK;
}

static enum status measure(struct ops_run *run, int64_t warmup) {
    struct bench *b = &run->bench;
    static struct op_trace trace; /* large */
    double step_seconds = 0.0;
    TRY(step_trace(&b->engine, b->config, &trace, &run->step));
    TRY(open_spare(run));
    for (int64_t i = 0; i < warmup; i++) TRY(bench_run_step(b));
    TRY(keep_scales(run));
    TRY(ceiling_copy(&b->engine.device, run->seconds, &b->power, &run->copy_bytes_per_s));
    const struct gpu_power copy_power = b->power; /* other stretches follow */
    TRY(time_step(b, &step_seconds));
    printf("copy        %.1f GB/s, read and written, under sustained load\n",
           run->copy_bytes_per_s * 1e-9);
    bench_print_power(&b->engine.device, &copy_power, 0.0);
    printf("%-60s %6s %10s %10s %10s %8s %7s %9s %6s %6s\n", "operation alone", "calls", "ms",
           "ms a step", "MB", "GB/s", "copy", "TFLOPS", "W", "MHz");
    for (size_t i = 0; i < run->step.count; i++) {
        if (op_list_first_same(&run->step, i) == i) TRY(measure_call(run, i));
    }
    printf("  %-58s %6zu %10s %10.3f\n", "their sum, one after the other", run->step.count, "",
           run->sum_seconds * 1e3);
    printf("  %-58s %6s %10s %10.3f\n", "a whole step", "", "", step_seconds * 1e3);
    return run->verdict;
}

enum status bench_ops(int argc, char **argv) {
    int64_t warmup = 2;
    static struct ops_run run = {.seconds = 1.0};
    const struct cli_option options[] = {
        {.name = "--seconds", .real = &run.seconds, .most = 3600},
        {.name = "--warmup", .whole = &warmup, .least = 0, .most = 1000000},
    };
    const struct cli cli = {
        .command = "bench ops", .usage = usage, .options = options,
        .option_count = sizeof options / sizeof options[0], .takes_config = true,
    };
    struct config config;
    bool help = false;
    TRY(cli_one_config(&cli, argc, argv, &config, &help));
    if (help) return STATUS_OK;
    enum status status = bench_open(&run.bench, &config);
    if (status == STATUS_OK) status = measure(&run, warmup);
    op_list_close(&run.step);
    free(run.scales);
    if (run.spare.base != NULL) arena_close(&run.spare);
    bench_close(&run.bench);
    return status;
}

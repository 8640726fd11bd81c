/* deepwell bench floor */
#include <stdio.h>

#include "base/text.h"
#include "train/bench.h"
#include "train/ceiling.h"
#include "train/cli.h"
#include "train/floor.h"
#include "train/step.h"

static const char usage[] =
    "usage: deepwell bench floor [CONFIG] [--seconds S] [--section.key VALUE ...]\n"
    "\n"
    "What a step of this configuration takes at least here: its GEMMs (with the algorithms that\n"
    "training would search), its attention calls, and for every other operation a stream of the\n"
    "bytes that it must read and write, in the step's order, recorded once where the device\n"
    "records, and repeated under load. Operands are random normal numbers and larger than the\n"
    "caches; no tokens are read and nothing is learned. In a narrow recipe GEMMs multiply its\n"
    "formats, emulated where the device emulates them, and quantising is bytes.\n"
    "\n"
    "It is no bound of nature: fewer bytes (a better fusion) or better GEMMs and attention go\n"
    "below it. It says what is left to gain in everything else.\n"
    "\n"
    "  --seconds S          timed seconds, after half as long to warm up (default 5)\n"
    "\n"
    "  deepwell bench floor configs/gpt2_124m.conf --train.batch 64\n";

static const char *const part_names[FLOOR_PARTS] = {
    [FLOOR_GEMM] = "GEMMs", [FLOOR_ATTENTION] = "attention", [FLOOR_BYTES] = "bytes",
};

static void print_parts(const struct floor *floor, const struct floor_times *times) {
    double sum = 0.0;
    for (size_t part = 0; part < FLOOR_PARTS; part++) {
        const struct floor_work *work = &floor->work[part];
        const double seconds = times->parts[part].run_seconds;
        if (work->calls == 0) continue;
        printf("  %-9s %10.3f ms alone, %zu calls", part_names[part], seconds * 1e3, work->calls);
        if (work->flops > 0.0) printf(", %.4f TFLOPS", work->flops / seconds * 1e-12);
        else printf(", %.1f MB at %.1f GB/s", (double)work->bytes * 1e-6,
                    (double)work->bytes / seconds * 1e-9);
        printf("\n");
        sum += seconds;
    }
    printf("  %-9s %10.3f ms\n", "their sum", sum * 1e3);
}

static enum status report(const struct config *config, const struct step_work *work,
                          const struct floor *floor, const struct gpu_power *power,
                          const struct floor_times *times, struct bench_floor_result *result) {
    const double tokens = (double)step_tokens(config), seconds = times->whole.median_seconds;
    const double gemm_seconds = times->parts[FLOOR_GEMM].run_seconds;
    const double tflops = flops_tera_per_second(work->flops.total, tokens, seconds);
    const struct mfu mfu = mfu_against(tflops, &work->limit);
    const struct speed_limit gemms = ceiling_of_gemms(floor->device, config, &work->calls);
    char text[MFU_TEXT_BYTES];
    *result = (struct bench_floor_result){
        .seconds = seconds,
        .gemm_tflops = gemm_seconds > 0.0 ? floor->work[FLOOR_GEMM].flops / gemm_seconds * 1e-12
                                          : 0.0,
    };
    printf("floor       %.3f ms, %.0f tokens/s, %.4f TFLOPS, %s; median of %llu, mean %.3f ms\n",
           seconds * 1e3, tokens / seconds, tflops, mfu_text(text, &mfu),
           (unsigned long long)times->whole.runs, times->whole.run_seconds * 1e3);
    print_parts(floor, times);
    bench_print_power(floor->device, power, tokens * (double)times->whole.runs);
    TRY(bench_check_tflops("the floor", tflops, mfu.limit.tflops, "the device's peak"));
    return bench_check_tflops("the floor's GEMMs", result->gemm_tflops, gemms.tflops,
                              "the device's peak");
}

static enum status measure(const struct config *config, double seconds,
                           const struct step_work *work, struct device *device,
                           struct bench_floor_result *result) {
    struct gpu_power power;
    struct floor floor;
    struct floor_times times;
    TRY(floor_open(&floor, device, &work->calls, work->scratch_bytes, engine_dtype(config)));
    gpu_power_open(&power, device->bus_id);
    enum status status = floor_measure(&floor, seconds, &power, &times);
    if (status == STATUS_OK) status = report(config, work, &floor, &power, &times, result);
    gpu_power_close(&power);
    floor_close(&floor);
    return status;
}

enum status bench_floor_run(const struct config *config, double seconds, bool header,
                            struct bench_floor_result *result) {
    struct step_work work;
    struct device device = {0};
    TRY(step_work_open(&work, config));
    enum status status = engine_open_device(&device, config);
    if (status == STATUS_OK && header) {
        bench_print_device(&device);
        bench_print_step(config, &device, "");
    }
    if (status == STATUS_OK) status = measure(config, seconds, &work, &device, result);
    device_close(&device);
    step_work_close(&work);
    return status;
}

enum status bench_floor(int argc, char **argv) {
    double seconds = 5.0;
    const struct cli_option options[] = {{.name = "--seconds", .real = &seconds, .most = 3600}};
    const struct cli cli = {
        .command = "bench floor", .usage = usage, .options = options,
        .option_count = sizeof options / sizeof options[0], .takes_config = true,
    };
    struct config config;
    bool help = false;
    struct bench_floor_result result;
    TRY(cli_one_config(&cli, argc, argv, &config, &help));
    if (help) return STATUS_OK;
    return bench_floor_run(&config, seconds, true, &result);
}

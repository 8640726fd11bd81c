/* deepwell bench gemm */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "train/bench.h"
#include "train/ceiling.h"
#include "train/cli.h"
#include "train/floor.h"
#include "train/op_trace.h"

static const char usage[] =
    "usage: deepwell bench gemm [M N K | CONFIG] [options] [--section.key VALUE ...]\n"
    "\n"
    "Every distinct GEMM of a configuration's step, or one of this shape (c is M x N, K is summed\n"
    "over), each for seconds after a common warm-up: TFLOPS, share of the vendor's peak, power,\n"
    "clock. Operands are random normal numbers, as many sets of them as the caches do not hold,\n"
    "in a narrow recipe in its formats; M N K is then input (M x K) by weight (N x K).\n"
    "\n"
    "  --seconds S          timed seconds of each (default 1)\n"
    "  --warmup S           seconds before the first (default 2)\n"
    "  --type T             of the operands of M N K: fp32, bf16, fp16 (default: the recipe)\n"
    "  --result T           of its result: fp32 or the operands' type (default: that)\n"
    "  --transpose_a        its first operand lies as K x M\n"
    "  --transpose_b        its second operand lies as N x K\n"
    "  --accumulate         its result is added to what is there\n"
    "\n"
    "  deepwell bench gemm configs/gpt2_124m.conf --train.batch 64\n"
    "  deepwell bench gemm 8192 8192 8192 --type bf16 --transpose_b\n";

enum { COPIES_MAX = 64, TYPES = 3 };
static const char *const type_names[TYPES] = {"fp32", "bf16", "fp16"};
static const enum dtype types[TYPES] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
static const int64_t size_max_option = 1 << 30;

struct request {
    double seconds, warmup_seconds;
    struct cli_choice type, result; /* of the types; chosen -1: not given */
    bool transpose_a, transpose_b, accumulate;
};

/* The distinct GEMMs, each with its copies on other operands behind it. */
struct group {
    size_t first, copies; /* calls of the floor */
    size_t step_calls;    /* how often a step asks for it; 0: a given shape */
};
struct groups {
    struct op_list list;
    struct group *groups;
    size_t count;
};

/* So many sets of operands that none is in a cache when its turn comes again. */
static size_t copies_of(const struct op_call *call, const struct device *device) {
    const size_t cold_bytes = device->kind == DEVICE_CPU ? (size_t)48 << 20 : (size_t)256 << 20;
    return size_min(COPIES_MAX, ceil_div(cold_bytes, size_max(1, call->bytes)));
}

static enum status add_group(struct groups *groups, const struct op_call *call, size_t step_calls,
                             const struct device *device) {
    struct group *grown = reallocarray(groups->groups, groups->count + 1, sizeof *grown);
    if (grown == NULL) return status_set(STATUS_MEMORY, "out of memory for the list of GEMMs");
    groups->groups = grown;
    const struct group group = {groups->list.count, copies_of(call, device), step_calls};
    groups->groups[groups->count++] = group;
    struct op_call copy = *call;
    op_call_own_pointees(&copy);
    for (size_t i = 0; i < group.copies; i++) TRY(op_list_add(&groups->list, &copy));
    return STATUS_OK;
}

static enum status add_step(struct groups *groups, const struct op_list *step,
                            const struct device *device) {
    for (size_t i = 0; i < step->count; i++) {
        size_t calls = 0;
        if (!op_call_is_gemm(&step->calls[i]) || op_list_first_same(step, i) != i) continue;
        for (size_t j = i; j < step->count; j++) {
            calls += op_call_same(&step->calls[i], &step->calls[j]) ? 1 : 0;
        }
        TRY(add_group(groups, &step->calls[i], calls, device));
    }
    return STATUS_OK;
}

static void print_heading(void) {
    printf("%-58s %6s %10s %9s %8s %6s %6s\n", "GEMM, m x n x k", "calls", "ms", "TFLOPS", "peak",
           "W", "MHz");
}

/* A line; `seconds` of one call. */
static void print_row(const char *name, size_t calls, double seconds, double tflops,
                      const struct mfu *mfu, const struct gpu_power *power) {
    const double watts = gpu_power_mean_watts(power);
    char share[16] = "n/a", watts_text[16] = "n/a", mhz[16] = "n/a";
    if (mfu->state == MFU_KNOWN) snprintf(share, sizeof share, "%.1f%%", 100.0 * mfu->share);
    if (mfu->limit.emulated) snprintf(share, sizeof share, "emulated");
    if (mfu->state == MFU_MEASUREMENT_ERROR) snprintf(share, sizeof share, "ERROR");
    if (watts >= 0.0) snprintf(watts_text, sizeof watts_text, "%.0f", watts);
    if (power->looks > 0) snprintf(mhz, sizeof mhz, "%u", gpu_power_median_mhz(power));
    printf("  %-56s %6zu %10.4f %9.4f %8s %6s %6s\n", name, calls, seconds * 1e3, tflops, share,
           watts_text, mhz);
    fflush(stdout);
}

struct totals {
    double seconds, flops; /* of a step */
    enum status status;    /* of the first figure that cannot be true */
};

static enum status measure_group(struct floor *floor, const struct config *config,
                                 const struct group *group, const struct request *request,
                                 bool first, struct gpu_power *power, struct totals *totals) {
    const struct op_call *call = &floor->calls[group->first].call;
    const struct speed_limit limit = ceiling_of_gemm(floor->device, config, call);
    struct sustained times;
    char text[OP_CALL_TEXT_BYTES];
    TRY(floor_measure_calls(floor, group->first, group->copies,
                            first ? request->warmup_seconds : 0.0, request->seconds, power,
                            &times));
    const double seconds = times.run_seconds / (double)group->copies;
    const double tflops = call->flops / seconds * 1e-12;
    const struct mfu mfu = mfu_against(tflops, &limit);
    op_call_text(text, call);
    print_row(text + strlen("gemm "), size_max(group->step_calls, 1), seconds, tflops, &mfu, power);
    totals->seconds += seconds * (double)group->step_calls;
    totals->flops += call->flops * (double)group->step_calls;
    if (totals->status == STATUS_OK) {
        totals->status = bench_check_tflops(text, tflops, mfu.limit.tflops, "the device's peak");
    }
    return STATUS_OK;
}

/* `dtype`: of operands that are not quantised. */
static enum status measure(const struct config *config, struct device *device,
                           const struct groups *groups, size_t scratch_bytes, enum dtype dtype,
                           const struct request *request) {
    struct totals totals = {0};
    struct gpu_power power;
    struct floor floor;
    enum status status = STATUS_OK;
    TRY(floor_open(&floor, device, &groups->list, scratch_bytes, dtype));
    gpu_power_open(&power, device->bus_id);
    if (power.library == NULL) bench_print_power(device, &power, 0.0);
    print_heading();
    for (size_t i = 0; i < groups->count && status == STATUS_OK; i++) {
        status = measure_group(&floor, config, &groups->groups[i], request, i == 0, &power,
                               &totals);
    }
    if (status == STATUS_OK && totals.flops > 0.0) {
        printf("  all of a step: %.3f ms, %.4f TFLOPS\n", totals.seconds * 1e3,
               totals.flops / totals.seconds * 1e-12);
    }
    gpu_power_close(&power);
    floor_close(&floor);
    return status != STATUS_OK ? status : totals.status;
}

static enum status run_step(const struct config *config, const struct request *request) {
    struct groups groups = {0};
    struct step_work work;
    struct device device = {0};
    enum status status = STATUS_OK;
    TRY(step_work_open(&work, config));
    TRY_GOTO(engine_open_device(&device, config), cleanup);
    bench_print_device(&device);
    bench_print_step(config, &device, "");
    TRY_GOTO(add_step(&groups, &work.calls, &device), cleanup);
    status = measure(config, &device, &groups, work.scratch_bytes, engine_dtype(config), request);
cleanup:
    free(groups.groups);
    op_list_close(&groups.list);
    step_work_close(&work);
    device_close(&device);
    return status;
}

static enum dtype type_or(const struct cli_choice *choice, enum dtype otherwise) {
    return choice->chosen < 0 ? otherwise : types[choice->chosen];
}

static enum status parse_size(const char *text, size_t *out) {
    char *end = NULL;
    const long long number = strtoll(text, &end, 10);
    if (text[strspn(text, "0123456789")] != '\0' || number < 1 || number > size_max_option) {
        return status_set(STATUS_CONFIG,
                          "bench gemm: expected M N K, whole numbers from 1 to %lld, "
                          "found \"%s\"",
                          (long long)size_max_option, text);
    }
    *out = (size_t)number;
    return STATUS_OK;
}

static bool describes_shape(const struct request *r) {
    return r->type.chosen >= 0 || r->result.chosen >= 0 || r->transpose_a || r->transpose_b ||
           r->accumulate;
}

static enum status make_plain(const size_t sizes[3], const struct config *config,
                              const struct request *request, struct op_call *call) {
    const size_t m = sizes[0], n = sizes[1], k = sizes[2];
    const enum dtype type = type_or(&request->type, engine_dtype(config));
    const enum dtype result = type_or(&request->result, type);
    if (result != type && result != DTYPE_F32) {
        return status_set(STATUS_CONFIG, "--result: expected fp32 or the operands' %s, found %s",
                          dtype_name(type), dtype_name(result));
    }
    const struct gemm gemm = {
        .c = tensor_make(NULL, result, m, n),
        .a = request->transpose_a ? tensor_make(NULL, type, k, m) : tensor_make(NULL, type, m, k),
        .b = request->transpose_b ? tensor_make(NULL, type, n, k) : tensor_make(NULL, type, k, n),
        .transpose_a = request->transpose_a, .transpose_b = request->transpose_b,
        .accumulate = request->accumulate,
    };
    *call = op_call_of_gemm(&gemm);
    return STATUS_OK;
}

/* In the formats of a narrow recipe unless an option says otherwise. */
static enum status make_call(const size_t sizes[3], const struct config *config,
                             const struct request *request, const struct device *device,
                             struct op_call *call) {
    const struct recipe *recipe = recipe_row((enum recipe_kind)config->precision.recipe);
    if (!recipe->narrow || request->type.chosen >= 0) {
        return make_plain(sizes, config, request, call);
    }
    if (describes_shape(request)) {
        return status_set(STATUS_CONFIG,
                          "bench gemm: --result, --transpose_a, --transpose_b and --accumulate are "
                          "for plain operands: give --type with them, or another "
                          "precision.recipe than %s", recipe->name);
    }
    for (size_t i = 0; i < 3; i++) {
        if (sizes[i] % recipe->multiple == 0) continue;
        return status_set(STATUS_CONFIG, "bench gemm: %s needs M, N and K to be multiples of %zu, "
                          "found %zu", recipe->name, recipe->multiple, sizes[i]);
    }
    if (recipe_support(device, (enum recipe_kind)config->precision.recipe) == SUPPORT_NONE) {
        return status_set(STATUS_CONFIG, "bench gemm: recipe %s can run neither natively nor "
                          "emulated on %s", recipe->name, device->name);
    }
    *call = ceiling_recipe_gemm(recipe, sizes[0], sizes[1], sizes[2]);
    return STATUS_OK;
}

static enum status run_shape(const size_t sizes[3], const struct config *config,
                             const struct request *request) {
    struct groups groups = {0};
    struct device device = {0};
    struct op_call call;
    enum status status = STATUS_OK;
    TRY(engine_open_device(&device, config));
    TRY_GOTO(make_call(sizes, config, request, &device, &call), cleanup);
    const enum dtype dtype = call.kind == OP_GEMM ? call.args.gemm.a.dtype : engine_dtype(config);
    bench_print_device(&device);
    TRY_GOTO(add_group(&groups, &call, 0, &device), cleanup);
    status = measure(config, &device, &groups, ceiling_scratch_bytes(&device, &call), dtype,
                     request);
cleanup:
    free(groups.groups);
    op_list_close(&groups.list);
    device_close(&device);
    return status;
}

static enum status refuse_shape_options(const struct request *r) {
    if (!describes_shape(r)) return STATUS_OK;
    return status_set(STATUS_CONFIG,
                      "bench gemm: --type, --result, --transpose_a, --transpose_b and "
                      "--accumulate describe one GEMM: give M N K with them");
}

enum status bench_gemm(int argc, char **argv) {
    struct request request = {
        .seconds = 1.0,
        .warmup_seconds = 2.0,
        .type = {type_names, TYPES, -1},
        .result = {type_names, TYPES, -1},
    };
    const struct cli_option options[] = {
        {.name = "--seconds", .real = &request.seconds, .most = 3600},
        {.name = "--warmup", .real = &request.warmup_seconds, .most = 3600},
        {.name = "--type", .choices = &request.type},
        {.name = "--result", .choices = &request.result},
        {.name = "--transpose_a", .flag = &request.transpose_a},
        {.name = "--transpose_b", .flag = &request.transpose_b},
        {.name = "--accumulate", .flag = &request.accumulate},
    };
    const struct cli cli = {
        .command = "bench gemm", .usage = usage, .options = options,
        .option_count = sizeof options / sizeof options[0], .takes_config = true,
    };
    struct cli_names names;
    struct config config;
    size_t sizes[3];
    TRY(cli_positionals(&cli, argc, argv, 0, 3, &names));
    if (names.help) return STATUS_OK;
    if (names.count == 2) {
        return status_set(STATUS_CONFIG,
                          "bench gemm: expected M N K or a configuration, found two names");
    }
    TRY(cli_config(&cli, names.count == 1 ? names.names[0] : NULL, argc, argv, &config));
    if (names.count < 3) {
        TRY(refuse_shape_options(&request));
        return run_step(&config, &request);
    }
    for (size_t i = 0; i < 3; i++) TRY(parse_size(names.names[i], &sizes[i]));
    return run_shape(sizes, &config, &request);
}

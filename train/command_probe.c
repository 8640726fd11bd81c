/* deepwell probe */
#include <stdio.h>
#include <string.h>

#include <local_cuda/build_info.h>

#include "base/clock.h"
#include "base/random.h"
#include "base/text.h"
#include "kernels/arena.h"
#include "kernels/cuda/inventory.h"
#include "kernels/device.h"
#include "kernels/ops.h"
#include "layers/recipe.h"
#include "train/cli.h"
#include "train/commands.h"
#include "train/peak.h"
#include "train/probe_measure.h"
#include "train/version.h"

static const char usage[] =
    "usage: deepwell probe [--threads N] [--measure [--device D] [--seconds S]]\n"
    "\n"
    "What this machine can do: processor and memory, what the program was built with, all GPUs\n"
    "that it sees, the processor's rate of a matrix product and of a copy (measured now, about two\n"
    "seconds), and how each precision recipe would run.\n"
    "\n"
    "  --measure            instead of the quick figures those of one device under sustained load:\n"
    "                       a GEMM in the formats of each recipe, native or emulated, a copy,\n"
    "                       power limit and clocks\n"
    "  --device D           which: cpu, cuda, or auto, a GPU if there is one (default auto)\n"
    "  --seconds S          how long each is measured (default 2)\n";

enum { GEMM_SIZE = 1536, COPY_BYTES = 256 << 20 };

/* The fastest run tells what the machine can do, the mean what it did. */
struct rate {
    double best, mean; /* runs a second */
};

/* Repeats `run` for about a second, after one run to warm up. */
static enum status measure(struct device *device, enum status (*run)(struct device *, void *),
                           void *data, struct rate *rate) {
    double best = 0.0, total = 0.0;
    size_t runs = 0;
    TRY(run(device, data));
    while (total < 0.7) {
        const double begun = clock_seconds();
        TRY(run(device, data));
        const double seconds = clock_seconds() - begun;
        if (best == 0.0 || seconds < best) best = seconds;
        total += seconds;
        runs++;
    }
    *rate = (struct rate){1.0 / best, (double)runs / total};
    return STATUS_OK;
}

static enum status run_gemm(struct device *device, void *data) {
    return device->ops->gemm(device, data);
}

static enum status run_convert(struct device *device, void *data) {
    const struct tensor *both = data;
    return device->ops->convert(device, both[0], both[1]);
}

static void fill_random(struct tensor tensor, uint64_t seed) {
    float *numbers = tensor.data;
    for (size_t i = 0; i < tensor_count(tensor); i++)
        numbers[i] = random_normal(seed, RANDOM_TEST, i);
}

static enum status measure_gemm(struct device *device) {
    const size_t n = GEMM_SIZE;
    struct arena arena;
    struct tensor a, b, c;
    struct rate rate;
    enum status status = STATUS_OK;
    TRY(arena_open(&arena, "probe", device, 3 * n * n * sizeof(float) + 3 * ARENA_ALIGNMENT));
    TRY_GOTO(arena_tensor(&arena, DTYPE_F32, n, n, &a), cleanup);
    TRY_GOTO(arena_tensor(&arena, DTYPE_F32, n, n, &b), cleanup);
    TRY_GOTO(arena_tensor(&arena, DTYPE_F32, n, n, &c), cleanup);
    fill_random(a, 1);
    fill_random(b, 2);
    struct gemm gemm = {.c = c, .a = a, .b = b, .transpose_b = true};
    TRY_GOTO(measure(device, run_gemm, &gemm, &rate), cleanup);
    const double giga = 2e-9 * (double)n * (double)n * (double)n;
    printf("gemm        %.0f GFLOPS in FP32 (best %.0f), %zu x %zu x %zu, random normal operands\n",
           giga * rate.mean, giga * rate.best, n, n, n);
cleanup:
    arena_close(&arena);
    return status;
}

static enum status measure_copy(struct device *device) {
    struct arena arena;
    struct tensor both[2];
    struct rate rate;
    enum status status = STATUS_OK;
    TRY(arena_open(&arena, "probe", device, 2 * (size_t)COPY_BYTES));
    for (size_t i = 0; i < 2; i++) {
        TRY_GOTO(arena_tensor(&arena, DTYPE_F32, COPY_BYTES / 4 / 1024, 1024, &both[i]), cleanup);
    }
    TRY_GOTO(measure(device, run_convert, both, &rate), cleanup);
    const double giga = 2e-9 * (double)COPY_BYTES;
    printf("copy        %.1f GB/s read and written (best %.1f), 256 MiB\n", giga * rate.mean,
           giga * rate.best);
cleanup:
    arena_close(&arena);
    return status;
}

static void print_built_with(void) {
    static const char *const parts[][2] = {
        {"OpenBLAS", DEEPWELL_OPENBLAS_VERSION},
        {"CUDA", DEEPWELL_CUDA_VERSION},
        {"cuDNN", DEEPWELL_CUDNN_VERSION},
        {"cudnn-frontend", DEEPWELL_CUDNN_FRONTEND_VERSION},
        {"NCCL", DEEPWELL_NCCL_VERSION},
        {"MPI", DEEPWELL_MPI_VERSION},
    };
    printf("built with  ");
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        const char *version = parts[i][1];
        printf("%s%s %s", i > 0 ? ", " : "", parts[i][0], version[0] != '\0' ? version : "absent");
    }
    printf("\n");
}

/* Whether runs would take the first. */
static bool print_gpus(void) {
    static struct cuda_inventory inventory;
    char memory[TEXT_BYTES];
    cuda_inventory_read(&inventory);
    if (inventory.state != CUDA_READY) {
        printf("gpus        none: %s\n", inventory.message);
        return false;
    }
    for (int i = 0; i < inventory.count; i++) {
        const struct cuda_device_info *gpu = &inventory.devices[i];
        const struct peak *peak = peak_find(gpu->name,
                                            gpu->capability_major * 10 + gpu->capability_minor);
        printf("gpu %d       %s, compute capability %d.%d, %d SMs, %s, peak BF16 ", i, gpu->name,
               gpu->capability_major, gpu->capability_minor, gpu->multiprocessors,
               text_bytes(memory, gpu->memory_total_bytes));
        if (peak != NULL) printf("%.1f TFLOPS dense (%s)", peak->tflops[PEAK_BF16], peak->source);
        else printf("n/a");
        printf("%s%s\n", gpu->problem[0] != '\0' ? "; " : "", gpu->problem);
    }
    return inventory.devices[0].problem[0] == '\0';
}

static void print_recipes_of(const char *where, const struct device *device) {
    printf("recipes     on %s:", where);
    for (int kind = 0; kind < RECIPE_COUNT; kind++) {
        const struct recipe *recipe = recipe_row((enum recipe_kind)kind);
        printf("%s %s %s", kind == 0 ? "" : ",", recipe->name,
               support_name(recipe_support(device, (enum recipe_kind)kind)));
    }
    printf("\n");
}

/* Opens the GPU, if there is one, to ask it. */
static void print_recipes(const struct device *cpu, bool gpu) {
    const struct device_options options = {0};
    struct device device;
    if (gpu && device_open_cuda(&device, &options) == STATUS_OK) {
        print_recipes_of("gpu 0", &device);
        device_close(&device);
    }
    print_recipes_of("the CPU", cpu);
    printf("            emulated: stored and rounded as the recipe says, multiplied in a wider "
           "type\n");
}

enum status command_probe(int argc, char **argv) {
    double seconds = 2.0;
    bool measured = false;
    const struct cli_option options[] = {
        {.name = "--threads", .config_key = "threads"},
        {.name = "--measure", .flag = &measured},
        {.name = "--device", .config_key = "device"},
        {.name = "--seconds", .real = &seconds, .most = 3600},
    };
    const struct cli cli = {
        .command = "probe", .usage = usage, .options = options,
        .option_count = sizeof options / sizeof options[0],
    };
    struct cli_names names;
    struct config config;
    struct device device;
    char memory[TEXT_BYTES];
    TRY(cli_positionals(&cli, argc, argv, 0, 0, &names));
    if (names.help) return STATUS_OK;
    config_defaults(&config);
    TRY(cli_options(&cli, argc, argv, &config));
    if (config.device != CONFIG_DEVICE_AUTO && !measured) {
        return status_set(STATUS_CONFIG, "probe tells of all devices; --device says which one "
                                         "--measure measures: leave it out, or add --measure");
    }
    TRY(device_open_cpu(&device, (int)config.threads));
    printf("deepwell    %s\n", DEEPWELL_VERSION);
    printf("processor   %s\n", device.name);
    printf("memory      %s free\n", text_bytes(memory, device.memory_bytes));
    print_built_with();
    print_recipes(&device, print_gpus());
    fflush(stdout);
    enum status status = measured ? STATUS_OK : measure_gemm(&device);
    if (status == STATUS_OK && !measured) status = measure_copy(&device);
    device_close(&device);
    TRY(status);
    return measured ? probe_measure(&config, seconds) : STATUS_OK;
}

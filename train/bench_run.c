/* The model that bench steps, and what every subcommand prints; behind train/bench.h. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/random.h"
#include "base/text.h"
#include "train/bench.h"
#include "train/comm_self_test.h"
#include "train/comm_watched.h"
#include "train/op_trace.h"
#include "train/ranks_start.h"
#include "train/signals.h"
#include "train/step.h"

static enum status open_dataset(struct bench *b) {
    const struct config *c = b->config;
    if (c->data.train[0] == '\0') return STATUS_OK;
    const enum status opened = dataset_open(&b->dataset, c->data.train,
                                            (size_t)config_sequence_length(c),
                                            (size_t)c->model.vocabulary, ORDER_SHUFFLED,
                                            (uint64_t)c->train.seed);
    if (opened == STATUS_OK) return STATUS_OK;
    return status_context(opened, "data.train (--data.train= times random tokens)");
}

/* Micro-batches of a step on this rank. */
static size_t micro_batches_of(const struct bench *b) {
    return (size_t)config_micro_batches(b->config, b->ranks.world);
}

static enum status open_tokens(struct bench *b) {
    const struct config *c = b->config;
    const size_t micro = (size_t)config_micro_batch(c), length = (size_t)config_sequence_length(c);
    const struct loader_shape shape = {
        .rows = micro, .micro_batches = micro_batches_of(b),
        .rank = (size_t)b->ranks.rank, .ranks = (size_t)b->ranks.world,
    };
    if (c->data.train[0] != '\0') return loader_open(&b->loader, &b->dataset, &shape, 0);
    b->drawn = (uint64_t)b->ranks.rank << 40; /* no two ranks draw the same */
    b->random = calloc(micro * length + 1, sizeof *b->random);
    if (b->random == NULL) return status_set(STATUS_MEMORY, "out of memory for random tokens");
    return STATUS_OK;
}

/* Fresh ones for every micro-batch: repeated ones would be learned by heart. */
static void draw_tokens(struct bench *b, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const float uniform = random_uniform((uint64_t)b->config->train.seed, RANDOM_TEST,
                                             b->drawn++);
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
    TRY(device_upload(&b->engine.device, training->targets, batch.targets, bytes));
    return op_trace_data(&b->engine.device, 2 * bytes);
}

/* Whether all leave: one rank by its own word, several by the sum that each step makes over them,
 * which is read when the next step but one is asked for, so that the host waits for neither. */
static enum status check_signals(struct bench *b) {
    const size_t slot = (size_t)(b->step % DEVICE_READS);
    const bool several = b->ranks.world > 1;
    const char *signal = signals_received();
    if (several && b->step >= DEVICE_READS) TRY(device_read_end(&b->engine.device, slot));
    TRY(comm_at_step(&b->comm, b->step)); /* broken off, its numbers mean nothing */
    if (several ? !(b->states[slot].leaving > 0.0) : signal == NULL) return STATUS_OK;
    b->comm.failed = true; /* all ranks know */
    return status_set(STATUS_INTERRUPTED, "stopped by %s", signal != NULL ? signal : "a signal");
}

enum status bench_run_step(struct bench *b) {
    struct step_policy policy = step_policy(b->config, b->step);
    const size_t micro_batches = micro_batches_of(b), slot = (size_t)(b->step % DEVICE_READS);
    TRY(check_signals(b));
    policy.leave = signals_received() != NULL;
    b->step++;
    TRY(step_begin(&b->engine, &policy));
    for (size_t micro = 0; micro < micro_batches; micro++) {
        TRY(upload_tokens(b));
        TRY(step_micro_batch(&b->engine, &policy, micro == 0));
    }
    TRY(step_update(&b->engine, b->config));
    if (b->ranks.world == 1) return STATUS_OK;
    return device_read_begin(&b->engine.device, slot, &b->states[slot], b->engine.state,
                             sizeof b->states[slot]);
}

enum status bench_read_state(struct bench *b, struct step_state *state) {
    TRY(device_download(&b->engine.device, state, b->engine.state, sizeof *state));
    if (state->skipped_nonfinite == 0) return STATUS_OK;
    return status_set(STATUS_NUMERICS,
                      "%lld of %lld steps are not finite: their time would mean nothing",
                      (long long)state->skipped_nonfinite, (long long)b->step);
}

/* A function of a library that this process has loaded, by whomever; NULL: none has it. memcpy,
 * since C has no cast from object to function pointers. */
static void find_loaded(const char *name, void *function) {
    void *symbol = dlsym(RTLD_DEFAULT, name);
    memcpy(function, &symbol, sizeof symbol);
}

/* The versions of the libraries that run, not of those that it was built with. */
static void print_software(const struct device *device) {
    char driver[GPU_DRIVER_TEXT_BYTES];
    int (*runtime)(int *) = NULL, cuda = 0;
    size_t (*blas)(void) = NULL, (*dnn)(void) = NULL;
    struct gpu_power power;
    find_loaded("cudaRuntimeGetVersion", &runtime);
    find_loaded("cublasLtGetVersion", &blas);
    find_loaded("cudnnGetVersion", &dnn);
    printf("software    CUDA ");
    if (runtime != NULL && runtime(&cuda) == 0) printf("%d.%d", cuda / 1000, cuda % 1000 / 10);
    else printf("n/a");
    const struct { const char *name; size_t version; } libraries[] = {
        {"cuBLASLt", blas == NULL ? 0 : blas()}, {"cuDNN", dnn == NULL ? 0 : dnn()},
    };
    for (size_t i = 0; i < 2; i++) { /* both count 10000 major + 100 minor + patch */
        const size_t version = libraries[i].version;
        printf(", %s ", libraries[i].name);
        if (version == 0) printf("n/a");
        else printf("%zu.%zu.%zu", version / 10000, version / 100 % 100, version % 100);
    }
    gpu_power_open(&power, device->bus_id);
    printf(", driver %s\n", gpu_driver_text(driver, &power));
    gpu_power_close(&power);
}

void bench_print_device(const struct device *device) {
    printf("device      %s\n", device->name);
    if (device->note[0] != '\0') printf("            %s\n", device->note);
    if (device->kind == DEVICE_CUDA) print_software(device);
}

void bench_print_power(const struct device *device, const struct gpu_power *power, double tokens) {
    char text[GPU_POWER_TEXT_BYTES];
    if (device->kind == DEVICE_CPU) return;
    printf("power       %s\n", gpu_power_text(text, power, tokens));
}

void bench_print_step(const struct config *config, const struct device *device,
                      const char *tokens) {
    char count[TEXT_BYTES], precision[PRECISION_TEXT_BYTES];
    const struct engine engine = {.device = *device, .precision = engine_precision(config)};
    printf("model       GPT-2, %lld layers, %lld heads, width %lld, %s\n",
           (long long)config->model.layers, (long long)config->model.heads,
           (long long)config->model.width, engine_precision_text(precision, &engine));
    printf("step        %lld sequences of %lld, %lld at a time: %s tokens%s%s\n",
           (long long)config->train.batch, (long long)config_sequence_length(config),
           (long long)config_micro_batch(config), text_count(count, (uint64_t)step_tokens(config)),
           tokens[0] != '\0' ? " from " : "", tokens);
    fflush(stdout);
}

static enum status open_model(struct bench *b) {
    struct comm *comm = &b->comm;
    TRY(ranks_agree(comm, engine_open_rank(&b->engine, b->config, ENGINE_TRAIN, &b->ranks, comm)));
    if (b->ranks.world > 1) TRY(ranks_agree(comm, comm_self_test(comm)));
    return engine_initialise(&b->engine, b->config);
}

static enum status open_all(struct bench *b) {
    const struct config *config = b->config;
    char ranks[RANKS_DESCRIBED_BYTES];
    TRY(ranks_agree(&b->comm, open_dataset(b)));
    TRY(ranks_check_alike(&b->comm, config));
    TRY(open_model(b));
    TRY(open_tokens(b));
    gpu_power_open(&b->power, b->engine.device.bus_id);
    bench_print_device(&b->engine.device);
    if (b->ranks.world > 1) printf("ranks       %s\n", ranks_described(ranks, &b->engine));
    bench_print_step(config, &b->engine.device,
                     b->loader != NULL ? config->data.train
                                       : "a uniform random generator (no data.train)");
    return STATUS_OK;
}

enum status bench_open(struct bench *b, const struct config *config) {
    *b = (struct bench){.config = config, .ranks = ranks_one()};
    comm_open_single(&b->comm, NULL);
    return open_all(b);
}

enum status bench_open_ranks(struct bench *b, const struct config *config) {
    *b = (struct bench){.config = config};
    TRY(ranks_start(&b->ranks, &b->comm, config));
    return open_all(b);
}

void bench_close(struct bench *b) {
    gpu_power_close(&b->power);
    loader_close(b->loader);
    dataset_close(&b->dataset);
    free(b->random);
    engine_close(&b->engine);
    comm_close(&b->comm);
    *b = (struct bench){0};
}

enum status bench_check_tflops(const char *what, double tflops, double limit, const char *whose) {
    if (limit <= 0.0 || tflops <= limit) return STATUS_OK;
    return status_set(
        STATUS_INTERNAL,
        "measurement error: %s at %.4g TFLOPS is above %.4g, %s: no "
        "figure of this run can be trusted. Check mfu.peak if it is set, and what else "
        "runs here",
        what, tflops, limit, whose);
}

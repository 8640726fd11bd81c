/* deepwell bench numerics */
#include "train/bench_numerics.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "base/file.h"
#include "base/text.h"
#include "checkpoints/json.h"
#include "data/loader.h"
#include "train/cli.h"
#include "train/quantise_probe.h"
#include "train/signals.h"
#include "train/step.h"

static const char usage[] =
    "usage: deepwell bench numerics CONFIG [options] [--section.key VALUE ...]\n"
    "\n"
    "What a precision recipe does, against another one on the same data from the same weights:\n"
    "the error of quantising each tensor of the first micro-batch, of the gradients of the batch,\n"
    "and the loss over some steps, for one seed or more. On any machine: a recipe that the device\n"
    "emulates multiplies the same numbers. Leaves nothing behind but --out.\n"
    "\n"
    "  --recipe NAME        (default: precision.recipe, if it is another than --against)\n"
    "  --against NAME       (default fp32)\n"
    "  --steps N            steps of the loss curves (default 100; 0: none)\n"
    "  --seeds N            curves of each, from train.seed on (default 1); from 2 on the noise\n"
    "                       of seeds is given too\n"
    "  --out FILE           everything, as JSON, for `./deepwell plot FILE`; a new file\n"
    "\n"
    "  deepwell bench numerics configs/shakespeare_bytes.conf --recipe mxfp8 --seeds 3\n";

struct numerics {
    struct config configs[2]; /* the recipe, and what it is measured against */
    int64_t steps, seeds;
    double *losses[2];        /* (seeds, steps) */
    float *gradients;         /* of the second, flat */
    cJSON *json;
};

/* A run in memory. */
struct run {
    const struct config *config;
    struct engine engine;
    struct dataset dataset;
    struct loader *loader;
};

static void run_close(struct run *run) {
    loader_close(run->loader);
    dataset_close(&run->dataset);
    engine_close(&run->engine);
}

static enum status run_open(struct run *run, const struct config *config) {
    const size_t micro = (size_t)config_micro_batch(config);
    const struct loader_shape shape = {
        .rows = micro, .micro_batches = (size_t)config_micro_batches(config, 1), .ranks = 1,
    };
    *run = (struct run){.config = config};
    enum status status = dataset_open(&run->dataset, config->data.train,
                                      (size_t)config_sequence_length(config),
                                      (size_t)config->model.vocabulary, ORDER_SHUFFLED,
                                      (uint64_t)config->train.seed);
    if (status != STATUS_OK) return status;
    status = engine_open(&run->engine, config, ENGINE_TRAIN, ENGINE_REAL);
    if (status == STATUS_OK) status = engine_initialise(&run->engine, config);
    if (status == STATUS_OK) status = loader_open(&run->loader, &run->dataset, &shape, 0);
    if (status != STATUS_OK) run_close(run);
    return status;
}

static int64_t micro_batches(const struct run *run) {
    return config_micro_batches(run->config, 1);
}

/* Micro-batches [from, to) of the first step. */
static enum status run_gradients(struct run *run, const struct step_policy *policy, int64_t from,
                                 int64_t to) {
    struct gpt_training *training = &run->engine.training;
    struct device *device = &run->engine.device;
    const size_t bytes = training->shape.batch * training->shape.sequence_length * sizeof(int32_t);
    if (from == 0) TRY(step_begin(&run->engine, policy));
    for (int64_t micro = from; micro < to; micro++) {
        struct batch batch;
        TRY(loader_next(run->loader, &batch));
        TRY(device_upload(device, training->inputs, batch.inputs, bytes));
        TRY(device_upload(device, training->targets, batch.targets, bytes));
        TRY(step_micro_batch(&run->engine, policy, micro == 0));
    }
    return STATUS_OK;
}

/* ---- quantisation errors ---- */

static bool add_tensor(cJSON *list, const char *name, const struct quantise_error *error) {
    const double count = (double)error->numbers;
    cJSON *row = cJSON_CreateObject();
    return cJSON_AddItemToArray(list, row) && cJSON_AddStringToObject(row, "tensor", name) &&
           cJSON_AddNumberToObject(row, "relative_error", quantise_error_relative(error)) &&
           cJSON_AddNumberToObject(row, "at_largest", (double)error->saturated / count) &&
           cJSON_AddNumberToObject(row, "to_zero", (double)error->zeroed / count);
}

static void print_role(const char *name, const struct quantise_error *error) {
    const double count = (double)error->numbers;
    if (error->numbers == 0) return;
    printf("  %-34s %8.4f  at the largest %.3f%%, to zero %.3f%%\n", name,
           quantise_error_relative(error), 100.0 * (double)error->saturated / count,
           100.0 * (double)error->zeroed / count);
}

/* Each tensor in the report, their sums over the blocks on the screen. */
static enum status report_tensors(struct numerics *n, const struct gpt *gpt,
                                  const struct quantise_probe *probe) {
    enum { ROLES = BLOCK_LINEARS * LINEAR_TENSORS };
    struct quantise_error roles[ROLES] = {0};
    cJSON *list = cJSON_AddArrayToObject(n->json, "tensors");
    char name[TENSOR_PLACE_BYTES];
    printf("quantisation errors of the first micro-batch, |dequantised - x| / |x|\n");
    for (size_t i = 0; i < probe->count; i++) {
        const struct quantise_error *error = &probe->tensors[i];
        if (error->numbers == 0) continue;
        if (!add_tensor(list, gpt_scale_name(name, gpt, 2 * i), error)) {
            return status_set(STATUS_MEMORY, "out of memory for the report");
        }
        if (i < gpt->config.layers * ROLES) quantise_error_add(&roles[i % ROLES], error);
        else print_role(name, error);
    }
    for (size_t i = 0; i < ROLES; i++) {
        print_role(strchr(gpt_scale_name(name, gpt, 2 * i) + strlen("block."), '.') + 1, &roles[i]);
    }
    return STATUS_OK;
}

/* ---- gradient errors ---- */

struct error_sum {
    double difference, size;
};

static double relative(struct error_sum sum) {
    return sum.size > 0.0 ? sqrt(sum.difference / sum.size) : 0.0;
}

static enum status report_gradients(struct numerics *n, const struct param_table *table,
                                    const float *gradients) {
    struct error_sum roles[ROLE_COUNT + 1] = {0};
    cJSON *object = cJSON_AddObjectToObject(n->json, "gradients");
    for (size_t i = 0; i < table->length; i++) {
        const struct param *param = &table->params[i];
        for (size_t j = param->offset; j < param->offset + param->count; j++) {
            const double against = (double)n->gradients[j];
            const double d = (double)gradients[j] - against;
            struct error_sum *const both[2] = {&roles[param->role], &roles[ROLE_COUNT]};
            for (size_t k = 0; k < 2; k++) {
                both[k]->difference += d * d;
                both[k]->size += against * against;
            }
        }
    }
    printf("gradient errors of the first step, |gradient - the other's| / |the other's|\n");
    for (int role = 0; role <= ROLE_COUNT; role++) {
        const char *name = role == ROLE_COUNT ? "all" : param_role_name((enum param_role)role);
        printf("  %-44s %8.4f\n", name, relative(roles[role]));
        if (!cJSON_AddNumberToObject(object, name, relative(roles[role]))) {
            return status_set(STATUS_MEMORY, "out of memory for the report");
        }
    }
    return STATUS_OK;
}

static enum status read_gradients(struct run *run, float **out) {
    const size_t bytes = run->engine.gpt.table.elements * sizeof(float);
    *out = malloc(bytes);
    if (*out == NULL) return status_set(STATUS_MEMORY, "out of memory for the gradients");
    return device_download(&run->engine.device, *out, run->engine.gradients, bytes);
}

/* The first micro-batch of a run scales by its own amaxes, and the others of its step keep that. */
static void print_scaling(const struct engine *engine) {
    const bool tensors = precision_scale_modes(&engine->precision) & 1u << SCALE_TENSOR;
    if (!tensors || engine->precision.scaling != SCALING_DELAYED) return;
    printf("scaling     current in these errors: a first step has no amaxes of steps before it; "
           "delayed in the loss curves\n");
}

/* The first step's gradients of the other recipe. */
static enum status measure_against(struct numerics *n) {
    struct run run;
    TRY(run_open(&run, &n->configs[1]));
    const struct step_policy policy = step_policy(run.config, 0);
    enum status status = run_gradients(&run, &policy, 0, micro_batches(&run));
    if (status == STATUS_OK) status = read_gradients(&run, &n->gradients);
    run_close(&run);
    return status;
}

static enum status measure_recipe(struct numerics *n) {
    struct run run;
    struct quantise_probe probe = {0};
    float *gradients = NULL;
    enum status status = STATUS_OK;
    TRY(run_open(&run, &n->configs[0]));
    const struct step_policy policy = step_policy(run.config, 0);
    char text[PRECISION_TEXT_BYTES];
    printf("device      %s\nprecision   %s, against %s\n", run.engine.device.name,
           engine_precision_text(text, &run.engine),
           recipe_row((enum recipe_kind)n->configs[1].precision.recipe)->name);
    cJSON_AddStringToObject(n->json, "precision", text);
    print_scaling(&run.engine);
    TRY_GOTO(quantise_probe_attach(&probe, &run.engine), cleanup);
    /* Under delayed scaling kernels write copies by themselves from the second micro-batch on. */
    status = run_gradients(&run, &policy, 0, 1);
    if (status == STATUS_OK) status = engine_narrow_weights(&run.engine); /* weights too */
    quantise_probe_detach(&probe, &run.engine);
    if (status == STATUS_OK) status = run_gradients(&run, &policy, 1, micro_batches(&run));
    if (status == STATUS_OK && precision_narrow(&run.engine.precision)) {
        status = report_tensors(n, &run.engine.gpt, &probe);
    }
    if (status == STATUS_OK) status = read_gradients(&run, &gradients);
    if (status == STATUS_OK) status = report_gradients(n, &run.engine.gpt.table, gradients);
cleanup:
    free(gradients);
    quantise_probe_close(&probe);
    run_close(&run);
    return status;
}

/* ---- loss curves ---- */

static enum status run_curve(const struct config *config, int64_t steps, double *losses) {
    struct run run;
    TRY(run_open(&run, config));
    enum status status = STATUS_OK;
    for (int64_t step = 0; step < steps && status == STATUS_OK; step++) {
        struct step_state state;
        const struct step_policy policy = step_policy(config, step);
        TRY_GOTO(run_gradients(&run, &policy, 0, micro_batches(&run)), cleanup);
        TRY_GOTO(step_update(&run.engine, config), cleanup);
        TRY_GOTO(device_download(&run.engine.device, &state, run.engine.state, sizeof state),
                 cleanup);
        losses[step] = (double)state.loss;
        if (signals_received() != NULL) {
            status = status_set(STATUS_INTERRUPTED, "stopped by %s", signals_received());
        }
    }
cleanup:
    run_close(&run);
    return status;
}

/* The end of a curve: the mean of its last tenth, at least one step. */
static double curve_end(const double *losses, int64_t steps) {
    const int64_t count = steps / 10 > 0 ? steps / 10 : 1;
    double sum = 0.0;
    for (int64_t i = steps - count; i < steps; i++) sum += losses[i];
    return sum / (double)count;
}

static double deviation(const double *values, int64_t count) {
    double mean = 0.0, sum = 0.0;
    for (int64_t i = 0; i < count; i++) mean += values[i] / (double)count;
    for (int64_t i = 0; i < count; i++) sum += (values[i] - mean) * (values[i] - mean);
    return sqrt(sum / (double)(count - 1));
}

static enum status report_curves(struct numerics *n) {
    double *ends = calloc((size_t)n->seeds, 2 * sizeof *ends), gap = 0.0;
    if (ends == NULL) return status_set(STATUS_MEMORY, "out of memory for the curves");
    printf("loss at the end (mean of the last tenth of %lld steps)\n", (long long)n->steps);
    for (int64_t seed = 0; seed < n->seeds; seed++) {
        double *const end = ends + seed, *const against = ends + n->seeds + seed;
        *end = curve_end(n->losses[0] + seed * n->steps, n->steps);
        *against = curve_end(n->losses[1] + seed * n->steps, n->steps);
        gap += (*end - *against) / (double)n->seeds;
        printf("  seed %-4lld %8.4f, the other %8.4f: %+.4f\n",
               (long long)(n->configs[0].train.seed + seed), *end, *against, *end - *against);
    }
    printf("  mean gap %+.4f", gap);
    cJSON_AddNumberToObject(n->json, "loss_gap", gap);
    if (n->seeds > 1) {
        const double noise = deviation(ends + n->seeds, n->seeds);
        printf(", the other's standard deviation over %lld seeds %.4f", (long long)n->seeds, noise);
        cJSON_AddNumberToObject(n->json, "seed_noise", noise);
    }
    printf("\n");
    free(ends);
    return STATUS_OK;
}

static enum status measure_curves(struct numerics *n) {
    static const char *const names[2] = {"losses", "losses_against"};
    if (n->steps == 0) return STATUS_OK;
    for (size_t which = 0; which < 2; which++) {
        n->losses[which] = calloc((size_t)(n->seeds * n->steps), sizeof(double));
        cJSON *list = cJSON_AddArrayToObject(n->json, names[which]);
        if (n->losses[which] == NULL) {
            return status_set(STATUS_MEMORY, "out of memory for the curves");
        }
        for (int64_t seed = 0; seed < n->seeds; seed++) {
            double *losses = n->losses[which] + seed * n->steps;
            struct config config = n->configs[which];
            config.train.seed += seed;
            TRY(run_curve(&config, n->steps, losses));
            cJSON *curve = cJSON_CreateDoubleArray(losses, (int)n->steps);
            if (!cJSON_AddItemToArray(list, curve)) {
                return status_set(STATUS_MEMORY, "out of memory for the report");
            }
        }
    }
    return report_curves(n);
}

static enum status write_report(const struct numerics *n, const char *path) {
    char *text = NULL;
    if (path == NULL) return STATUS_OK;
    TRY(json_text_exact(path, n->json, &text));
    const enum status status = file_write_durable(path, text, strlen(text));
    free(text);
    return status;
}

static enum status measure(struct numerics *n, const char *path) {
    if (n->configs[0].data.train[0] == '\0') {
        return status_set(STATUS_CONFIG, "bench numerics needs real data: set data.train");
    }
    TRY(measure_against(n));
    TRY(measure_recipe(n));
    fflush(stdout); /* curves take long */
    TRY(measure_curves(n));
    return write_report(n, path);
}

/* An exchange takes gradients to other arrays, some of them never in one piece. */
static enum status check_exchange(const struct config *config) {
    if (config->comm.order != CONFIG_ORDER_FIXED) return STATUS_OK;
    return status_set(STATUS_CONFIG, "bench numerics reads the gradients of one rank without an "
                      "exchange: expected comm.order = fast, found fixed");
}

/* A configuration's own recipe against itself, which nobody asked for by name. */
static enum status check_recipes(const struct numerics *n) {
    const struct precision a = engine_precision(&n->configs[0]);
    const struct precision b = engine_precision(&n->configs[1]);
    const bool plain = a.first_layers + a.last_layers == 0 && a.lm_head == b.lm_head;
    const char *others[RECIPE_COUNT];
    size_t count = 0;
    char list[128];
    if (a.recipe != b.recipe || (precision_narrow(&a) && !plain)) return STATUS_OK;
    for (int kind = 0; kind < RECIPE_COUNT; kind++) {
        if (kind != (int)a.recipe) others[count++] = recipe_row((enum recipe_kind)kind)->name;
    }
    return status_set(STATUS_CONFIG,
                      "bench numerics compares two recipes: precision.recipe and --against are both "
                      "%s; give --recipe %s",
                      recipe_row(a.recipe)->name,
                      text_list(list, sizeof list, others, count, " or "));
}

enum status bench_numerics(int argc, char **argv) {
    struct numerics n = {.steps = 100, .seeds = 1};
    const char *recipe = NULL, *against = "fp32", *out = NULL;
    const struct cli_option options[] = {
        {.name = "--recipe", .text = &recipe},
        {.name = "--against", .text = &against},
        {.name = "--steps", .whole = &n.steps, .least = 0, .most = 1000000},
        {.name = "--seeds", .whole = &n.seeds, .least = 1, .most = 100},
        {.name = "--out", .text = &out},
    };
    const struct cli cli = {
        .command = "bench numerics",
        .usage = usage,
        .names = "CONFIG, a configuration file",
        .options = options,
        .option_count = sizeof options / sizeof options[0],
        .takes_config = true,
    };
    struct cli_names names;
    TRY(cli_positionals(&cli, argc, argv, 1, 1, &names));
    if (names.help) return STATUS_OK;
    TRY(cli_config(&cli, names.names[0], argc, argv, &n.configs[0]));
    if (out != NULL) TRY(file_check_output(out));
    if (recipe != NULL) TRY(config_set(&n.configs[0], "precision.recipe", recipe));
    TRY(check_exchange(&n.configs[0]));
    n.configs[1] = n.configs[0];
    /* What it is measured against is that recipe throughout. */
    n.configs[1].precision.first_layers = n.configs[1].precision.last_layers = 0;
    TRY(config_set(&n.configs[1], "precision.lm_head", "bf16"));
    const enum status known = config_set(&n.configs[1], "precision.recipe", against);
    if (known != STATUS_OK) return status_context(known, "--against");
    if (recipe == NULL) TRY(check_recipes(&n));
    n.json = cJSON_CreateObject();
    if (n.json == NULL) return status_set(STATUS_MEMORY, "out of memory for the report");
    cJSON_AddStringToObject(n.json, "against", against);
    const enum status status = measure(&n, out);
    cJSON_Delete(n.json);
    free(n.losses[0]);
    free(n.losses[1]);
    free(n.gradients);
    return status;
}

/* Device, model and memory of a run. */
#include "train/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/checked.h"
#include "base/text.h"
#include "checkpoints/model_source.h"
#include "kernels/cuda/inventory.h"

enum { PARAMETERS, GRADIENTS, OPTIMIZER, ACTIVATIONS, SCRATCH };

static const char *const arena_names[ENGINE_ARENAS] = {
    "parameters", "gradients", "optimizer", "activations", "scratch",
};

struct gpt_config engine_model(const struct config *config) {
    return (struct gpt_config){
        .layers = (size_t)config->model.layers,
        .heads = (size_t)config->model.heads,
        .width = (size_t)config->model.width,
        .context = (size_t)config->model.context,
        .vocabulary = (size_t)config->model.vocabulary,
    };
}

struct gpt_config engine_gpt_config(const struct hf_config *model) {
    return (struct gpt_config){
        .layers = model->n_layer,
        .heads = model->n_head,
        .width = model->n_embd,
        .context = model->n_positions,
        .vocabulary = model->vocab_size,
    };
}

enum dtype engine_dtype(const struct config *config) {
    return recipe_row((enum recipe_kind)config->precision.recipe)->dtype;
}

void engine_model_from_checkpoint(struct config *config, const struct hf_config *model) {
    config->model.layers = (int64_t)model->n_layer;
    config->model.heads = (int64_t)model->n_head;
    config->model.width = (int64_t)model->n_embd;
    config->model.context = (int64_t)model->n_positions;
    config->model.vocabulary = (int64_t)model->vocab_size;
    if (config->data.end_of_text < 0) config->data.end_of_text = model->eos_token_id;
}

struct hf_config engine_hf_config(const struct config *config) {
    const int end_of_text = vocabulary_end_of_text(config);
    return (struct hf_config){
        .vocab_size = (size_t)config->model.vocabulary,
        .n_positions = (size_t)config->model.context,
        .n_embd = (size_t)config->model.width,
        .n_layer = (size_t)config->model.layers,
        .n_head = (size_t)config->model.heads,
        .bos_token_id = end_of_text,
        .eos_token_id = end_of_text,
    };
}

static struct device_options device_options(const struct config *config) {
    static const enum gemm_effort efforts[] = {
        [CONFIG_SEARCH_FULL] = GEMM_EFFORT_FULL,
        [CONFIG_SEARCH_FAST] = GEMM_EFFORT_FAST,
        [CONFIG_SEARCH_OFF] = GEMM_EFFORT_OFF,
    };
    return (struct device_options){
        .gemm_effort = efforts[config->gemm.search],
        .attention_any_order = config->attention.backward == CONFIG_ATTENTION_FAST,
    };
}

/* Whether there is nothing here that `device = auto` could mean; anything else is a failure. */
static bool gpu_is_absent(void) {
    static struct cuda_inventory inventory; /* large */
    cuda_inventory_read(&inventory);
    return inventory.state == CUDA_NOT_BUILT || inventory.state == CUDA_NO_DRIVER ||
           inventory.state == CUDA_NO_DEVICE;
}

enum status engine_open_device(struct device *device, const struct config *config) {
    if (config->device == CONFIG_DEVICE_CPU) return device_open_cpu(device, (int)config->threads);
    char before[2048]; /* a fallback that works is no failure: the last message stays */
    char why[2048];    /* as it is before the inventory is asked */
    snprintf(before, sizeof before, "%s", status_message());
    const struct device_options options = device_options(config);
    const enum status status = device_open_cuda(device, &options);
    if (status == STATUS_OK) return STATUS_OK;
    snprintf(why, sizeof why, "%s", status_message());
    if (config->device == CONFIG_DEVICE_CUDA || !gpu_is_absent()) {
        return status_set(status, "device = %s (--device cpu trains without): %s",
                          config->device == CONFIG_DEVICE_CUDA ? "cuda" : "auto", why);
    }
    status_set(STATUS_OK, "%s", before);
    TRY(device_open_cpu(device, (int)config->threads));
    snprintf(device->note, sizeof device->note, "%.*s", (int)sizeof device->note - 1, why);
    return STATUS_OK;
}

enum peak_type engine_peak_type(enum dtype dtype) {
    switch (dtype) {
    case DTYPE_F32: return PEAK_FP32;
    case DTYPE_BF16: return PEAK_BF16;
    case DTYPE_F16: return PEAK_FP16;
    }
    return PEAK_FP32;
}

double engine_peak_tflops(const struct device *device, enum dtype dtype,
                          const struct config *config) {
    if (config->mfu.peak > 0.0) return config->mfu.peak;
    const struct peak *peak = peak_find(device->name, 0);
    return peak == NULL || device->kind == DEVICE_CPU ? 0.0 : peak->tflops[engine_peak_type(dtype)];
}

static struct gpt_training_shape training_shape(const struct config *config) {
    return (struct gpt_training_shape){
        .batch = (size_t)config_micro_batch(config),
        .sequence_length = (size_t)config_sequence_length(config),
        .logits_chunk = (size_t)config->train.logits_chunk,
        .dtype = engine_dtype(config),
        .recompute = (enum recompute)config->train.recompute,
        .backward = true,
    };
}

static struct gpt_training_shape evaluation_shape(const struct config *config) {
    struct gpt_training_shape shape = training_shape(config);
    shape.batch = (size_t)config_validation_micro_batch(config);
    shape.backward = false;
    return shape;
}

static enum status take_floats(struct arena *arena, size_t count, float **out) {
    void *memory = NULL;
    TRY(arena_take(arena, count, sizeof(float), &memory));
    *out = memory;
    return STATUS_OK;
}

static enum status take_scales(struct engine *engine, struct arena *parameters,
                               struct scale_state **out) {
    void *memory = NULL;
    TRY(arena_take(parameters, gpt_scale_count(&engine->gpt), sizeof(struct scale_state), &memory));
    *out = memory;
    return STATUS_OK;
}

/* Copies of the weights and all scale states; nothing without a narrow recipe. */
static enum status lay_out_narrow(struct engine *engine, const struct config *config,
                                  struct arena *parameters) {
    const bool forward = (engine->parts & (ENGINE_TRAIN | ENGINE_EVALUATE)) != 0;
    const struct precision precision = forward ? engine_precision(config)
                                               : (struct precision){0}; /* sampling: BF16 */
    gpt_bind(&engine->gpt, engine->weights, engine->gradients);
    if (precision_narrow(&precision)) {
        TRY(take_scales(engine, parameters, &engine->scales));
        TRY(take_scales(engine, parameters, &engine->evaluation_scales));
    }
    return gpt_narrow_open(&engine->gpt, &precision, engine->scales, parameters);
}

static enum status lay_out_parameters(struct engine *engine, const struct config *config,
                                      struct arena *arenas) {
    const size_t elements = engine->gpt.table.elements;
    TRY(take_floats(&arenas[PARAMETERS], elements, &engine->masters));
    if (engine->dtype == DTYPE_F32) {
        engine->weights = tensor_make(engine->masters, DTYPE_F32, 1, elements);
    } else {
        TRY(arena_tensor(&arenas[PARAMETERS], engine->dtype, 1, elements, &engine->weights));
    }
    if (engine->parts & ENGINE_TRAIN) {
        void *state = NULL;
        TRY(take_floats(&arenas[GRADIENTS], elements, &engine->gradients));
        TRY(take_floats(&arenas[OPTIMIZER], elements, &engine->moments1));
        TRY(take_floats(&arenas[OPTIMIZER], elements, &engine->moments2));
        TRY(arena_take(&arenas[OPTIMIZER], 1, sizeof(struct step_state), &state));
        engine->state = state;
    }
    return lay_out_narrow(engine, config, &arenas[PARAMETERS]);
}

/* Training, evaluation and generation each start at the same place of the activations arena. */
static enum status lay_out_activations(struct engine *engine, const struct config *config,
                                       struct arena *activations) {
    const struct arena empty = *activations;
    size_t most = 0;
    if (engine->parts & ENGINE_TRAIN) {
        struct gpt_training_shape shape = training_shape(config);
        shape.scales = engine->scales;
        *activations = empty;
        TRY(gpt_training_open(&engine->training, &engine->gpt, &engine->device, &shape,
                              activations));
        most = size_max(most, activations->used_bytes);
    }
    if (engine->parts & ENGINE_EVALUATE) {
        struct gpt_training_shape shape = evaluation_shape(config);
        shape.scales = engine->evaluation_scales;
        *activations = empty;
        TRY(gpt_training_open(&engine->evaluation, &engine->gpt, &engine->device, &shape,
                              activations));
        most = size_max(most, activations->used_bytes);
    }
    if (engine->parts & ENGINE_GENERATE) {
        *activations = empty;
        TRY(gpt_generation_open(&engine->generation, &engine->gpt, &engine->device, engine->dtype,
                                1, GENERATION_CHUNK, activations));
        most = size_max(most, activations->used_bytes);
    }
    activations->used_bytes = most;
    return STATUS_OK;
}

/* Bytes of scratch for the largest shapes of each part, once the device has said that it does
 * them. */
static enum status scratch_bytes(const struct engine *engine, const struct config *config,
                                 const struct device *device, size_t *most) {
    const struct gpt_training_shape train = training_shape(config);
    const struct gpt_training_shape evaluate = evaluation_shape(config);
    const struct op_limits limits[] = {
        gpt_training_limits(&engine->gpt, &train),
        gpt_training_limits(&engine->gpt, &evaluate),
        gpt_generation_limits(&engine->gpt, engine->dtype, 1, GENERATION_CHUNK),
    };
    *most = 0;
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        const unsigned part = 1u << i;
        if (!(engine->parts & part)) continue;
        TRY(device->ops->check(device, &limits[i], part == ENGINE_TRAIN));
        *most = size_max(*most, device->ops->scratch_bytes(device, &limits[i]));
    }
    return STATUS_OK;
}

static void close_activations(struct engine *engine) {
    gpt_training_close(&engine->training);
    gpt_training_close(&engine->evaluation);
    gpt_generation_close(&engine->generation);
}

/* Sizes by laying everything out in measuring arenas; engine->gpt must be open. */
static enum status measure(struct engine *engine, const struct config *config,
                           const struct device *device, struct engine_memory_plan *plan) {
    struct arena arenas[ENGINE_ARENAS];
    for (size_t i = 0; i < ENGINE_ARENAS; i++) arenas[i] = arena_measure(arena_names[i]);
    *plan = (struct engine_memory_plan){0};
    TRY(lay_out_parameters(engine, config, arenas));
    TRY(lay_out_activations(engine, config, &arenas[ACTIVATIONS]));
    close_activations(engine);
    TRY(scratch_bytes(engine, config, device, &arenas[SCRATCH].used_bytes));
    for (size_t i = 0; i < ENGINE_ARENAS; i++) {
        plan->names[i] = arena_names[i];
        plan->bytes[i] = arenas[i].used_bytes;
        if (!size_add(plan->total_bytes, plan->bytes[i], &plan->total_bytes)) {
            return status_set(STATUS_MEMORY,
                              "this run needs more than 2^64 bytes: make the model or "
                              "train.micro_batch smaller");
        }
    }
    return STATUS_OK;
}

enum status engine_plan(const struct config *config, unsigned parts, const struct device *device,
                        struct engine_memory_plan *plan) {
    const struct gpt_config model = engine_model(config);
    struct engine engine = {.device = *device, .dtype = engine_dtype(config), .parts = parts};
    TRY(gpt_open(&engine.gpt, &model, (unsigned)config->optimizer.decay_roles));
    enum status status = engine_check_precision(&engine, config);
    if (status == STATUS_OK) status = measure(&engine, config, device, plan);
    close_activations(&engine);
    gpt_close(&engine.gpt);
    return status;
}

/* Consecutive rows with the same decay become one range: alignment gaps are zero and stay so. */
static enum status build_ranges(struct engine *engine, const struct config *config) {
    const struct param_table *table = &engine->gpt.table;
    const float decay = (float)config->optimizer.weight_decay;
    engine->ranges = calloc(table->length, sizeof *engine->ranges);
    if (engine->ranges == NULL)
        return status_set(STATUS_MEMORY, "out of memory for the optimizer's ranges");
    for (size_t i = 0; i < table->length; i++) {
        const struct param *param = &table->params[i];
        const size_t end = i + 1 < table->length ? table->params[i + 1].offset : table->elements;
        const float this_decay = param->decay ? decay : 0.0f;
        const bool same = engine->range_count > 0 &&
                          engine->ranges[engine->range_count - 1].weight_decay == this_decay;
        if (!same) {
            engine->ranges[engine->range_count++] =
                (struct adamw_range){.offset = param->offset, .weight_decay = this_decay};
        }
        struct adamw_range *range = &engine->ranges[engine->range_count - 1];
        range->count = end - range->offset;
    }
    return STATUS_OK;
}

static enum status refuse_memory(const struct engine *engine,
                                 const struct engine_memory_plan *plan) {
    char wanted[TEXT_BYTES], found[TEXT_BYTES], parts[ENGINE_ARENAS][TEXT_BYTES];
    for (size_t i = 0; i < ENGINE_ARENAS; i++) text_bytes(parts[i], plan->bytes[i]);
    return status_set(
        STATUS_MEMORY,
        "this run needs %s (parameters %s, gradients %s, optimizer %s, "
        "activations %s, scratch %s), found %s free on %s: lower train.micro_batch, set "
        "train.recompute = block, or choose a smaller model (`deepwell plan` shows each "
        "part)",
        text_bytes(wanted, plan->total_bytes), parts[0], parts[1], parts[2], parts[3], parts[4],
        text_bytes(found, engine->device.memory_bytes), engine->device.name);
}

/* Address space without memory behind it: reading or writing it would fault. */
static enum status reserve(struct arena *arena, const char *name, size_t bytes) {
    void *base = mmap(NULL, size_max(bytes, 1), PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        return status_set(STATUS_MEMORY, "cannot reserve %zu bytes of address space for %s", bytes,
                          name);
    }
    *arena = (struct arena){.name = name, .base = base, .capacity_bytes = bytes};
    return STATUS_OK;
}

static enum status open_arenas(struct engine *engine, const struct engine_memory_plan *plan) {
    if (engine->memory == ENGINE_REAL && plan->total_bytes > engine->device.memory_bytes) {
        return refuse_memory(engine, plan);
    }
    for (size_t i = 0; i < ENGINE_ARENAS; i++) {
        if (engine->memory == ENGINE_RESERVED) {
            TRY(reserve(&engine->arenas[i], plan->names[i], plan->bytes[i]));
        } else if (plan->bytes[i] > 0) {
            TRY(arena_open(&engine->arenas[i], plan->names[i], &engine->device, plan->bytes[i]));
        }
    }
    return STATUS_OK;
}

static enum status lay_out(struct engine *engine, const struct config *config) {
    struct engine_memory_plan plan;
    TRY(measure(engine, config, &engine->device, &plan));
    TRY(open_arenas(engine, &plan));
    TRY(lay_out_parameters(engine, config, engine->arenas));
    TRY(lay_out_activations(engine, config, &engine->arenas[ACTIVATIONS]));
    device_set_scratch(&engine->device, engine->arenas[SCRATCH].base,
                       engine->arenas[SCRATCH].capacity_bytes);
    return build_ranges(engine, config);
}

enum status engine_open(struct engine *engine, const struct config *config, unsigned parts,
                        enum engine_memory memory) {
    const struct gpt_config model = engine_model(config);
    *engine = (struct engine){
        .dtype = engine_dtype(config), .precision = engine_precision(config), .parts = parts,
        .memory = memory,
    };
    TRY(engine_open_device(&engine->device, config));
    enum status status = gpt_open(&engine->gpt, &model, (unsigned)config->optimizer.decay_roles);
    if (status == STATUS_OK && memory == ENGINE_REAL) {
        status = vocabulary_open(&engine->vocabulary, config);
    }
    if (status == STATUS_OK) status = engine_check_precision(engine, config);
    if (status == STATUS_OK) status = lay_out(engine, config);
    if (status != STATUS_OK) engine_close(engine);
    return status;
}

void engine_close(struct engine *engine) {
    for (size_t i = 0; i < 2; i++) {
        device_recording_close(&engine->device, engine->micro_batches[i].recording);
    }
    device_recording_close(&engine->device, engine->update.recording);
    free(engine->ranges);
    close_activations(engine);
    for (size_t i = ENGINE_ARENAS; i-- > 0;) {
        struct arena *arena = &engine->arenas[i];
        if (arena->base == NULL) continue;
        if (engine->memory == ENGINE_RESERVED)
            munmap(arena->base, size_max(arena->capacity_bytes, 1));
        else arena_close(arena);
    }
    vocabulary_close(&engine->vocabulary);
    gpt_close(&engine->gpt);
    device_close(&engine->device);
    *engine = (struct engine){0};
}

enum status engine_narrow_weights(struct engine *engine) {
    return engine->scales == NULL ? STATUS_OK : gpt_narrow_weights(&engine->gpt, &engine->device);
}

static size_t scales_bytes(const struct engine *engine) {
    return gpt_scale_count(&engine->gpt) * sizeof *engine->scales;
}

enum status engine_read_scales(struct engine *engine, struct scale_state *states) {
    return device_download(&engine->device, states, engine->scales, scales_bytes(engine));
}

enum status engine_write_scales(struct engine *engine, const struct scale_state *states) {
    TRY(device_upload(&engine->device, engine->scales, states, scales_bytes(engine)));
    for (size_t i = 0; i < gpt_scale_count(&engine->gpt); i++) {
        engine->training.scaled = engine->training.scaled || states[i].seen > 0;
    }
    return engine_narrow_weights(engine);
}

/* Starting states, for training and evaluation alike. */
static enum status initialise_scales(struct engine *engine) {
    if (engine->scales == NULL) return STATUS_OK;
    struct scale_state *states = malloc(scales_bytes(engine));
    if (states == NULL) return status_set(STATUS_MEMORY, "out of memory for the scale states");
    gpt_scales_initialise(&engine->gpt, states);
    enum status status = device_upload(&engine->device, engine->scales, states,
                                       scales_bytes(engine));
    if (status == STATUS_OK) {
        status = device_upload(&engine->device, engine->evaluation_scales, states,
                               scales_bytes(engine));
    }
    free(states);
    return status;
}

/* The compute-type weights, and the narrow copies of them, follow the masters. */
static enum status refresh_weights(struct engine *engine) {
    if (engine->weights.data != engine->masters) {
        const struct tensor masters = tensor_make(engine->masters, DTYPE_F32, 1,
                                                  engine->gpt.table.elements);
        TRY(engine->device.ops->convert(&engine->device, engine->weights, masters));
    }
    TRY(initialise_scales(engine));
    return engine_narrow_weights(engine);
}

static enum status start_state(struct engine *engine, const struct config *config) {
    if ((engine->parts & ENGINE_TRAIN) == 0) return STATUS_OK;
    const struct step_state state = {
        .loss_scale = config_loss_scaling(config) ? (float)config->precision.loss_scale : 1.0f,
    };
    return device_upload(&engine->device, engine->state, &state, sizeof state);
}

enum status engine_initialise(struct engine *engine, const struct config *config) {
    const size_t bytes = engine->gpt.table.elements * sizeof(float);
    void *masters = NULL;
    TRY(device_map(&engine->device, engine->masters, bytes, &masters));
    param_table_initialise(&engine->gpt.table, (uint64_t)config->train.seed, masters);
    TRY(device_unmap(&engine->device, engine->masters, masters, bytes, true));
    TRY(refresh_weights(engine));
    return start_state(engine, config);
}

/* Weights from a checkpoint, or else from `source`. */
static enum status load_weights(struct engine *engine, const struct checkpoint *checkpoint,
                                const struct model_source *source) {
    const size_t bytes = engine->gpt.table.elements * sizeof(float);
    void *masters = NULL;
    TRY(device_map(&engine->device, engine->masters, bytes, &masters));
    const enum status status =
        checkpoint != NULL ? checkpoint_load_weights(checkpoint, &engine->gpt.table, masters)
                           : model_source_load(source, &engine->gpt.table, masters);
    const enum status unmapped = device_unmap(&engine->device, engine->masters, masters, bytes,
                                              true);
    TRY(status);
    TRY(unmapped);
    return refresh_weights(engine);
}

static enum status load_moments(struct engine *engine, const struct checkpoint *checkpoint) {
    const size_t bytes = engine->gpt.table.elements * sizeof(float);
    struct device *device = &engine->device;
    void *moments1 = NULL, *moments2 = NULL;
    TRY(device_map(device, engine->moments1, bytes, &moments1));
    enum status status = device_map(device, engine->moments2, bytes, &moments2);
    if (status == STATUS_OK) {
        status = checkpoint_load_moments(checkpoint, &engine->gpt.table, moments1, moments2);
        const enum status second = device_unmap(device, engine->moments2, moments2, bytes, true);
        if (status == STATUS_OK) status = second;
    }
    const enum status first = device_unmap(device, engine->moments1, moments1, bytes, true);
    return status != STATUS_OK ? status : first;
}

/* The vocabulary may be smaller here by what is padding there; the rest must be equal. */
static enum status check_shape(const struct gpt_config *own, const struct model_source *source) {
    const struct gpt_config other = engine_gpt_config(&source->model);
    if (own->layers == other.layers && own->heads == other.heads && own->width == other.width &&
        own->context == other.context && own->vocabulary <= other.vocabulary &&
        other.vocabulary - own->vocabulary <= VOCABULARY_PADDING_ROWS_MAX) {
        return STATUS_OK;
    }
    return status_set(STATUS_CHECKPOINT,
                      "%s is of another shape than the configuration: set --model.layers %zu "
                      "--model.heads %zu --model.width %zu --model.context %zu --model.vocabulary "
                      "%zu; found %zu, %zu, %zu, %zu and %zu",
                      source->path, other.layers, other.heads, other.width, other.context,
                      other.vocabulary, own->layers, own->heads, own->width, own->context,
                      own->vocabulary);
}

enum status engine_import(struct engine *engine, const struct config *config,
                          const struct model_source *source) {
    TRY(check_shape(&engine->gpt.config, source));
    TRY(load_weights(engine, NULL, source));
    return start_state(engine, config);
}

enum status engine_load(struct engine *engine, const struct checkpoint *checkpoint) {
    TRY(load_weights(engine, checkpoint, NULL));
    return engine->parts & ENGINE_TRAIN ? load_moments(engine, checkpoint) : STATUS_OK;
}

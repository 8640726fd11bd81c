/* Device, model and memory of a run. */
#include "train/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/checked.h"
#include "base/text.h"
#include "kernels/cuda/inventory.h"

enum { PARAMETERS, GRADIENTS, OPTIMIZER, ACTIVATIONS, SCRATCH };

static const char *const arena_names[ENGINE_ARENAS] = {
    "parameters", "gradients", "optimizer", "activations", "logits and scratch",
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

static struct device_options device_options(const struct config *config, int index) {
    static const enum gemm_effort efforts[] = {
        [CONFIG_SEARCH_FULL] = GEMM_EFFORT_FULL,
        [CONFIG_SEARCH_FAST] = GEMM_EFFORT_FAST,
        [CONFIG_SEARCH_OFF] = GEMM_EFFORT_OFF,
    };
    return (struct device_options){
        .gemm_effort = efforts[config->gemm.search],
        .attention_any_order = config->attention.backward == CONFIG_ATTENTION_FAST,
        .index = index,
    };
}

/* Whether there is nothing here that `device = auto` could mean; anything else is a failure. */
static bool gpu_is_absent(void) {
    static struct cuda_inventory inventory; /* large */
    cuda_inventory_read(&inventory);
    return inventory.state == CUDA_NOT_BUILT || inventory.state == CUDA_NO_DRIVER ||
           inventory.state == CUDA_NO_DEVICE;
}

static enum status open_cpu(struct device *device, const struct config *config,
                            const struct ranks *ranks) {
    const bool shared = config->threads == 0 && ranks->threads > 0;
    TRY(device_open_cpu(device, shared ? ranks->threads : (int)config->threads));
    if (shared) {
        snprintf(device->note, sizeof device->note, "threads = 0: the ranks of this host divide "
                 "its processors");
    }
    return STATUS_OK;
}

enum status engine_open_rank_device(struct device *device, const struct config *config,
                                    const struct ranks *ranks) {
    if (config->device == CONFIG_DEVICE_CPU) return open_cpu(device, config, ranks);
    char before[2048]; /* a fallback that works is no failure: the last message stays */
    char why[2048];    /* as it is before the inventory is asked */
    snprintf(before, sizeof before, "%s", status_message());
    const struct device_options options = device_options(config, ranks->local_rank);
    const enum status status = device_open_cuda(device, &options);
    if (status == STATUS_OK) return STATUS_OK;
    snprintf(why, sizeof why, "%s", status_message());
    if (config->device == CONFIG_DEVICE_CUDA || !gpu_is_absent()) {
        return status_set(status, "device = %s (--device cpu trains without): %s",
                          config->device == CONFIG_DEVICE_CUDA ? "cuda" : "auto", why);
    }
    status_set(STATUS_OK, "%s", before);
    TRY(open_cpu(device, config, ranks));
    snprintf(device->note, sizeof device->note, "%.*s", (int)sizeof device->note - 1, why);
    return STATUS_OK;
}

enum status engine_open_device(struct device *device, const struct config *config) {
    const struct ranks one = ranks_one();
    return engine_open_rank_device(device, config, &one);
}

enum peak_type engine_peak_type(enum dtype dtype) {
    switch (dtype) {
    case DTYPE_F32: return PEAK_FP32;
    case DTYPE_BF16: return PEAK_BF16;
    case DTYPE_F16: return PEAK_FP16;
    }
    return PEAK_FP32;
}

const struct peak *engine_peak(const struct device *device) {
    return device->kind == DEVICE_CPU ? NULL : peak_find(device->name, 0);
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
    struct precision precision = forward ? engine_precision(config)
                                         : (struct precision){0}; /* sampling: BF16 */
    precision.seed += (uint64_t)engine->ranks.rank << 32; /* no two ranks round alike by chance */
    if (precision_narrow(&precision)) {
        TRY(take_scales(engine, parameters, &engine->scales));
        TRY(take_scales(engine, parameters, &engine->evaluation_scales));
    }
    return gpt_narrow_open(&engine->gpt, &precision, engine->scales, parameters);
}

/* Everything on this one rank. */
static enum status lay_out_alone(struct engine *engine, struct arena *arenas) {
    const size_t elements = engine->owned = engine->gpt.table.elements;
    TRY(take_floats(&arenas[PARAMETERS], elements, &engine->masters));
    if (engine->dtype == DTYPE_F32) {
        engine->weights = tensor_make(engine->masters, DTYPE_F32, 1, elements);
    } else {
        TRY(arena_tensor(&arenas[PARAMETERS], engine->dtype, 1, elements, &engine->weights));
    }
    if (engine->parts & ENGINE_TRAIN) {
        TRY(take_floats(&arenas[GRADIENTS], elements, &engine->gradients));
        TRY(take_floats(&arenas[OPTIMIZER], elements, &engine->moments1));
        TRY(take_floats(&arenas[OPTIMIZER], elements, &engine->moments2));
    }
    gpt_bind(&engine->gpt, engine->weights, engine->gradients);
    return STATUS_OK;
}

static enum status lay_out_parameters(struct engine *engine, const struct config *config,
                                      struct arena *arenas) {
    const struct gpt_training_shape shape = training_shape(config);
    if (engine->exchange.active) {
        TRY(exchange_lay_out(engine, shape.batch * shape.sequence_length, &arenas[PARAMETERS],
                             &arenas[GRADIENTS], &arenas[OPTIMIZER]));
    } else {
        TRY(lay_out_alone(engine, arenas));
    }
    if (engine->parts & ENGINE_TRAIN) {
        void *state = NULL;
        TRY(arena_take(&arenas[OPTIMIZER], 1, sizeof(struct step_state), &state));
        engine->state = state;
    }
    return lay_out_narrow(engine, config, &arenas[PARAMETERS]);
}

/* Training or evaluation, from where both arenas stand; *most and *most_scratch grow to its end. */
static enum status lay_out_pass(struct engine *engine, struct gpt_training *pass,
                                const struct gpt_training_shape *shape, struct arena activations,
                                struct arena scratch, size_t *most, size_t *most_scratch) {
    TRY(gpt_training_open(pass, &engine->gpt, &engine->device, shape, &activations, &scratch));
    if (engine->exchange.active) pass->exchange = &engine->exchange.calls;
    *most = size_max(*most, activations.used_bytes);
    *most_scratch = size_max(*most_scratch, scratch.used_bytes);
    return STATUS_OK;
}

/* Training, evaluation and generation each start at the same place of the activations arena. The
 * logits of the first two lie behind what operations other than attention use of scratch memory. */
static enum status lay_out_activations(struct engine *engine, const struct config *config,
                                       struct arena *activations, struct arena *scratch) {
    size_t most = 0, most_scratch = scratch->used_bytes;
    if (engine->parts & ENGINE_TRAIN) {
        struct gpt_training_shape shape = training_shape(config);
        shape.scales = engine->scales;
        TRY(lay_out_pass(engine, &engine->training, &shape, *activations, *scratch, &most,
                         &most_scratch));
    }
    if (engine->parts & ENGINE_EVALUATE) {
        struct gpt_training_shape shape = evaluation_shape(config);
        shape.scales = engine->evaluation_scales;
        TRY(lay_out_pass(engine, &engine->evaluation, &shape, *activations, *scratch, &most,
                         &most_scratch));
    }
    if (engine->parts & ENGINE_GENERATE) {
        struct arena own = *activations;
        TRY(gpt_generation_open(&engine->generation, &engine->gpt, &engine->device, engine->dtype,
                                1, GENERATION_CHUNK, &own));
        most = size_max(most, own.used_bytes);
    }
    activations->used_bytes = most;
    scratch->used_bytes = most_scratch;
    return STATUS_OK;
}

/* Bytes of scratch for the largest shapes of each part, once the device has said that it does
 * them; and for those but attention. */
static enum status scratch_bytes(const struct engine *engine, const struct config *config,
                                 const struct device *device, size_t *most,
                                 size_t *without_attention) {
    const struct gpt_training_shape train = training_shape(config);
    const struct gpt_training_shape evaluate = evaluation_shape(config);
    struct op_limits limits[] = {
        gpt_training_limits(&engine->gpt, &train),
        gpt_training_limits(&engine->gpt, &evaluate),
        gpt_generation_limits(&engine->gpt, engine->dtype, 1, GENERATION_CHUNK),
    };
    *most = *without_attention = 0;
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        const unsigned part = 1u << i;
        if (!(engine->parts & part)) continue;
        TRY(device->ops->check(device, &limits[i], part == ENGINE_TRAIN));
        *most = size_max(*most, device->ops->scratch_bytes(device, &limits[i]));
        limits[i].heads = 0;
        *without_attention = size_max(*without_attention,
                                      device->ops->scratch_bytes(device, &limits[i]));
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
    TRY(scratch_bytes(engine, config, device, &plan->scratch_bytes, &plan->logits_offset));
    arenas[SCRATCH].used_bytes = plan->logits_offset;
    TRY(lay_out_activations(engine, config, &arenas[ACTIVATIONS], &arenas[SCRATCH]));
    arenas[SCRATCH].used_bytes = size_max(arenas[SCRATCH].used_bytes, plan->scratch_bytes);
    close_activations(engine);
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

/* The model in its table, padded to what the ranks share out. */
static enum status open_model(struct engine *engine, const struct config *config,
                              const struct ranks *ranks) {
    struct gpt_config model = engine_model(config);
    engine->ranks = *ranks;
    if (engine->parts & ENGINE_TRAIN) TRY(exchange_plan(&engine->exchange, config, ranks));
    model.bucket_multiple = exchange_bucket_multiple(&engine->exchange, ranks);
    return gpt_open(&engine->gpt, &model, (unsigned)config->optimizer.decay_roles);
}

enum status engine_plan(const struct config *config, unsigned parts, const struct device *device,
                        struct engine_memory_plan *plan) {
    const struct ranks one = ranks_one();
    return engine_plan_rank(config, parts, device, &one, plan);
}

enum status engine_plan_rank(const struct config *config, unsigned parts,
                             const struct device *device, const struct ranks *ranks,
                             struct engine_memory_plan *plan) {
    struct engine engine = {.device = *device, .dtype = engine_dtype(config), .parts = parts};
    TRY(open_model(&engine, config, ranks));
    enum status status = engine_check_precision(&engine, config);
    if (status == STATUS_OK) status = measure(&engine, config, device, plan);
    close_activations(&engine);
    exchange_close(&engine.exchange);
    gpt_close(&engine.gpt);
    return status;
}

/* Numbers with the same decay that follow each other become one range. */
static void add_range(struct engine *engine, size_t offset, size_t count, float decay) {
    struct adamw_range *last = engine->range_count > 0 ? &engine->ranges[engine->range_count - 1]
                                                       : NULL;
    if (count == 0) return;
    if (last != NULL && last->weight_decay == decay && last->offset + last->count == offset) {
        last->count += count;
    } else {
        engine->ranges[engine->range_count++] = (struct adamw_range){offset, count, decay};
    }
}

/* Of what lies in [part.offset, + part.count) of the flat buffers and at part.at here. Alignment
 * gaps belong to the row before them: they are zero and stay so. */
static void add_ranges(struct engine *engine, const struct config *config, struct flat_range part) {
    const struct param_table *table = &engine->gpt.table;
    const size_t end = part.offset + part.count;
    for (size_t i = 0; i < table->length; i++) {
        const struct param *param = &table->params[i];
        const size_t next = i + 1 < table->length ? param[1].offset : table->elements;
        const size_t from = size_max(param->offset, part.offset), to = size_min(next, end);
        if (from >= to) continue;
        add_range(engine, part.at + (from - part.offset), to - from,
                  param->decay ? (float)config->optimizer.weight_decay : 0.0f);
    }
}

static enum status build_ranges(struct engine *engine, const struct config *config) {
    const size_t buckets = gpt_bucket_count(&engine->gpt);
    engine->ranges = calloc(engine->gpt.table.length + buckets, sizeof *engine->ranges);
    if (engine->ranges == NULL)
        return status_set(STATUS_MEMORY, "out of memory for the optimizer's ranges");
    if (!engine_shares_out(engine)) {
        add_ranges(engine, config, (struct flat_range){0, 0, engine->gpt.table.elements});
        return STATUS_OK;
    }
    for (size_t i = 0; i < buckets; i++) {
        add_ranges(engine, config, exchange_part(&engine->exchange, i));
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
        "activations %s, logits and scratch %s), found %s free on %s: lower train.micro_batch, set "
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
    engine->arenas[SCRATCH].used_bytes = plan.logits_offset;
    TRY(lay_out_activations(engine, config, &engine->arenas[ACTIVATIONS],
                            &engine->arenas[SCRATCH]));
    device_set_scratch(&engine->device, engine->arenas[SCRATCH].base, plan.scratch_bytes);
    device_share_scratch(&engine->device, plan.logits_offset);
    return build_ranges(engine, config);
}

static enum status open_engine(struct engine *engine, const struct config *config, unsigned parts,
                               enum engine_memory memory, const struct ranks *ranks,
                               struct comm *comm) {
    *engine = (struct engine){
        .dtype = engine_dtype(config), .precision = engine_precision(config), .parts = parts,
        .memory = memory,
    };
    TRY(engine_open_rank_device(&engine->device, config, ranks));
    comm_open_single(&engine->one_rank, &engine->device);
    engine->comm = comm == NULL ? &engine->one_rank : comm;
    engine->comm->device = &engine->device;
    enum status status = open_model(engine, config, ranks);
    if (status == STATUS_OK && memory == ENGINE_REAL) {
        status = vocabulary_open(&engine->vocabulary, config);
    }
    if (status == STATUS_OK) status = engine_check_precision(engine, config);
    if (status == STATUS_OK) status = lay_out(engine, config);
    if (status != STATUS_OK) engine_close(engine);
    return status;
}

enum status engine_open(struct engine *engine, const struct config *config, unsigned parts,
                        enum engine_memory memory) {
    const struct ranks one = ranks_one();
    return open_engine(engine, config, parts, memory, &one, NULL);
}

enum status engine_open_rank(struct engine *engine, const struct config *config, unsigned parts,
                             const struct ranks *ranks, struct comm *comm) {
    return open_engine(engine, config, parts, ENGINE_REAL, ranks, comm);
}

void engine_close(struct engine *engine) {
    for (size_t i = 0; i < EXCHANGE_KINDS; i++) {
        device_recording_close(&engine->device, engine->micro_batches[i].recording);
    }
    device_recording_close(&engine->device, engine->update.recording);
    free(engine->ranges);
    close_activations(engine);
    exchange_close(&engine->exchange);
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

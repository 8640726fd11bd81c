/*
 * What an engine holds: starting weights, weights and moments of checkpoints and other models, the
 * scale states of narrow recipes. Layout and memory: engine.c.
 */
#include <stdlib.h>

#include "base/checked.h"
#include "checkpoints/model_source.h"
#include "train/engine.h"

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
    const bool shares = engine_shares_out(engine);
    const struct tensor to = shares ? engine->exchange.source : engine->weights;
    if (to.data != engine->masters) {
        const struct tensor masters = tensor_make(engine->masters, DTYPE_F32, 1, engine->owned);
        TRY(engine->device.ops->convert(&engine->device, to, masters));
    }
    if (shares) TRY(exchange_weights(&engine->exchange));
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

/* Where weights come from: one of the first two, or the seed. */
struct origin {
    const struct checkpoint *checkpoint;
    const struct model_source *source;
    uint64_t seed;
};

/* All of them, laid out by the table. */
static enum status fill_all(const struct param_table *table, const struct origin *from,
                            float *all) {
    if (from->checkpoint != NULL) return checkpoint_load_weights(from->checkpoint, table, all);
    if (from->source != NULL) return model_source_load(from->source, table, all);
    param_table_initialise(table, from->seed, all);
    return STATUS_OK;
}

/* What this rank owns of the numbers [offset, offset + count) of the flat buffers. */
static enum status upload_owned(struct engine *engine, const float *numbers, size_t offset,
                                size_t count) {
    if (!engine_shares_out(engine)) {
        return device_upload(&engine->device, engine->masters + offset, numbers,
                             count * sizeof *numbers);
    }
    for (size_t i = 0; i < gpt_bucket_count(&engine->gpt); i++) {
        const struct flat_range part = exchange_part(&engine->exchange, i);
        const size_t begin = size_max(offset, part.offset);
        const size_t end = size_min(offset + count, part.offset + part.count);
        if (begin >= end) continue;
        TRY(device_upload(&engine->device, engine->masters + part.at + (begin - part.offset),
                          numbers + (begin - offset), (end - begin) * sizeof *numbers));
    }
    return STATUS_OK;
}

/* Parameter by parameter; only another program's model is laid out whole. */
static enum status fill_owned(struct engine *engine, const struct origin *from) {
    const struct param_table *table = &engine->gpt.table;
    size_t most = 0;
    for (size_t i = 0; i < table->length; i++) most = size_max(most, table->params[i].count);
    if (from->source != NULL) most = table->elements;
    if (from->checkpoint != NULL) TRY(checkpoint_check_weights(from->checkpoint, table));
    float *numbers = malloc(most * sizeof *numbers);
    if (numbers == NULL) {
        return status_set(STATUS_MEMORY, "out of memory for %zu weights in host memory on their "
                          "way to the device", most);
    }
    enum status status = STATUS_OK;
    if (from->source != NULL) {
        status = fill_all(table, from, numbers);
        if (status == STATUS_OK) status = upload_owned(engine, numbers, 0, most);
    }
    for (size_t i = 0; i < table->length && from->source == NULL && status == STATUS_OK; i++) {
        const struct param *param = &table->params[i];
        if (from->checkpoint != NULL) checkpoint_load_weight(from->checkpoint, param, numbers);
        else param_initialise(table, i, from->seed, numbers);
        status = upload_owned(engine, numbers, param->offset, param->count);
    }
    free(numbers);
    return status;
}

static enum status fill_masters(struct engine *engine, const struct origin *from) {
    const size_t bytes = engine->gpt.table.elements * sizeof(float);
    void *masters = NULL;
    /* What lies on a GPU was zeroed: no need to fetch it, nor for as much host memory. */
    if (engine_shares_out(engine) || engine->device.kind != DEVICE_CPU) {
        return fill_owned(engine, from);
    }
    TRY(device_map(&engine->device, engine->masters, bytes, &masters));
    const enum status status = fill_all(&engine->gpt.table, from, masters);
    const enum status unmapped = device_unmap(&engine->device, engine->masters, masters, bytes,
                                              true);
    return status != STATUS_OK ? status : unmapped;
}

static enum status load_weights(struct engine *engine, struct origin from) {
    TRY(ranks_agree(engine->comm, fill_masters(engine, &from)));
    return refresh_weights(engine);
}

enum status engine_initialise(struct engine *engine, const struct config *config) {
    TRY(load_weights(engine, (struct origin){.seed = (uint64_t)config->train.seed}));
    return start_state(engine, config);
}

size_t engine_ranges(const struct engine *engine, struct flat_range *ranges) {
    if (!engine_shares_out(engine)) {
        ranges[0] = (struct flat_range){0, 0, engine->gpt.table.elements};
        return 1;
    }
    const size_t buckets = gpt_bucket_count(&engine->gpt);
    for (size_t i = 0; i < buckets; i++) ranges[i] = exchange_part(&engine->exchange, i);
    return buckets;
}

static enum status load_moments(struct engine *engine, const struct checkpoint *checkpoint) {
    const size_t bytes = engine->owned * sizeof(float);
    struct device *device = &engine->device;
    void *moments1 = NULL, *moments2 = NULL;
    struct flat_range *ranges = calloc(gpt_bucket_count(&engine->gpt), sizeof *ranges);
    if (ranges == NULL) return status_set(STATUS_MEMORY, "out of memory for buckets");
    const size_t count = engine_ranges(engine, ranges);
    enum status status = device_map(device, engine->moments1, bytes, &moments1);
    if (status == STATUS_OK) {
        status = device_map(device, engine->moments2, bytes, &moments2);
        if (status == STATUS_OK) {
            status = checkpoint_load_moments(checkpoint, &engine->gpt.table,
                                             (struct flat_ranges){ranges, count}, moments1,
                                             moments2);
            const enum status second = device_unmap(device, engine->moments2, moments2, bytes,
                                                    true);
            if (status == STATUS_OK) status = second;
        }
        const enum status first = device_unmap(device, engine->moments1, moments1, bytes, true);
        if (status == STATUS_OK) status = first;
    }
    free(ranges);
    return status;
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
    TRY(load_weights(engine, (struct origin){.source = source}));
    return start_state(engine, config);
}

enum status engine_load(struct engine *engine, const struct checkpoint *checkpoint) {
    TRY(load_weights(engine, (struct origin){.checkpoint = checkpoint}));
    return engine->parts & ENGINE_TRAIN ? load_moments(engine, checkpoint) : STATUS_OK;
}

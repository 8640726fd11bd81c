/* Diagnosis of a step that is not finite. */
#include "train/nonfinite.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct finder {
    struct gpt_observer observer; /* first: the observer is the finder */
    struct engine *engine;
    size_t micro_batch;
    bool found;
    char *text;
};

static enum status see(struct gpt_observer *self, const char *what, int layer,
                       struct tensor tensor) {
    struct finder *finder = (struct finder *)self;
    struct device *device = &finder->engine->device;
    size_t index = SIZE_MAX;
    if (finder->found) return STATUS_OK;
    TRY(device->ops->find_nonfinite(device, tensor, &index));
    if (index == SIZE_MAX) return STATUS_OK;
    char where[32] = "";
    if (layer >= 0) snprintf(where, sizeof where, " of block %d", layer);
    snprintf(finder->text, NONFINITE_TEXT_BYTES, "%s%s (micro-batch %zu, token %zu, column %zu)",
             what, where, finder->micro_batch, index / tensor.columns, index % tensor.columns);
    finder->found = true;
    return STATUS_OK;
}

/* Numbers (of a parameter) at `flat`; `what` names them. */
static enum status find_in_param(struct finder *finder, const struct param *param, float *flat,
                                 bool gradient) {
    const struct tensor tensor = tensor_make(flat, DTYPE_F32, param->padded_rows, param->columns);
    struct device *device = &finder->engine->device;
    size_t index = SIZE_MAX;
    char batch[32] = "";
    TRY(device->ops->find_nonfinite(device, tensor, &index));
    if (index == SIZE_MAX) return STATUS_OK;
    if (gradient) snprintf(batch, sizeof batch, ", micro-batch %zu", finder->micro_batch);
    snprintf(finder->text, NONFINITE_TEXT_BYTES, "%s of %s (row %zu, column %zu%s)",
             gradient ? "gradient" : "weight", param->name, index / param->columns,
             index % param->columns, batch);
    finder->found = true;
    return STATUS_OK;
}

static enum status see_losses(struct finder *finder) {
    const struct gpt_training *training = &finder->engine->training;
    const size_t tokens = training->shape.batch * training->shape.sequence_length;
    return see(&finder->observer, "loss", -1,
               tensor_make(training->losses, DTYPE_F32, tokens, 1));
}

/* Gradients of a micro-batch in the order in which backward makes them; the losses before. */
static enum status see_bucket(void *context, size_t index) {
    struct finder *finder = context;
    const struct gpt *gpt = &finder->engine->gpt;
    const struct gpt_bucket *bucket = &gpt->buckets[index];
    if (index == gpt_norm_bucket(gpt)) TRY(see_losses(finder));
    for (size_t i = bucket->params; i-- > 0 && !finder->found;) {
        const struct param *param = &gpt->table.params[bucket->first_param + i];
        TRY(find_in_param(finder, param,
                          finder->engine->exchange.gradients[index] +
                              (param->offset - bucket->offset),
                          true));
    }
    return STATUS_OK;
}

static enum status run_micro_batch(struct finder *finder, const struct nonfinite_request *request,
                                   int32_t *inputs, int32_t *targets) {
    struct engine *engine = finder->engine;
    struct gpt_training *training = &engine->training;
    const struct loader_shape *shape = request->shape;
    const size_t length = training->shape.sequence_length, tokens = shape->rows * length;
    const uint64_t first = loader_first_sample(shape, request->step, finder->micro_batch);
    for (size_t row = 0; row < shape->rows; row++) {
        dataset_sample(request->dataset, first + row, inputs + row * length,
                       targets + row * length);
    }
    TRY(device_upload(&engine->device, training->inputs, inputs, tokens * sizeof *inputs));
    TRY(device_upload(&engine->device, training->targets, targets, tokens * sizeof *targets));
    const struct gpt_gradient_request gradient = {
        .gradient_scale = request->gradient_scale, .loss_scale = &engine->state->loss_scale,
    };
    TRY(gpt_forward_backward(training, &gradient));
    if (engine->exchange.active) return STATUS_OK; /* see_bucket() saw it all */
    TRY(see_losses(finder));
    for (size_t i = engine->gpt.table.length; i-- > 0 && !finder->found;) {
        const struct param *param = &engine->gpt.table.params[i];
        TRY(find_in_param(finder, param, engine->gradients + param->offset, true));
    }
    return STATUS_OK;
}

/* The first of this rank's masters that is not finite. */
static enum status find_in_masters(struct finder *finder) {
    struct engine *engine = finder->engine;
    const struct param_table *table = &engine->gpt.table;
    size_t index = SIZE_MAX;
    for (size_t i = 0; i < table->length && !engine_shares_out(engine) && !finder->found; i++) {
        const struct param *param = &table->params[i];
        TRY(find_in_param(finder, param, engine->masters + param->offset, false));
    }
    if (!engine_shares_out(engine)) return STATUS_OK;
    const struct tensor owned = tensor_make(engine->masters, DTYPE_F32, 1, engine->owned);
    TRY(engine->device.ops->find_nonfinite(&engine->device, owned, &index));
    if (index == SIZE_MAX) return STATUS_OK;
    for (size_t i = 0; i < gpt_bucket_count(&engine->gpt) && !finder->found; i++) {
        const struct flat_range part = exchange_part(&engine->exchange, i);
        if (index < part.at || index >= part.at + part.count) continue;
        const size_t number = part.offset + (index - part.at);
        const struct param *param = table->params;
        while (param + 1 < table->params + table->length && param[1].offset <= number) param++;
        snprintf(finder->text, NONFINITE_TEXT_BYTES, "weight of %s (row %zu, column %zu)",
                 param->name, (number - param->offset) / param->columns,
                 (number - param->offset) % param->columns);
        finder->found = true;
    }
    return STATUS_OK;
}

/* What a rank found, for the others. */
struct finding {
    bool found, weights;
    char text[NONFINITE_TEXT_BYTES];
};

/* The same result on all ranks: the lowest's that found a weight, else anything. */
static enum status share(struct engine *engine, bool found, struct nonfinite *result) {
    const size_t world = (size_t)engine->ranks.world;
    struct finding own = {.found = found, .weights = result->weights}, *all;
    if (world == 1) return STATUS_OK;
    memcpy(own.text, result->text, sizeof own.text);
    all = calloc(world, sizeof *all);
    if (all == NULL) return status_set(STATUS_MEMORY, "out of memory comparing ranks");
    const enum status status = comm_gather_host(engine->comm, all, &own, sizeof own);
    const struct finding *best = NULL;
    for (size_t rank = 0; rank < world && status == STATUS_OK; rank++) {
        if (!all[rank].found || (best != NULL && (best->weights || !all[rank].weights))) continue;
        best = &all[rank];
    }
    if (best != NULL) {
        result->weights = best->weights;
        snprintf(result->text, sizeof result->text, "%.*s on rank %zu",
                 (int)sizeof result->text - 32, best->text, (size_t)(best - all));
    }
    free(all);
    return status;
}

enum status nonfinite_find(struct engine *engine, const struct nonfinite_request *request,
                           struct nonfinite *result) {
    const size_t tokens = request->shape->rows * engine->training.shape.sequence_length;
    struct finder finder = {.observer = {.see = see}, .engine = engine, .text = result->text};
    enum status status = STATUS_OK;
    int32_t *inputs = calloc(tokens, sizeof *inputs), *targets = calloc(tokens, sizeof *targets);
    if (inputs == NULL || targets == NULL) {
        status = status_set(STATUS_MEMORY,
                            "out of memory looking for the first number that is not finite");
        goto cleanup;
    }
    *result = (struct nonfinite){0};
    snprintf(result->text, sizeof result->text,
             "no single tensor (each is finite when the micro-batches are run again, one by one)");
    TRY_GOTO(find_in_masters(&finder), cleanup);
    result->weights = finder.found;
    engine->training.observer = &finder.observer;
    engine->exchange.look = see_bucket;
    engine->exchange.look_context = &finder;
    /* Passes of several ranks fetch weights together: none stops early. */
    for (; finder.micro_batch < request->shape->micro_batches &&
           (!finder.found || engine->ranks.world > 1);
         finder.micro_batch++) {
        TRY_GOTO(run_micro_batch(&finder, request, inputs, targets), cleanup);
    }
    status = share(engine, finder.found, result);
cleanup:
    engine->training.observer = NULL;
    engine->exchange.look = NULL;
    free(inputs);
    free(targets);
    return status;
}

/* Diagnosis of a step that is not finite. */
#include "train/nonfinite.h"

#include <stdio.h>
#include <stdlib.h>

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

/* The first parameter whose numbers in `flat` are not all finite: weights in the order of the
 * table, gradients of a micro-batch in the order in which backward makes them. */
static enum status find_in_params(struct finder *finder, float *flat, bool gradients) {
    struct engine *engine = finder->engine;
    const struct param_table *table = &engine->gpt.table;
    for (size_t i = 0; i < table->length && !finder->found; i++) {
        const struct param *param = &table->params[gradients ? table->length - 1 - i : i];
        const struct tensor tensor = tensor_make(flat + param->offset, DTYPE_F32,
                                                 param->padded_rows, param->columns);
        size_t index = SIZE_MAX;
        TRY(engine->device.ops->find_nonfinite(&engine->device, tensor, &index));
        if (index == SIZE_MAX) continue;
        char batch[32] = "";
        if (gradients) snprintf(batch, sizeof batch, ", micro-batch %zu", finder->micro_batch);
        snprintf(finder->text, NONFINITE_TEXT_BYTES, "%s of %s (row %zu, column %zu%s)",
                 gradients ? "gradient" : "weight", param->name, index / param->columns,
                 index % param->columns, batch);
        finder->found = true;
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
    const struct tensor losses = tensor_make(training->losses, DTYPE_F32, tokens, 1);
    TRY(see(&finder->observer, "loss", -1, losses));
    return find_in_params(finder, engine->gradients, true);
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
    TRY_GOTO(find_in_params(&finder, engine->masters, false), cleanup);
    result->weights = finder.found;
    engine->training.observer = &finder.observer;
    for (; finder.micro_batch < request->shape->micro_batches && !finder.found;
         finder.micro_batch++) {
        TRY_GOTO(run_micro_batch(&finder, request, inputs, targets), cleanup);
    }
cleanup:
    engine->training.observer = NULL;
    free(inputs);
    free(targets);
    return status;
}

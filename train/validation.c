/* Validation: forward passes over a fixed list of sequences. */
#include "train/validation.h"

#include <math.h>
#include <stdlib.h>

#include "base/checked.h"
#include "train/signals.h"

/* Host copies of one batch. */
struct buffers {
    int32_t *inputs, *targets;
    float *losses;
};

/* Fills rows [0, rows) with sequences from `first`; rows beyond are ignored by the loss. */
static void fill(const struct dataset *dataset, const struct buffers *buffers, size_t first,
                 size_t rows, size_t batch) {
    const size_t length = dataset->sequence_length;
    for (size_t row = 0; row < batch; row++) {
        int32_t *inputs = buffers->inputs + row * length,
                *targets = buffers->targets + row * length;
        if (row < rows) {
            dataset_sample(dataset, first + row, inputs, targets);
            continue;
        }
        for (size_t t = 0; t < length; t++) {
            inputs[t] = 0;
            targets[t] = -1;
        }
    }
}

/* Bytes of text that the targets of these rows stand for; 0 where that is not known. */
static size_t text_bytes_of(const struct vocabulary *vocabulary, const int32_t *targets,
                            size_t count) {
    size_t sum = 0;
    if (vocabulary->tokenizer == NULL) return vocabulary->size == BYTE_VOCABULARY ? count : 0;
    for (size_t i = 0; i < count; i++) {
        size_t bytes = 0;
        if (targets[i] == vocabulary->end_of_text) continue;
        (void)tokenizer_text(vocabulary->tokenizer, targets[i], &bytes);
        sum += bytes;
    }
    return sum;
}

static enum status run_batch(struct engine *engine, const struct buffers *buffers, size_t counted,
                             double *sum) {
    struct gpt_training *evaluation = &engine->evaluation;
    const size_t tokens = evaluation->shape.batch * evaluation->shape.sequence_length;
    struct device *device = &engine->device;
    TRY(device_upload(device, evaluation->inputs, buffers->inputs, tokens * sizeof(int32_t)));
    TRY(device_upload(device, evaluation->targets, buffers->targets, tokens * sizeof(int32_t)));
    TRY(gpt_evaluate(evaluation));
    TRY(device_download(device, buffers->losses, evaluation->losses, counted * sizeof(float)));
    for (size_t i = 0; i < counted; i++) *sum += (double)buffers->losses[i];
    return STATUS_OK;
}

enum status validation_run(struct engine *engine, const struct dataset *dataset, size_t sequences,
                           bool until_signal, struct validation *result) {
    const size_t batch = engine->evaluation.shape.batch, length = dataset->sequence_length;
    const size_t wanted = sequences == 0 ? dataset->sequences
                                         : size_min(sequences, dataset->sequences);
    enum status status = STATUS_OK;
    double sum = 0.0;
    size_t text_bytes = 0;
    const struct buffers buffers = {
        .inputs = calloc(batch * length, sizeof(int32_t)),
        .targets = calloc(batch * length, sizeof(int32_t)),
        .losses = calloc(batch * length, sizeof(float)),
    };
    if (buffers.inputs == NULL || buffers.targets == NULL || buffers.losses == NULL) {
        status = status_set(STATUS_MEMORY, "out of memory for a validation batch of %zu sequences",
                            batch);
        goto cleanup;
    }
    for (size_t first = 0; first < wanted; first += batch) {
        const size_t rows = size_min(batch, wanted - first);
        if (until_signal && signals_received() != NULL) {
            status = status_set(STATUS_INTERRUPTED, "validation stopped by %s", signals_received());
            goto cleanup;
        }
        fill(dataset, &buffers, first, rows, batch);
        text_bytes += text_bytes_of(&engine->vocabulary, buffers.targets, rows * length);
        TRY_GOTO(run_batch(engine, &buffers, rows * length, &sum), cleanup);
    }
    result->tokens = wanted * length;
    result->loss = sum / (double)result->tokens;
    result->bits_per_byte = text_bytes > 0 ? sum / log(2.0) / (double)text_bytes : (double)NAN;
cleanup:
    free(buffers.inputs);
    free(buffers.targets);
    free(buffers.losses);
    return status;
}

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
    double *sums;     /* of each row's losses */
    double *all_sums; /* of a round: a batch of every rank */
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

/* losses of the batch in the buffers. */
static enum status run_batch(struct engine *engine, const struct buffers *buffers) {
    struct gpt_training *evaluation = &engine->evaluation;
    const size_t tokens = evaluation->shape.batch * evaluation->shape.sequence_length;
    struct device *device = &engine->device;
    TRY(device_upload(device, evaluation->inputs, buffers->inputs, tokens * sizeof(int32_t)));
    TRY(device_upload(device, evaluation->targets, buffers->targets, tokens * sizeof(int32_t)));
    TRY(gpt_evaluate(evaluation));
    return device_download(device, buffers->losses, evaluation->losses, tokens * sizeof(float));
}

/* A round: each rank takes the batch that is its turn, sums each sequence's losses, and adds those
 * sums of all in the order of the sequences: the same bits whatever the number of ranks. */
static enum status run_round(struct engine *engine, const struct dataset *dataset,
                             const struct buffers *buffers, size_t first, size_t wanted,
                             double *sum) {
    const size_t batch = engine->evaluation.shape.batch, length = dataset->sequence_length;
    const size_t begin = size_min(wanted, first + (size_t)engine->ranks.rank * batch);
    const size_t end = size_min(wanted, first + (size_t)engine->ranks.world * batch);
    fill(dataset, buffers, begin, size_min(batch, wanted - begin), batch);
    TRY(run_batch(engine, buffers));
    for (size_t row = 0; row < batch; row++) {
        double *row_sum = &buffers->sums[row];
        *row_sum = 0.0;
        for (size_t t = 0; t < length; t++) *row_sum += (double)buffers->losses[row * length + t];
    }
    TRY(comm_gather_host(engine->comm, buffers->all_sums, buffers->sums,
                         batch * sizeof *buffers->sums));
    for (size_t i = 0; i < end - first; i++) *sum += buffers->all_sums[i];
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
        .sums = calloc(batch, sizeof(double)),
        .all_sums = calloc((size_t)engine->ranks.world * batch, sizeof(double)),
    };
    if (buffers.inputs == NULL || buffers.targets == NULL || buffers.losses == NULL ||
        buffers.sums == NULL || buffers.all_sums == NULL) {
        status = status_set(STATUS_MEMORY, "out of memory for a validation batch of %zu sequences",
                            batch);
        goto cleanup;
    }
    const size_t round = (size_t)engine->ranks.world * batch;
    for (size_t first = 0; first < wanted; first += round) {
        if (until_signal && signals_received() != NULL) {
            status = status_set(STATUS_INTERRUPTED, "validation stopped by %s", signals_received());
            goto cleanup;
        }
        for (size_t at = first; at < wanted && at < first + round; at += batch) {
            const size_t rows = size_min(batch, wanted - at);
            fill(dataset, &buffers, at, rows, batch);
            text_bytes += text_bytes_of(&engine->vocabulary, buffers.targets, rows * length);
        }
        TRY_GOTO(run_round(engine, dataset, &buffers, first, wanted, &sum), cleanup);
    }
    result->tokens = wanted * length;
    result->loss = sum / (double)result->tokens;
    result->bits_per_byte = text_bytes > 0 ? sum / log(2.0) / (double)text_bytes : (double)NAN;
cleanup:
    free(buffers.inputs);
    free(buffers.targets);
    free(buffers.losses);
    free(buffers.sums);
    free(buffers.all_sums);
    return status;
}

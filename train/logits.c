/* Behind train/logits.h: one token at a time through the key-value caches. */
#include "train/logits.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "checkpoints/safetensors.h"

/* One sequence; `row` holds V numbers, the tokens 2 T. */
static enum status append_sequence(struct engine *engine, const struct dataset *dataset,
                                   size_t sequence, int32_t *tokens, float *row,
                                   struct safetensors_writer *writer) {
    const size_t vocabulary = engine->gpt.config.vocabulary, length = dataset->sequence_length;
    dataset_sample(dataset, sequence, tokens, tokens + length);
    gpt_generation_reset(&engine->generation);
    for (size_t t = 0; t < length; t++) {
        struct tensor logits;
        TRY(gpt_generation_step(&engine->generation, &tokens[t], &logits));
        TRY(device_download(&engine->device, row, logits.data, vocabulary * sizeof *row));
        TRY(safetensors_writer_append(writer, row, vocabulary * sizeof *row));
    }
    return STATUS_OK;
}

enum status logits_write(struct engine *engine, const struct dataset *dataset, size_t sequences,
                         const char *path) {
    const size_t vocabulary = engine->gpt.config.vocabulary, length = dataset->sequence_length;
    struct safetensors_writer *writer = NULL;
    struct file_digest digest;
    struct safetensors_entry entry = {
        .name = "logits",
        .dtype = SAFETENSORS_F32,
        .rank = 3,
        .shape = {size_min(sequences, dataset->sequences), length, vocabulary},
    };
    enum status status = STATUS_OK;
    int32_t *tokens = calloc(2 * length, sizeof *tokens);
    float *row = calloc(vocabulary, sizeof *row);
    if (tokens == NULL || row == NULL) {
        status = status_set(STATUS_MEMORY, "out of memory for logits of %zu tokens", vocabulary);
        goto cleanup;
    }
    TRY_GOTO(safetensors_writer_open(&writer, path, &entry, 1, NULL, 0), cleanup);
    for (size_t i = 0; i < entry.shape[0]; i++) {
        TRY_GOTO(append_sequence(engine, dataset, i, tokens, row, writer), cleanup);
    }
    status = safetensors_writer_finish(writer, &digest);
    writer = NULL;
cleanup:
    safetensors_writer_abandon(writer);
    free(row);
    free(tokens);
    return status;
}

/*
 * Fuzz entry for checkpoints/llmc_model.h. A file that is accepted has a shape that can be a model,
 * and exactly as many bytes as it needs; its numbers are read into a table of that shape.
 */
#include "checkpoints/llmc_model.h"

#include <stdlib.h>
#include <string.h>

#include "layers/gpt.h"
#include "tests/fuzz/fuzz.h"

static void read_numbers(const struct llmc_model *file) {
    const struct gpt_config config = {.layers = file->model.n_layer,
                                      .heads = file->model.n_head,
                                      .width = file->model.n_embd,
                                      .context = file->model.n_positions,
                                      .vocabulary = file->model.vocab_size};
    struct gpt gpt;
    if (gpt_open(&gpt, &config, 0) != STATUS_OK) return; /* wider bounds than the file's */
    float *masters = calloc(gpt.table.elements, sizeof *masters);
    if (masters == NULL || llmc_model_load(file, &gpt.table, masters) != STATUS_OK) abort();
    free(masters);
    gpt_close(&gpt);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct fuzz_file input;
    struct llmc_model file;
    fuzz_file_open(&input, data, size);
    if (llmc_model_open(&file, input.path) == STATUS_OK) {
        read_numbers(&file);
        llmc_model_close(&file);
    }
    fuzz_file_close(&input);
    return 0;
}

/* The two versions, and a padded vocabulary. */
size_t fuzz_seeds(size_t index, uint8_t *seed, size_t capacity) {
    enum { CONTEXT = 3, VOCABULARY = 5, LAYERS = 2, HEADS = 2, WIDTH = 4 };
    static const struct {
        int32_t version, rows;
    } cases[] = {{3, VOCABULARY}, {5, VOCABULARY}, {5, 128}};
    if (index >= sizeof cases / sizeof cases[0]) return 0;
    const int32_t header[] = {20240326, cases[index].version, CONTEXT, VOCABULARY, LAYERS, HEADS,
                              WIDTH,    cases[index].rows};
    const size_t numbers = ((size_t)cases[index].rows + CONTEXT) * WIDTH +
                           LAYERS * (12 * WIDTH * WIDTH + 13 * WIDTH) + 2 * WIDTH;
    const size_t bytes = 1024 + numbers * (cases[index].version == 3 ? 4 : 2);
    if (bytes > capacity) abort();
    memset(seed, 0, bytes);
    memcpy(seed, header, sizeof header);
    return bytes;
}

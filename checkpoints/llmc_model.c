/* Reading llm.c's model files: behind checkpoints/llmc_model.h. */
#include "checkpoints/llmc_model.h"

#include <string.h>

#include "base/checked.h"
#include "checkpoints/weights.h"

enum {
    HEADER_INTS = 256,
    HEADER_BYTES = HEADER_INTS * (int)sizeof(int32_t),
    MAGIC = 20240326,
    VERSION_FP32 = 3,
    VERSION_BF16 = 5,
    GPT2_VOCABULARY = 50257,
    EMBEDDING_ROWS_MAX = 1 << 24,
};

/* Parameters of a GPT-2: token and position embedding; a block's 12 C C + 13 C; the last norm. */
static bool count_numbers(const struct llmc_model *file, size_t *count) {
    const struct hf_config *m = &file->model;
    size_t square = 0, block = 0, blocks = 0, embeddings = 0, rows = 0;
    return size_mul(m->n_embd, m->n_embd, &square) && size_mul(square, 12, &square) &&
           size_add(square, 13 * m->n_embd, &block) && size_mul(block, m->n_layer, &blocks) &&
           size_add(file->embedding_rows, m->n_positions, &rows) &&
           size_mul(rows, m->n_embd, &embeddings) && size_add(embeddings, blocks, count) &&
           size_add(*count, 2 * m->n_embd, count);
}

static enum status check_length(const struct llmc_model *file) {
    size_t count = 0, bytes = 0;
    if (count_numbers(file, &count) &&
        size_mul(count, safetensors_dtype_bytes(file->dtype), &bytes) &&
        size_add(bytes, HEADER_BYTES, &bytes) && bytes == file->map.bytes) {
        return STATUS_OK;
    }
    return status_set(STATUS_CHECKPOINT,
                      "%s: expected %zu bytes for the %zu %s numbers that its header describes, "
                      "found %zu: it was cut short or is of another program",
                      file->path, bytes, count, safetensors_dtype_name(file->dtype),
                      file->map.bytes);
}

static enum status parse(struct llmc_model *file) {
    int32_t header[HEADER_INTS];
    if (file->map.bytes < HEADER_BYTES) {
        return status_set(STATUS_CHECKPOINT,
                          "%s has %zu bytes, expected a header of %d: no model of llm.c",
                          file->path, file->map.bytes, HEADER_BYTES);
    }
    memcpy(header, file->map.data, sizeof header);
    if (header[0] != MAGIC || (header[1] != VERSION_FP32 && header[1] != VERSION_BF16)) {
        return status_set(STATUS_CHECKPOINT,
                          "%s: expected a model of llm.c, magic %d and version %d (FP32) or %d "
                          "(BF16), found %d and %d",
                          file->path, MAGIC, VERSION_FP32, VERSION_BF16, header[0], header[1]);
    }
    for (size_t i = 2; i <= 7; i++) {
        if (header[i] >= 1) continue;
        return status_set(STATUS_CHECKPOINT,
                          "%s: expected sizes of at least 1, found %d at header[%zu]", file->path,
                          header[i], i);
    }
    file->dtype = header[1] == VERSION_FP32 ? SAFETENSORS_F32 : SAFETENSORS_BF16;
    file->model = (struct hf_config){
        .n_positions = (size_t)header[2],
        .vocab_size = (size_t)header[3],
        .n_layer = (size_t)header[4],
        .n_head = (size_t)header[5],
        .n_embd = (size_t)header[6],
    };
    /* The file does not say; with GPT-2's vocabulary it is GPT-2's last token. */
    const int end_of_text = header[3] == GPT2_VOCABULARY ? GPT2_VOCABULARY - 1 : -1;
    file->model.bos_token_id = file->model.eos_token_id = end_of_text;
    file->embedding_rows = (size_t)header[7];
    if (header[7] < header[3] || header[7] > EMBEDDING_ROWS_MAX) {
        return status_set(STATUS_CHECKPOINT,
                          "%s: expected a padded vocabulary from %d to %d, found %d", file->path,
                          header[3], EMBEDDING_ROWS_MAX, header[7]);
    }
    TRY(hf_config_check(file->path, &file->model));
    return check_length(file);
}

enum status llmc_model_open(struct llmc_model *file, const char *path) {
    memset(file, 0, sizeof *file);
    TRY(path_copy(file->path, path));
    TRY(file_map_open(path, &file->map));
    const enum status status = parse(file);
    if (status != STATUS_OK) llmc_model_close(file);
    return status;
}

void llmc_model_close(struct llmc_model *file) {
    file_map_close(&file->map);
    memset(file, 0, sizeof *file);
}

/* A walk through the numbers of a file. */
struct walk {
    const struct llmc_model *file;
    size_t next; /* bytes into the file */
    float *masters;
};

/* The numbers of one parameter, `rows` of them in the file (0: as many as it has). */
static enum status take(struct walk *walk, const struct param *param, size_t rows) {
    const size_t number_bytes = safetensors_dtype_bytes(walk->file->dtype);
    const size_t stored = (rows > 0 ? rows : param->rows) * param->columns;
    if (stored > (walk->file->map.bytes - walk->next) / number_bytes ||
        stored < param_count(param)) {
        return status_set(STATUS_CHECKPOINT, "%s ends before %s: it is of another model",
                          walk->file->path, param->name);
    }
    const unsigned char *data = walk->file->map.data + walk->next;
    float *out = walk->masters + param->offset;
    if (walk->file->dtype == SAFETENSORS_F32) {
        memcpy(out, data, param_count(param) * sizeof *out);
    } else {
        for (size_t i = 0; i < param_count(param); i++) {
            out[i] = weights_number(data, walk->file->dtype, i);
        }
    }
    walk->next += stored * number_bytes;
    return STATUS_OK;
}

/* The order of llm.c within a kind is that of the layers, and of the kinds that of a block's rows
 * in the table: norm, qkv, projection, norm, up, down, each weight before its bias. */
enum status llmc_model_load(const struct llmc_model *file, const struct param_table *params,
                            float *masters) {
    struct walk walk = {.file = file, .next = HEADER_BYTES, .masters = masters};
    size_t block_rows = 0;
    for (size_t i = 0; i < params->length; i++) block_rows += params->params[i].layer == 0;
    memset(masters, 0, params->elements * sizeof *masters);
    for (size_t i = 0; i < params->length; i++) {
        const struct param *param = &params->params[i];
        if (param->layer < 0) {
            TRY(take(&walk, param, param->role == ROLE_EMBEDDING ? file->embedding_rows : 0));
        }
        if (param->layer != 0) continue; /* taken with its kind */
        for (size_t layer = 0; layer < file->model.n_layer; layer++) {
            const size_t row = i + layer * block_rows;
            if (row >= params->length || params->params[row].layer != (int)layer) {
                return status_set(STATUS_CHECKPOINT, "%s has %zu layers, expected fewer",
                                  file->path, file->model.n_layer);
            }
            TRY(take(&walk, &params->params[row], 0));
        }
    }
    if (walk.next == file->map.bytes) return STATUS_OK;
    return status_set(STATUS_CHECKPOINT, "%s: expected %zu bytes for this model, found %zu",
                      file->path, walk.next, file->map.bytes);
}

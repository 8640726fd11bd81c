/* Weights in Hugging Face's layout from other programs: behind checkpoints/hf_weights.h. */
#include "checkpoints/hf_weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/json.h"
#include "checkpoints/layout.h"
#include "checkpoints/safetensors_internal.h"
#include "checkpoints/weights.h"

enum { INDEX_BYTES_MAX = 16 << 20, TENSORS_MAX = 1 << 16 };

static const char prefix[] = "transformer.";
static const char head_name[] = "lm_head.weight";

/* Tensors that are no parameters: GPT-2's causal mask, which every program makes anew. */
static const char *const buffer_suffixes[] = {".attn.bias", ".attn.masked_bias"};
enum { BUFFER_SUFFIXES = sizeof buffer_suffixes / sizeof buffer_suffixes[0] };

static const char *without_prefix(const char *name) {
    const size_t length = sizeof prefix - 1;
    return strncmp(name, prefix, length) == 0 ? name + length : name;
}

/* The place of a file's name in the index, added if it is new. */
static enum status find_file(struct hf_index *index, const char *path, const char *name,
                             size_t *file) {
    const size_t length = strlen(name);
    if (length == 0 || length >= HF_FILE_NAME_BYTES || strchr(name, '/') != NULL ||
        name[0] == '.') {
        return status_set(STATUS_CHECKPOINT,
                          "%s: expected names of files in its own folder, found \"%.40s\"", path,
                          name);
    }
    for (*file = index->file_count; *file > 0; (*file)--) {
        if (strcmp(index->files[*file - 1], name) == 0) {
            (*file)--;
            return STATUS_OK;
        }
    }
    if (index->file_count == HF_FILES_MAX) {
        return status_set(STATUS_CHECKPOINT, "%s: expected at most %d files, it names more", path,
                          HF_FILES_MAX);
    }
    *file = index->file_count++;
    memcpy(index->files[*file], name, length + 1);
    return STATUS_OK;
}

static int compare_tensors(const void *a, const void *b) {
    const struct hf_index_entry *left = a, *right = b;
    return strcmp(left->tensor, right->tensor);
}

static enum status parse_index(struct hf_index *index, const char *path, const cJSON *root) {
    const cJSON *map = NULL;
    TRY(json_find(path, root, "weight_map", &map));
    if (!cJSON_IsObject(map) || map->child == NULL) {
        return status_set(STATUS_CHECKPOINT,
                          "%s: expected \"weight_map\" to list tensors and their files", path);
    }
    size_t capacity = 0;
    for (const cJSON *item = map->child; item != NULL; item = item->next) capacity++;
    if (capacity > TENSORS_MAX) {
        return status_set(STATUS_CHECKPOINT, "%s: expected at most %d tensors, found %zu", path,
                          TENSORS_MAX, capacity);
    }
    index->entries = calloc(capacity, sizeof *index->entries);
    index->files = calloc(capacity < HF_FILES_MAX ? capacity : HF_FILES_MAX, sizeof *index->files);
    if (index->entries == NULL || index->files == NULL) {
        return status_set(STATUS_MEMORY, "out of memory reading %s", path);
    }
    for (const cJSON *item = map->child; item != NULL; item = item->next) {
        struct hf_index_entry *entry = &index->entries[index->count];
        TRY(safetensors_name_check(path, item->string));
        if (!cJSON_IsString(item)) {
            return status_set(STATUS_CHECKPOINT, "%s: expected a file's name for %s", path,
                              item->string);
        }
        strcpy(entry->tensor, item->string);
        TRY(find_file(index, path, item->valuestring, &entry->file));
        index->count++;
    }
    qsort(index->entries, index->count, sizeof *index->entries, compare_tensors);
    for (size_t i = 1; i < index->count; i++) {
        if (compare_tensors(&index->entries[i - 1], &index->entries[i]) != 0) continue;
        return status_set(STATUS_CHECKPOINT, "%s: %s is listed twice", path,
                          index->entries[i].tensor);
    }
    return STATUS_OK;
}

enum status hf_index_read(struct hf_index *index, const char *path) {
    cJSON *root = NULL;
    memset(index, 0, sizeof *index);
    TRY(json_read(path, INDEX_BYTES_MAX, &root));
    const enum status status = parse_index(index, path, root);
    cJSON_Delete(root);
    if (status != STATUS_OK) hf_index_free(index);
    return status;
}

void hf_index_free(struct hf_index *index) {
    free(index->entries);
    free(index->files);
    memset(index, 0, sizeof *index);
}

static enum status open_file(struct hf_weights *weights, const char *name) {
    char path[PATH_BYTES];
    TRY(path_join(path, weights->folder, name));
    if (!path_is_file(path)) {
        return status_set(STATUS_CHECKPOINT, "%s is missing or no file, but the index names it",
                          path);
    }
    TRY(safetensors_open(&weights->files[weights->count], path));
    weights->count++;
    return STATUS_OK;
}

/* Index and files list the same tensors; with names once in a file, equal counts suffice. */
static enum status check_index(const struct hf_weights *weights, const struct hf_index *index,
                               const char *path) {
    size_t stored = 0;
    for (size_t i = 0; i < index->count; i++) {
        const struct hf_index_entry *entry = &index->entries[i];
        if (safetensors_find(&weights->files[entry->file], entry->tensor) == NULL) {
            return status_set(STATUS_CHECKPOINT, "%s: expected %s in %s, it is not there", path,
                              entry->tensor, index->files[entry->file]);
        }
    }
    for (size_t i = 0; i < weights->count; i++) stored += weights->files[i].count;
    if (stored != index->count) {
        return status_set(STATUS_CHECKPOINT,
                          "%s lists %zu tensors, but its %zu files hold %zu: they do not belong "
                          "together",
                          path, index->count, weights->count, stored);
    }
    return STATUS_OK;
}

static enum status open_indexed(struct hf_weights *weights, const char *path) {
    struct hf_index index;
    enum status status = STATUS_OK;
    TRY(hf_index_read(&index, path));
    weights->files = calloc(index.file_count, sizeof *weights->files);
    if (weights->files == NULL) {
        status = status_set(STATUS_MEMORY, "out of memory opening %s", path);
        goto done;
    }
    for (size_t i = 0; i < index.file_count; i++) {
        TRY_GOTO(open_file(weights, index.files[i]), done);
    }
    status = check_index(weights, &index, path);

done:
    hf_index_free(&index);
    return status;
}

static enum status open_single(struct hf_weights *weights) {
    weights->files = calloc(1, sizeof *weights->files);
    if (weights->files == NULL) {
        return status_set(STATUS_MEMORY, "out of memory opening %s", weights->folder);
    }
    return open_file(weights, LAYOUT_WEIGHTS);
}

enum status hf_weights_open(struct hf_weights *weights, const char *folder) {
    char single[PATH_BYTES], index[PATH_BYTES];
    memset(weights, 0, sizeof *weights);
    TRY(path_join(single, folder, LAYOUT_WEIGHTS));
    TRY(path_join(index, folder, HF_INDEX_NAME));
    snprintf(weights->folder, sizeof weights->folder, "%s", folder);
    const bool has_single = path_is_file(single), has_index = path_is_file(index);
    if (has_single == has_index) {
        return status_set(STATUS_CHECKPOINT,
                          has_single ? "%s holds both " LAYOUT_WEIGHTS " and " HF_INDEX_NAME
                                       ": which of the two is the model? Remove one"
                                     : "%s holds neither " LAYOUT_WEIGHTS " nor " HF_INDEX_NAME
                                       " (pytorch_model.bin is not read: save the model with "
                                       "safe_serialization=True)",
                          folder);
    }
    const enum status status = has_single ? open_single(weights) : open_indexed(weights, index);
    if (status != STATUS_OK) hf_weights_close(weights);
    return status;
}

void hf_weights_close(struct hf_weights *weights) {
    for (size_t i = weights->count; i > 0; i--) safetensors_close(&weights->files[i - 1]);
    free(weights->files);
    memset(weights, 0, sizeof *weights);
}

/* A tensor and the file that holds it; entry NULL: there is none. */
struct place {
    const struct safetensors *file;
    const struct safetensors_entry *entry;
};

/* By its name with or without the prefix. STATUS_CHECKPOINT if it stands twice. */
static enum status find(const struct hf_weights *weights, const char *name, struct place *place) {
    *place = (struct place){.file = &weights->files[0]};
    for (size_t f = 0; f < weights->count; f++) {
        for (size_t e = 0; e < weights->files[f].count; e++) {
            const struct safetensors_entry *entry = &weights->files[f].entries[e];
            if (strcmp(without_prefix(entry->name), without_prefix(name)) != 0) continue;
            if (place->entry != NULL) {
                return status_set(STATUS_CHECKPOINT, "%s: %s stands twice", weights->folder, name);
            }
            *place = (struct place){.file = &weights->files[f], .entry = entry};
        }
    }
    return STATUS_OK;
}

static bool is_buffer(const char *name) {
    const size_t length = strlen(name);
    for (size_t i = 0; i < BUFFER_SUFFIXES; i++) {
        const size_t suffix = strlen(buffer_suffixes[i]);
        if (length > suffix && strcmp(name + length - suffix, buffer_suffixes[i]) == 0) return true;
    }
    return false;
}

/* The output layer, where it is stored, is the token embedding once more. */
static enum status check_head(const struct hf_weights *weights, const struct place *head,
                              const struct param *embedding) {
    struct place token = {0};
    TRY(find(weights, embedding->hf_name, &token));
    const struct safetensors_entry *a = head->entry, *b = token.entry;
    if (a->dtype == b->dtype && a->rank == b->rank && a->bytes == b->bytes &&
        memcmp(a->shape, b->shape, sizeof(size_t) * (size_t)a->rank) == 0 &&
        memcmp(head->file->data + a->offset, token.file->data + b->offset, a->bytes) == 0) {
        return STATUS_OK;
    }
    return status_set(STATUS_CHECKPOINT,
                      "%s: %s differs from %s: the output layer is not tied to the token "
                      "embedding, and this program has tied ones only",
                      head->file->path, a->name, embedding->hf_name);
}

static const struct param *find_embedding(const struct param_table *params) {
    for (size_t i = 0; i < params->length; i++) {
        if (params->params[i].role == ROLE_EMBEDDING) return &params->params[i];
    }
    return NULL;
}

static bool is_param(const struct param_table *params, const char *name) {
    for (size_t i = 0; i < params->length; i++) {
        const char *known = without_prefix(params->params[i].hf_name);
        if (strcmp(known, without_prefix(name)) == 0) return true;
    }
    return false;
}

/* Every tensor of the files is a parameter, a buffer that is not needed, or the tied head. */
static enum status check_known(const struct hf_weights *weights, const struct param_table *params) {
    const struct param *embedding = find_embedding(params);
    for (size_t f = 0; f < weights->count; f++) {
        const struct safetensors *file = &weights->files[f];
        for (size_t e = 0; e < file->count; e++) {
            const struct place place = {.file = file, .entry = &file->entries[e]};
            if (is_param(params, place.entry->name) || is_buffer(place.entry->name)) continue;
            if (strcmp(place.entry->name, head_name) == 0 && embedding != NULL) {
                TRY(check_head(weights, &place, embedding));
                continue;
            }
            return status_set(STATUS_CHECKPOINT,
                              "%s has a tensor %s that the model does not: it is of another model",
                              file->path, place.entry->name);
        }
    }
    return STATUS_OK;
}

enum status hf_weights_load(const struct hf_weights *weights, const struct param_table *params,
                            float *masters) {
    struct place place;
    for (size_t i = 0; i < params->length; i++) {
        const struct param *param = &params->params[i];
        const size_t padding = param->role == ROLE_EMBEDDING ? VOCABULARY_PADDING_ROWS_MAX : 0;
        TRY(find(weights, param->hf_name, &place));
        TRY(weights_check(place.file, place.entry, param, padding));
    }
    TRY(check_known(weights, params));
    memset(masters, 0, params->elements * sizeof *masters);
    for (size_t i = 0; i < params->length; i++) {
        TRY(find(weights, params->params[i].hf_name, &place));
        weights_read(place.file, place.entry, &params->params[i], masters);
    }
    return STATUS_OK;
}

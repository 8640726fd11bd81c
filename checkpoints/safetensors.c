/* Reading safetensors files, every byte of which may lie: behind checkpoints/safetensors.h. */
#include "checkpoints/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "checkpoints/json.h"
#include "checkpoints/safetensors_internal.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the format is little-endian, and "
                                                          "tensors are copied without swapping "
                                                          "bytes");

static const struct {
    const char *name;
    size_t bytes;
} dtypes[SAFETENSORS_DTYPES] = {
    [SAFETENSORS_F32] = {"F32", 4},   [SAFETENSORS_F16] = {"F16", 2},
    [SAFETENSORS_BF16] = {"BF16", 2}, [SAFETENSORS_U8] = {"U8", 1},
    [SAFETENSORS_BOOL] = {"BOOL", 1},
};

const char *safetensors_dtype_name(enum safetensors_dtype dtype) { return dtypes[dtype].name; }
size_t safetensors_dtype_bytes(enum safetensors_dtype dtype) { return dtypes[dtype].bytes; }
bool safetensors_dtype_real(enum safetensors_dtype dtype) { return dtype <= SAFETENSORS_BF16; }

const char *safetensors_shape_text(char text[SAFETENSORS_SHAPE_BYTES], int rank,
                                   const size_t *shape) {
    size_t used = 1;
    strcpy(text, "[");
    for (int i = 0; i < rank; i++) { /* 20 digits and 2 signs, 4 times: fits */
        used += (size_t)snprintf(text + used, SAFETENSORS_SHAPE_BYTES - used, "%s%zu",
                                 i > 0 ? ", " : "", shape[i]);
    }
    snprintf(text + used, SAFETENSORS_SHAPE_BYTES - used, "]");
    return text;
}

enum status safetensors_entry_bytes(const char *where, const struct safetensors_entry *entry,
                                    size_t *bytes) {
    size_t product = safetensors_dtype_bytes(entry->dtype);
    for (int i = 0; i < entry->rank; i++) {
        if (!size_mul(product, entry->shape[i], &product)) {
            char text[SAFETENSORS_SHAPE_BYTES];
            return status_set(STATUS_CHECKPOINT,
                              "%s: the shape %s of %s has more bytes than a size can "
                              "hold",
                              where, safetensors_shape_text(text, entry->rank, entry->shape),
                              entry->name);
        }
    }
    *bytes = product;
    return STATUS_OK;
}

enum status safetensors_name_check(const char *where, const char *name) {
    const size_t length = strnlen(name, SAFETENSORS_NAME_BYTES);
    for (size_t i = 0; i < length; i++) {
        if (name[i] < ' ' || name[i] > '~') {
            return status_set(STATUS_CHECKPOINT,
                              "%s: expected tensor names in printable ASCII, found "
                              "byte 0x%02x in one after \"%.*s\"",
                              where, (unsigned char)name[i], (int)i, name);
        }
    }
    if (length == 0 || length == SAFETENSORS_NAME_BYTES) {
        return status_set(STATUS_CHECKPOINT,
                          "%s: expected tensor names of 1 to %d bytes, found \"%.40s%s\"", where,
                          SAFETENSORS_NAME_BYTES - 1, name, length == 0 ? "" : "...");
    }
    return STATUS_OK;
}

static int compare_names(const void *a, const void *b) {
    const struct safetensors_entry *const *left = a, *const *right = b;
    return strcmp((*left)->name, (*right)->name);
}

enum status safetensors_names_unique(const char *where, const struct safetensors_entry *entries,
                                     size_t count) {
    if (count == 0) return STATUS_OK;
    const struct safetensors_entry **by_name = malloc(count * sizeof *by_name);
    if (by_name == NULL) return status_set(STATUS_MEMORY, "out of memory reading %s", where);
    for (size_t i = 0; i < count; i++) by_name[i] = &entries[i];
    qsort(by_name, count, sizeof *by_name, compare_names);
    enum status status = STATUS_OK;
    for (size_t i = 1; i < count && status == STATUS_OK; i++) {
        if (strcmp(by_name[i - 1]->name, by_name[i]->name) == 0) {
            status = status_set(STATUS_CHECKPOINT, "%s: the tensor %s stands twice in the header",
                                where, by_name[i]->name);
        }
    }
    free(by_name);
    return status;
}

static enum status parse_dtype(const char *where, const cJSON *item,
                               struct safetensors_entry *entry) {
    const char *name = NULL;
    TRY(json_string(where, item, "dtype", &name));
    for (int i = 0; i < SAFETENSORS_DTYPES; i++) {
        if (strcmp(name, dtypes[i].name) == 0) {
            entry->dtype = (enum safetensors_dtype)i;
            return STATUS_OK;
        }
    }
    return status_set(STATUS_CHECKPOINT,
                      "%s: expected %s to be F32, F16, BF16, U8 or BOOL, found \"%.20s\"", where,
                      entry->name, name);
}

static enum status parse_shape(const char *where, const cJSON *item,
                               struct safetensors_entry *entry) {
    const cJSON *shape = NULL;
    TRY(json_find(where, item, "shape", &shape));
    if (!cJSON_IsArray(shape)) {
        return status_set(STATUS_CHECKPOINT, "%s: expected the shape of %s to be an array", where,
                          entry->name);
    }
    for (const cJSON *size = shape->child; size != NULL; size = size->next) {
        int64_t value = 0;
        if (entry->rank == SAFETENSORS_RANK_MAX) {
            return status_set(STATUS_CHECKPOINT, "%s: expected at most %d dimensions, %s has more",
                              where, SAFETENSORS_RANK_MAX, entry->name);
        }
        TRY(json_integer_of(where, "each dimension", size, 0, JSON_INTEGER_MAX, &value));
        entry->shape[entry->rank++] = (size_t)value;
    }
    return STATUS_OK;
}

/* Offsets inside the data, and as many bytes as the shape says. */
static enum status parse_offsets(const char *where, const cJSON *item, size_t data_bytes,
                                 struct safetensors_entry *entry) {
    const cJSON *offsets = NULL;
    int64_t begin = 0, end = 0;
    size_t expected = 0;
    TRY(json_find(where, item, "data_offsets", &offsets));
    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2) {
        return status_set(STATUS_CHECKPOINT, "%s: expected data_offsets of %s to be two integers",
                          where, entry->name);
    }
    TRY(json_integer_of(where, "a data offset", offsets->child, 0, JSON_INTEGER_MAX, &begin));
    TRY(json_integer_of(where, "a data offset", offsets->child->next, 0, JSON_INTEGER_MAX, &end));
    TRY(safetensors_entry_bytes(where, entry, &expected));
    if (begin > end || (size_t)end > data_bytes) {
        return status_set(STATUS_CHECKPOINT,
                          "%s: %s is said to lie from %lld to %lld, but the data have "
                          "%zu bytes",
                          where, entry->name, (long long)begin, (long long)end, data_bytes);
    }
    entry->offset = (size_t)begin;
    entry->bytes = (size_t)(end - begin);
    if (entry->bytes != expected) {
        char text[SAFETENSORS_SHAPE_BYTES];
        return status_set(STATUS_CHECKPOINT,
                          "%s: %s of shape %s in %s needs %zu bytes, its offsets give "
                          "%zu",
                          where, entry->name,
                          safetensors_shape_text(text, entry->rank, entry->shape),
                          safetensors_dtype_name(entry->dtype), expected, entry->bytes);
    }
    return STATUS_OK;
}

static enum status parse_entry(const char *where, const cJSON *item, size_t data_bytes,
                               struct safetensors_entry *entry) {
    TRY(safetensors_name_check(where, item->string));
    strcpy(entry->name, item->string);
    if (!cJSON_IsObject(item) || cJSON_GetArraySize(item) != 3) {
        return status_set(STATUS_CHECKPOINT,
                          "%s: expected dtype, shape and data_offsets for %s and "
                          "nothing else",
                          where, entry->name);
    }
    TRY(parse_dtype(where, item, entry));
    TRY(parse_shape(where, item, entry));
    return parse_offsets(where, item, data_bytes, entry);
}

static enum status check_metadata(const char *where, const cJSON *metadata) {
    bool strings = cJSON_IsObject(metadata);
    for (const cJSON *value = metadata->child; strings && value != NULL; value = value->next) {
        strings = cJSON_IsString(value);
    }
    if (strings) return STATUS_OK;
    return status_set(STATUS_CHECKPOINT,
                      "%s: expected " SAFETENSORS_METADATA_KEY " to be an object of "
                      "strings",
                      where);
}

/* By offset; an empty tensor may share its offset with the one behind it. */
static int compare_offsets(const void *a, const void *b) {
    const struct safetensors_entry *left = a, *right = b;
    if (left->offset != right->offset) return left->offset < right->offset ? -1 : 1;
    return (left->bytes > right->bytes) - (left->bytes < right->bytes);
}

/* The sorted entries cover data_bytes without gap and overlap. */
static enum status check_cover(const char *where, const struct safetensors_entry *entries,
                               size_t count, size_t data_bytes) {
    size_t covered = 0;
    for (size_t i = 0; i < count; i++) {
        if (entries[i].offset != covered) {
            return status_set(STATUS_CHECKPOINT,
                              "%s: expected %s to begin at byte %zu of the data, where "
                              "the tensor before it ends, found %zu",
                              where, entries[i].name, covered, entries[i].offset);
        }
        covered += entries[i].bytes; /* at most data_bytes: parse_offsets */
    }
    if (covered != data_bytes) {
        return status_set(STATUS_CHECKPOINT,
                          "%s: the tensors end at byte %zu of the data, but the file "
                          "has %zu bytes of data",
                          where, covered, data_bytes);
    }
    return STATUS_OK;
}

static enum status parse_entries(struct safetensors *file, const cJSON *header, size_t data_bytes) {
    const char *where = file->path;
    size_t capacity = 0;
    const cJSON *metadata = NULL;
    TRY(json_find(where, header, SAFETENSORS_METADATA_KEY, &metadata));
    if (metadata != NULL) TRY(check_metadata(where, metadata));
    for (const cJSON *item = header->child; item != NULL; item = item->next) capacity++;
    if (capacity > 0) {
        file->entries = calloc(capacity, sizeof *file->entries);
        if (file->entries == NULL) {
            return status_set(STATUS_MEMORY, "out of memory reading %s", where);
        }
    }
    for (const cJSON *item = header->child; item != NULL; item = item->next) {
        if (item == metadata) continue;
        TRY(parse_entry(where, item, data_bytes, &file->entries[file->count]));
        file->count++;
    }
    TRY(safetensors_names_unique(where, file->entries, file->count));
    if (file->count > 0) {
        qsort(file->entries, file->count, sizeof *file->entries, compare_offsets);
    }
    return check_cover(where, file->entries, file->count, data_bytes);
}

static enum status parse(struct safetensors *file) {
    const size_t bytes = file->map.bytes;
    uint64_t header_bytes = 0;
    if (bytes < SAFETENSORS_LENGTH_BYTES) {
        return status_set(STATUS_CHECKPOINT,
                          "%s has %zu bytes, expected at least %d: not a safetensors "
                          "file",
                          file->path, bytes, SAFETENSORS_LENGTH_BYTES);
    }
    memcpy(&header_bytes, file->map.data, sizeof header_bytes);
    const size_t most = size_min(bytes - SAFETENSORS_LENGTH_BYTES, SAFETENSORS_HEADER_BYTES_MAX);
    if (header_bytes > most) {
        return status_set(STATUS_CHECKPOINT,
                          "%s: expected a header of at most %zu bytes, found %llu: not "
                          "a safetensors file, or cut short",
                          file->path, most, (unsigned long long)header_bytes);
    }
    const char *text = (const char *)file->map.data + SAFETENSORS_LENGTH_BYTES;
    cJSON *header = NULL;
    TRY(json_parse(file->path, text, (size_t)header_bytes, &header));
    file->data = file->map.data + SAFETENSORS_LENGTH_BYTES + header_bytes;
    const enum status status = parse_entries(file, header,
                                             bytes - SAFETENSORS_LENGTH_BYTES -
                                                 (size_t)header_bytes);
    cJSON_Delete(header);
    return status;
}

enum status safetensors_open(struct safetensors *file, const char *path) {
    memset(file, 0, sizeof *file);
    TRY(path_copy(file->path, path));
    TRY(file_map_open(path, &file->map));
    const enum status status = parse(file);
    if (status != STATUS_OK) safetensors_close(file);
    return status;
}

void safetensors_close(struct safetensors *file) {
    free(file->entries);
    file_map_close(&file->map);
    memset(file, 0, sizeof *file);
}

const struct safetensors_entry *safetensors_find(const struct safetensors *file, const char *name) {
    for (size_t i = 0; i < file->count; i++) {
        if (strcmp(file->entries[i].name, name) == 0) return &file->entries[i];
    }
    return NULL;
}

/* Writing safetensors files, header first, then the data as they come: behind
 * checkpoints/safetensors.h. */
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "checkpoints/json.h"
#include "checkpoints/safetensors.h"
#include "checkpoints/safetensors_internal.h"

struct safetensors_writer {
    char path[PATH_BYTES];
    struct digest_writer *out;
    size_t promised_bytes; /* of data, by the header */
    size_t appended_bytes;
};

static enum status place_entries(const char *path, struct safetensors_entry *entries, size_t count,
                                 size_t *data_bytes) {
    size_t end = 0;
    for (size_t i = 0; i < count; i++) {
        TRY(safetensors_name_check(path, entries[i].name));
        if (strcmp(entries[i].name, SAFETENSORS_METADATA_KEY) == 0) {
            return status_set(STATUS_INTERNAL, "%s: no tensor may be called %s", path,
                              entries[i].name);
        }
        entries[i].offset = end;
        TRY(safetensors_entry_bytes(path, &entries[i], &entries[i].bytes));
        if (!size_add(end, entries[i].bytes, &end)) {
            return status_set(STATUS_INTERNAL,
                              "%s: the tensors up to %s have more bytes than a size can "
                              "hold",
                              path, entries[i].name);
        }
    }
    *data_bytes = end;
    return safetensors_names_unique(path, entries, count);
}

static bool add_size(cJSON *array, size_t value) {
    return cJSON_AddItemToArray(array, cJSON_CreateNumber((double)value));
}

static bool add_entry(cJSON *header, const struct safetensors_entry *entry) {
    cJSON *item = cJSON_AddObjectToObject(header, entry->name);
    bool good =
        cJSON_AddStringToObject(item, "dtype", safetensors_dtype_name(entry->dtype)) != NULL;
    cJSON *shape = cJSON_AddArrayToObject(item, "shape");
    for (int i = 0; i < entry->rank; i++) good = good && add_size(shape, entry->shape[i]);
    cJSON *offsets = cJSON_AddArrayToObject(item, "data_offsets");
    return good && add_size(offsets, entry->offset) &&
           add_size(offsets, entry->offset + entry->bytes);
}

/* The header's JSON; NULL when out of memory. */
static char *header_text(const struct safetensors_entry *entries, size_t count,
                         const char *const *metadata, size_t metadata_pairs) {
    char *text = NULL;
    cJSON *header = cJSON_CreateObject();
    bool good = header != NULL;
    if (metadata_pairs > 0) {
        cJSON *pairs = cJSON_AddObjectToObject(header, SAFETENSORS_METADATA_KEY);
        for (size_t i = 0; i < metadata_pairs; i++) {
            good = good &&
                   cJSON_AddStringToObject(pairs, metadata[2 * i], metadata[2 * i + 1]) != NULL;
        }
    }
    for (size_t i = 0; i < count && good; i++) good = add_entry(header, &entries[i]);
    if (good) text = cJSON_PrintUnformatted(header);
    cJSON_Delete(header);
    return text;
}

/* Length and text, padded with spaces so that the data begin at a multiple of 8. */
static enum status append_header(struct safetensors_writer *writer, const char *text) {
    const size_t text_bytes = strlen(text);
    const uint64_t header_bytes = align_up(text_bytes, SAFETENSORS_LENGTH_BYTES);
    if (header_bytes > SAFETENSORS_HEADER_BYTES_MAX) {
        return status_set(STATUS_INTERNAL,
                          "%s: the header of %zu bytes is longer than %d, too long to "
                          "be read again",
                          writer->path, text_bytes, SAFETENSORS_HEADER_BYTES_MAX);
    }
    TRY(digest_writer_append(writer->out, &header_bytes, sizeof header_bytes));
    TRY(digest_writer_append(writer->out, text, text_bytes));
    return digest_writer_append(writer->out, "        ", (size_t)header_bytes - text_bytes);
}

enum status safetensors_writer_open(struct safetensors_writer **out, const char *path,
                                    struct safetensors_entry *entries, size_t count,
                                    const char *const *metadata, size_t metadata_pairs) {
    enum status status = STATUS_OK;
    char *text = NULL;
    struct safetensors_writer *writer = calloc(1, sizeof *writer);
    if (writer == NULL) goto out_of_memory;
    TRY_GOTO(place_entries(path, entries, count, &writer->promised_bytes), fail);
    text = header_text(entries, count, metadata, metadata_pairs);
    if (text == NULL) goto out_of_memory;
    TRY_GOTO(digest_writer_open(&writer->out, path), fail); /* refuses a path that is too long */
    strcpy(writer->path, path);
    TRY_GOTO(append_header(writer, text), fail);
    free(text);
    *out = writer;
    return STATUS_OK;

out_of_memory:
    status = status_set(STATUS_MEMORY, "out of memory for the header of %s", path);
fail:
    free(text);
    safetensors_writer_abandon(writer);
    return status;
}

enum status safetensors_writer_append(struct safetensors_writer *writer, const void *data,
                                      size_t bytes) {
    if (bytes > writer->promised_bytes - writer->appended_bytes) {
        return status_set(STATUS_INTERNAL,
                          "%s: %zu bytes of data were promised, %zu more came after %zu",
                          writer->path, writer->promised_bytes, bytes, writer->appended_bytes);
    }
    writer->appended_bytes += bytes;
    return digest_writer_append(writer->out, data, bytes);
}

enum status safetensors_writer_finish(struct safetensors_writer *writer,
                                      struct file_digest *digest) {
    enum status status = STATUS_OK;
    if (writer->appended_bytes != writer->promised_bytes) {
        status = status_set(STATUS_INTERNAL, "%s: %zu bytes of data were promised, %zu came",
                            writer->path, writer->promised_bytes, writer->appended_bytes);
        safetensors_writer_abandon(writer);
        return status;
    }
    status = digest_writer_finish(writer->out, digest);
    free(writer);
    return status;
}

void safetensors_writer_abandon(struct safetensors_writer *writer) {
    if (writer == NULL) return;
    digest_writer_abandon(writer->out);
    free(writer);
}

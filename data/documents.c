/* Walking folders and reading documents in pieces. */
#include "data/documents.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "base/file.h"

enum { PIECE_BYTES = 65536 };

/* The output folder, if it is there already. */
struct out_identity {
    bool exists;
    dev_t device;
    ino_t inode;
};

static bool is_out_folder(const struct out_identity *out, const struct stat *info) {
    return out->exists && out->device == info->st_dev && out->inode == info->st_ino;
}

/* Appends a copy of the path. */
static enum status list_append(struct document_list *list, const char *path) {
    if (list->count == list->capacity) {
        const size_t capacity = list->capacity == 0 ? 64 : list->capacity * 2;
        struct document *grown = realloc(list->items, capacity * sizeof *grown);
        if (grown == NULL) goto out_of_memory;
        list->items = grown;
        list->capacity = capacity;
    }
    char *copy = strdup(path);
    if (copy == NULL) goto out_of_memory;
    list->items[list->count++] = (struct document){.path = copy};
    return STATUS_OK;

out_of_memory:
    return status_set(STATUS_MEMORY, "out of memory for the names of %zu files", list->count);
}

void documents_release(struct document_list *list) {
    for (size_t i = 0; i < list->count; i++) free(list->items[i].path);
    free(list->items);
    *list = (struct document_list){.items = NULL};
}

/* Files of one folder go to the list, folders to `pending`. */
static enum status list_folder(struct document_list *list, struct document_list *pending,
                               const char *folder, const struct out_identity *out) {
    enum status status = STATUS_OK;
    char **names = NULL, path[PATH_BYTES];
    size_t count = 0;
    struct stat info;
    TRY(folder_list(folder, &names, &count));
    for (size_t i = 0; i < count; i++) {
        if (names[i][0] == '.') {
            list->skipped_hidden++;
            continue;
        }
        TRY_GOTO(path_join(path, folder, names[i]), cleanup);
        if (lstat(path, &info) != 0) {
            status = status_set(STATUS_IO, "cannot look at %s: %s", path, strerror(errno));
            goto cleanup;
        }
        if (S_ISREG(info.st_mode)) {
            TRY_GOTO(list_append(list, path), cleanup);
        } else if (!S_ISDIR(info.st_mode)) {
            list->skipped_special++;
        } else if (!is_out_folder(out, &info)) {
            TRY_GOTO(list_append(pending, path), cleanup);
        }
    }

cleanup:
    names_free(names, count);
    return status;
}

static int compare_documents(const void *a, const void *b) {
    return strcmp(((const struct document *)a)->path, ((const struct document *)b)->path);
}

/* A folder and all below it. The folders still to be listed wait in a list, not on the stack: a
 * tree may be deep. */
static enum status walk(struct document_list *list, const char *root,
                        const struct out_identity *out) {
    enum status status = STATUS_OK;
    struct document_list pending = {.items = NULL};
    const size_t first = list->count;
    TRY_GOTO(list_append(&pending, root), cleanup);
    while (pending.count > 0) {
        char *folder = pending.items[--pending.count].path;
        status = list_folder(list, &pending, folder, out);
        free(folder);
        if (status != STATUS_OK) goto cleanup;
    }
    const size_t found = list->count - first;
    if (found > 0) qsort(list->items + first, found, sizeof *list->items, compare_documents);

cleanup:
    documents_release(&pending);
    return status;
}

/* One input as it was named; a symbolic link named here is followed. */
static enum status add_input(struct document_list *list, const char *input,
                             const struct out_identity *out) {
    struct stat info;
    if (stat(input, &info) != 0) {
        return status_set(STATUS_IO, "cannot find the input %s: %s", input, strerror(errno));
    }
    if (S_ISREG(info.st_mode)) return list_append(list, input);
    if (!S_ISDIR(info.st_mode)) {
        return status_set(STATUS_DATA, "expected a text file or a folder, found something else: %s "
                          "(write the text to a file first)", input);
    }
    if (is_out_folder(out, &info)) {
        return status_set(STATUS_CONFIG, "expected an output folder apart from the input, found %s "
                          "as both: choose another --out", input);
    }
    return walk(list, input, out);
}

/* Reads a file in pieces until its end or until `take` wants no more (*more = false). */
static enum status read_pieces(const char *path,
                               enum status (*take)(void *context, const unsigned char *text,
                                                   size_t bytes, bool *more),
                               void *context) {
    enum status status = STATUS_OK;
    bool more = true;
    unsigned char piece[PIECE_BYTES];
    FILE *file = fopen(path, "rbe");
    if (file == NULL) return status_set(STATUS_IO, "cannot open %s: %s", path, strerror(errno));
    while (more) {
        const size_t got = fread(piece, 1, sizeof piece, file);
        if (got > 0) TRY_GOTO(take(context, piece, got, &more), cleanup);
        if (got < sizeof piece) break;
    }
    if (ferror(file)) status = status_set(STATUS_IO, "cannot read %s: %s", path, strerror(errno));

cleanup:
    fclose(file);
    return status;
}

/* What is known of a file's content so far. */
struct content {
    XXH3_state_t *state;
    size_t bytes;
    bool binary; /* a zero byte came by */
    enum status (*take)(void *context, const unsigned char *text, size_t bytes);
    void *context;
};

static enum status look_through(void *context, const unsigned char *text, size_t bytes,
                                bool *more) {
    struct content *content = context;
    XXH3_64bits_update(content->state, text, bytes);
    content->bytes += bytes;
    content->binary = memchr(text, '\0', bytes) != NULL;
    *more = !content->binary;
    return STATUS_OK;
}

static enum status hand_over(void *context, const unsigned char *text, size_t bytes, bool *more) {
    struct content *content = context;
    TRY(look_through(content, text, bytes, more));
    return content->binary ? STATUS_OK : content->take(content->context, text, bytes);
}

static void note_binary(struct document_list *list, const char *path) {
    enum { NAME_BYTES = DOCUMENTS_NAMES_BYTES / (DOCUMENTS_NAMED + 1) };
    const size_t length = strlen(path);
    size_t cut = length > NAME_BYTES ? length - NAME_BYTES : 0;
    while (((unsigned char)path[cut] & 0xC0) == 0x80) cut++; /* no half of a UTF-8 character */
    char *names = list->binary_names;
    const size_t used = strlen(names), before = list->skipped_binary++;
    if (before >= DOCUMENTS_NAMED) return;
    snprintf(names + used, DOCUMENTS_NAMES_BYTES - used, "%s%s%s", before == 0 ? "" : ", ",
             cut > 0 ? "..." : "", path + cut); /* its end tells more than its start */
}

static void note_more_binaries(struct document_list *list) {
    char *names = list->binary_names;
    const size_t used = strlen(names);
    if (list->skipped_binary <= DOCUMENTS_NAMED) return;
    snprintf(names + used, DOCUMENTS_NAMES_BYTES - used, " and %zu more",
             list->skipped_binary - DOCUMENTS_NAMED);
}

/* Looks through all files; only documents stay in the list. */
static enum status keep_documents(struct document_list *list, XXH3_state_t *state) {
    size_t kept = 0;
    for (size_t i = 0; i < list->count; i++) {
        struct document document = list->items[i];
        struct content content = {.state = state};
        XXH3_64bits_reset(state);
        TRY(read_pieces(document.path, look_through, &content));
        list->items[i].path = NULL; /* so that no path stands in the list twice */
        if (content.binary || content.bytes == 0) {
            if (content.binary) note_binary(list, document.path);
            list->skipped_empty += content.bytes == 0;
            free(document.path);
            continue;
        }
        document.bytes = content.bytes;
        document.hash = XXH3_64bits_digest(state);
        list->items[kept++] = document;
    }
    list->count = kept;
    note_more_binaries(list);
    return STATUS_OK;
}

enum status documents_find(struct document_list *list, const char *const *inputs,
                           size_t input_count, const char *out_folder) {
    enum status status = STATUS_OK;
    struct stat info;
    struct out_identity out = {.exists = stat(out_folder, &info) == 0};
    if (out.exists) {
        out.device = info.st_dev;
        out.inode = info.st_ino;
    }
    *list = (struct document_list){.items = NULL};
    XXH3_state_t *state = XXH3_createState();
    if (state == NULL) return status_set(STATUS_MEMORY, "out of memory to look through the files");
    for (size_t i = 0; i < input_count; i++) TRY_GOTO(add_input(list, inputs[i], &out), cleanup);
    TRY_GOTO(keep_documents(list, state), cleanup);

cleanup:
    XXH3_freeState(state);
    if (status != STATUS_OK) documents_release(list);
    return status;
}

enum status document_read(const struct document *document,
                          enum status (*take)(void *context, const unsigned char *text,
                                              size_t bytes),
                          void *context) {
    struct content content = {.take = take, .context = context};
    content.state = XXH3_createState();
    if (content.state == NULL) {
        return status_set(STATUS_MEMORY, "out of memory to read %s", document->path);
    }
    XXH3_64bits_reset(content.state);
    enum status status = read_pieces(document->path, hand_over, &content);
    const uint64_t hash = XXH3_64bits_digest(content.state);
    XXH3_freeState(content.state);
    if (status == STATUS_OK && (content.bytes != document->bytes || hash != document->hash)) {
        status = status_set(STATUS_DATA, "%s changed while it was being prepared: expected the %zu "
                            "bytes seen before, found %zu or other content; start again when it "
                            "is complete", document->path, document->bytes, content.bytes);
    }
    return status;
}

/*
 * Text to shards in five steps: find the documents (documents.c), decide the split, write all
 * outputs into a folder beside OUT, put it in the place of OUT, done. OUT is what it was or the
 * complete new set, at every instant, and an error removes what was written.
 */
#include "data/prepare.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "base/checked.h"
#include "base/file.h"
#include "data/description.h"
#include "data/documents.h"
#include "data/shard.h"
#include "data/tokenizer.h"

enum {
    LINE_SEARCH_BYTES = 4096, /* how far back from the wished cut a line end is looked for */
    ENCODED_BYTES = 4096,     /* at a time */
};

enum split { SPLIT_TRAIN, SPLIT_VALIDATION, SPLITS };

enum { OUTPUTS = SPLITS + 1 };
static const char *const output_names[OUTPUTS] = {"train.bin", "validation.bin", "dataset.json"};

struct prepare {
    const struct prepare_options *options;
    struct document_list documents;
    size_t train_bytes; /* of the only document; with several documents unused */
    double threshold;   /* positions below it are for validation; with one document unused */
    char out[PATH_BYTES], parent[PATH_BYTES], staging[PATH_BYTES];
    int lock;           /* of staging, held while it is worked in; -1: none */
    size_t left_behind; /* by earlier preparations of OUT that were killed: removed */
    struct shard_writer *writers[SPLITS];
    size_t tokens[SPLITS];
};

/* Where the content of a document belongs: in [0, 1), the same whatever else is prepared. */
static double document_position(const struct document *document) {
    return (double)(document->hash >> 11) * 0x1p-53;
}

static enum split document_split(const struct prepare *prepare, const struct document *document) {
    return document_position(document) < prepare->threshold ? SPLIT_VALIDATION : SPLIT_TRAIN;
}

/* A file that is named, and whose name says that it is no plain text. */
static enum status check_kind(const char *path) {
    static const char *const kinds[] = {".jsonl", ".ndjson", ".parquet", ".gz", ".zst"};
    const size_t length = strlen(path);
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        const size_t end = strlen(kinds[i]);
        if (length > end && strcmp(path + length - end, kinds[i]) == 0 && path_is_file(path)) {
            return status_set(STATUS_CONFIG, "expected plain text, found %s: ./deepwell data "
                              "prepare --tokenizer bytes reads it (or another tokenizer)", path);
        }
    }
    return STATUS_OK;
}

static enum status check_options(const struct prepare_options *options) {
    if (options->input_count == 0) {
        return status_set(STATUS_CONFIG, "expected a text file or a folder to prepare, found none: "
                          "name at least one");
    }
    for (size_t i = 0; i < options->input_count; i++) TRY(check_kind(options->inputs[i]));
    if (!(options->validation_fraction > 0.0 && options->validation_fraction < 1.0)) {
        return status_set(STATUS_CONFIG, "expected a validation fraction above 0 and below 1, "
                          "found %g", options->validation_fraction);
    }
    return STATUS_OK;
}

/* Whether a name in OUT is one that a preparation gives, this one or tools/prepare. */
static bool is_output(const char *name) {
    for (size_t i = 0; i < OUTPUTS; i++) {
        if (strcmp(name, output_names[i]) == 0) return true;
    }
    int end = 0;
    (void)sscanf(name, "train_%*6[0-9].bin%n", &end);
    if (end == 0) (void)sscanf(name, "validation_%*6[0-9].bin%n", &end);
    return strcmp(name, "tokenizer.json") == 0 || (end > 0 && name[end] == '\0');
}

/* Refuses a folder that holds what is no earlier output, or any, unless it may be replaced: the
 * folder is replaced whole. */
static enum status check_names(const struct prepare_options *options, char *const *names,
                               size_t count) {
    for (size_t i = 0; i < count; i++) {
        char path[PATH_BYTES];
        TRY(path_join(path, options->out_folder, names[i]));
        if (!is_output(names[i]) || !path_is_file(path)) {
            return status_set(STATUS_CONFIG, "expected a new folder or an earlier output at --out "
                              "%s, found %s in it: choose another --out", options->out_folder,
                              names[i]);
        }
    }
    if (count > 0 && !options->overwrite) {
        return status_set(STATUS_CONFIG, "expected no earlier output, found %s/%s: choose another "
                          "--out, or replace it with --overwrite", options->out_folder, names[0]);
    }
    return STATUS_OK;
}

/* *present: there is an earlier output, which may be replaced. */
static enum status check_outputs(const struct prepare_options *options, bool *present) {
    struct stat info;
    char **names = NULL;
    size_t count = 0;
    *present = false;
    if (lstat(options->out_folder, &info) != 0) return STATUS_OK;
    if (!path_is_folder(options->out_folder)) {
        return status_set(STATUS_IO, "expected a folder or nothing at --out, found something else: "
                          "%s; remove it or choose another --out", options->out_folder);
    }
    TRY(folder_list(options->out_folder, &names, &count));
    const enum status status = check_names(options, names, count);
    names_free(names, count);
    *present = count > 0;
    return status;
}

/* *cut = the place after the last line end in bytes [start, start + bytes) of the document; left
 * alone if there is none. bytes <= LINE_SEARCH_BYTES. */
static enum status find_line_end(const struct document *document, size_t start, size_t bytes,
                                 size_t *cut) {
    char text[LINE_SEARCH_BYTES];
    FILE *file = fopen(document->path, "rbe");
    if (file == NULL || fseeko(file, (off_t)start, SEEK_SET) != 0) {
        const enum status status = status_set(STATUS_IO, "cannot read %s: %s", document->path,
                                              strerror(errno));
        if (file != NULL) fclose(file);
        return status;
    }
    const size_t got = fread(text, 1, bytes, file); /* too few: found out when it is written */
    fclose(file);
    const char *line_end = memrchr(text, '\n', got);
    if (line_end != NULL) *cut = start + (size_t)(line_end - text) + 1;
    return STATUS_OK;
}

/* One document: train on its start, validate on its end. */
static enum status split_one(struct prepare *prepare) {
    const struct document *document = &prepare->documents.items[0];
    const double fraction = prepare->options->validation_fraction;
    const size_t validation = size_min((size_t)(fraction * (double)document->bytes + 0.5),
                                       document->bytes);
    const size_t wished = document->bytes - validation;
    if (validation == 0 || wished == 0) {
        return status_set(STATUS_DATA, "expected text for training and for validation, found one "
                          "document of %zu bytes, which --validation-fraction %g does not divide: "
                          "give more text", document->bytes, fraction);
    }
    /* A line end is near if going back to it lengthens the validation part by half at most. */
    const size_t near = size_min(size_min(LINE_SEARCH_BYTES, validation / 2), wished);
    prepare->train_bytes = wished;
    return find_line_end(document, wished - near, near, &prepare->train_bytes);
}

/* Several documents: each goes by its content. Where few documents leave a side empty, the one
 * nearest to that side goes there. */
static enum status split_many(struct prepare *prepare) {
    double lowest = 1.0, highest = 0.0;
    for (size_t i = 0; i < prepare->documents.count; i++) {
        const double position = document_position(&prepare->documents.items[i]);
        lowest = fmin(lowest, position);
        highest = fmax(highest, position);
    }
    if (lowest == highest) {
        return status_set(STATUS_DATA,
                          "expected documents for training and for validation, found %zu "
                          "with the same content: give different ones, or one of them",
                          prepare->documents.count);
    }
    const double above_lowest = nextafter(lowest, 1.0);
    prepare->threshold = fmin(fmax(prepare->options->validation_fraction, above_lowest), highest);
    return STATUS_OK;
}

static enum status decide_split(struct prepare *prepare) {
    const struct document_list *documents = &prepare->documents;
    if (documents->count == 0) {
        return status_set(STATUS_DATA,
                          "expected text, found no document in the inputs (passed "
                          "over: %zu empty, %zu binary%s%s%s, %zu hidden, %zu links and special "
                          "files): name text files or folders that hold some",
                          documents->skipped_empty, documents->skipped_binary,
                          documents->skipped_binary > 0 ? " (" : "", documents->binary_names,
                          documents->skipped_binary > 0 ? ")" : "", documents->skipped_hidden,
                          documents->skipped_special);
    }
    return documents->count == 1 ? split_one(prepare) : split_many(prepare);
}

static enum status append_tokens(struct prepare *prepare, enum split split,
                                 const int32_t *tokens, size_t count) {
    prepare->tokens[split] += count;
    return shard_writer_append(prepare->writers[split], tokens, count);
}

/* Where the next bytes of a document go: `first_bytes` to one split, the rest to another. */
struct destination {
    struct prepare *prepare;
    size_t first_bytes;
    enum split first, rest;
};

static enum status write_text(void *context, const unsigned char *text, size_t bytes) {
    struct destination *destination = context;
    int32_t tokens[ENCODED_BYTES];
    while (bytes > 0) {
        const bool in_first = destination->first_bytes > 0;
        size_t count = size_min(bytes, ENCODED_BYTES);
        if (in_first) {
            count = size_min(count, destination->first_bytes);
            destination->first_bytes -= count;
        }
        byte_encode(text, count, tokens);
        TRY(append_tokens(destination->prepare, in_first ? destination->first : destination->rest,
                          tokens, count));
        text += count;
        bytes -= count;
    }
    return STATUS_OK;
}

static enum status write_document(struct prepare *prepare, const struct document *document) {
    const int32_t end_of_text = BYTE_END_OF_TEXT;
    struct destination destination = {.prepare = prepare};
    if (prepare->documents.count == 1) {
        destination.first_bytes = prepare->train_bytes;
        destination.first = SPLIT_TRAIN;
        destination.rest = SPLIT_VALIDATION;
    } else {
        destination.rest = document_split(prepare, document);
    }
    TRY(document_read(document, write_text, &destination));
    return append_tokens(prepare, destination.rest, &end_of_text, 1);
}

static enum status write_shards(struct prepare *prepare) {
    char path[PATH_BYTES];
    for (size_t i = 0; i < SPLITS; i++) {
        TRY(path_join(path, prepare->staging, output_names[i]));
        TRY(shard_writer_open(&prepare->writers[i], path, sizeof(uint16_t)));
    }
    for (size_t i = 0; i < prepare->documents.count; i++) {
        TRY(write_document(prepare, &prepare->documents.items[i]));
    }
    for (size_t i = 0; i < SPLITS; i++) {
        struct shard_writer *writer = prepare->writers[i];
        prepare->writers[i] = NULL; /* finish releases it */
        TRY(shard_writer_finish(writer));
    }
    return STATUS_OK;
}

/* The shards with their checksums, as a list; NULL when out of memory. */
static enum status list_shards(const struct prepare *prepare, cJSON **list) {
    static const char *const splits[SPLITS] = {"train", "validation"};
    cJSON *shards = cJSON_CreateArray();
    *list = shards;
    for (size_t i = 0; i < SPLITS; i++) {
        char path[PATH_BYTES], digest[DIGEST_TEXT_BYTES];
        TRY(path_join(path, prepare->staging, output_names[i]));
        TRY(description_digest(path, digest));
        cJSON *shard = cJSON_CreateObject();
        if (!cJSON_AddStringToObject(shard, "name", output_names[i]) ||
            !cJSON_AddStringToObject(shard, "split", splits[i]) ||
            !cJSON_AddNumberToObject(shard, "tokens", (double)prepare->tokens[i]) ||
            !cJSON_AddStringToObject(shard, "xxh3_128", digest) ||
            !cJSON_AddItemToArray(shards, shard)) {
            cJSON_Delete(shard);
            return status_set(STATUS_MEMORY, "out of memory to describe the data");
        }
    }
    return STATUS_OK;
}

/* What the shards are made of; NULL when out of memory. Release with cJSON_free. */
static char *describe(const struct prepare *prepare, cJSON **shards) {
    const struct prepare_options *options = prepare->options;
    char *text = NULL;
    cJSON *root = cJSON_CreateObject();
    cJSON *inputs = cJSON_CreateStringArray(options->inputs, (int)options->input_count);
    const double documents = (double)prepare->documents.count;
    const double train_tokens = (double)prepare->tokens[SPLIT_TRAIN];
    const double validation_tokens = (double)prepare->tokens[SPLIT_VALIDATION];
    if (cJSON_AddStringToObject(root, "tokenizer", "bytes") &&
        cJSON_AddNumberToObject(root, "vocabulary", BYTE_VOCABULARY) &&
        cJSON_AddNumberToObject(root, "end_of_text", BYTE_END_OF_TEXT) &&
        cJSON_AddNumberToObject(root, "documents", documents) &&
        cJSON_AddNumberToObject(root, "train_tokens", train_tokens) &&
        cJSON_AddNumberToObject(root, "validation_tokens", validation_tokens) &&
        cJSON_AddNumberToObject(root, "validation_fraction", options->validation_fraction) &&
        cJSON_AddItemToObject(root, "inputs", inputs)) {
        inputs = NULL; /* now the object's */
        if (cJSON_AddItemToObject(root, "shards", *shards)) {
            *shards = NULL;
            text = cJSON_Print(root);
        }
    }
    cJSON_Delete(inputs);
    cJSON_Delete(root);
    return text;
}

static enum status write_description(const struct prepare *prepare) {
    char path[PATH_BYTES];
    TRY(path_join(path, prepare->staging, output_names[SPLITS]));
    cJSON *shards = NULL;
    enum status status = list_shards(prepare, &shards);
    char *text = status == STATUS_OK ? describe(prepare, &shards) : NULL;
    cJSON_Delete(shards);
    if (status != STATUS_OK) return status;
    if (text == NULL) return status_set(STATUS_MEMORY, "out of memory to describe the data");
    const size_t length = strlen(text);
    text[length] = '\n'; /* in place of the NUL */
    status = file_write_durable(path, text, length + 1);
    cJSON_free(text);
    return status;
}

/* The finished folder takes its place in one step: by its name, or, where an earlier output is, by
 * changing places with it. */
static enum status publish(struct prepare *prepare) {
    bool present = false;
    TRY(check_outputs(prepare->options, &present));
    TRY(folder_sync(prepare->staging));
    const int failed = present ? renameat2(AT_FDCWD, prepare->staging, AT_FDCWD, prepare->out,
                                           RENAME_EXCHANGE)
                               : rename(prepare->staging, prepare->out);
    if (failed != 0) {
        return status_set(STATUS_IO, "cannot put %s in the place of %s in one step: %s; choose "
                          "another --out", prepare->staging, prepare->out, strerror(errno));
    }
    if (!present) prepare->staging[0] = '\0'; /* otherwise it is the earlier output now */
    return folder_sync(prepare->parent);
}

/* OUT without links, and its parent, which is made. */
static enum status find_place(struct prepare *prepare) {
    const char *out = prepare->options->out_folder;
    char folder[PATH_BYTES];
    snprintf(folder, sizeof folder, "%s", out);
    size_t length = strlen(folder);
    if (length + 64 > sizeof folder) {
        return status_set(STATUS_CONFIG, "expected a shorter path at --out, found %zu bytes",
                          strlen(out));
    }
    while (length > 1 && folder[length - 1] == '/') folder[--length] = '\0';
    if (path_is_folder(folder)) {
        if (realpath(folder, prepare->out) == NULL) {
            return status_set(STATUS_IO, "cannot look at %s: %s", folder, strerror(errno));
        }
    } else {
        snprintf(prepare->out, sizeof prepare->out, "%s", folder);
    }
    const char *slash = strrchr(prepare->out, '/');
    snprintf(prepare->parent, sizeof prepare->parent, "%.*s",
             slash == NULL ? 1 : slash == prepare->out ? 1 : (int)(slash - prepare->out),
             slash == NULL ? "." : prepare->out);
    return folder_create(prepare->parent);
}

/* Takes the lock of a folder that is worked in, which ends with the process; -1 if it cannot. */
static int lock_folder(const char *path) {
    const int folder = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (folder >= 0 && flock(folder, LOCK_EX | LOCK_NB) == 0) return folder;
    if (folder >= 0) close(folder);
    return -1;
}

/* Removes the folders whose names are `prefix` and a process number, if nobody works in them. */
static enum status remove_left_behind(struct prepare *prepare, const char *prefix) {
    enum status status = STATUS_OK;
    char path[PATH_BYTES], **names = NULL;
    const size_t length = strlen(prefix);
    size_t count = 0;
    TRY(folder_list(prepare->parent, &names, &count));
    for (size_t i = 0; i < count; i++) {
        const char *number = names[i] + length;
        if (strncmp(names[i], prefix, length) != 0 || *number == '\0' ||
            number[strspn(number, "0123456789")] != '\0') {
            continue;
        }
        TRY_GOTO(path_join(path, prepare->parent, names[i]), done);
        const int lock = lock_folder(path);
        if (lock < 0) continue;
        status = folder_remove(path);
        close(lock);
        if (status != STATUS_OK) goto done;
        prepare->left_behind++;
    }

done:
    names_free(names, count);
    return status;
}

/* A folder beside OUT to write in. */
static enum status create_staging(struct prepare *prepare) {
    char prefix[PATH_BYTES], name[PATH_BYTES];
    TRY(find_place(prepare));
    const char *slash = strrchr(prepare->out, '/');
    snprintf(prefix, sizeof prefix, "%.*s.unfinished-", (int)sizeof prefix - 64,
             slash == NULL ? prepare->out : slash + 1);
    TRY(remove_left_behind(prepare, prefix));
    snprintf(name, sizeof name, "%.*s%ld", (int)sizeof name - 32, prefix, (long)getpid());
    TRY(path_join(prepare->staging, prepare->parent, name));
    TRY(folder_create(prepare->staging));
    /* Where a file system has no locks, nobody else gets one either, and removes nothing. */
    prepare->lock = lock_folder(prepare->staging);
    return STATUS_OK;
}

/* Removes what is left, without a word: the message of the first error stays. */
static void clean_up(struct prepare *prepare) {
    for (size_t i = 0; i < SPLITS; i++) shard_writer_abandon(prepare->writers[i]);
    if (prepare->staging[0] != '\0') {
        char message[2048];
        snprintf(message, sizeof message, "%s", status_message());
        if (folder_remove(prepare->staging) != STATUS_OK) status_set(STATUS_OK, "%s", message);
    }
    if (prepare->lock >= 0) close(prepare->lock);
    documents_release(&prepare->documents);
}

enum status prepare_text(const struct prepare_options *options, struct prepare_report *report) {
    enum status status = STATUS_OK;
    struct prepare prepare = {.options = options, .lock = -1};
    bool present = false;
    TRY(check_options(options));
    TRY(check_outputs(options, &present));
    TRY(documents_find(&prepare.documents, options->inputs, options->input_count,
                       options->out_folder));
    TRY_GOTO(decide_split(&prepare), cleanup);
    TRY_GOTO(create_staging(&prepare), cleanup);
    TRY_GOTO(write_shards(&prepare), cleanup);
    TRY_GOTO(write_description(&prepare), cleanup);
    TRY_GOTO(publish(&prepare), cleanup);
    *report = (struct prepare_report){
        .documents = prepare.documents.count,
        .skipped_binary = prepare.documents.skipped_binary,
        .skipped_empty = prepare.documents.skipped_empty,
        .skipped_hidden = prepare.documents.skipped_hidden,
        .skipped_special = prepare.documents.skipped_special,
        .train_tokens = prepare.tokens[SPLIT_TRAIN],
        .validation_tokens = prepare.tokens[SPLIT_VALIDATION],
        .left_behind = prepare.left_behind,
    };
    memcpy(report->binary_names, prepare.documents.binary_names, DOCUMENTS_NAMES_BYTES);

cleanup:
    clean_up(&prepare);
    return status;
}

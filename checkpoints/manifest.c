/* Reading, writing and verifying manifests: behind checkpoints/manifest.h. */
#include "checkpoints/manifest.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "checkpoints/json.h"
#include "checkpoints/layout.h"

enum {
    MANIFEST_BYTES_MAX = 1 << 20, /* some 8,000 files */
    VERIFY_THREADS_MAX = 4,
    MESSAGE_BYTES = 1024,
};

char *manifest_text(const struct manifest *manifest) {
    char *text = NULL;
    cJSON *root = cJSON_CreateObject();
    bool good = cJSON_AddNumberToObject(root, "version", MANIFEST_VERSION) != NULL &&
                cJSON_AddNumberToObject(root, "step", (double)manifest->step) != NULL;
    cJSON *files = cJSON_AddArrayToObject(root, "files");
    for (size_t i = 0; i < manifest->count && good; i++) {
        const struct manifest_file *file = &manifest->files[i];
        cJSON *item = cJSON_CreateObject();
        good = cJSON_AddItemToArray(files, item) &&
               cJSON_AddStringToObject(item, "name", file->name) != NULL &&
               cJSON_AddNumberToObject(item, "bytes", (double)file->digest.bytes) != NULL &&
               cJSON_AddStringToObject(item, "xxh3_128", file->digest.xxh3_128) != NULL;
    }
    if (good) text = cJSON_Print(root);
    cJSON_Delete(root);
    return text;
}

/* A name inside the folder: no separator, not a way up, not the manifest itself. */
static enum status name_check(const char *path, const char *name) {
    const size_t length = strlen(name);
    if (length > 0 && length < MANIFEST_FILE_NAME_BYTES && strchr(name, '/') == NULL &&
        strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && strcmp(name, MANIFEST_NAME) != 0) {
        return STATUS_OK;
    }
    return status_set(STATUS_CHECKPOINT,
                      "%s: expected names of files in its own folder, found \"%.40s\"", path, name);
}

static enum status parse_file(const char *path, const cJSON *item, struct manifest *manifest) {
    const char *name = NULL, *hash = NULL;
    int64_t bytes = 0;
    if (!cJSON_IsObject(item)) {
        return status_set(STATUS_CHECKPOINT, "%s: expected every file to be an object", path);
    }
    TRY(json_string(path, item, "name", &name));
    TRY(json_integer(path, item, "bytes", 0, JSON_INTEGER_MAX, &bytes));
    TRY(json_string(path, item, "xxh3_128", &hash));
    TRY(name_check(path, name));
    if (strlen(hash) != XXH3_TEXT_BYTES - 1) {
        return status_set(STATUS_CHECKPOINT,
                          "%s: expected a checksum of %d digits for %s, found %zu", path,
                          XXH3_TEXT_BYTES - 1, name, strlen(hash));
    }
    if (manifest_find(manifest, name) != NULL) {
        return status_set(STATUS_CHECKPOINT, "%s: %s is listed twice", path, name);
    }
    struct manifest_file *file = &manifest->files[manifest->count++];
    strcpy(file->name, name);
    strcpy(file->digest.xxh3_128, hash);
    file->digest.bytes = (size_t)bytes;
    return STATUS_OK;
}

static enum status parse(const char *path, const char *text, size_t bytes,
                         struct manifest *manifest) {
    enum status status = STATUS_OK;
    char *again = NULL;
    cJSON *root = NULL;
    const cJSON *files = NULL;
    int64_t version = 0;
    TRY_GOTO(json_parse(path, text, bytes, &root), done);
    TRY_GOTO(json_integer(path, root, "version", MANIFEST_VERSION, MANIFEST_VERSION, &version),
             done);
    TRY_GOTO(json_integer(path, root, "step", 0, LAYOUT_STEP_MAX, &manifest->step), done);
    TRY_GOTO(json_find(path, root, "files", &files), done);
    if (!cJSON_IsArray(files) || files->child == NULL) {
        status =
            status_set(STATUS_CHECKPOINT, "%s: expected \"files\" to be a list of files", path);
        goto done;
    }
    manifest->files = calloc((size_t)cJSON_GetArraySize(files), sizeof *manifest->files);
    if (manifest->files == NULL) {
        status = status_set(STATUS_MEMORY, "out of memory reading %s", path);
        goto done;
    }
    for (const cJSON *item = files->child; item != NULL; item = item->next) {
        TRY_GOTO(parse_file(path, item, manifest), done);
    }
    again = manifest_text(manifest);
    if (again == NULL) {
        status = status_set(STATUS_MEMORY, "out of memory reading %s", path);
    } else if (strlen(again) != bytes || memcmp(again, text, bytes) != 0) {
        status = status_set(STATUS_CHECKPOINT, "%s is not as it was written: it was altered", path);
    }

done:
    free(again);
    cJSON_Delete(root);
    return status;
}

enum status manifest_read(const char *path, struct manifest *manifest) {
    char *text = NULL;
    size_t bytes = 0;
    memset(manifest, 0, sizeof *manifest);
    if (!path_is_file(path)) {
        return status_set(STATUS_CHECKPOINT, "%s is missing, so this is no complete checkpoint",
                          path);
    }
    TRY(file_read(path, MANIFEST_BYTES_MAX, &text, &bytes));
    const enum status status = parse(path, text, bytes, manifest);
    free(text);
    if (status != STATUS_OK) manifest_free(manifest);
    return status;
}

void manifest_free(struct manifest *manifest) {
    free(manifest->files);
    memset(manifest, 0, sizeof *manifest);
}

const struct manifest_file *manifest_find(const struct manifest *manifest, const char *name) {
    for (size_t i = 0; i < manifest->count; i++) {
        if (strcmp(manifest->files[i].name, name) == 0) return &manifest->files[i];
    }
    return NULL;
}

/* Sizes first: they cost nothing and find what was cut short. */
static enum status verify_sizes(const struct manifest *manifest, const char *folder) {
    for (size_t i = 0; i < manifest->count; i++) {
        const struct manifest_file *file = &manifest->files[i];
        char path[PATH_BYTES];
        struct stat info;
        TRY(path_join(path, folder, file->name));
        if (stat(path, &info) != 0 || !S_ISREG(info.st_mode)) {
            return status_set(STATUS_CHECKPOINT,
                              "%s is missing or no file, but the manifest lists it", path);
        }
        if ((size_t)info.st_size != file->digest.bytes) {
            return status_set(STATUS_CHECKPOINT,
                              "%s has %zu bytes, expected %zu: it was cut short or "
                              "altered",
                              path, (size_t)info.st_size, file->digest.bytes);
        }
    }
    return STATUS_OK;
}

static enum status verify_file(const struct manifest_file *file, const char *folder) {
    struct file_digest found;
    char path[PATH_BYTES];
    TRY(path_join(path, folder, file->name));
    TRY(digest_file(path, &found));
    if (strcmp(found.xxh3_128, file->digest.xxh3_128) == 0) return STATUS_OK;
    return status_set(STATUS_CHECKPOINT,
                      "%s has the checksum %s, expected %s: its contents were altered", path,
                      found.xxh3_128, file->digest.xxh3_128);
}

/* The files, shared out among threads one by one. The first failure in the manifest's order is
 * reported, whichever thread found one first. */
struct verification {
    const struct manifest *manifest;
    const char *folder;
    atomic_size_t next;
    pthread_mutex_t lock; /* of what follows */
    size_t failed;        /* place of the failure; manifest->count: none */
    enum status status;
    char message[MESSAGE_BYTES];
};

static void *verify_files(void *argument) {
    struct verification *work = argument;
    for (;;) {
        const size_t i = atomic_fetch_add(&work->next, 1);
        if (i >= work->manifest->count) return NULL;
        const enum status status = verify_file(&work->manifest->files[i], work->folder);
        if (status == STATUS_OK) continue;
        pthread_mutex_lock(&work->lock);
        if (i < work->failed) {
            work->failed = i;
            work->status = status;
            snprintf(work->message, sizeof work->message, "%s", status_message());
        }
        pthread_mutex_unlock(&work->lock);
    }
}

enum status manifest_verify(const struct manifest *manifest, const char *folder) {
    struct verification work = {
        .manifest = manifest, .folder = folder, .failed = manifest->count, .status = STATUS_OK,
    };
    pthread_t threads[VERIFY_THREADS_MAX - 1];
    sigset_t all, before;
    size_t started = 0;
    TRY(verify_sizes(manifest, folder));
    pthread_mutex_init(&work.lock, NULL);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the thread that asked */
    /* Where no thread can be had, this one does it alone. */
    while (started < VERIFY_THREADS_MAX - 1 && started + 1 < manifest->count &&
           pthread_create(&threads[started], NULL, verify_files, &work) == 0) {
        started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    verify_files(&work);
    for (size_t i = 0; i < started; i++) pthread_join(threads[i], NULL);
    pthread_mutex_destroy(&work.lock);
    return work.status == STATUS_OK ? STATUS_OK : status_set(work.status, "%s", work.message);
}

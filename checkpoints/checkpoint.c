/*
 * Saving a checkpoint: the writing half of checkpoints/checkpoint.h. The reading half is open.c,
 * removal is prune.c. Called by train, which holds the run's lock (run_lock.h).
 *
 * Seven invariants hold at every instruction, so that SIGKILL or a power cut at any of them leaves
 * a run folder from which checkpoint_newest() returns the newest checkpoint that was ever
 * completed.
 *
 *   1. A folder named step_NNNNNNNN is complete and durable, or was damaged from outside. It is
 *      written as step_NNNNNNNN.tmp-PID-N, every file is fsynced, the manifest last
 *      (checkpoint_end),
 *      the folder is fsynced and everything in it read back and compared (verify_written); only
 *      then is it renamed and the run folder fsynced (put_in_place).
 *   2. Nothing that could be the best checkpoint is removed: only what is older than one that was
 *      verified by reading it goes (retire_old in prune.c), and it loses its name durably before
 *      its first file goes (prune_after).
 *   3. Leftovers of dead saves and prunes are never taken for checkpoints (layout_kind in
 *      layout.c), never written into (layout_free_path), and removed by the prune of the run's
 *      owner alone (remove_leftovers in prune.c).
 *   4. A load trusts nothing that the manifest does not vouch for: manifest_read() takes a manifest
 *      only as it was written, manifest_verify() compares the list of files, sizes and checksums,
 *      open_step() opens listed files alone, and the parsers check every number again.
 *   5. A checkpoint of the same step that does not verify is renamed to
 *      step_NNNNNNNN.damaged-PID-N, never removed, before the new one takes its name
 *      (put_in_place); it goes when one that verifies has its step or a later one (is_leftover in
 *      prune.c).
 *   6. A save that fails removes its temporary folder and changes nothing else (checkpoint_fail).
 *      Where it fails after the rename, the checkpoint is complete and stays.
 *   7. What was read back is what was written: checksums are taken on the way to the disk
 *      (digest.c), and the pages are dropped from the cache before the files are read again.
 *
 * A crash during a save leaves, in order of time:
 *   before the first rename      a .tmp folder; the older checkpoints are as they were
 *   between the two renames      (only where a damaged one was replaced) a .damaged and a whole
 *                                .tmp folder; this step has no checkpoint, as before, the older
 *                                ones are as they were
 *   after the second rename      the new checkpoint; possibly the damaged one beside it, and older
 *                                ones that retention would have removed. The next save or prune
 *                                does the rest.
 */
#include "checkpoints/checkpoint.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "base/text.h"
#include "checkpoints/json.h"
#include "checkpoints/layout.h"
#include "checkpoints/manifest.h"
#include "checkpoints/moments.h"
#include "checkpoints/open.h"
#include "checkpoints/prune.h"
#include "checkpoints/text_file.h"
#include "checkpoints/weights.h"

enum {
    FILES_BUT_SHARDS = 3 + TOKENIZER_FILES_MAX, /* at most, beside the manifest */
    HEADER_BYTES_PER_PARAM = 1024, /* generous, for three tensors a parameter */
    SLACK_BYTES = 1 << 20,         /* configuration, state, manifest, folders */
    SHOWN_MESSAGE_BYTES = 1024,
};

static enum status check_content(const struct checkpoint_content *content) {
    const char *where = "the state to save";
    const int64_t step = content->step;
    int64_t found = 0;
    if (step < 0 || step > LAYOUT_STEP_MAX) {
        return status_set(STATUS_INTERNAL, "expected a step from 0 to %lld to save, found %lld",
                          (long long)LAYOUT_STEP_MAX, (long long)step);
    }
    if (!cJSON_IsObject(content->state)) {
        return status_set(STATUS_INTERNAL, "expected %s to be a JSON object", where);
    }
    /* Each message is right as it is, but nothing is wrong with a checkpoint: other exit codes. */
    if (json_integer(where, content->state, "step", step, step, &found) != STATUS_OK) {
        return STATUS_INTERNAL;
    }
    return hf_config_check("the model to save", &content->model) == STATUS_OK ? STATUS_OK
                                                                              : STATUS_CONFIG;
}

/* Refuses early and with numbers what would end in "no space left" after minutes of writing. */
enum status checkpoint_check_space(const char *run_folder, const struct param_table *params) {
    struct statvfs disk;
    char needed_text[TEXT_BYTES], found_text[TEXT_BYTES];
    const size_t needed = 3 * sizeof(float) * param_table_count(params) +
                          HEADER_BYTES_PER_PARAM * params->length + SLACK_BYTES;
    if (statvfs(run_folder, &disk) != 0) {
        return status_set(STATUS_IO, "cannot tell the free space of %s: %s", run_folder,
                          strerror(errno));
    }
    const size_t available = disk.f_bavail * disk.f_frsize;
    const bool cannot_tell = disk.f_blocks == 0; /* some network file systems */
    if (cannot_tell || available >= needed) return STATUS_OK;
    return status_set(STATUS_IO,
                      "a checkpoint in %s needs %s, found %s free: make room, use another disk, "
                      "or keep fewer checkpoints (checkpoint.keep)",
                      run_folder, text_bytes(needed_text, needed),
                      text_bytes(found_text, available));
}

/* The next row of the manifest, and where its file lies. */
static enum status next_file(struct checkpoint_writing *w, const char *name, char path[PATH_BYTES],
                             struct file_digest **digest) {
    struct manifest_file *file = &w->files[w->count++];
    snprintf(file->name, sizeof file->name, "%s", name);
    *digest = &file->digest;
    return path_join(path, w->folder, name);
}

static enum status write_state(const char *path, const cJSON *state, struct file_digest *digest) {
    char *text = NULL;
    TRY(json_text_exact(path, state, &text));
    const enum status status = text_file_write(path, text, strlen(text), digest);
    free(text);
    return status;
}

static enum status write_manifest(const char *folder, const struct manifest *manifest) {
    char path[PATH_BYTES];
    struct file_digest digest;
    TRY(path_join(path, folder, MANIFEST_NAME));
    char *text = manifest_text(manifest);
    if (text == NULL) return status_set(STATUS_MEMORY, "out of memory writing %s", path);
    const enum status status = text_file_write(path, text, strlen(text), &digest);
    free(text);
    return status;
}

/* Small files first: what cannot be written as JSON is found before the gigabytes. */
enum status checkpoint_write_model(struct checkpoint_writing *w) {
    const struct checkpoint_content *content = w->content;
    struct file_digest *digest = NULL;
    char path[PATH_BYTES];
    TRY(next_file(w, LAYOUT_CONFIG, path, &digest));
    TRY(text_file_write_config(path, &content->model, "float32", digest));
    TRY(next_file(w, LAYOUT_STATE, path, &digest));
    TRY(write_state(path, content->state, digest));
    for (size_t i = 0; content->tokenizer != NULL && i < content->tokenizer->count; i++) {
        const struct tokenizer_file *file = &content->tokenizer->files[i];
        TRY(next_file(w, file->name, path, &digest));
        TRY(text_file_write(path, file->text, file->bytes, digest));
    }
    TRY(next_file(w, LAYOUT_WEIGHTS, path, &digest));
    if (content->weights != NULL) {
        return weights_write_from(path, content->params, *content->weights, SAFETENSORS_F32,
                                  digest);
    }
    return weights_write(path, content->params, content->masters, SAFETENSORS_F32, digest);
}

enum status checkpoint_write_shard(const char *folder, const struct param_table *params,
                                   struct flat_ranges ranges, const float *moments1,
                                   const float *moments2, size_t index, size_t shards,
                                   struct file_digest *digest) {
    char path[PATH_BYTES], name[LAYOUT_SHARD_NAME_BYTES];
    layout_shard_name(name, index + 1, shards);
    TRY(path_join(path, folder, name));
    return moments_write(path, params, ranges, moments1, moments2, digest);
}

/* The folder is whole and durable, and reads back as it was written. */
static enum status verify_written(const struct checkpoint_writing *w) {
    struct checkpoint written;
    TRY(folder_sync(w->folder));
    const enum status status = open_step(&written, w->folder, w->content->step);
    if (status == STATUS_CHECKPOINT) { /* the bytes went wrong between us and the disk */
        status_context(status, "what was written does not read back the same, the disk may be "
                               "failing");
        return STATUS_IO;
    }
    TRY(status);
    checkpoint_close(&written);
    return STATUS_OK;
}

/* Gives the temporary folder the name of a checkpoint. *replaced: something had the name. */
static enum status put_in_place(const char *run_folder, const char *temporary, int64_t step,
                                bool replaced) {
    char path[PATH_BYTES], aside[PATH_BYTES];
    TRY(layout_step_path(path, run_folder, step));
    if (replaced) {
        TRY(layout_free_path(aside, run_folder, step, LAYOUT_DAMAGED));
        if (rename(path, aside) != 0) {
            return status_set(STATUS_IO, "cannot move the damaged %s aside to %s: %s", path, aside,
                              strerror(errno));
        }
    }
    if (rename(temporary, path) != 0) {
        return status_set(STATUS_IO, "cannot rename %s to %s: %s", temporary, path,
                          strerror(errno));
    }
    return folder_sync(run_folder);
}

/* Removes the temporary folder of a failed save, if it still has that name. Keeps the message. */
static enum status discard(const char *temporary, enum status code) {
    char reason[SHOWN_MESSAGE_BYTES];
    snprintf(reason, sizeof reason, "%s", status_message());
    (void)folder_remove(temporary); /* what stays is a leftover that prune removes */
    return status_set(code, "%s", reason);
}

/* *exists: something has the name of the checkpoint; *whole: and it verifies. */
static enum status look_at_existing(const char *run_folder, int64_t step, bool *exists,
                                    bool *whole) {
    char path[PATH_BYTES];
    struct stat info;
    TRY(layout_step_path(path, run_folder, step));
    *exists = lstat(path, &info) == 0;
    *whole = false;
    if (!*exists) return STATUS_OK;
    const enum status status = open_verify(run_folder, step);
    *whole = status == STATUS_OK;
    /* A file that cannot be read now may be whole: only what is known to be damaged is replaced. */
    return *whole || status == STATUS_CHECKPOINT ? STATUS_OK : status;
}

/* The temporary folder of a new checkpoint, and room for what will be in it. */
static enum status begin_new(struct checkpoint_writing *w, size_t shards) {
    w->capacity = FILES_BUT_SHARDS + shards;
    w->files = calloc(w->capacity, sizeof *w->files);
    if (w->files == NULL) return status_set(STATUS_MEMORY, "out of memory for a checkpoint");
    TRY(checkpoint_check_space(w->run_folder, w->content->params));
    TRY(layout_free_path(w->folder, w->run_folder, w->content->step, LAYOUT_TEMPORARY));
    if (mkdir(w->folder, 0777) == 0) return STATUS_OK;
    const enum status status = status_set(STATUS_IO, "cannot create the folder %s: %s", w->folder,
                                          strerror(errno));
    w->folder[0] = '\0'; /* nothing to remove */
    return status;
}

enum status checkpoint_begin(struct checkpoint_writing *w, const char *run_folder,
                             const struct checkpoint_content *content,
                             const struct checkpoint_retention *retention, size_t shards) {
    *w = (struct checkpoint_writing){
        .run_folder = run_folder, .content = content, .retention = retention,
    };
    TRY(prune_retention_check(retention));
    TRY(check_content(content));
    TRY(layout_create_durable(run_folder));
    TRY(look_at_existing(run_folder, content->step, &w->replaces, &w->whole));
    if (w->whole) return folder_sync(run_folder); /* its save may have ended before this */
    const enum status status = begin_new(w, shards);
    return status == STATUS_OK ? STATUS_OK : checkpoint_fail(w, status);
}

static enum status end_new(struct checkpoint_writing *w, const struct file_digest *shards,
                           size_t count) {
    struct file_digest *digest = NULL;
    char path[PATH_BYTES], name[LAYOUT_SHARD_NAME_BYTES];
    for (size_t i = 0; i < count; i++) {
        layout_shard_name(name, i + 1, count);
        TRY(next_file(w, name, path, &digest));
        *digest = shards[i];
    }
    const struct manifest manifest = {
        .step = w->content->step, .files = w->files, .count = w->count,
    };
    TRY(write_manifest(w->folder, &manifest));
    TRY(verify_written(w));
    return put_in_place(w->run_folder, w->folder, w->content->step, w->replaces);
}

enum status checkpoint_end(struct checkpoint_writing *w, const struct file_digest *shards,
                           size_t count) {
    if (!w->whole) {
        const enum status status = end_new(w, shards, count);
        if (status != STATUS_OK) return checkpoint_fail(w, status);
    }
    free(w->files);
    w->files = NULL;
    const enum status status = prune_after(w->run_folder, w->retention, w->content->step);
    if (status == STATUS_OK) return STATUS_OK;
    return status_context(status,
                          "the checkpoint of step %lld was saved, but older ones could not be "
                          "removed",
                          (long long)w->content->step);
}

enum status checkpoint_fail(struct checkpoint_writing *w, enum status status) {
    free(w->files);
    w->files = NULL;
    return w->folder[0] == '\0' ? status : discard(w->folder, status);
}

enum status checkpoint_save(const char *run_folder, const struct checkpoint_content *content,
                            const struct checkpoint_retention *retention) {
    struct checkpoint_writing writing;
    struct file_digest shard = {0};
    const struct flat_range all = {.count = content->params->elements};
    TRY(checkpoint_begin(&writing, run_folder, content, retention, 1));
    if (!writing.whole) {
        enum status status = checkpoint_write_model(&writing);
        if (status == STATUS_OK) {
            status = checkpoint_write_shard(writing.folder, content->params,
                                            (struct flat_ranges){&all, 1}, content->moments1,
                                            content->moments2, 0, 1, &shard);
        }
        if (status != STATUS_OK) return checkpoint_fail(&writing, status);
    }
    return checkpoint_end(&writing, &shard, 1);
}

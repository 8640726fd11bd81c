/*
 * Opening, verifying and finding checkpoints: the reading half of checkpoints/checkpoint.h. Keeps
 * invariant 4 of checkpoint.c: load trusts nothing that the manifest does not vouch for.
 */
#include "checkpoints/open.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/json.h"
#include "checkpoints/layout.h"
#include "checkpoints/manifest.h"
#include "checkpoints/moments.h"
#include "checkpoints/weights.h"

enum { STATE_BYTES_MAX = 16 << 20, SHOWN_MESSAGE_BYTES = 1024 };

static enum status require_listed(const struct manifest *manifest, const char *folder,
                                  const char *name) {
    if (manifest_find(manifest, name) != NULL) return STATUS_OK;
    return status_set(STATUS_CHECKPOINT, "%s: the manifest does not list %s", folder, name);
}

static enum status open_state(struct checkpoint *checkpoint) {
    char path[PATH_BYTES];
    int64_t step = 0;
    TRY(path_join(path, checkpoint->path, LAYOUT_STATE));
    TRY(json_read(path, STATE_BYTES_MAX, &checkpoint->state));
    return json_integer(path, checkpoint->state, "step", checkpoint->step, checkpoint->step, &step);
}

/* The optimizer files: n of n for exactly one n. */
static enum status open_optimizer(struct checkpoint *checkpoint, const struct manifest *manifest) {
    char path[PATH_BYTES], name[LAYOUT_SHARD_NAME_BYTES];
    size_t shards = 0;
    for (size_t i = 0; i < manifest->count; i++) {
        shards += strncmp(manifest->files[i].name, "optimizer-", strlen("optimizer-")) == 0;
    }
    checkpoint->optimizer = calloc(shards + 1, sizeof *checkpoint->optimizer);
    if (checkpoint->optimizer == NULL) {
        return status_set(STATUS_MEMORY, "out of memory opening %s", checkpoint->path);
    }
    for (size_t i = 1; i <= shards || i == 1; i++) { /* at least one file */
        layout_shard_name(name, i, shards > 0 ? shards : 1);
        TRY(require_listed(manifest, checkpoint->path, name));
        TRY(path_join(path, checkpoint->path, name));
        TRY(safetensors_open(&checkpoint->optimizer[checkpoint->optimizer_count], path));
        checkpoint->optimizer_count++;
    }
    return STATUS_OK;
}

static enum status open_files(struct checkpoint *checkpoint, const struct manifest *manifest) {
    char path[PATH_BYTES];
    const char *folder = checkpoint->path;
    TRY(require_listed(manifest, folder, LAYOUT_CONFIG));
    TRY(require_listed(manifest, folder, LAYOUT_STATE));
    TRY(require_listed(manifest, folder, LAYOUT_WEIGHTS));
    TRY(path_join(path, folder, LAYOUT_CONFIG));
    TRY(hf_config_read(path, &checkpoint->model));
    TRY(open_state(checkpoint));
    TRY(path_join(path, folder, LAYOUT_WEIGHTS));
    TRY(safetensors_open(&checkpoint->weights, path));
    return open_optimizer(checkpoint, manifest);
}

static enum status open_manifest(struct checkpoint *checkpoint, int64_t step,
                                 struct manifest *manifest) {
    char path[PATH_BYTES];
    TRY(path_join(path, checkpoint->path, MANIFEST_NAME));
    TRY(manifest_read(path, manifest));
    if (step >= 0 && manifest->step != step) {
        return status_set(STATUS_CHECKPOINT,
                          "%s: expected the manifest of step %lld, found step %lld", path,
                          (long long)step, (long long)manifest->step);
    }
    checkpoint->step = manifest->step;
    return manifest_verify(manifest, checkpoint->path);
}

enum status open_step(struct checkpoint *checkpoint, const char *path, int64_t step) {
    struct manifest manifest = {0};
    enum status status = STATUS_OK;
    memset(checkpoint, 0, sizeof *checkpoint);
    const size_t length = strlen(path);
    if (length >= PATH_BYTES || !path_is_folder(path)) {
        return status_set(STATUS_CHECKPOINT, "there is no checkpoint folder %.1000s", path);
    }
    memcpy(checkpoint->path, path, length + 1);
    TRY_GOTO(open_manifest(checkpoint, step, &manifest), done);
    TRY_GOTO(open_files(checkpoint, &manifest), done);

done:
    manifest_free(&manifest);
    if (status != STATUS_OK) checkpoint_close(checkpoint);
    return status;
}

enum status open_verify(const char *run_folder, int64_t step) {
    char path[PATH_BYTES];
    struct checkpoint checkpoint;
    TRY(layout_step_path(path, run_folder, step));
    TRY(open_step(&checkpoint, path, step));
    checkpoint_close(&checkpoint);
    return STATUS_OK;
}

void checkpoint_close(struct checkpoint *checkpoint) {
    for (size_t i = checkpoint->optimizer_count; i > 0; i--) {
        safetensors_close(&checkpoint->optimizer[i - 1]);
    }
    free(checkpoint->optimizer);
    safetensors_close(&checkpoint->weights);
    cJSON_Delete(checkpoint->state);
    memset(checkpoint, 0, sizeof *checkpoint);
}

/* Adds to the message of a checkpoint that does not verify which one beside it does. Returns
 * `code`. */
static enum status offer_another(enum status code, const char *run_folder) {
    char reason[SHOWN_MESSAGE_BYTES], path[PATH_BYTES];
    bool found = false;
    snprintf(reason, sizeof reason, "%s", status_message());
    if (checkpoint_newest(run_folder, path, &found, NULL) != STATUS_OK || !found) {
        return status_set(code, "%s", reason);
    }
    return status_set(code, "%s; %s is whole: use that one", reason, path);
}

enum status checkpoint_open(struct checkpoint *checkpoint, const char *path) {
    char run_folder[PATH_BYTES], name[PATH_BYTES];
    int64_t step = -1;
    TRY(layout_split(path, run_folder, name));
    if (layout_kind(name, &step) != LAYOUT_STEP) step = -1; /* a copy may have any name */
    const enum status status = open_step(checkpoint, path, step);
    return status == STATUS_CHECKPOINT ? offer_another(status, run_folder) : status;
}

enum status checkpoint_newest(const char *run_folder, char path[PATH_BYTES], bool *found,
                              void (*warn)(const char *message)) {
    int64_t *steps = NULL;
    size_t count = 0;
    char newest_reason[SHOWN_MESSAGE_BYTES] = "";
    enum status status = STATUS_OK;
    *found = false;
    TRY(layout_steps(run_folder, &steps, &count));
    for (size_t i = 0; i < count && !*found; i++) {
        status = open_verify(run_folder, steps[i]);
        /* Out of memory or not readable now: that says nothing about the checkpoint. */
        if (status != STATUS_OK && status != STATUS_CHECKPOINT) break;
        *found = status == STATUS_OK;
        if (*found) {
            status = layout_step_path(path, run_folder, steps[i]);
        } else {
            if (i == 0) snprintf(newest_reason, sizeof newest_reason, "%s", status_message());
            if (warn != NULL) warn(status_message());
        }
    }
    free(steps);
    if (*found || count == 0 || status != STATUS_CHECKPOINT) return status;
    return status_set(STATUS_CHECKPOINT,
                      "none of the %zu checkpoints in %s verifies; the newest: %s", count,
                      run_folder, newest_reason);
}

enum status checkpoint_load_weights(const struct checkpoint *checkpoint,
                                    const struct param_table *params, float *masters) {
    return weights_load(&checkpoint->weights, params, masters);
}

enum status checkpoint_check_weights(const struct checkpoint *checkpoint,
                                     const struct param_table *params) {
    return weights_check_all(&checkpoint->weights, params);
}

void checkpoint_load_weight(const struct checkpoint *checkpoint, const struct param *param,
                            float *values) {
    weights_load_one(&checkpoint->weights, param, values);
}

enum status checkpoint_load_moments(const struct checkpoint *checkpoint,
                                    const struct param_table *params, struct flat_ranges ranges,
                                    float *moments1, float *moments2) {
    return moments_load(checkpoint->optimizer, checkpoint->optimizer_count, params, ranges,
                        moments1, moments2);
}

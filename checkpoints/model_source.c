/* Models of several programs behind one door: checkpoints/model_source.h. */
#include "checkpoints/model_source.h"

#include <stdio.h>
#include <string.h>

#include "checkpoints/checkpoint.h"
#include "checkpoints/layout.h"
#include "checkpoints/manifest.h"

/* A checkpoint of this program can be known to be whole; other folders have no checksums. */
static enum status verify_manifest(const char *folder) {
    char path[PATH_BYTES], state[PATH_BYTES];
    struct manifest manifest;
    TRY(path_join(path, folder, MANIFEST_NAME));
    TRY(path_join(state, folder, LAYOUT_STATE));
    if (!path_is_file(path) && !path_is_file(state)) return STATUS_OK;
    TRY(manifest_read(path, &manifest));
    const enum status status = manifest_verify(&manifest, folder);
    manifest_free(&manifest);
    return status;
}

static enum status open_folder(struct model_source *source) {
    char path[PATH_BYTES];
    TRY(path_join(path, source->path, LAYOUT_CONFIG));
    TRY(verify_manifest(source->path));
    TRY(hf_config_read(path, &source->model));
    return hf_weights_open(&source->weights, source->path);
}

static enum status locate(struct model_source *source, const char *path,
                          void (*warn)(const char *message)) {
    char config[PATH_BYTES];
    bool found = false;
    TRY(path_join(config, path, LAYOUT_CONFIG));
    if (path_is_file(config)) {
        snprintf(source->path, sizeof source->path, "%s", path);
        return STATUS_OK;
    }
    TRY(checkpoint_newest(path, source->path, &found, warn));
    if (found) return STATUS_OK;
    return status_set(STATUS_CHECKPOINT,
                      "%s holds no model: expected " LAYOUT_CONFIG " and " LAYOUT_WEIGHTS
                      ", or a run with checkpoints",
                      path);
}

enum status model_source_open(struct model_source *source, const char *path,
                              void (*warn)(const char *message)) {
    memset(source, 0, sizeof *source);
    if (path_is_file(path)) {
        source->kind = MODEL_LLMC;
        TRY(llmc_model_open(&source->llmc, path));
        snprintf(source->path, sizeof source->path, "%s", path);
        source->model = source->llmc.model;
        return STATUS_OK;
    }
    if (!path_is_folder(path)) {
        return status_set(STATUS_CHECKPOINT,
                          "there is no model at %.1000s: expected a folder with " LAYOUT_CONFIG
                          ", a run, or a model file of llm.c",
                          path);
    }
    TRY(locate(source, path, warn));
    return open_folder(source);
}

void model_source_close(struct model_source *source) {
    if (source->kind == MODEL_LLMC)
        llmc_model_close(&source->llmc);
    else
        hf_weights_close(&source->weights);
    memset(source, 0, sizeof *source);
}

enum status model_source_load(const struct model_source *source, const struct param_table *params,
                              float *masters) {
    if (source->kind == MODEL_LLMC) return llmc_model_load(&source->llmc, params, masters);
    return hf_weights_load(&source->weights, params, masters);
}

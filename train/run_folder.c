/* From a name on the command line to an open checkpoint. */
#include "train/run_folder.h"

#include <stdio.h>

#include "base/file.h"
#include "checkpoints/layout.h"
#include "checkpoints/manifest.h"
#include "train/engine.h"
#include "train/run_state.h"

static void print_warning(const char *message) { fprintf(stderr, "warning: %s\n", message); }

enum status run_folder_locate(const char *path, char found_path[PATH_BYTES]) {
    char manifest[PATH_BYTES];
    bool found = false;
    TRY(path_join(manifest, path, MANIFEST_NAME));
    if (path_is_file(path)) {
        return status_set(STATUS_CHECKPOINT,
                          "expected a checkpoint or a run folder, found a file: %s", path);
    }
    /* What is not there is checkpoint_open's to refuse: it names the good ones beside it. */
    if (path_is_file(manifest) || !path_is_folder(path)) {
        snprintf(found_path, PATH_BYTES, "%s", path);
        return STATUS_OK;
    }
    TRY(checkpoint_newest(path, found_path, &found, print_warning));
    if (!found) {
        return status_set(STATUS_CHECKPOINT, "%s holds no checkpoint: expected a folder such as "
                          "%s/step_00001000 (`deepwell train` writes them)", path, path);
    }
    return STATUS_OK;
}

/* A folder with a model of another program, or a model file: no checkpoint, no run. */
static enum status is_foreign(const char *path, bool *foreign) {
    char config[PATH_BYTES], manifest[PATH_BYTES], state[PATH_BYTES];
    TRY(path_join(config, path, LAYOUT_CONFIG));
    TRY(path_join(manifest, path, MANIFEST_NAME));
    TRY(path_join(state, path, LAYOUT_STATE)); /* a checkpoint that lost its manifest */
    *foreign = path_is_file(path) ||
               (path_is_file(config) && !path_is_file(manifest) && !path_is_file(state));
    return STATUS_OK;
}

static enum status open_checkpoint(struct run_model *model, const char *path,
                                   struct config *config) {
    char located[PATH_BYTES] = "";
    TRY(run_folder_locate(path, located));
    TRY(checkpoint_open(&model->checkpoint, located));
    const enum status status = run_state_config(model->checkpoint.state, config);
    if (status != STATUS_OK) {
        checkpoint_close(&model->checkpoint);
        return status_context(status, "%s", located);
    }
    engine_model_from_checkpoint(config, &model->checkpoint.model);
    model->path = model->checkpoint.path;
    return STATUS_OK;
}

enum status run_model_open(struct run_model *model, const char *path, struct config *config) {
    bool foreign = false;
    *model = (struct run_model){0};
    TRY(is_foreign(path, &foreign));
    model->trained_here = !foreign;
    if (!foreign) return open_checkpoint(model, path, config);
    TRY(model_source_open(&model->source, path, print_warning));
    config_defaults(config);
    config->data.train[0] = config->data.validation[0] = '\0';
    config->precision.recipe = CONFIG_RECIPE_FP32;
    engine_model_from_checkpoint(config, &model->source.model);
    model->path = model->source.path;
    return STATUS_OK;
}

void run_model_close(struct run_model *model) {
    if (model->trained_here) checkpoint_close(&model->checkpoint);
    else model_source_close(&model->source);
    *model = (struct run_model){0};
}

enum status run_model_load(const struct run_model *model, struct engine *engine,
                           const struct config *config) {
    return model->trained_here ? engine_load(engine, &model->checkpoint)
                               : engine_import(engine, config, &model->source);
}

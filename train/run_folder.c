/* From a name on the command line to an open checkpoint. */
#include "train/run_folder.h"

#include <stdio.h>

#include "base/file.h"
#include "train/engine.h"
#include "train/run_state.h"

static void print_warning(const char *message) { fprintf(stderr, "warning: %s\n", message); }

enum status run_folder_locate(const char *path, char found_path[PATH_BYTES]) {
    char manifest[PATH_BYTES];
    bool found = false;
    TRY(path_join(manifest, path, "manifest.json"));
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

enum status run_folder_open(const char *path, struct checkpoint *checkpoint,
                            struct config *config) {
    char located[PATH_BYTES] = "";
    TRY(run_folder_locate(path, located));
    TRY(checkpoint_open(checkpoint, located));
    const enum status status = run_state_config(checkpoint->state, config);
    if (status != STATUS_OK) {
        checkpoint_close(checkpoint);
        return status_context(status, "%s", located);
    }
    engine_model_from_checkpoint(config, &checkpoint->model);
    return STATUS_OK;
}

/* Trained models as commands name them: a checkpoint folder, a run folder for its newest
 * checkpoint, or what another program left (checkpoints/model_source.h). */
#ifndef DEEPWELL_TRAIN_RUN_FOLDER_H_
#define DEEPWELL_TRAIN_RUN_FOLDER_H_

#include "checkpoints/checkpoint.h"
#include "checkpoints/model_source.h"
#include "train/config.h"
#include "train/engine.h"

/* An open model, verified as far as its files allow. */
struct run_model {
    bool trained_here;            /* which of the two is open */
    struct checkpoint checkpoint;
    struct model_source source;
    const char *path;             /* of the folder or file that was opened */
};

/* Opens the model at `path` and sets the configuration that goes with it: what a checkpoint was
 * trained with; for a model of another program the defaults, its shape, FP32 and no data. Broken
 * checkpoints that were passed over are named on stderr. */
enum status run_model_open(struct run_model *model, const char *path, struct config *config);
void run_model_close(struct run_model *model);

/* Its weights into an engine of its shape that does not train. */
enum status run_model_load(const struct run_model *model, struct engine *engine,
                           const struct config *config);

/* The checkpoint folder that a name stands for: itself, or the newest of a run. */
enum status run_folder_locate(const char *path, char found_path[PATH_BYTES]);

#endif

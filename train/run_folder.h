/* Checkpoints as commands name them: a checkpoint folder, or a run folder for its newest one. */
#ifndef DEEPWELL_TRAIN_RUN_FOLDER_H_
#define DEEPWELL_TRAIN_RUN_FOLDER_H_

#include "checkpoints/checkpoint.h"
#include "train/config.h"

/* Opens and verifies the checkpoint at `path` and reads the configuration that it was trained with.
 * Broken checkpoints that were passed over are named on stderr. */
enum status run_folder_open(const char *path, struct checkpoint *checkpoint, struct config *config);

/* The checkpoint folder that a name stands for: itself, or the newest of a run. */
enum status run_folder_locate(const char *path, char found_path[PATH_BYTES]);

#endif

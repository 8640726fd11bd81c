/* Opening and verifying, as checkpoint.c (after a save) and prune.c need it beside checkpoint.h. */
#ifndef DEEPWELL_CHECKPOINTS_OPEN_H_
#define DEEPWELL_CHECKPOINTS_OPEN_H_

#include "checkpoints/checkpoint.h"

/* As checkpoint_open(), but the folder must hold this step (-1: any), and no other one is
 * offered. */
enum status open_step(struct checkpoint *checkpoint, const char *path, int64_t step);

/* Whether the checkpoint of this step in the run verifies: open and close. */
enum status open_verify(const char *run_folder, int64_t step);

#endif

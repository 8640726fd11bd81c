/* Pruning after a save, which has just verified one checkpoint and need not read it again. */
#ifndef DEEPWELL_CHECKPOINTS_PRUNE_H_
#define DEEPWELL_CHECKPOINTS_PRUNE_H_

#include "checkpoints/checkpoint.h"

/* STATUS_CONFIG for a retention that keeps nothing. */
enum status prune_retention_check(const struct checkpoint_retention *retention);

/* As checkpoint_prune(); the checkpoint of verified_step (-1: none) counts as verified and is
 * kept. */
enum status prune_after(const char *run_folder, const struct checkpoint_retention *retention,
                        int64_t verified_step);

#endif

/*
 * `--gpus N` of a command: this program again, N times, a GPU each (launch.h). Called by
 * command_train.c and by the subcommands of bench.
 */
#ifndef DEEPWELL_TRAIN_LAUNCH_GPUS_H_
#define DEEPWELL_TRAIN_LAUNCH_GPUS_H_

#include "train/config.h"

/* Whether this process is to start the ranks (and is none of them). */
bool launch_gpus_wanted(int64_t gpus);

/* Starts `deepwell [group] argv...` on so many GPUs and returns how they ended; `group` NULL: none.
 * STATUS_CONFIG on CPUs and within another launcher, STATUS_DEVICE with fewer GPUs than that. */
enum status launch_gpus(const struct config *config, int64_t gpus, const char *group, int argc,
                        char **argv);

#endif

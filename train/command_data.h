/* `deepwell data`: text to shards, and a look into shards. Called by train/main.c. */
#ifndef DEEPWELL_TRAIN_COMMAND_DATA_H_
#define DEEPWELL_TRAIN_COMMAND_DATA_H_

#include "base/status.h"

/* argv[0] is "data", then come the subcommand (prepare, info, show or --help) and its arguments.
 * Results go to stdout. STATUS_CONFIG for a command line that is wrong. */
enum status command_data(int argc, char **argv);

#endif

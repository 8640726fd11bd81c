/* deepwell bench numerics: what a recipe does to tensors, gradients and the loss, against another
 * recipe on the same data from the same weights. Called by command_bench.c. */
#ifndef DEEPWELL_TRAIN_BENCH_NUMERICS_H_
#define DEEPWELL_TRAIN_BENCH_NUMERICS_H_

#include "base/status.h"

/* argv[0] "bench", argv[1] "numerics". */
enum status bench_numerics(int argc, char **argv);

#endif

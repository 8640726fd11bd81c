/* The version that the binary, checkpoints and metrics name. */
#ifndef DEEPWELL_TRAIN_VERSION_H_
#define DEEPWELL_TRAIN_VERSION_H_

#define DEEPWELL_VERSION "0.1.0"

#endif

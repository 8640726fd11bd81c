/* What a device does under sustained load; called by `deepwell probe --measure`. */
#ifndef DEEPWELL_TRAIN_PROBE_MEASURE_H_
#define DEEPWELL_TRAIN_PROBE_MEASURE_H_

#include "base/status.h"
#include "train/config.h"

/* Prints power limit and clocks, for every recipe whether it is native, emulated or refused and
 * the rate of a GEMM on its operands, and that of a copy, each over `seconds`. An emulated recipe's
 * rate is that of its products as training runs them here, expansion included. The device is
 * the configuration's. STATUS_INTERNAL, after all is printed, if a rate is above the vendor's
 * peak. */
enum status probe_measure(const struct config *config, double seconds);

#endif

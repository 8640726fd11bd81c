/*
 * Work repeated for seconds while the device never waits: a GPU under its power limit is a quarter
 * slower than the first calls on a cool one, and training lives under that limit. Used by floor.c,
 * `bench` and `probe --measure`.
 */
#ifndef DEEPWELL_TRAIN_SUSTAINED_H_
#define DEEPWELL_TRAIN_SUSTAINED_H_

#include <stdint.h>

#include "kernels/cuda/power.h"
#include "kernels/device.h"

struct sustained {
    uint64_t runs;
    double seconds;     /* of all of them, by the device's clock */
    double run_seconds; /* of one, on average */
    double median_seconds; /* of one: the median of batches of about a tenth of a second */
};

/* Runs `run` twice and then for `seconds` or a little longer, once more at least. `power`
 * (NULL: nobody asks) is started, looked at and stopped around the timed runs.
 * STATUS_INTERRUPTED after a signal. */
enum status sustained_run(struct device *device, enum status (*run)(struct device *, void *),
                          void *context, double seconds, struct gpu_power *power,
                          struct sustained *out);

#endif

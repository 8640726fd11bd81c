/*
 * A recording of operations (kernels/device.h), or the reason why there is none. Used by step.c and
 * floor.c.
 */
#ifndef DEEPWELL_TRAIN_RECORDING_H_
#define DEEPWELL_TRAIN_RECORDING_H_

#include "kernels/device.h"

/* Records what `ask` asks the device for; everything in it must have run once before, and
 * device_records() be true. After a failure *out is NULL and the message is that of what failed
 * first: an operation's, not what the device makes of the end of a recording that broke. */
enum status recording_make(struct device *device, enum status (*ask)(void *context), void *context,
                           struct device_recording **out);

#endif

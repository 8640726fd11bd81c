/*
 * When a test of the GPU may skip: only without a build with CUDA, a driver, or a device. A GPU
 * that is there and does not open is a failure. Called by the tests of tests/gpu; owns nothing.
 */
#ifndef DEEPWELL_TESTS_GPU_PRESENCE_H_
#define DEEPWELL_TESTS_GPU_PRESENCE_H_

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/status.h"
#include "kernels/cuda/inventory.h"
#include "kernels/device.h"

/* Ends the test program, failed, with the last message. */
static inline void gpu_test_stop(const char *what) {
    fprintf(stderr, "failed: %s: %s\n", what, status_message());
    exit(1);
}

/* True, saying why, where there is no GPU to test. */
static inline bool gpu_missing(void) {
    static struct cuda_inventory inventory;
    cuda_inventory_read(&inventory);
    if (inventory.state != CUDA_NOT_BUILT && inventory.state != CUDA_NO_DRIVER &&
        inventory.state != CUDA_NO_DEVICE) {
        return false;
    }
    printf("skipped: %s\n", inventory.message);
    return true;
}

static inline void gpu_open(struct device *device, const struct device_options *options) {
    if (device_open_cuda(device, options) != STATUS_OK) gpu_test_stop("the GPU does not open");
}

#endif

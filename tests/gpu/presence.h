/*
 * When a test of the GPU may skip: only without a build with CUDA, a driver, or a device. A GPU
 * that is there and does not open is a failure. And where what it finds of GEMMs is kept: in a
 * folder of its own, which goes when the test ends. Called by the tests of tests/gpu.
 */
#ifndef DEEPWELL_TESTS_GPU_PRESENCE_H_
#define DEEPWELL_TESTS_GPU_PRESENCE_H_

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/file.h"
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

static char gpu_test_folder[4096];

static inline void gpu_test_folder_remove(void) {
    if (folder_remove(gpu_test_folder) != STATUS_OK) printf("left: %s\n", status_message());
}

/* A new folder, in which device_open_cuda() keeps its file of GEMMs too. */
static inline const char *gpu_test_folder_make(void) {
    const char *base = getenv("TEST_TMPDIR");
    snprintf(gpu_test_folder, sizeof gpu_test_folder, "%s/gpu_XXXXXX", base == NULL ? "/tmp" : base);
    if (mkdtemp(gpu_test_folder) == NULL) {
        status_set(STATUS_IO, "cannot create %s", gpu_test_folder);
        gpu_test_stop("mkdtemp");
    }
    setenv("XDG_CACHE_HOME", gpu_test_folder, 1);
    atexit(gpu_test_folder_remove);
    return gpu_test_folder;
}

static inline void gpu_open(struct device *device, const struct device_options *options) {
    if (device_open_cuda(device, options) != STATUS_OK) gpu_test_stop("the GPU does not open");
}

#endif

/* device_open_cuda() of a build without CUDA: says so, and how to get it. */
#include "kernels/cuda/inventory.h"
#include "kernels/device.h"

enum status device_open_cuda(struct device *device, const struct device_options *options) {
    (void)options;
    static struct cuda_inventory inventory;
    *device = (struct device){0};
    cuda_inventory_read(&inventory);
    return status_set(STATUS_DEVICE, "no usable GPU: %s", inventory.message);
}

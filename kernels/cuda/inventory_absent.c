/* kernels/cuda/inventory.h for a build without CUDA: says so, and how to get it. */
#include "kernels/cuda/inventory.h"

#include <stdio.h>
#include <string.h>

void cuda_inventory_count(struct cuda_inventory *inventory) {
    memset(inventory, 0, sizeof *inventory);
    inventory->state = CUDA_NOT_BUILT;
    snprintf(inventory->message, sizeof inventory->message,
             "built without CUDA: no toolkit was found at build time, or DEEPWELL_CUDA=0 was set; "
             "install CUDA 12.9 or later, or set CUDA_HOME to it, and build again");
}

void cuda_inventory_read(struct cuda_inventory *inventory) { cuda_inventory_count(inventory); }

void cuda_device_bus_id(int local_rank, char bus_id[CUDA_BUS_ID_BYTES]) {
    (void)local_rank;
    bus_id[0] = '\0';
}

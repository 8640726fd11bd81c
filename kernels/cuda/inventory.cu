/* kernels/cuda/inventory.h through the CUDA runtime. Keeps no state. */
#include "kernels/cuda/inventory.h"

#include <cstdio>
#include <cstring>

#include <cuda_runtime.h>

/* "13.0" from 13000 */
static void version_text(char text[16], int version) {
    snprintf(text, 16, "%d.%d", version / 1000, version % 1000 / 10);
}

/* Sets state and message from the error with which the runtime refused to count devices. */
static void explain(struct cuda_inventory *inventory, cudaError_t error) {
    char runtime[16], driver[16];
    version_text(runtime, inventory->runtime_version);
    version_text(driver, inventory->driver_version);
    char *message = inventory->message;
    const size_t room = sizeof inventory->message;

    if (inventory->driver_version == 0) {
        inventory->state = CUDA_NO_DRIVER;
        snprintf(message, room,
                 "no NVIDIA driver is loaded (CUDA %s is built in): install one, load its kernel "
                 "module, or start the container with access to the GPU (docker run --gpus all)",
                 runtime);
    } else if (error == cudaErrorInsufficientDriver) {
        inventory->state = CUDA_DRIVER_TOO_OLD;
        snprintf(message, room,
                 "the NVIDIA driver serves CUDA up to %s, but CUDA %s is built in: install a newer "
                 "driver, or set CUDA_HOME to a CUDA %s toolkit and build again",
                 driver, runtime, driver);
    } else if (error == cudaErrorNoDevice) {
        inventory->state = CUDA_NO_DEVICE;
        snprintf(message, room,
                 "the NVIDIA driver (CUDA %s) shows no device to this process: check "
                 "CUDA_VISIBLE_DEVICES, the container's device access, and nvidia-smi",
                 driver);
    } else {
        inventory->state = CUDA_BROKEN;
        snprintf(message, room, "the CUDA runtime %s failed with %s (%s); nvidia-smi tells more",
                 runtime, cudaGetErrorName(error), cudaGetErrorString(error));
    }
}

static cudaError_t read_properties(struct cuda_device_info *info, int device) {
    cudaDeviceProp properties;
    cudaError_t error = cudaGetDeviceProperties(&properties, device);
    if (error != cudaSuccess) return error;
    snprintf(info->name, sizeof info->name, "%s", properties.name);
    info->capability_major = properties.major;
    info->capability_minor = properties.minor;
    info->multiprocessors = properties.multiProcessorCount;
    info->memory_total_bytes = properties.totalGlobalMem;
    return cudaDeviceGetPCIBusId(info->pci_id, sizeof info->pci_id, device);
}

/* Asking for the free memory opens a context. */
static cudaError_t open_context(int device) {
    const cudaError_t error = cudaSetDevice(device);
    size_t free_bytes = 0, total_bytes = 0;
    return error != cudaSuccess ? error : cudaMemGetInfo(&free_bytes, &total_bytes);
}

extern "C" void cuda_inventory_count(struct cuda_inventory *inventory) {
    memset(inventory, 0, sizeof *inventory);
    cudaError_t error = cudaRuntimeGetVersion(&inventory->runtime_version);
    if (error == cudaSuccess) error = cudaDriverGetVersion(&inventory->driver_version);
    if (error == cudaSuccess) error = cudaGetDeviceCount(&inventory->count);
    if (error != cudaSuccess) {
        inventory->count = 0;
        explain(inventory, error);
        return;
    }
    if (inventory->count > CUDA_INVENTORY_DEVICES_MAX)
        inventory->count = CUDA_INVENTORY_DEVICES_MAX;
}

extern "C" void cuda_device_bus_id(int local_rank, char bus_id[CUDA_BUS_ID_BYTES]) {
    int count = 0;
    bus_id[0] = '\0';
    if (cudaGetDeviceCount(&count) != cudaSuccess) count = 0;
    const int device = cuda_device_of(local_rank, count);
    if (device < count && cudaDeviceGetPCIBusId(bus_id, CUDA_BUS_ID_BYTES, device) != cudaSuccess) {
        bus_id[0] = '\0';
    }
    cudaGetLastError();
}

extern "C" void cuda_inventory_read(struct cuda_inventory *inventory) {
    cudaError_t error = cudaSuccess;
    int current = 0;
    cuda_inventory_count(inventory);
    const bool have_current = cudaGetDevice(&current) == cudaSuccess;
    for (int device = 0; device < inventory->count; device++) {
        struct cuda_device_info *info = &inventory->devices[device];
        error = read_properties(info, device);
        if (error == cudaSuccess) error = open_context(device);
        if (error == cudaSuccess) continue;
        snprintf(info->problem, sizeof info->problem, "%s (%s)", cudaGetErrorName(error),
                 cudaGetErrorString(error));
        cudaGetLastError(); /* a refused device must not be taken for a later call's failure */
    }
    if (have_current) cudaSetDevice(current);
}

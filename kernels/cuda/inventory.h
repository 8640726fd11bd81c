/*
 * The CUDA devices of this machine, for `deepwell probe`: what is there, or why nothing is. The
 * same header serves a build with CUDA (inventory.cu) and one without (inventory_absent.c).
 */
#ifndef DEEPWELL_KERNELS_CUDA_INVENTORY_H_
#define DEEPWELL_KERNELS_CUDA_INVENTORY_H_

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { CUDA_INVENTORY_DEVICES_MAX = 64 };

enum cuda_state {
    CUDA_READY,          /* at least one device */
    CUDA_NOT_BUILT,      /* this binary was built without CUDA */
    CUDA_NO_DRIVER,      /* no NVIDIA driver is loaded */
    CUDA_DRIVER_TOO_OLD, /* the driver serves older runtimes than the one built in */
    CUDA_NO_DEVICE,      /* a driver, but no device that this process may see */
    CUDA_BROKEN,         /* any other error of the runtime; the message has its name */
};

struct cuda_device_info {
    char name[256];
    char pci_id[16];      /* "0000:4c:00.0" */
    int capability_major; /* compute capability 9.0: 9 and 0 */
    int capability_minor;
    int multiprocessors;
    size_t memory_total_bytes;
    char problem[160]; /* why it cannot be used now (busy, exclusive); "" if it can */
};

struct cuda_inventory {
    enum cuda_state state;
    char message[320];   /* "" when ready, else what was found and what to do */
    int runtime_version; /* 1000 * major + 10 * minor, as CUDART_VERSION; 0: none */
    int driver_version;  /* the newest runtime that the driver serves, same form; 0: none */
    int count;           /* devices listed below, at most CUDA_INVENTORY_DEVICES_MAX */
    struct cuda_device_info devices[CUDA_INVENTORY_DEVICES_MAX];
};

/*
 * Fills the whole struct. Whether a device can be used shows only when a context is opened on it
 * (some hundred milliseconds and megabytes), so a training run does not call this.
 */
void cuda_inventory_read(struct cuda_inventory *inventory);

/* The device of a local rank in a process that sees so many. The only one is taken whatever the
 * rank: launchers that show each rank its own (CUDA_VISIBLE_DEVICES a rank, Slurm's
 * --gpus-per-task) number that one 0. Ranks of a host that all see the same one are refused when
 * they meet. */
static inline int cuda_device_of(int local_rank, int count) { return count == 1 ? 0 : local_rank; }

/* The PCI address of a local rank's device; "" where there is none. Opens no context. */
enum { CUDA_BUS_ID_BYTES = 32 };
void cuda_device_bus_id(int local_rank, char bus_id[CUDA_BUS_ID_BYTES]);

/* All of it but the devices' own entries: opens no context. For `train --gpus N`. */
void cuda_inventory_count(struct cuda_inventory *inventory);

#ifdef __cplusplus
}
#endif
#endif

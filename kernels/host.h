/*
 * What this process may use of the machine it runs on: processors and memory, with affinity and
 * container limits (cgroup v1 and v2, cgroups(7)) counted. Read by kernels/device.c, and by
 * train/trainer_save.c for what an accelerator does not tell.
 */
#ifndef DEEPWELL_KERNELS_HOST_H_
#define DEEPWELL_KERNELS_HOST_H_

#include <stddef.h>

/* Threads worth starting: the least of the processors in the affinity mask, OMP_NUM_THREADS if set,
 * and the container's processor quota rounded up. At least 1. */
int host_threads(void);

/* Bytes that can still be touched without swapping or being killed for it. */
size_t host_memory_free_bytes(void);

/* "AMD EPYC 9654 96-Core Processor", or the architecture where the kernel gives no name. */
void host_cpu_name(char *name, size_t name_bytes);

#endif

/* The figures of the GPU that fake_nvml.c pretends to be; for power_test.c. */
#ifndef DEEPWELL_TESTS_CUDA_FAKE_NVML_H_
#define DEEPWELL_TESTS_CUDA_FAKE_NVML_H_

#include <stdbool.h>

#define FAKE_NVML_BUS_ID "0000:1B:00.0"

struct fake_nvml {
    bool counts_energy;
    unsigned long long energy_mj, reasons;
    unsigned mw, mhz;
    unsigned long long memory_used; /* bytes; 0: this NVML does not say */
};

void fake_nvml_set(const struct fake_nvml *figures);

/* NVML's own, as kernels/cuda/power.c finds them by name. */
int nvmlInit_v2(void);
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, void **device);
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *mj);
int nvmlDeviceGetClockInfo(void *device, int type, unsigned *mhz);
int nvmlDeviceGetPowerUsage(void *device, unsigned *mw);
int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *mw);
int nvmlDeviceGetMaxClockInfo(void *device, int type, unsigned *mhz);
int nvmlDeviceGetMemoryInfo(void *device, void *memory);
int nvmlSystemGetDriverVersion(char *version, unsigned bytes);
int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *reasons);

#endif

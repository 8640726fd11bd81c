/* A library under NVML's name for power_test.c: one GPU whose figures the test sets. */
#include <stdio.h>
#include <string.h>

#include "tests/cuda/fake_nvml.h"

static struct fake_nvml now;
static int gpu;

void fake_nvml_set(const struct fake_nvml *figures) { now = *figures; }

int nvmlInit_v2(void) { return 0; }

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, void **device) {
    *device = &gpu;
    return strcmp(bus_id, FAKE_NVML_BUS_ID) == 0 ? 0 : 6;
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *mj) {
    *mj = now.energy_mj;
    return device == &gpu && now.counts_energy ? 0 : 3; /* not supported */
}

int nvmlDeviceGetClockInfo(void *device, int type, unsigned *mhz) {
    *mhz = now.mhz;
    return device == &gpu && type == 1 ? 0 : 2;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *mw) {
    *mw = now.mw;
    return device == &gpu ? 0 : 2;
}

int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *mw) {
    *mw = 700000;
    return device == &gpu ? 0 : 2;
}

int nvmlDeviceGetMaxClockInfo(void *device, int type, unsigned *mhz) {
    *mhz = 1980;
    return device == &gpu && type == 1 ? 0 : 2;
}

int nvmlDeviceGetMemoryInfo(void *device, void *memory) {
    const unsigned long long total_free_used[3] = {140ull << 30, 1, now.memory_used};
    memcpy(memory, total_free_used, sizeof total_free_used);
    return device == &gpu && now.memory_used > 0 ? 0 : 3; /* not supported */
}

int nvmlSystemGetDriverVersion(char *version, unsigned bytes) {
    snprintf(version, bytes, "580.65.06");
    return 0;
}

int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *reasons) {
    *reasons = now.reasons;
    return device == &gpu ? 0 : 2;
}

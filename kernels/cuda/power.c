/* NVML at run time, behind kernels/cuda/power.h. */
#include "kernels/cuda/power.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { NVML_CLOCK_SM = 1 };

/* nvmlClocksEventReasons: what holds the clock down. */
static const struct {
    uint64_t bit;
    const char *name;
} reasons[] = {
    {0x4, "power"},        {0x8, "hardware slowdown"},
    {0x20, "thermal"},     {0x40, "hardware thermal"},
    {0x80, "power brake"},
};

/* Finds a function of the library; memcpy, since C has no cast from object to function pointers. */
#define NVML_FUNCTION(variable, power, name, ...)                                              \
    int (*variable)(__VA_ARGS__) = NULL;                                                       \
    void *variable##_symbol = (power)->library == NULL ? NULL : dlsym((power)->library, name); \
    memcpy(&variable, &variable##_symbol, sizeof variable)

static double now_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void gpu_power_open(struct gpu_power *power) {
    *power = (struct gpu_power){.library = dlopen("libnvidia-ml.so.1", RTLD_LAZY | RTLD_LOCAL)};
    NVML_FUNCTION(init, power, "nvmlInit_v2", void);
    NVML_FUNCTION(get, power, "nvmlDeviceGetHandleByIndex_v2", unsigned, void **);
    if (init != NULL && get != NULL && init() == 0 && get(0, &power->device) == 0) return;
    gpu_power_close(power);
}

void gpu_power_close(struct gpu_power *power) {
    if (power->library != NULL) dlclose(power->library);
    power->library = NULL;
    power->device = NULL;
}

static uint64_t energy_mj(const struct gpu_power *power) {
    unsigned long long mj = 0;
    NVML_FUNCTION(energy, power, "nvmlDeviceGetTotalEnergyConsumption", void *,
                  unsigned long long *);
    return energy != NULL && energy(power->device, &mj) == 0 ? (uint64_t)mj : 0;
}

void gpu_power_start(struct gpu_power *power) {
    power->looks = 0;
    power->throttle = 0;
    power->started_mj = energy_mj(power);
    power->started_seconds = now_seconds();
}

void gpu_power_look(struct gpu_power *power) {
    unsigned mhz = 0, mw = 0;
    unsigned long long seen = 0;
    NVML_FUNCTION(clock, power, "nvmlDeviceGetClockInfo", void *, int, unsigned *);
    NVML_FUNCTION(usage, power, "nvmlDeviceGetPowerUsage", void *, unsigned *);
    NVML_FUNCTION(throttle, power, "nvmlDeviceGetCurrentClocksThrottleReasons", void *,
                  unsigned long long *);
    if (power->library == NULL || power->looks == GPU_POWER_LOOKS) return;
    if (clock == NULL || usage == NULL || throttle == NULL) return;
    if (clock(power->device, NVML_CLOCK_SM, &mhz) != 0 || usage(power->device, &mw) != 0) return;
    if (throttle(power->device, &seen) == 0) power->throttle |= seen;
    power->sm_mhz[power->looks] = mhz;
    power->watts[power->looks++] = mw / 1000;
}

void gpu_power_stop(struct gpu_power *power) {
    const uint64_t mj = energy_mj(power);
    power->seconds = now_seconds() - power->started_seconds;
    power->joules = mj > power->started_mj ? (double)(mj - power->started_mj) * 1e-3 : 0.0;
}

static int by_value(const void *a, const void *b) {
    const unsigned x = *(const unsigned *)a, y = *(const unsigned *)b;
    return (x > y) - (x < y);
}

static unsigned median(const unsigned *values, size_t count) {
    unsigned sorted[GPU_POWER_LOOKS];
    if (count == 0) return 0;
    memcpy(sorted, values, count * sizeof *values);
    qsort(sorted, count, sizeof *sorted, by_value);
    return sorted[count / 2];
}

const char *gpu_power_text(char text[GPU_POWER_TEXT_BYTES], const struct gpu_power *power,
                           double tokens) {
    char limits[128] = "";
    if (power->library == NULL) {
        snprintf(text, GPU_POWER_TEXT_BYTES, "unknown: NVML (libnvidia-ml.so.1) does not load");
        return text;
    }
    for (size_t i = 0; i < sizeof reasons / sizeof reasons[0]; i++) {
        if ((power->throttle & reasons[i].bit) == 0) continue;
        const size_t used = strlen(limits);
        snprintf(limits + used, sizeof limits - used, "%s%s", used == 0 ? ", limited by " : " and ",
                 reasons[i].name);
    }
    snprintf(text, GPU_POWER_TEXT_BYTES,
             "%.0f W, SM %u MHz (median of %zu looks)%s; %.2f kJ a million "
             "tokens",
             power->joules / power->seconds, median(power->sm_mhz, power->looks), power->looks,
             limits, power->joules / tokens * 1e3);
    return text;
}

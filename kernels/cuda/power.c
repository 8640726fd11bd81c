/* NVML at run time, behind kernels/cuda/power.h. */
#include "kernels/cuda/power.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

enum { NVML_CLOCK_SM = 1, NVML_SUCCESS = 0 };

/* nvmlClocksEventReasons: what holds the clock down. */
static const struct {
    uint64_t bit;
    const char *name;
} reasons[] = {
    {0x4, "power"}, {0x8, "hardware slowdown"}, {0x20, "thermal"}, {0x40, "hardware thermal"},
    {0x80, "power brake"},
};

/* Finds a function of the library; memcpy, since C has no cast from object to function pointers. */
static void find(const struct gpu_power *power, const char *name, void *function) {
    void *symbol = dlsym(power->library, name);
    memcpy(function, &symbol, sizeof symbol);
}

/* The GPU at the address; false, with the reason, if there is none. */
static bool open_gpu(struct gpu_power *power, const char *bus_id) {
    int (*init)(void) = NULL, (*get)(const char *, void **) = NULL;
    find(power, "nvmlInit_v2", &init);
    find(power, "nvmlDeviceGetHandleByPciBusId_v2", &get);
    find(power, "nvmlShutdown", &power->shutdown);
    if (init == NULL || get == NULL || init() != NVML_SUCCESS) {
        power->shutdown = NULL;
        snprintf(power->absent, sizeof power->absent, "NVML does not start");
    } else if (get(bus_id, &power->device) != NVML_SUCCESS) {
        snprintf(power->absent, sizeof power->absent, "NVML knows no GPU at %.32s", bus_id);
    }
    return power->absent[0] == '\0';
}

void gpu_power_open(struct gpu_power *power, const char *bus_id) {
    *power = (struct gpu_power){.joules = -1.0};
    if (bus_id[0] == '\0') {
        snprintf(power->absent, sizeof power->absent, "the work is on the CPU");
        return;
    }
    power->library = dlopen("libnvidia-ml.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (power->library == NULL) {
        snprintf(power->absent, sizeof power->absent, "NVML (libnvidia-ml.so.1) does not load");
        return;
    }
    if (!open_gpu(power, bus_id)) {
        gpu_power_close(power);
        return;
    }
    find(power, "nvmlDeviceGetTotalEnergyConsumption", &power->total_energy);
    find(power, "nvmlDeviceGetClockInfo", &power->clock_info);
    find(power, "nvmlDeviceGetPowerUsage", &power->power_usage);
    find(power, "nvmlDeviceGetCurrentClocksEventReasons", &power->throttle_reasons);
    if (power->throttle_reasons == NULL) { /* its name before driver 535 */
        find(power, "nvmlDeviceGetCurrentClocksThrottleReasons", &power->throttle_reasons);
    }
}

void gpu_power_close(struct gpu_power *power) {
    if (power->shutdown != NULL) power->shutdown();
    if (power->library != NULL) dlclose(power->library);
    power->shutdown = NULL;
    power->library = NULL;
    power->device = NULL;
}

/* Millijoules since the driver was loaded; -1: not known. */
static int64_t energy_mj(const struct gpu_power *power) {
    unsigned long long mj = 0;
    if (power->library == NULL || power->total_energy == NULL) return -1;
    return power->total_energy(power->device, &mj) == NVML_SUCCESS ? (int64_t)mj : -1;
}

bool gpu_power_now(const struct gpu_power *power, unsigned *watts, unsigned *sm_mhz) {
    unsigned mw = 0;
    if (power->library == NULL || power->clock_info == NULL || power->power_usage == NULL)
        return false;
    if (power->clock_info(power->device, NVML_CLOCK_SM, sm_mhz) != NVML_SUCCESS ||
        power->power_usage(power->device, &mw) != NVML_SUCCESS) {
        return false;
    }
    *watts = (mw + 500) / 1000;
    return true;
}

void gpu_power_limits(const struct gpu_power *power, double *watts, unsigned *sm_mhz) {
    int (*limit)(void *, unsigned *) = NULL, (*clock)(void *, int, unsigned *) = NULL;
    unsigned mw = 0;
    *watts = 0.0;
    *sm_mhz = 0;
    if (power->library == NULL) return;
    find(power, "nvmlDeviceGetEnforcedPowerLimit", &limit);
    find(power, "nvmlDeviceGetMaxClockInfo", &clock);
    if (limit != NULL && limit(power->device, &mw) == NVML_SUCCESS) *watts = (double)mw * 1e-3;
    if (clock != NULL && clock(power->device, NVML_CLOCK_SM, sm_mhz) != NVML_SUCCESS) *sm_mhz = 0;
}

bool gpu_memory_used(const struct gpu_power *power, size_t *bytes) {
    struct { /* nvmlMemory_t */
        unsigned long long total, free, used;
    } memory = {0};
    int (*info)(void *, void *) = NULL;
    if (power->library == NULL) return false;
    find(power, "nvmlDeviceGetMemoryInfo", &info);
    if (info == NULL || info(power->device, &memory) != NVML_SUCCESS) return false;
    *bytes = (size_t)memory.used;
    return true;
}

const char *gpu_driver_text(char text[GPU_DRIVER_TEXT_BYTES], const struct gpu_power *power) {
    int (*version)(char *, unsigned) = NULL;
    if (power->library != NULL) find(power, "nvmlSystemGetDriverVersion", &version);
    if (version == NULL || version(text, GPU_DRIVER_TEXT_BYTES) != NVML_SUCCESS) {
        snprintf(text, GPU_DRIVER_TEXT_BYTES, "n/a");
    }
    return text;
}

void gpu_power_start(struct gpu_power *power) {
    power->looks = 0;
    power->asked = 0;
    power->stride = 1;
    power->throttle = 0;
    power->started_mj = energy_mj(power);
    power->started_seconds = clock_seconds();
}

/* Every second look stays. */
static void thin_looks(struct gpu_power *power) {
    for (size_t i = 0; 2 * i < power->looks; i++) {
        power->sm_mhz[i] = power->sm_mhz[2 * i];
        power->watts[i] = power->watts[2 * i];
    }
    power->looks = (power->looks + 1) / 2;
    power->stride *= 2;
}

void gpu_power_look(struct gpu_power *power) {
    unsigned mhz = 0, watts = 0;
    unsigned long long seen = 0;
    if (power->library == NULL) return;
    if (power->throttle_reasons != NULL &&
        power->throttle_reasons(power->device, &seen) == NVML_SUCCESS) {
        power->throttle |= seen;
    }
    if (power->asked++ % power->stride != 0 || !gpu_power_now(power, &watts, &mhz)) return;
    power->sm_mhz[power->looks] = mhz;
    power->watts[power->looks++] = watts;
    if (power->looks == GPU_POWER_LOOKS) thin_looks(power);
}

void gpu_power_stop(struct gpu_power *power) {
    const int64_t mj = energy_mj(power);
    const bool known = mj >= 0 && power->started_mj >= 0 && mj >= power->started_mj;
    power->seconds = clock_seconds() - power->started_seconds;
    power->joules = known ? (double)(mj - power->started_mj) * 1e-3 : -1.0;
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

double gpu_power_mean_watts(const struct gpu_power *power) {
    if (power->joules >= 0.0 && power->seconds > 0.0) return power->joules / power->seconds;
    return power->looks > 0 ? (double)median(power->watts, power->looks) : -1.0;
}

unsigned gpu_power_median_mhz(const struct gpu_power *power) {
    return median(power->sm_mhz, power->looks);
}

const char *gpu_power_limit_text(char text[GPU_POWER_TEXT_BYTES], const struct gpu_power *power) {
    size_t used = 0;
    text[0] = '\0';
    if (power->looks == 0) return text;
    for (size_t i = 0; i < sizeof reasons / sizeof reasons[0]; i++) {
        if ((power->throttle & reasons[i].bit) == 0) continue;
        snprintf(text + used, GPU_POWER_TEXT_BYTES - used, "%s%s",
                 used == 0 ? "limited by " : " and ", reasons[i].name);
        used = strlen(text);
    }
    if (used == 0) snprintf(text, GPU_POWER_TEXT_BYTES, "not limited");
    return text;
}

const char *gpu_power_text(char text[GPU_POWER_TEXT_BYTES], const struct gpu_power *power,
                           double tokens) {
    char limits[GPU_POWER_TEXT_BYTES], energy[64] = "";
    const double watts = gpu_power_mean_watts(power);
    if (power->library == NULL || watts < 0.0) {
        snprintf(text, GPU_POWER_TEXT_BYTES, "n/a: %s",
                 power->library == NULL ? power->absent : "NVML gives neither power nor energy");
        return text;
    }
    if (tokens > 0.0 && power->joules >= 0.0) {
        snprintf(energy, sizeof energy, "; %.2f kJ a million tokens", power->joules / tokens * 1e3);
    } else if (tokens > 0.0) {
        snprintf(energy, sizeof energy, "; energy n/a: this GPU counts none");
    }
    gpu_power_limit_text(limits, power);
    snprintf(text, GPU_POWER_TEXT_BYTES, "%.0f W, SM %u MHz (median of %zu looks)%s%.100s%s", watts,
             gpu_power_median_mhz(power), power->looks, limits[0] != '\0' ? ", " : "", limits,
             energy);
    return text;
}

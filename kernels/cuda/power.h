/*
 * Energy, power, clock and throttling of the first GPU over a stretch of work, through NVML
 * (libnvidia-ml, NVIDIA Management Library Reference), opened at run time: where it is absent,
 * gpu_power_text() says so. Called by `bench`.
 */
#ifndef DEEPWELL_KERNELS_CUDA_POWER_H_
#define DEEPWELL_KERNELS_CUDA_POWER_H_

#include <stddef.h>
#include <stdint.h>

enum { GPU_POWER_LOOKS = 256 };

struct gpu_power {
    void *library;          /* NULL: absent */
    void *device;           /* NVML's handle */
    double joules, seconds; /* between start and stop */
    double started_seconds;
    uint64_t started_mj;
    unsigned sm_mhz[GPU_POWER_LOOKS], watts[GPU_POWER_LOOKS];
    size_t looks;
    uint64_t throttle; /* every reason seen, NVML's bits */
};

void gpu_power_open(struct gpu_power *power);
void gpu_power_close(struct gpu_power *power);

void gpu_power_start(struct gpu_power *power);
void gpu_power_look(struct gpu_power *power); /* clock, power and reasons at this moment */
void gpu_power_stop(struct gpu_power *power);

/* "688 W, SM 1440 MHz (median), limited by power; 12.6 kJ a million tokens". Writes into `text`. */
enum { GPU_POWER_TEXT_BYTES = 256 };
const char *gpu_power_text(char text[GPU_POWER_TEXT_BYTES], const struct gpu_power *power,
                           double tokens);

#endif

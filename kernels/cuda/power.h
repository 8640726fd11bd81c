/*
 * Energy, power, clock, throttling and memory of one GPU, through NVML (libnvidia-ml, NVIDIA
 * Management Library Reference), opened at run time: no build needs it. What is not to be had is
 * said, never guessed. Called by `bench`, `probe --measure` and the trainer.
 */
#ifndef DEEPWELL_KERNELS_CUDA_POWER_H_
#define DEEPWELL_KERNELS_CUDA_POWER_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { GPU_POWER_LOOKS = 256, GPU_POWER_ABSENT_BYTES = 96, GPU_POWER_TEXT_BYTES = 256 };

struct gpu_power {
    void *library; /* NULL: no figures, for the reason in `absent` */
    void *device;  /* NVML's handle */
    char absent[GPU_POWER_ABSENT_BYTES];
    /* nvmlDeviceGet...; NULL: this NVML has none */
    int (*total_energy)(void *, unsigned long long *);
    int (*clock_info)(void *, int, unsigned *);
    int (*power_usage)(void *, unsigned *);
    int (*throttle_reasons)(void *, unsigned long long *);
    int (*shutdown)(void); /* NULL: NVML was not started */

    /* A stretch of work, between start and stop. */
    double seconds;
    double joules;   /* by the GPU's own counter; negative: it has none */
    size_t looks;    /* kept: every stride-th of those that were asked for, so that they are spread
                      * evenly over the stretch however long it was */
    uint64_t asked, stride; /* looks asked for; a power of two */
    unsigned sm_mhz[GPU_POWER_LOOKS], watts[GPU_POWER_LOOKS];
    uint64_t throttle; /* every reason seen, NVML's bits */
    double started_seconds;
    int64_t started_mj;
};

/* The GPU at this PCI address (device.bus_id); "": the work is on the CPU. */
void gpu_power_open(struct gpu_power *power, const char *bus_id);
void gpu_power_close(struct gpu_power *power);

/* Power and clock at this moment; false if they are not to be had. Costs less than a
 * millisecond. */
bool gpu_power_now(const struct gpu_power *power, unsigned *watts, unsigned *sm_mhz);

/* What the GPU may draw and how fast its clock may go; 0: not known. */
void gpu_power_limits(const struct gpu_power *power, double *watts, unsigned *sm_mhz);

/* Memory in use on the whole GPU, by whomever; false if it is not to be had. */
bool gpu_memory_used(const struct gpu_power *power, size_t *bytes);

/* The driver's version, "580.65.06"; "n/a" if it is not to be had. Writes into `text` and returns
 * it. */
enum { GPU_DRIVER_TEXT_BYTES = 80 }; /* NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE */
const char *gpu_driver_text(char text[GPU_DRIVER_TEXT_BYTES], const struct gpu_power *power);

void gpu_power_start(struct gpu_power *power);
/* Clock, power and reasons at this moment. Every look's reasons count; its numbers are kept or
 * left, and when there is no more room every second one is dropped, and so on from there. */
void gpu_power_look(struct gpu_power *power);
void gpu_power_stop(struct gpu_power *power);

/* Over the stretch: the counter's joules by the time, or where there is none the median look;
 * negative: not known. */
double gpu_power_mean_watts(const struct gpu_power *power);
unsigned gpu_power_median_mhz(const struct gpu_power *power); /* 0: not known */

/* "limited by power", "not limited", or "" where nobody looked. Writes into `text` and returns
 * it. */
const char *gpu_power_limit_text(char text[GPU_POWER_TEXT_BYTES], const struct gpu_power *power);

/* "688 W, SM 1440 MHz (median of 20 looks), limited by power; 12.60 kJ a million tokens", or
 * "n/a: ..." with the reason. `tokens` of the stretch; 0: no energy a token. Writes into `text`
 * and returns it. */
const char *gpu_power_text(char text[GPU_POWER_TEXT_BYTES], const struct gpu_power *power,
                           double tokens);

#endif

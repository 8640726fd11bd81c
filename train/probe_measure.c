/* Sustained ceilings of this machine, behind train/probe_measure.h. */
#include "train/probe_measure.h"

#include <stdio.h>
#include <string.h>

#include "train/ceiling.h"
#include "train/engine.h"
#include "train/signals.h"

static void print_limits(const struct gpu_power *power) {
    double watts = 0.0;
    unsigned mhz = 0, now_watts = 0, now_mhz = 0;
    gpu_power_limits(power, &watts, &mhz);
    if (power->library == NULL) {
        printf("power       n/a: %s\n", power->absent);
        return;
    }
    printf("power       limit ");
    if (watts > 0.0) printf("%.0f W", watts);
    else printf("n/a");
    printf(", SM clock up to ");
    if (mhz > 0) printf("%u MHz", mhz);
    else printf("n/a");
    if (gpu_power_now(power, &now_watts, &now_mhz))
        printf("; now %u W, %u MHz", now_watts, now_mhz);
    printf("\n");
}

/* What multiplies where the device has no such product of its own. */
static enum dtype emulated_in(const struct device *device) {
    return device->kind == DEVICE_CPU ? DTYPE_F32 : DTYPE_BF16;
}

/* The rate of one recipe; *error: it is above the vendor's peak. */
static enum status measure_recipe(struct device *device, enum recipe_kind kind, double seconds,
                                  struct gpu_power *power, bool *error) {
    const struct recipe *recipe = recipe_row(kind);
    const enum support support = recipe_support(device, kind);
    char share[MFU_TEXT_BYTES], watts[GPU_POWER_TEXT_BYTES], text[OP_CALL_TEXT_BYTES];
    struct config config;
    struct op_call call;
    double tflops = 0.0;
    config_defaults(&config);
    printf("recipe %-9s %s", recipe->name, support_name(support));
    if (support == SUPPORT_EMULATED) printf(" in %s", dtype_name(emulated_in(device)));
    fflush(stdout);
    if (support == SUPPORT_NONE) {
        printf("\n");
        return STATUS_OK;
    }
    TRY(ceiling_gemm(device, recipe, seconds, power, &tflops, &call));
    const struct speed_limit limit = ceiling_of_gemm(device, &config, &call);
    const struct mfu mfu = mfu_against(tflops, &limit);
    if (mfu.state == MFU_MEASUREMENT_ERROR) *error = true;
    printf(", %.4g TFLOPS sustained, %s", tflops, op_call_text(text, &call));
    if (mfu.state != MFU_UNKNOWN && support == SUPPORT_NATIVE) {
        printf(", %s", mfu_text(share, &mfu) + strlen("mfu "));
    }
    if (power->library != NULL) printf("; %s", gpu_power_text(watts, power, 0.0));
    printf("\n");
    fflush(stdout);
    return STATUS_OK;
}

static enum status measure_all(struct device *device, double seconds, struct gpu_power *power) {
    char watts[GPU_POWER_TEXT_BYTES];
    double bytes_per_s = 0.0;
    bool error = false;
    if (device->kind == DEVICE_CUDA) print_limits(power);
    for (int kind = 0; kind < RECIPE_COUNT; kind++) {
        TRY(measure_recipe(device, (enum recipe_kind)kind, seconds, power, &error));
    }
    TRY(ceiling_copy(device, seconds, power, &bytes_per_s));
    printf("copy        %.1f GB/s sustained, read and written", bytes_per_s * 1e-9);
    if (power->library != NULL) printf("; %s", gpu_power_text(watts, power, 0.0));
    printf("\n");
    if (!error) return STATUS_OK;
    return status_set(STATUS_INTERNAL,
                      "measurement error: a GEMM above the vendor's peak (train/peak.c): "
                      "no figure of this run can be trusted");
}

enum status probe_measure(const struct config *config, double seconds) {
    struct device device;
    struct gpu_power power;
    TRY(signals_install(false));
    TRY(engine_open_device(&device, config));
    gpu_power_open(&power, device.bus_id);
    printf("measuring   %s\n", device.name);
    if (device.note[0] != '\0') printf("            %s\n", device.note);
    fflush(stdout);
    const enum status status = measure_all(&device, seconds, &power);
    gpu_power_close(&power);
    device_close(&device);
    return status;
}

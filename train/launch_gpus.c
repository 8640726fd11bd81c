/* Behind train/launch_gpus.h. */
#include "train/launch_gpus.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/cuda/inventory.h"
#include "train/launch.h"
#include "train/rank_environment.h"
#include "train/signals.h"

enum { GRACE_SECONDS = 10 }; /* for ranks to end after another has failed */

bool launch_gpus_wanted(int64_t gpus) { return gpus > 0 && !rank_environment_by_gpus(); }

static enum status check_gpus(const struct config *config, int64_t gpus) {
    static struct cuda_inventory inventory;
    TRY(rank_environment_check_alone());
    if (config->device == CONFIG_DEVICE_CPU) {
        return status_set(STATUS_CONFIG,
                          "--gpus %lld with device = cpu: ranks on CPUs are started "
                          "by mpirun (mpirun -np %lld deepwell ...)",
                          (long long)gpus, (long long)gpus);
    }
    cuda_inventory_count(&inventory);
    if (inventory.state != CUDA_READY) {
        return status_set(STATUS_DEVICE, "--gpus %lld: no usable GPU: %s", (long long)gpus,
                          inventory.message);
    }
    if (gpus <= inventory.count) return STATUS_OK;
    return status_set(STATUS_DEVICE,
                      "--gpus %lld: this process sees %d GPU%s (nvidia-smi, "
                      "CUDA_VISIBLE_DEVICES): ask for no more",
                      (long long)gpus, inventory.count, inventory.count == 1 ? "" : "s");
}

/* The copies know by their environment that they are ranks. */
enum status launch_gpus(const struct config *config, int64_t gpus, const char *group, int argc,
                        char **argv) {
    size_t count = 0;
    TRY(check_gpus(config, gpus));
    char **arguments = calloc((size_t)argc + 3, sizeof *arguments);
    if (arguments == NULL) return status_set(STATUS_MEMORY, "out of memory for an argument list");
    arguments[count++] = "deepwell";
    if (group != NULL) arguments[count++] = (char *)(uintptr_t)group;
    memcpy(arguments + count, argv, (size_t)argc * sizeof *arguments);
    const struct launch launch = {
        .ranks = (int)gpus,
        .program = "/proc/self/exe",
        .arguments = arguments,
        .grace_seconds = GRACE_SECONDS,
        .out = STDOUT_FILENO,
        .err = STDERR_FILENO,
        .note = signals_note(group == NULL), /* bench saves nothing */
    };
    const enum status status = launch_processes(&launch);
    free(arguments);
    return status;
}

/* deepwell train */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/text.h"
#include "kernels/cuda/inventory.h"
#include "train/cli.h"
#include "train/commands.h"
#include "train/launch.h"
#include "train/rank_environment.h"
#include "train/signals.h"
#include "train/trainer.h"

static const char usage[] =
    "usage: deepwell train [CONFIG] [--section.key VALUE ...]\n"
    "\n"
    "Trains a model as the configuration file and the options say; options overrule the file.\n"
    "The same command continues an interrupted run from its newest checkpoint.\n"
    "SIGINT (Ctrl-C), SIGTERM and SIGHUP finish the step, save and leave; a second one ends it at\n"
    "once.\n"
    "\n"
    "  --init MODEL         start from the weights of a trained model (train.init)\n"
    "  --gpus N             N ranks on this host, a GPU each; on several hosts, or on CPUs, a\n"
    "                       launcher starts them (docs/many_ranks.md)\n"
    "\n"
    "  deepwell train configs/shakespeare_bytes.conf --data.train data/train.bin\n"
    "  deepwell train configs/gpt2_124m.conf --train.steps 100 --train.out runs/try\n";

enum { GRACE_SECONDS = 10 }; /* for ranks to end after another has failed */

/* Closes the run. Of a failure that all ranks know, and of a signal, the first rank speaks; one
 * that befell a rank by itself ends it at once, for the others wait for it. */
static enum status end(struct trainer *trainer, enum status status) {
    const struct ranks ranks = trainer->ranks;
    const bool shared = trainer->comm.failed || status == STATUS_INTERRUPTED ||
                        status == STATUS_NUMERICS;
    if (ranks.world > 1 && status != STATUS_OK) {
        if (!shared) status_context(status, "rank %d", ranks.rank);
        else if (ranks.rank > 0) status_set(status, "%s", "");
        if (!shared) comm_abort(&trainer->comm, (int)status);
    }
    const enum status closed = trainer_close(trainer);
    return status != STATUS_OK ? status : closed;
}

static enum status train(const struct config *config) {
    struct trainer trainer;
    TRY(signals_install());
    enum status status = trainer_open(&trainer, config);
    if (status != STATUS_OK) return end(&trainer, status);
    if (trainer.state.step >= config->train.steps) {
        printf(
            "the run is complete: %lld steps are done, train.steps is %lld. Raise train.steps to "
            "go on, or name "
            "another train.out to start anew\n",
            (long long)trainer.state.step, (long long)config->train.steps);
        return end(&trainer, STATUS_OK);
    }
    return end(&trainer, trainer_run(&trainer));
}

static enum status check_gpus(const struct config *config, int64_t gpus) {
    static struct cuda_inventory inventory;
    TRY(rank_environment_check_alone());
    if (config->device == CONFIG_DEVICE_CPU) {
        return status_set(STATUS_CONFIG, "--gpus %lld with device = cpu: ranks on CPUs are started "
                          "by mpirun (mpirun -np %lld deepwell train ...)", (long long)gpus,
                          (long long)gpus);
    }
    cuda_inventory_count(&inventory);
    if (inventory.state != CUDA_READY) {
        return status_set(STATUS_DEVICE, "--gpus %lld: no usable GPU: %s", (long long)gpus,
                          inventory.message);
    }
    if (gpus <= inventory.count) return STATUS_OK;
    return status_set(STATUS_DEVICE, "--gpus %lld: this process sees %d GPU%s (nvidia-smi, "
                      "CUDA_VISIBLE_DEVICES): ask for no more", (long long)gpus, inventory.count,
                      inventory.count == 1 ? "" : "s");
}

/* This command again, once a GPU; the copies know by their environment that they are ranks. */
static enum status launch_ranks(int64_t gpus, int argc, char **argv) {
    char **arguments = calloc((size_t)argc + 2, sizeof *arguments);
    if (arguments == NULL) return status_set(STATUS_MEMORY, "out of memory for an argument list");
    arguments[0] = "deepwell";
    memcpy(arguments + 1, argv, (size_t)argc * sizeof *arguments);
    const struct launch launch = {
        .ranks = (int)gpus,
        .program = "/proc/self/exe",
        .arguments = arguments,
        .grace_seconds = GRACE_SECONDS,
        .out = STDOUT_FILENO,
        .err = STDERR_FILENO,
    };
    const enum status status = launch_processes(&launch);
    free(arguments);
    return status;
}

enum status command_train(int argc, char **argv) {
    int64_t gpus = 0;
    const struct cli_option options[] = {
        {.name = "--init", .config_key = "train.init"},
        {.name = "--gpus", .whole = &gpus, .least = 1, .most = LAUNCH_RANKS_MAX},
    };
    const struct cli cli = {
        .command = "train", .usage = usage, .options = options,
        .option_count = sizeof options / sizeof options[0], .takes_config = true,
    };
    struct cli_names names;
    struct config config;
    TRY(cli_positionals(&cli, argc, argv, 0, 1, &names));
    if (names.help) return STATUS_OK;
    TRY(cli_config(&cli, names.count > 0 ? names.names[0] : NULL, argc, argv, &config));
    if (gpus > 0 && !rank_environment_by_gpus()) {
        TRY(check_gpus(&config, gpus));
        return launch_ranks(gpus, argc, argv);
    }
    TRY(vocabulary_resolve(&config));
    return train(&config);
}

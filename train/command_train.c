/* deepwell train */
#include <stdio.h>

#include "train/cli.h"
#include "train/commands.h"
#include "train/launch.h"
#include "train/launch_gpus.h"
#include "train/ranks_start.h"
#include "train/signals.h"
#include "train/trainer.h"

static const char usage[] =
    "usage: deepwell train [CONFIG] [--section.key VALUE ...]\n"
    "\n"
    "Trains a model as the configuration file and the options say; options overrule the file.\n"
    "The same command continues an interrupted run from its newest checkpoint, and so does\n"
    "`deepwell train RUN/configuration.conf`, which the run wrote into its folder.\n"
    "SIGINT (Ctrl-C), SIGTERM and SIGHUP finish the step, save and leave; a second one ends it at\n"
    "once.\n"
    "\n"
    "  --init MODEL         start from the weights of a trained model (train.init)\n"
    "  --gpus N             N ranks on this host, a GPU each; on several hosts, or on CPUs, a\n"
    "                       launcher starts them (docs/many_ranks.md)\n"
    "\n"
    "  deepwell train configs/shakespeare_bytes.conf --data.train data/train.bin\n"
    "  deepwell train configs/gpt2_124m.conf --train.steps 100 --train.out runs/try\n";

static enum status end(struct trainer *trainer, enum status status) {
    /* all ranks saw the signal, or the number that is not finite */
    const bool shared = status == STATUS_INTERRUPTED || status == STATUS_NUMERICS;
    ranks_leave(&trainer->ranks, &trainer->comm, status, shared);
    const enum status closed = trainer_close(trainer);
    return status != STATUS_OK ? status : closed;
}

static enum status train(const struct config *config) {
    struct trainer trainer;
    TRY(signals_install(true));
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
    struct config config;
    bool help = false;
    TRY(cli_one_config(&cli, argc, argv, &config, &help));
    if (help) return STATUS_OK;
    if (launch_gpus_wanted(gpus)) return launch_gpus(&config, gpus, NULL, argc, argv);
    TRY(vocabulary_resolve(&config));
    return train(&config);
}

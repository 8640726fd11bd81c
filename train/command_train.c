/* deepwell train */
#include <stdio.h>

#include "base/text.h"
#include "train/cli.h"
#include "train/commands.h"
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
    "\n"
    "  deepwell train configs/shakespeare_bytes.conf --data.train data/train.bin\n"
    "  deepwell train configs/gpt2_124m.conf --train.steps 100 --train.out runs/try\n";

static const struct cli_option options[] = {{.name = "--init", .config_key = "train.init"}};
static const struct cli cli = {
    .command = "train", .usage = usage, .options = options,
    .option_count = sizeof options / sizeof options[0], .takes_config = true,
};

static enum status train(const struct config *config) {
    struct trainer trainer;
    TRY(signals_install());
    TRY(trainer_open(&trainer, config));
    if (trainer.state.step >= config->train.steps) {
        printf(
            "the run is complete: %lld steps are done, train.steps is %lld. Raise train.steps to "
            "go on, or name "
            "another train.out to start anew\n",
            (long long)trainer.state.step, (long long)config->train.steps);
        return trainer_close(&trainer);
    }
    const enum status status = trainer_run(&trainer);
    const enum status closed = trainer_close(&trainer);
    return status != STATUS_OK ? status : closed;
}

enum status command_train(int argc, char **argv) {
    struct config config;
    bool help = false;
    TRY(cli_one_config(&cli, argc, argv, &config, &help));
    if (help) return STATUS_OK;
    TRY(vocabulary_resolve(&config));
    return train(&config);
}

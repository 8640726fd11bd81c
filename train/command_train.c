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

/* Closes the run. Of a failure that all ranks know, and of a signal, the first rank speaks; one that
 * befell a rank by itself ends it at once, for the others wait for it. */
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

enum status command_train(int argc, char **argv) {
    struct cli_names names;
    struct config config;
    TRY(cli_positionals(&cli, argc, argv, 0, 1, &names));
    if (names.help) return STATUS_OK;
    TRY(cli_config(&cli, names.count > 0 ? names.names[0] : NULL, argc, argv, &config));
    TRY(vocabulary_resolve(&config));
    return train(&config);
}

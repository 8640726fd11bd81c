/* deepwell bench: the choice of what to measure. */
#include "train/bench.h"
#include "train/bench_numerics.h"
#include "train/cli.h"
#include "train/commands.h"
#include "train/signals.h"

static const char usage[] =
    "deepwell bench: how fast, beside what the device can do\n"
    "\n"
    "  deepwell bench step [CONFIG]         whole optimizer steps; --ops: what they are made of;\n"
    "                                       --floor: beside the floor, in the same run\n"
    "  deepwell bench floor [CONFIG]        the GEMMs, attention calls and least bytes of a step,\n"
    "                                       in its order, and nothing else\n"
    "  deepwell bench gemm [M N K | CONFIG] GEMMs, each under sustained load\n"
    "  deepwell bench ops [CONFIG]          every operation of a step alone, under sustained load\n"
    "  deepwell bench comm [CONFIG]         collectives between ranks; the rate for plan --ranks\n"
    "  deepwell bench numerics CONFIG       what a recipe does to gradients and the loss\n"
    "\n"
    "`deepwell bench SUBCOMMAND --help` says more; docs/measuring.md says how it is measured.\n";

enum status command_bench(int argc, char **argv) {
    static const struct cli_subcommand subcommands[] = {
        {"step", bench_step}, {"floor", bench_floor},       {"gemm", bench_gemm},
        {"ops", bench_ops},   {"comm", bench_comm},         {"numerics", bench_numerics},
    };
    static const struct cli_group group = {
        "bench", usage, subcommands, sizeof subcommands / sizeof subcommands[0],
    };
    TRY(signals_install(false));
    return cli_dispatch(&group, argc, argv);
}

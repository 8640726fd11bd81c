/* deepwell bench: the choice of what to measure. */
#include <stdio.h>
#include <string.h>

#include "base/text.h"
#include "train/bench.h"
#include "train/bench_numerics.h"
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
    "  deepwell bench numerics CONFIG       what a recipe does to gradients and the loss\n"
    "\n"
    "`deepwell bench SUBCOMMAND --help` says more; docs/measuring.md says how it is measured.\n";

static const struct {
    const char *name;
    enum status (*run)(int argc, char **argv);
} subcommands[] = {
    {"step", bench_step}, {"floor", bench_floor}, {"gemm", bench_gemm}, {"ops", bench_ops},
    {"numerics", bench_numerics},
};

enum { SUBCOMMANDS = sizeof subcommands / sizeof subcommands[0] };

enum status command_bench(int argc, char **argv) {
    const char *names[SUBCOMMANDS];
    if (argc < 2) {
        return status_set(STATUS_CONFIG,
                          "expected a subcommand of `deepwell bench`: step, floor, gemm, "
                          "ops or numerics; `deepwell bench --help` explains them");
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        fputs(usage, stdout);
        return STATUS_OK;
    }
    TRY(signals_install());
    for (size_t i = 0; i < SUBCOMMANDS; i++) {
        names[i] = subcommands[i].name;
        if (strcmp(argv[1], names[i]) == 0) return subcommands[i].run(argc - 1, argv + 1);
    }
    const char *nearest = text_nearest(argv[1], names, SUBCOMMANDS);
    return status_set(STATUS_CONFIG,
                      "unknown subcommand %s of `deepwell bench`%s%s; there are step, "
                      "floor, gemm, ops and numerics",
                      argv[1], nearest == NULL ? "" : ", did you mean ",
                      nearest == NULL ? "" : nearest);
}

/* The command line of `deepwell data`, around data/prepare.h and data/inspect.h. */
#include "train/command_data.h"

#include <stdint.h>
#include <stdio.h>

#include "base/clock.h"
#include "base/text.h"
#include "data/inspect.h"
#include "data/prepare.h"
#include "train/cli.h"

static const char help_data[] =
    "deepwell data: training data\n"
    "\n"
    "  deepwell data prepare --out FOLDER INPUT...   text to token shards\n"
    "  deepwell data info PATTERN...                 what shards hold\n"
    "  deepwell data check PATTERN...                whether they are what dataset.json says\n"
    "  deepwell data show SHARD                      tokens of a shard, as text\n"
    "\n"
    "`deepwell data SUBCOMMAND --help` says more.\n";

static const char help_prepare[] =
    "deepwell data prepare --out FOLDER [options] INPUT...\n"
    "\n"
    "With --tokenizer or --new-vocabulary, ./deepwell runs a Python tool that also reads .jsonl\n"
    "and .parquet: ./deepwell data prepare --tokenizer bytes --help has its options. Without:\n"
    "\n"
    "Writes FOLDER/train.bin, FOLDER/validation.bin and FOLDER/dataset.json. Every byte of text\n"
    "is a token, and token 0 ends each document. An input is a text file, which is one document,\n"
    "or a folder, of which every text file is one; hidden names, links and binary files are\n"
    "passed over.\n"
    "\n"
    "  --out FOLDER                where the shards go; made if it is not there\n"
    "  --validation-fraction 0.1   share of the text kept for validation: the end of a single\n"
    "                              document, or else whole documents, chosen by their content\n"
    "  --overwrite                 replace an earlier output, all of it in one step\n"
    "\n"
    "Examples:\n"
    "  deepwell data prepare --out runs/shakespeare/data shakespeare.txt\n"
    "  deepwell data prepare --out data/code --validation-fraction 0.05 ~/project/src README.md\n";

static const char help_info[] =
    "deepwell data info PATTERN...\n"
    "\n"
    "For each shard: type, number of tokens, largest token, size. A pattern is a file or holds\n"
    "*, ? or [], in quotes so that the shell leaves it alone.\n"
    "\n"
    "Examples:\n"
    "  deepwell data info runs/shakespeare/data/train.bin\n"
    "  deepwell data info 'data/fineweb/train_*.bin'\n";

static const char help_check[] =
    "deepwell data check PATTERN...\n"
    "\n"
    "Reads each shard whole: header and length, and, if a dataset.json stands beside it, number\n"
    "of tokens, checksum, every token below the vocabulary, and the tokenizer's checksum. Exit\n"
    "code 3 at the first that is not as it should be.\n"
    "\n"
    "Example:\n"
    "  deepwell data check 'data/fineweb/*.bin'\n";

static const char help_show[] =
    "deepwell data show SHARD [options]\n"
    "\n"
    "Prints tokens: as text by the tokenizer that the dataset.json beside the shard names;\n"
    "without one, as text if all tokens of the shard are bytes, as numbers otherwise.\n"
    "\n"
    "  --first 0          the first token to print, counted from 0\n"
    "  --count 256        how many\n"
    "  --tokenizer FILE   another tokenizer.json\n"
    "  --numbers          as numbers, whatever they stand for\n"
    "\n"
    "Example:\n"
    "  deepwell data show runs/shakespeare/data/validation.bin --first 1000 --count 500\n";

/* Whole documents are chosen, so a few long ones may miss the share by far. */
static void note_share(const struct prepare_report *report, double wished) {
    const double all = (double)report->train_tokens + (double)report->validation_tokens;
    const double share = (double)report->validation_tokens / all;
    if (share < 2.0 * wished && share > 0.5 * wished) return;
    printf("note: validation is %.3g %% of the tokens, %.3g %% was asked for: whole documents are "
           "chosen, and %zu are few or of very different length; one file is cut instead\n",
           100.0 * share, 100.0 * wished, report->documents);
}

static void print_report(const struct prepare_report *report, const char *folder, double seconds) {
    char train[TEXT_BYTES], validation[TEXT_BYTES], duration[TEXT_BYTES];
    printf("documents   %zu", report->documents);
    printf(" (passed over: %zu binary, %zu empty, %zu hidden, %zu links and special files)\n",
           report->skipped_binary, report->skipped_empty, report->skipped_hidden,
           report->skipped_special);
    if (report->skipped_binary > 0) printf("binary      %s\n", report->binary_names);
    printf("train       %s tokens\n", text_count(train, report->train_tokens));
    printf("validation  %s tokens\n", text_count(validation, report->validation_tokens));
    if (report->left_behind > 0) {
        printf("removed     %zu unfinished, left beside it by preparations that were killed\n",
               report->left_behind);
    }
    printf("written to %s in %s\n", folder, text_duration(duration, seconds));
}

/* argv[0] is the subcommand in all of these. */

static enum status prepare(int argc, char **argv) {
    struct prepare_options options = {.out_folder = "", .validation_fraction = 0.1};
    struct prepare_report report;
    const char *tokenizer = NULL, *new_vocabulary = NULL; /* ./deepwell sees them before this */
    const struct cli_option list[] = {
        {.name = "--tokenizer", .text = &tokenizer},
        {.name = "--new-vocabulary", .text = &new_vocabulary},
        {.name = "--out", .text = &options.out_folder},
        {.name = "--validation-fraction", .fraction = &options.validation_fraction},
        {.name = "--overwrite", .flag = &options.overwrite},
    };
    const struct cli cli = {
        .command = "data prepare", .usage = help_prepare, .options = list,
        .option_count = sizeof list / sizeof list[0],
    };
    struct cli_names inputs;
    TRY(cli_positionals(&cli, argc, argv, 0, CLI_NAMES_MAX, &inputs));
    if (inputs.help) return STATUS_OK;
    TRY(cli_options(&cli, argc, argv, NULL));
    if (tokenizer != NULL || new_vocabulary != NULL) {
        return status_set(STATUS_CONFIG, "preparation with a tokenizer is a Python tool: call it "
                          "through ./deepwell in the repository, or run tools/prepare/prepare.py "
                          "with a Python that has tokenizers, pyarrow and xxhash");
    }
    if (options.out_folder[0] == '\0') {
        return status_set(STATUS_CONFIG, "expected --out FOLDER, which says where the shards go");
    }
    options.inputs = inputs.names;
    options.input_count = inputs.count;
    const double start_seconds = clock_seconds();
    TRY(prepare_text(&options, &report));
    print_report(&report, options.out_folder, clock_seconds() - start_seconds);
    note_share(&report, options.validation_fraction);
    return STATUS_OK;
}

/* A command without options whose names are patterns. */
static enum status each_pattern(const struct cli *cli, int argc, char **argv, const char *between,
                                enum status (*inspect)(const char *pattern, FILE *out)) {
    struct cli_names patterns;
    TRY(cli_positionals(cli, argc, argv, 1, CLI_NAMES_MAX, &patterns));
    if (patterns.help) return STATUS_OK;
    TRY(cli_options(cli, argc, argv, NULL));
    for (size_t i = 0; i < patterns.count; i++) {
        if (i > 0) fputs(between, stdout);
        TRY(inspect(patterns.names[i], stdout));
    }
    return STATUS_OK;
}

static const char names_patterns[] = "PATTERN, shards such as 'data/train*.bin'";

static enum status info(int argc, char **argv) {
    static const struct cli cli = {.command = "data info",
                                   .usage = help_info,
                                   .names = names_patterns};
    return each_pattern(&cli, argc, argv, "\n", inspect_shards);
}

static enum status check(int argc, char **argv) {
    static const struct cli cli = {.command = "data check",
                                   .usage = help_check,
                                   .names = names_patterns};
    return each_pattern(&cli, argc, argv, "", inspect_check);
}

static enum status show(int argc, char **argv) {
    int64_t first = 0, count = 256;
    struct inspect_range range = {.tokenizer = ""};
    const struct cli_option list[] = {
        {.name = "--first", .whole = &first, .least = 0, .most = INT64_MAX},
        {.name = "--count", .whole = &count, .least = 1, .most = INT64_MAX},
        {.name = "--tokenizer", .text = &range.tokenizer},
        {.name = "--numbers", .flag = &range.numbers},
    };
    const struct cli cli = {
        .command = "data show",
        .usage = help_show,
        .names = "SHARD, a file of tokens",
        .options = list,
        .option_count = sizeof list / sizeof list[0],
    };
    struct cli_names shard;
    TRY(cli_positionals(&cli, argc, argv, 1, 1, &shard));
    if (shard.help) return STATUS_OK;
    TRY(cli_options(&cli, argc, argv, NULL));
    range.first = (size_t)first;
    range.count = (size_t)count;
    return inspect_tokens(shard.names[0], &range, stdout);
}

enum status command_data(int argc, char **argv) {
    static const struct cli_subcommand subcommands[] = {
        {"prepare", prepare}, {"info", info}, {"check", check}, {"show", show},
    };
    static const struct cli_group group = {
        "data", help_data, subcommands, sizeof subcommands / sizeof subcommands[0],
    };
    return cli_dispatch(&group, argc, argv);
}

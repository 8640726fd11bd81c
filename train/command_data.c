/* The command line of `deepwell data`, around data/prepare.h and data/inspect.h. */
#include "train/command_data.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "data/inspect.h"
#include "data/prepare.h"

static const char help_data[] =
    "deepwell data: training data\n"
    "\n"
    "  deepwell data prepare --out FOLDER INPUT...   text to token shards\n"
    "  deepwell data info PATTERN...                 what shards hold\n"
    "  deepwell data show SHARD                      tokens of a shard, as text\n"
    "\n"
    "`deepwell data SUBCOMMAND --help` says more.\n";

static const char help_prepare[] =
    "deepwell data prepare --out FOLDER [options] INPUT...\n"
    "\n"
    "Writes FOLDER/train.bin, FOLDER/validation.bin and FOLDER/dataset.json. Every byte of text\n"
    "is a token, and token 0 ends each document. An input is a text file, which is one document,\n"
    "or a folder, of which every text file is one; hidden names, links and binary files are\n"
    "passed over.\n"
    "\n"
    "  --out FOLDER                where the shards go; made if it is not there\n"
    "  --validation-fraction 0.1   share of the text kept for validation: the end of a single\n"
    "                              document, or else whole documents, chosen by their content\n"
    "  --overwrite                 replace shards that are there\n"
    "\n"
    "Examples:\n"
    "  deepwell data prepare --out data/shakespeare shakespeare.txt\n"
    "  deepwell data prepare --out data/code --validation-fraction 0.05 ~/project/src README.md\n";

static const char help_info[] =
    "deepwell data info PATTERN...\n"
    "\n"
    "For each shard: type, number of tokens, largest token, size. A pattern is a file or holds\n"
    "*, ? or [], in quotes so that the shell leaves it alone.\n"
    "\n"
    "Examples:\n"
    "  deepwell data info data/shakespeare/train.bin\n"
    "  deepwell data info 'data/fineweb/train_*.bin'\n";

static const char help_show[] =
    "deepwell data show SHARD [options]\n"
    "\n"
    "Prints tokens: as text if all tokens of the shard are bytes, as numbers otherwise.\n"
    "\n"
    "  --first 0     the first token to print, counted from 0\n"
    "  --count 256   how many\n"
    "\n"
    "Example:\n"
    "  deepwell data show data/shakespeare/validation.bin --first 1000 --count 500\n";

/* An option of a subcommand and what the command line says about it. */
struct option {
    const char *name;
    bool takes_value;
    bool given;
    const char *value; /* NULL if it takes none or is not given */
};

enum { OPTIONS_MAX = 4 };

struct arguments {
    const char *command; /* "prepare" */
    const char *help;
    struct option options[OPTIONS_MAX];
    size_t option_count;
    bool wants_help;
    const char **inputs; /* what is no option; room for all arguments */
    size_t input_count;
};

static enum status refuse_option(const struct arguments *arguments, const char *name) {
    const char *names[OPTIONS_MAX + 1] = {"--help"};
    for (size_t i = 0; i < arguments->option_count; i++) names[i + 1] = arguments->options[i].name;
    const char *nearest = text_nearest(name, names, arguments->option_count + 1);
    return status_set(STATUS_CONFIG, "unknown option %s of `deepwell data %s`%s%s; `deepwell data "
                      "%s --help` lists the options", name, arguments->command,
                      nearest == NULL ? "" : ", did you mean ", nearest == NULL ? "" : nearest,
                      arguments->command);
}

/* Takes the option at argv[*index], "--name", "--name value" or "--name=value". */
static enum status take_option(struct arguments *arguments, int argc, char **argv, int *index) {
    char name[64];
    const char *text = argv[*index], *equals = strchr(text, '=');
    const int length = equals == NULL ? (int)strlen(text) : (int)(equals - text);
    snprintf(name, sizeof name, "%.*s", length, text);
    struct option *option = NULL;
    for (size_t i = 0; i < arguments->option_count; i++) {
        if (strcmp(name, arguments->options[i].name) == 0) option = &arguments->options[i];
    }
    if (option == NULL) return refuse_option(arguments, name);
    if (option->given) {
        return status_set(STATUS_CONFIG, "expected %s once, found it twice", name);
    }
    option->given = true;
    if (!option->takes_value) {
        if (equals == NULL) return STATUS_OK;
        return status_set(STATUS_CONFIG, "expected %s without a value, found %s", name, text);
    }
    if (equals != NULL) {
        option->value = equals + 1;
    } else if (*index + 1 < argc) {
        option->value = argv[++*index];
    } else {
        return status_set(STATUS_CONFIG, "expected a value after %s, found the end of the command",
                          name);
    }
    return STATUS_OK;
}

/* Sorts argv[1..argc) into options and inputs; after "--" all are inputs. */
static enum status parse_arguments(struct arguments *arguments, int argc, char **argv) {
    bool only_inputs = false;
    for (int i = 1; i < argc; i++) {
        if (only_inputs || argv[i][0] != '-') {
            arguments->inputs[arguments->input_count++] = argv[i];
        } else if (strcmp(argv[i], "--") == 0) {
            only_inputs = true;
        } else if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            arguments->wants_help = true;
        } else {
            TRY(take_option(arguments, argc, argv, &i));
        }
    }
    return STATUS_OK;
}

/* A whole number from `lowest` to the largest size_t, in digits only. */
static enum status parse_size(const struct option *option, size_t lowest, size_t *number) {
    if (!option->given) return STATUS_OK;
    char *end = NULL;
    errno = 0;
    const unsigned long long value = strtoull(option->value, &end, 10);
    const bool digits_only = option->value[strspn(option->value, "0123456789")] == '\0';
    if (!digits_only || end == option->value || errno != 0 || value > SIZE_MAX || value < lowest) {
        return status_set(STATUS_CONFIG, "expected a whole number of %zu or more after %s, found "
                          "\"%s\"", lowest, option->name, option->value);
    }
    *number = (size_t)value;
    return STATUS_OK;
}

/* A number above 0 and below 1, in decimal digits. */
static enum status parse_fraction(const struct option *option, double *number) {
    if (!option->given) return STATUS_OK;
    char *end = NULL;
    const double value = strtod(option->value, &end);
    const bool decimal = option->value[strspn(option->value, "0123456789.eE-")] == '\0';
    if (!decimal || end == option->value || *end != '\0' || !(value > 0.0 && value < 1.0)) {
        return status_set(STATUS_CONFIG, "expected a number above 0 and below 1 after %s, found "
                          "\"%s\"", option->name, option->value);
    }
    *number = value;
    return STATUS_OK;
}

static void print_report(const struct prepare_report *report, const char *folder, double seconds) {
    char train[TEXT_BYTES], validation[TEXT_BYTES], duration[TEXT_BYTES];
    printf("documents   %zu", report->documents);
    printf(" (passed over: %zu binary, %zu empty, %zu hidden, %zu links and special files)\n",
           report->skipped_binary, report->skipped_empty, report->skipped_hidden,
           report->skipped_special);
    printf("train       %s tokens\n", text_count(train, report->train_tokens));
    printf("validation  %s tokens\n", text_count(validation, report->validation_tokens));
    printf("written to %s in %s\n", folder, text_duration(duration, seconds));
}

static enum status run_prepare(const struct arguments *arguments) {
    const struct option *out = &arguments->options[0];
    struct prepare_report report;
    struct prepare_options options = {
        .inputs = arguments->inputs,
        .input_count = arguments->input_count,
        .out_folder = out->value,
        .validation_fraction = 0.1,
        .overwrite = arguments->options[2].given,
    };
    if (!out->given || out->value[0] == '\0') {
        return status_set(STATUS_CONFIG, "expected --out FOLDER, which says where the shards go");
    }
    TRY(parse_fraction(&arguments->options[1], &options.validation_fraction));
    const double start_seconds = clock_seconds();
    TRY(prepare_text(&options, &report));
    print_report(&report, options.out_folder, clock_seconds() - start_seconds);
    return STATUS_OK;
}

static enum status run_info(const struct arguments *arguments) {
    if (arguments->input_count == 0) {
        return status_set(STATUS_CONFIG, "expected a shard or a pattern, found none: for example "
                          "`deepwell data info 'data/*.bin'`");
    }
    for (size_t i = 0; i < arguments->input_count; i++) {
        if (i > 0) putchar('\n');
        TRY(inspect_shards(arguments->inputs[i], stdout));
    }
    return STATUS_OK;
}

static enum status run_show(const struct arguments *arguments) {
    size_t first = 0, count = 256;
    if (arguments->input_count != 1) {
        return status_set(STATUS_CONFIG, "expected one shard to show, found %zu",
                          arguments->input_count);
    }
    TRY(parse_size(&arguments->options[0], 0, &first));
    TRY(parse_size(&arguments->options[1], 1, &count));
    return inspect_tokens(arguments->inputs[0], first, count, stdout);
}

struct subcommand {
    enum status (*run)(const struct arguments *arguments);
    struct arguments arguments; /* the options in the order in which `run` looks at them */
};

static const struct subcommand subcommands[] = {
    {run_prepare, {.command = "prepare", .help = help_prepare, .option_count = 3,
                   .options = {{.name = "--out", .takes_value = true},
                               {.name = "--validation-fraction", .takes_value = true},
                               {.name = "--overwrite"}}}},
    {run_info, {.command = "info", .help = help_info}},
    {run_show, {.command = "show", .help = help_show, .option_count = 2,
                .options = {{.name = "--first", .takes_value = true},
                            {.name = "--count", .takes_value = true}}}},
};

enum { SUBCOMMANDS = sizeof subcommands / sizeof subcommands[0] };

/* argv[0] is the subcommand's name. */
static enum status run_subcommand(const struct subcommand *subcommand, int argc, char **argv) {
    enum status status = STATUS_OK;
    struct arguments arguments = subcommand->arguments;
    arguments.inputs = calloc((size_t)argc, sizeof *arguments.inputs);
    if (arguments.inputs == NULL) return status_set(STATUS_MEMORY, "out of memory for arguments");
    TRY_GOTO(parse_arguments(&arguments, argc, argv), cleanup);
    if (arguments.wants_help) {
        fputs(arguments.help, stdout);
    } else {
        TRY_GOTO(subcommand->run(&arguments), cleanup);
    }

cleanup:
    free(arguments.inputs);
    return status;
}

enum status command_data(int argc, char **argv) {
    const char *names[SUBCOMMANDS];
    if (argc < 2) {
        return status_set(STATUS_CONFIG, "expected a subcommand of `deepwell data`: prepare, info "
                          "or show; `deepwell data --help` explains them");
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        fputs(help_data, stdout);
        return STATUS_OK;
    }
    for (size_t i = 0; i < SUBCOMMANDS; i++) {
        names[i] = subcommands[i].arguments.command;
        if (strcmp(argv[1], names[i]) == 0) {
            return run_subcommand(&subcommands[i], argc - 1, argv + 1);
        }
    }
    const char *nearest = text_nearest(argv[1], names, SUBCOMMANDS);
    return status_set(STATUS_CONFIG, "unknown subcommand %s of `deepwell data`%s%s; there are "
                      "prepare, info and show", argv[1], nearest == NULL ? "" : ", did you mean ",
                      nearest == NULL ? "" : nearest);
}

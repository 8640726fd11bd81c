/*
 * Command lines: `deepwell COMMAND [NAME...] [--option VALUE...]`. Besides the options that a
 * command lists, every configuration key is an option (config.h). Used by the command_*.c files.
 *
 * Two passes, because the configuration file must be read before the options that overrule it:
 * cli_positionals finds the names, the command loads what they mean, cli_options applies the
 * options.
 */
#ifndef DEEPWELL_TRAIN_CLI_H_
#define DEEPWELL_TRAIN_CLI_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "train/config.h"

enum { CLI_NAMES_MAX = 4096, CLI_OPTIONS_MAX = 16, CLI_TEXTS_MAX = 16, CLI_SUBCOMMANDS_MAX = 8 };

/* The values of an option that may be given more than once, in their order. */
struct cli_texts {
    const char *items[CLI_TEXTS_MAX];
    size_t count;
};

/* A value out of a few words. */
struct cli_choice {
    const char *const *names;
    size_t count;
    int chosen; /* index; what it was before the option came stays without one */
};

/* One of flag, whole, fraction, real, text, choices, texts and config_key is set: where the value
 * goes. The last one wins, but where all go to texts. */
struct cli_option {
    const char *name;       /* "--prompt" */
    bool *flag;             /* set to true; takes no value */
    int64_t *whole;         /* a whole number from `least` to `most` */
    int64_t least, most;
    double *fraction;       /* a number above 0 and below 1 */
    double *real;           /* a number above 0 and up to `most` */
    const char **text;      /* as it stands */
    struct cli_choice *choices;
    struct cli_texts *texts; /* as they stand; one more than CLI_TEXTS_MAX is refused */
    const char *config_key; /* a short name for a configuration key */
};

struct cli {
    const char *command; /* "sample", "data prepare" */
    const char *usage;   /* the first lines of --help */
    const char *names;   /* what must be named: "RUN, a run's folder or a checkpoint"; or NULL */
    const struct cli_option *options;
    size_t option_count; /* at most CLI_OPTIONS_MAX */
    bool takes_config;   /* configuration keys are options too */
};

struct cli_names {
    const char *names[CLI_NAMES_MAX];
    size_t count;
    bool help; /* --help or -h stands somewhere: it was printed, and nothing else is to be done */
};

/* argv[0] is the command; after "--" all are names. STATUS_CONFIG if there are fewer than `least`,
 * which is 0 where cli->names is NULL, or more than `most` (at most CLI_NAMES_MAX). */
enum status cli_positionals(const struct cli *cli, int argc, char *const *argv, size_t least,
                            size_t most, struct cli_names *names);

/* `config` may be NULL where !takes_config. An unknown option names the nearest. */
enum status cli_options(const struct cli *cli, int argc, char *const *argv, struct config *config);

/* The configuration of a run: defaults, the file (`path` NULL: none), the options, checked. */
enum status cli_config(const struct cli *cli, const char *path, int argc, char *const *argv,
                       struct config *config);

/* What a command begins with whose one name, if any, is a configuration file: cli_positionals and,
 * unless `help` was asked for, cli_config. */
enum status cli_one_config(const struct cli *cli, int argc, char *const *argv,
                           struct config *config, bool *help);

/* A command that is one of several: `deepwell COMMAND SUBCOMMAND ...`. */
struct cli_subcommand {
    const char *name;
    enum status (*run)(int argc, char **argv); /* argv[0] is the subcommand */
};

struct cli_group {
    const char *command; /* "bench" */
    const char *usage;   /* what --help prints */
    const struct cli_subcommand *subcommands;
    size_t count; /* at most CLI_SUBCOMMANDS_MAX */
};

/* Runs the subcommand that argv[1] names. An unknown one is told which there are, and the
 * nearest. */
enum status cli_dispatch(const struct cli_group *group, int argc, char **argv);

#endif

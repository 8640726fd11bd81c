/* Command-line parsing behind train/cli.h. */
#include "train/cli.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "train/config_table.h"

enum { OPTION_NAME_BYTES = 256 };

static bool is_option(const char *argument) {
    return argument[0] == '-' && argument[1] != '\0';
}

static bool is_help(const char *argument) {
    return strcmp(argument, "--help") == 0 || strcmp(argument, "-h") == 0;
}

/* The command's own option that the argument names ("--name" or "--name=value"), or NULL. */
static const struct cli_option *find_option(const struct cli *cli, const char *argument) {
    const size_t length = strcspn(argument, "=");
    for (size_t i = 0; i < cli->option_count; i++) {
        const char *name = cli->options[i].name;
        if (strlen(name) == length && strncmp(name, argument, length) == 0) return &cli->options[i];
    }
    return NULL;
}

/* True if the option at argv[i] takes the next argument as its value. */
static bool takes_next(const struct cli *cli, const char *argument) {
    const struct cli_option *option = find_option(cli, argument);
    if (is_help(argument) || strchr(argument, '=') != NULL) return false;
    return option == NULL || option->flag == NULL;
}

static void print_help(const struct cli *cli) {
    fputs(cli->usage, stdout);
    if (cli->takes_config) {
        fputs("\n", stdout);
        config_print_help(stdout);
    }
}

enum status cli_positionals(const struct cli *cli, int argc, char *const *argv, size_t least,
                            size_t most, struct cli_names *names) {
    bool only_names = false;
    names->count = 0;
    names->help = false;
    for (int i = 1; i < argc; i++) {
        if (!only_names && is_help(argv[i])) {
            names->help = true;
            print_help(cli);
            return STATUS_OK;
        }
        if (!only_names && strcmp(argv[i], "--") == 0) {
            only_names = true;
        } else if (!only_names && is_option(argv[i])) {
            if (takes_next(cli, argv[i])) i++;
        } else if (names->count == most) {
            return status_set(STATUS_CONFIG,
                              "%s: one name too many: \"%s\" (`deepwell %s --help` "
                              "shows the form)",
                              cli->command, argv[i], cli->command);
        } else {
            names->names[names->count++] = argv[i];
        }
    }
    if (names->count < least) {
        return status_set(STATUS_CONFIG,
                          "%s: expected %s; found %s%s (`deepwell %s --help` shows "
                          "the form)",
                          cli->command, cli->names, names->count > 0 ? "only " : "nothing",
                          names->count > 0 ? names->names[0] : "", cli->command);
    }
    return STATUS_OK;
}

static enum status set_whole(const struct cli_option *option, const char *value) {
    char *end = NULL;
    errno = 0;
    const long long number = strtoll(value, &end, 10);
    const bool digits = value[strspn(value, "-0123456789")] == '\0';
    if (!digits || end == value || *end != '\0' || errno != 0 || number < option->least ||
        number > option->most) {
        return status_set(STATUS_CONFIG,
                          "%s: expected a whole number from %lld to %lld, found \"%s\"",
                          option->name, (long long)option->least, (long long)option->most, value);
    }
    *option->whole = number;
    return STATUS_OK;
}

/* A decimal number: no hexadecimal, no names of numbers. */
static bool parse_decimal(const char *value, double *number) {
    char *end = NULL;
    *number = strtod(value, &end);
    return value[strspn(value, "0123456789.eE-")] == '\0' && end != value && *end == '\0';
}

static enum status set_fraction(const struct cli_option *option, const char *value) {
    double number = 0.0;
    if (!parse_decimal(value, &number) || !(number > 0.0 && number < 1.0)) {
        return status_set(STATUS_CONFIG, "%s: expected a number above 0 and below 1, found \"%s\"",
                          option->name, value);
    }
    *option->fraction = number;
    return STATUS_OK;
}

static enum status set_real(const struct cli_option *option, const char *value) {
    double number = 0.0;
    if (!parse_decimal(value, &number) || !(number > 0.0 && number <= (double)option->most)) {
        return status_set(STATUS_CONFIG,
                          "%s: expected a number above 0, at most %lld, found \"%s\"", option->name,
                          (long long)option->most, value);
    }
    *option->real = number;
    return STATUS_OK;
}

static enum status add_text(const struct cli_option *option, const char *value) {
    if (option->texts->count == CLI_TEXTS_MAX) {
        return status_set(STATUS_CONFIG, "%s: expected it at most %d times, found it once more",
                          option->name, CLI_TEXTS_MAX);
    }
    option->texts->items[option->texts->count++] = value;
    return STATUS_OK;
}

static enum status set_choice(const struct cli_option *option, const char *value) {
    char list[OPTION_NAME_BYTES], hint[TEXT_HINT_BYTES];
    for (size_t i = 0; i < option->choices->count; i++) {
        if (strcmp(option->choices->names[i], value) != 0) continue;
        option->choices->chosen = (int)i;
        return STATUS_OK;
    }
    const char *const *names = option->choices->names;
    return status_set(STATUS_CONFIG, "%s: expected %s, found \"%.40s\"%s", option->name,
                      text_list(list, sizeof list, names, option->choices->count, " or "), value,
                      text_hint(hint, value, names, option->choices->count));
}

static enum status apply_option(const struct cli_option *option, int argc, char *const *argv,
                                int *index, struct config *config) {
    const char *argument = argv[(*index)++];
    const char *equals = strchr(argument, '=');
    if (option->flag != NULL) {
        if (equals != NULL) {
            return status_set(STATUS_CONFIG, "%s takes no value, found \"%s\"", option->name,
                              argument);
        }
        *option->flag = true;
        return STATUS_OK;
    }
    if (equals == NULL && *index >= argc) {
        return status_set(STATUS_CONFIG, "%s: its value is missing", option->name);
    }
    const char *value = equals != NULL ? equals + 1 : argv[(*index)++];
    if (option->whole != NULL) return set_whole(option, value);
    if (option->fraction != NULL) return set_fraction(option, value);
    if (option->real != NULL) return set_real(option, value);
    if (option->choices != NULL) return set_choice(option, value);
    if (option->texts != NULL) return add_text(option, value);
    if (option->text != NULL) {
        *option->text = value;
        return STATUS_OK;
    }
    const enum status status = config_set(config, option->config_key, value);
    return status == STATUS_OK ? STATUS_OK : status_context(status, "%s", option->name);
}

/* The command's own option that is nearest to the argument, nearer than any configuration key; or
 * NULL. */
static const struct cli_option *nearest_option(const struct cli *cli, const char *argument) {
    const char *names[CLI_OPTIONS_MAX + CONFIG_KEYS_MAX];
    char name[OPTION_NAME_BYTES];
    const size_t keys = cli->takes_config ? config_key_count : 0;
    snprintf(name, sizeof name, "%.*s", (int)strcspn(argument, "="), argument);
    const char *bare = name + strspn(name, "-");
    for (size_t i = 0; i < cli->option_count; i++) names[i] = cli->options[i].name + strlen("--");
    for (size_t i = 0; i < keys; i++) names[cli->option_count + i] = config_keys[i].name;
    const char *nearest = text_nearest(bare, names, cli->option_count + keys);
    for (size_t i = 0; i < cli->option_count; i++) {
        if (nearest == names[i]) return &cli->options[i];
    }
    return NULL;
}

static enum status unknown_option(const struct cli *cli, const char *argument) {
    const struct cli_option *nearest = nearest_option(cli, argument);
    return status_set(STATUS_CONFIG,
                      "%s: unknown option %.*s%s%s%s; `deepwell %s --help` lists them",
                      cli->command, (int)strcspn(argument, "="), argument,
                      nearest != NULL ? " (did you mean " : "",
                      nearest != NULL ? nearest->name : "", nearest != NULL ? "?)" : "",
                      cli->command);
}

static bool is_config_key(const char *argument) {
    char name[OPTION_NAME_BYTES];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(argument, "="), argument);
    return strncmp(name, "--", 2) == 0 && config_key_find(name + 2) != NULL;
}

enum status cli_options(const struct cli *cli, int argc, char *const *argv, struct config *config) {
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0;) {
        const struct cli_option *option = find_option(cli, argv[i]);
        if (!is_option(argv[i])) {
            i++;
        } else if (option != NULL) {
            TRY(apply_option(option, argc, argv, &i, config));
        } else if (cli->takes_config &&
                   (is_config_key(argv[i]) || nearest_option(cli, argv[i]) == NULL)) {
            TRY(config_option(config, argc, argv, &i));
        } else {
            return unknown_option(cli, argv[i]);
        }
    }
    return STATUS_OK;
}

enum status cli_config(const struct cli *cli, const char *path, int argc, char *const *argv,
                       struct config *config) {
    config_defaults(config);
    if (path != NULL) TRY(config_load(config, path));
    TRY(cli_options(cli, argc, argv, config));
    return config_check(config);
}

enum status cli_one_config(const struct cli *cli, int argc, char *const *argv,
                           struct config *config, bool *help) {
    struct cli_names names;
    TRY(cli_positionals(cli, argc, argv, 0, 1, &names));
    *help = names.help;
    if (names.help) return STATUS_OK;
    return cli_config(cli, names.count > 0 ? names.names[0] : NULL, argc, argv, config);
}

enum status cli_dispatch(const struct cli_group *group, int argc, char **argv) {
    const char *names[CLI_SUBCOMMANDS_MAX];
    char list[OPTION_NAME_BYTES], hint[TEXT_HINT_BYTES];
    for (size_t i = 0; i < group->count; i++) names[i] = group->subcommands[i].name;
    if (argc < 2) {
        return status_set(STATUS_CONFIG,
                          "expected a subcommand of `deepwell %s`: %s; `deepwell %s --help` "
                          "explains them",
                          group->command, text_list(list, sizeof list, names, group->count, " or "),
                          group->command);
    }
    if (is_help(argv[1])) {
        fputs(group->usage, stdout);
        return STATUS_OK;
    }
    for (size_t i = 0; i < group->count; i++) {
        if (strcmp(argv[1], names[i]) == 0) return group->subcommands[i].run(argc - 1, argv + 1);
    }
    return status_set(STATUS_CONFIG, "unknown subcommand %s of `deepwell %s`%s; there are %s",
                      argv[1], group->command, text_hint(hint, argv[1], names, group->count),
                      text_list(list, sizeof list, names, group->count, " and "));
}

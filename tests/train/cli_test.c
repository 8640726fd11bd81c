/*
 * Command lines. Oracle: tables of command lines with the names, values and words of the message
 * that must come out of them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "train/cli.h"

enum { ARGUMENTS_MAX = 10 };

/* What the options of the tests' command write to. */
struct values {
    bool verbose, quick;
    int64_t count;
    struct cli_texts stops;
    struct cli_choice type;
    struct config config;
};

struct command {
    struct values values;
    struct cli_option options[6];
    struct cli cli;
};

static const char *const types[] = {"fp32", "bf16", "fp16"};

static void command_make(struct command *command, bool takes_config) {
    struct values *v = &command->values;
    *command = (struct command){.values = {.count = -1, .type = {types, 3, -1}}};
    config_defaults(&v->config);
    const struct cli_option options[] = {
        {.name = "--verbose", .flag = &v->verbose},
        {.name = "--quick", .flag = &v->quick},
        {.name = "--count", .whole = &v->count, .least = 1, .most = 100},
        {.name = "--prompt", .config_key = "sample.prompt"},
        {.name = "--stop", .texts = &v->stops},
        {.name = "--type", .choices = &v->type},
    };
    memcpy(command->options, options, sizeof options);
    command->cli = (struct cli){.command = "try",
                                .usage = "usage\n",
                                .names = "A, the first, and B, the second",
                                .options = command->options,
                                .option_count = 6,
                                .takes_config = takes_config};
}

/* argv[0] is the command, as cli.h has it. */
struct line {
    const char *const arguments[ARGUMENTS_MAX];
};

static int count_arguments(const struct line *line) {
    int count = 0;
    while (count < ARGUMENTS_MAX && line->arguments[count] != NULL) count++;
    return count;
}

static char *const *arguments_of(const struct line *line) {
    return (char *const *)(uintptr_t)line->arguments;
}

static enum status parse(struct command *command, const struct line *line) {
    return cli_options(&command->cli, count_arguments(line), arguments_of(line),
                       &command->values.config);
}

static void assert_message_has(const char *words) {
    if (strstr(status_message(), words) == NULL) {
        fail_msg("expected \"%s\" in the message \"%s\"", words, status_message());
    }
}

static void names_stand_between_options(void **state) {
    (void)state;
    static const struct {
        struct line line;
        size_t count;
        const char *names[3];
    } cases[] = {
        {{{"try", "a"}}, 1, {"a"}},
        {{{"try", "a", "b", "c"}}, 3, {"a", "b", "c"}},
        {{{"try", "--count", "5", "a"}}, 1, {"a"}},               /* 5 belongs to --count */
        {{{"try", "--count=5", "a", "b"}}, 2, {"a", "b"}},
        {{{"try", "--verbose", "a"}}, 1, {"a"}},                  /* a flag takes nothing */
        {{{"try", "a", "--train.steps", "5", "b"}}, 2, {"a", "b"}}, /* a key takes a value */
        {{{"try", "--train.steps=5", "-", "b"}}, 2, {"-", "b"}},  /* "-" is a name */
        {{{"try", "a", "--prompt", "b"}}, 1, {"a"}},
    };
    struct command command;
    command_make(&command, true);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct cli_names names;
        assert_int_equal(cli_positionals(&command.cli, count_arguments(&cases[i].line),
                                         arguments_of(&cases[i].line), 1, 3, &names), STATUS_OK);
        assert_int_equal(names.count, cases[i].count);
        assert_false(names.help);
        for (size_t n = 0; n < names.count; n++) {
            assert_string_equal(names.names[n], cases[i].names[n]);
        }
    }
}

static void too_few_and_too_many_names(void **state) {
    (void)state;
    static const struct line none = {{"try", "--count", "5"}}, one = {{"try", "a"}},
                             three = {{"try", "a", "b", "c"}};
    struct command command;
    struct cli_names names;
    command_make(&command, true);
    assert_int_equal(cli_positionals(&command.cli, 3, arguments_of(&none), 1, 2, &names),
                     STATUS_CONFIG);
    assert_message_has("try: expected A, the first, and B, the second; found nothing (`deepwell "
                       "try --help`");
    assert_int_equal(cli_positionals(&command.cli, 2, arguments_of(&one), 2, 2, &names),
                     STATUS_CONFIG);
    assert_message_has("B, the second; found only a (`");
    assert_int_equal(cli_positionals(&command.cli, 4, arguments_of(&three), 1, 2, &names),
                     STATUS_CONFIG);
    assert_message_has("one name too many: \"c\"");
    assert_int_equal(cli_positionals(&command.cli, 3, arguments_of(&none), 0, 0, &names),
                     STATUS_OK);
}

/* Help is never refused for what else stands there. */
static void help_wins(void **state) {
    (void)state;
    static const struct line lines[] = {
        {{"try", "--help"}},
        {{"try", "-h"}},
        {{"try", "a", "--help"}},
        {{"try", "--verbose", "-h", "b"}},
    };
    struct command command;
    command_make(&command, true);
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        struct cli_names names;
        assert_int_equal(cli_positionals(&command.cli, count_arguments(&lines[i]),
                                         arguments_of(&lines[i]), 2, 3, &names), STATUS_OK);
        assert_true(names.help);
    }
}

static void options_in_both_forms(void **state) {
    (void)state;
    static const struct line lines[] = {
        {{"try", "--type", "bf16", "--count", "42", "--prompt", "two words", "--train.steps", "7",
          "--verbose"}},
        {{"try", "--count=42", "--verbose", "--prompt=two words", "name", "--train.steps=7",
          "--type=bf16"}},
    };
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        struct command command;
        command_make(&command, true);
        assert_int_equal(parse(&command, &lines[i]), STATUS_OK);
        assert_int_equal(command.values.count, 42);
        assert_true(command.values.verbose);
        assert_false(command.values.quick);
        assert_string_equal(command.values.config.sample.prompt, "two words");
        assert_int_equal(command.values.config.train.steps, 7);
        assert_int_equal(command.values.type.chosen, 1);
    }
}

static void values_as_they_stand(void **state) {
    (void)state;
    static const struct line lines[] = {
        {{"try", "--prompt", "--verbose"}}, /* the next argument, whatever it looks like */
        {{"try", "--prompt", ""}},
        {{"try", "--prompt="}},
        {{"try", "--prompt=a=b"}},
        {{"try", "--count", "1", "--count", "100"}}, /* the last wins */
    };
    static const char *const prompts[] = {"--verbose", "", "", "a=b", ""};
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        struct command command;
        command_make(&command, true);
        assert_int_equal(parse(&command, &lines[i]), STATUS_OK);
        assert_string_equal(command.values.config.sample.prompt, prompts[i]);
        assert_false(command.values.verbose);
        assert_int_equal(command.values.count, i == 4 ? 100 : -1);
    }
}

/* All in their order, in either form; one beyond the room is refused. */
static void an_option_given_more_than_once(void **state) {
    (void)state;
    static const struct line line = {{"try", "--stop", "a b", "--count", "5",
                                      "--stop=", "--stop=c=d"}},
                             once = {{"try", "--stop", "x"}};
    struct command command;
    command_make(&command, false);
    assert_int_equal(parse(&command, &line), STATUS_OK);
    assert_int_equal(command.values.stops.count, 3);
    assert_string_equal(command.values.stops.items[0], "a b");
    assert_string_equal(command.values.stops.items[1], "");
    assert_string_equal(command.values.stops.items[2], "c=d");
    while (command.values.stops.count < CLI_TEXTS_MAX) {
        assert_int_equal(parse(&command, &once), STATUS_OK);
    }
    assert_int_equal(parse(&command, &once), STATUS_CONFIG);
    assert_message_has("--stop: expected it at most 16 times");
}

static void refusals(void **state) {
    (void)state;
    static const struct {
        struct line line;
        bool takes_config;
        const char *words;
    } cases[] = {
        {{{"try", "--cuont", "5"}},
         false,
         "unknown option --cuont (did you mean --count?); `deepwell try --help`"},
        {{{"try", "--zzzzzzzzzz"}},
         false,
         "unknown option --zzzzzzzzzz; `deepwell try --help` lists"},
        {{{"try", "--train.steps", "5"}}, false, "unknown option --train.steps"},
        {{{"try", "-x"}}, false, "unknown option -x"},
        {{{"try", "--train.stepz", "5"}}, true, "did you mean train.steps?"},
        {{{"try", "-x"}}, true, "-x"},
        {{{"try", "--count"}}, true, "--count: its value is missing"},
        {{{"try", "--prompt"}}, true, "--prompt: its value is missing"},
        {{{"try", "--train.steps"}}, true, "--train.steps: expected a value"},
        {{{"try", "--verbose=yes"}}, true, "--verbose takes no value, found \"--verbose=yes\""},
        {{{"try", "--count", "0"}},
         true,
         "--count: expected a whole number from 1 to 100, found \"0\""},
        {{{"try", "--count", "101"}}, true, "found \"101\""},
        {{{"try", "--count=1.5"}}, true, "found \"1.5\""},
        {{{"try", "--count="}}, true, "found \"\""},
        {{{"try", "--count", "five"}}, true, "found \"five\""},
        {{{"try", "--count", "99999999999999999999"}}, true, "found \"99999999999999999999\""},
        {{{"try", "--prompt", "\x1B"}}, true, "--prompt: sample.prompt: expected UTF-8"},
        {{{"try", "--train.steps", "none"}}, true, "train.steps: expected whole number"},
        {{{"try", "--counts", "5"}}, false, "did you mean --count"},
        {{{"try", "--coun", "5"}},
         false,
         "unknown option --coun (did you mean --count?)"}, /* no prefix */
        {{{"try", "--cuont=5"}}, true, "unknown option --cuont (did you mean --count?)"},
        {{{"try", "--type", "bf61"}},
         true,
         "--type: expected fp32, bf16 or fp16, found \"bf61\" (did you mean bf16?)"},
        {{{"try", "--type="}}, true, "--type: expected fp32, bf16 or fp16, found \"\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct command command;
        command_make(&command, cases[i].takes_config);
        assert_int_equal(parse(&command, &cases[i].line), STATUS_CONFIG);
        assert_message_has(cases[i].words);
        assert_int_equal(command.values.count, -1);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_stand_between_options),
        cmocka_unit_test(too_few_and_too_many_names),
        cmocka_unit_test(help_wins),
        cmocka_unit_test(options_in_both_forms),
        cmocka_unit_test(values_as_they_stand),
        cmocka_unit_test(an_option_given_more_than_once),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

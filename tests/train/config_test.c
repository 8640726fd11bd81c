/*
 * The configuration table: defaults, values from text, options, printing, JSON, help, cross-key
 * checks and the committed configurations. Oracle: round trips (what is written reads back to the
 * same values), tables of good and bad values with words that the message must hold, and
 * docs/configuration.md byte by byte.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "kernels/param_table.h"
#include "train/config.h"
#include "train/config_table.h"

/* *text = what `print` writes; release with free(). */
static void capture(char **text, const struct config *config,
                    void (*print)(const struct config *, FILE *)) {
    size_t bytes = 0;
    FILE *out = open_memstream(text, &bytes);
    assert_non_null(out);
    print(config, out);
    assert_int_equal(fclose(out), 0);
}

static void print_help(const struct config *config, FILE *out) {
    (void)config;
    config_print_help(out);
}

static void print_markdown(const struct config *config, FILE *out) {
    (void)config;
    config_print_markdown(out);
}

static void assert_same_values(const struct config *a, const struct config *b) {
    for (size_t i = 0; i < config_key_count; i++) {
        char text_a[CONFIG_TEXT_BYTES], text_b[CONFIG_TEXT_BYTES];
        assert_string_equal(config_value(text_a, a, &config_keys[i]),
                            config_value(text_b, b, &config_keys[i]));
    }
}

static void assert_message_has(const char *words) {
    if (strstr(status_message(), words) != NULL) return;
    fail_msg("expected \"%s\" in the message \"%s\"", words, status_message());
}

static void defaults_are_accepted_and_sound(void **state) {
    (void)state;
    struct config config;
    config_defaults(&config);
    for (size_t i = 0; i < config_key_count; i++) {
        const char *text = config_keys[i].default_text;
        assert_int_equal(config_set(&config, config_keys[i].name, text), STATUS_OK);
    }
    assert_int_equal(config_check(&config), STATUS_OK);
    assert_int_equal(config.model.width, 768);
    assert_true(config.optimizer.learning_rate == 6e-4);
    assert_int_equal(config.precision.recipe, CONFIG_RECIPE_BF16);
    assert_string_equal(config.train.resume, "auto");
}

/* decay_roles are bits by enum param_role; the table has only their names. */
static void decay_roles_are_the_roles_of_the_tensor_table(void **state) {
    (void)state;
    struct config config;
    config_defaults(&config);
    assert_int_equal(config.optimizer.decay_roles,
                     1 << ROLE_EMBEDDING | 1 << ROLE_POSITION | 1 << ROLE_LINEAR);
    const struct config_key *key = config_key_find("optimizer.decay_roles");
    for (int role = 0; role < ROLE_COUNT; role++) {
        assert_string_equal(key->choices[role], param_role_name((enum param_role)role));
    }
    assert_null(key->choices[ROLE_COUNT]);
    assert_int_equal(config_set(&config, "optimizer.decay_roles", "norm, bias"), STATUS_OK);
    assert_int_equal(config.optimizer.decay_roles, 1 << ROLE_BIAS | 1 << ROLE_NORM);
    assert_int_equal(config_set(&config, "optimizer.decay_roles", "none"), STATUS_OK);
    assert_int_equal(config.optimizer.decay_roles, 0);
}

static void good_values(void **state) {
    (void)state;
    static const struct { const char *key, *value, *read; } cases[] = {
        {"device", "cuda", "cuda"},
        {"threads", "0", "0"},
        {"train.seed", "9223372036854775807", "9223372036854775807"},
        {"train.steps", "007", "7"},
        {"optimizer.learning_rate", "1e-3", "0.001"},
        {"optimizer.learning_rate", ".5", "0.5"},
        {"optimizer.learning_rate", "+0.5", "0.5"},
        {"optimizer.beta1", "0", "0"},
        {"optimizer.beta2", "0.99999999999999989", "0.9999999999999999"},
        {"optimizer.decay_roles", "norm,linear", "linear,norm"},
        {"sample.prompt", "", ""},
        {"sample.prompt", " two\nlines # ; \"q\" \xC3\xA9 ", " two\nlines # ; \"q\" \xC3\xA9 "},
        {"data.validation", "", ""},
    };
    struct config config;
    char text[CONFIG_TEXT_BYTES];
    config_defaults(&config);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(config_set(&config, cases[i].key, cases[i].value), STATUS_OK);
        assert_string_equal(config_value(text, &config, config_key_find(cases[i].key)),
                            cases[i].read);
    }
}

static void bad_values_are_refused_with_key_range_and_found(void **state) {
    (void)state;
    static const struct { const char *key, *value, *words; } cases[] = {
        {"train.steps", "", "train.steps: expected whole number, 1 to 1000000000000, found \"\""},
        {"train.steps", "0", "found \"0\""},
        {"train.steps", "-5", "found \"-5\""},
        {"train.steps", "1e3", "found \"1e3\""},
        {"train.steps", "100 # all", "a comment needs a line of its own"},
        {"train.steps", " 5", "found \" 5\""},
        {"train.steps", "5x", "found \"5x\""},
        {"train.steps", "0x10", "found \"0x10\""},
        {"train.steps", "99999999999999999999", "found \"99999999999999999999\""},
        {"train.steps", "1000000000001", "1 to 1000000000000"},
        {"train.seed", "-1", "whole number, 0 or more"},
        {"train.seed", "9223372036854775808", "whole number, 0 or more"},
        {"optimizer.beta1", "1", "number, at least 0 and below 1"},
        {"optimizer.beta1", "-0.1", "at least 0"},
        {"optimizer.epsilon", "0", "above 0"},
        {"optimizer.beta1", "nan", "found \"nan\""},
        {"optimizer.clip_norm", "inf", "found \"inf\""},
        {"optimizer.clip_norm", "1e999", "found \"1e999\""},
        {"optimizer.epsilon", "1e-999", "found \"1e-999\""},
        {"optimizer.clip_norm", "0x1p3", "found \"0x1p3\""},
        {"optimizer.clip_norm", "1.0.0", "found \"1.0.0\""},
        {"optimizer.clip_norm", "-", "found \"-\""},
        {"optimizer.clip_norm", "1,5", "found \"1,5\""},
        {"device", "gpu", "device: expected auto, cpu or cuda, found \"gpu\""},
        {"device", "CPU", "found \"CPU\""},
        {"precision.recipe", "mpxfp8", "found \"mpxfp8\" (did you mean mxfp8?)"},
        {"optimizer.decay_roles", "liner", "found \"liner\" (did you mean linear?)"},
        {"device", "\x1b[31m", "found \"?[31m\""},
        {"optimizer.decay_roles", "linear,weights", "embedding, position, linear, bias, norm"},
        {"optimizer.decay_roles", "linear,linear", "found \"linear,linear\""},
        {"optimizer.decay_roles", "linear,", "found \"linear,\""},
        {"optimizer.decay_roles", "linear bias", "found \"linear bias\""},
        {"optimizer.decay_roles", "", "found \"\""},
        {"sample.prompt", "a\xFF", "0xFF at place 2"},
        {"sample.prompt", "\x1b[2J", "0x1B at place 1"},
        {"train.step", "5", "unknown key \"train.step\" (did you mean train.steps?)"},
        {"modle.layers", "5", "did you mean model.layers?"},
        {"steps", "5", "did you mean train.steps?"},
        {"", "5", "--help lists all keys"},
        {"something.else.entirely.and.long", "5", "--help lists all keys"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct config config, before;
        config_defaults(&config);
        before = config;
        assert_int_equal(config_set(&config, cases[i].key, cases[i].value), STATUS_CONFIG);
        assert_message_has(cases[i].words);
        assert_same_values(&config, &before);
    }
}

static void the_longest_text_fits_and_one_more_does_not(void **state) {
    (void)state;
    struct config config;
    char text[CONFIG_TEXT_BYTES + 1];
    memset(text, 'x', sizeof text);
    text[CONFIG_TEXT_BYTES] = '\0';
    config_defaults(&config);
    assert_int_equal(config_set(&config, "train.out", text), STATUS_CONFIG);
    assert_message_has("train.out: expected at most 1023 bytes of text, found 1024");
    text[CONFIG_TEXT_BYTES - 1] = '\0';
    assert_int_equal(config_set(&config, "train.out", text), STATUS_OK);
    assert_string_equal(config.train.out, text);
}

static void options(void **state) {
    (void)state;
    char *arguments[] = {(char[]){"--train.steps"}, (char[]){"7"}, (char[]){"--device=cpu"},
                         (char[]){"--sample.prompt="}, (char[]){"--sample.prompt=--a=b"},
                         (char[]){"--train.steps"}, (char[]){"9"}};
    struct config config;
    int index = 0;
    config_defaults(&config);
    while (index < 7) assert_int_equal(config_option(&config, 7, arguments, &index), STATUS_OK);
    assert_int_equal(index, 7);
    assert_int_equal(config.train.steps, 9); /* later wins */
    assert_int_equal(config.device, CONFIG_DEVICE_CPU);
    assert_string_equal(config.sample.prompt, "--a=b");
}

static void bad_options(void **state) {
    (void)state;
    static const struct { const char *first, *second, *words; } cases[] = {
        {"train.steps", "7", "expected an option, --section.key value, found \"train.steps\""},
        {"-train.steps", "7", "expected an option"},
        {"--train.steps", NULL, "--train.steps: expected a value, found nothing"},
        {"--train.steps", "--device", "--train.steps: expected a value, found --device"},
        {"--train.steps=", NULL, "train.steps: expected whole number"},
        {"--train.stps=4", NULL, "did you mean train.steps?"},
        {"--train.stps", "4", "did you mean train.steps?"},
        {"--train.stps", NULL, "did you mean train.steps?"},
        {"--", NULL, "unknown key \"\""},
        {"--=", NULL, "unknown key \"\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char first[32], second[32];
        snprintf(first, sizeof first, "%s", cases[i].first);
        snprintf(second, sizeof second, "%s", cases[i].second == NULL ? "" : cases[i].second);
        char *arguments[] = {first, second, NULL};
        struct config config;
        int index = 0;
        config_defaults(&config);
        assert_int_equal(config_option(&config, cases[i].second == NULL ? 1 : 2, arguments, &index),
                         STATUS_CONFIG);
        assert_message_has(cases[i].words);
        assert_null(strstr(status_message(), "train.steps: train.steps")); /* named once */
    }
}

/* A configuration in which every key differs from its default. */
static void change_all(struct config *config) {
    config_defaults(config);
    for (size_t i = 0; i < config_key_count; i++) {
        const struct config_key *key = &config_keys[i];
        char text[CONFIG_TEXT_BYTES];
        switch (key->type) {
        case CONFIG_INTEGER:
            snprintf(text, sizeof text, "%lld",
                     101 + (long long)i < key->maximum ? 101 + (long long)i
                                                       : (long long)key->maximum);
            break;
        case CONFIG_REAL: /* 1/3 of the allowed range needs 16 digits and more */
            snprintf(text, sizeof text, "%.17g", key->low + (key->high - key->low) / 3.0);
            break;
        case CONFIG_CHOICE:
            snprintf(text, sizeof text, "%s",
                     key->choices[strcmp(key->choices[0], key->default_text) == 0]);
            break;
        case CONFIG_SET:
            snprintf(text, sizeof text, "norm");
            break;
        case CONFIG_TEXT:
            snprintf(text, sizeof text, " \"%zu\\n\"\n\t; # = : [x] caf\xC3\xA9 ", i);
            break;
        }
        assert_int_equal(config_set(config, key->name, text), STATUS_OK);
        char now[CONFIG_TEXT_BYTES];
        assert_string_not_equal(config_value(now, config, key), key->default_text);
    }
}

static void printed_configuration_reads_back(void **state) {
    (void)state;
    struct config config, read;
    change_all(&config);
    char *text = NULL;
    capture(&text, &config, config_print);
    config_defaults(&read);
    assert_int_equal(config_load_text(&read, "printed", text, strlen(text)), STATUS_OK);
    assert_same_values(&config, &read);
    free(text);
}

static void json_reads_back(void **state) {
    (void)state;
    struct config config, read;
    change_all(&config);
    cJSON *object = config_to_json(&config);
    assert_non_null(object);
    assert_int_equal(cJSON_GetArraySize(object), (int)config_key_count);
    char *text = cJSON_Print(object);
    cJSON *parsed = cJSON_Parse(text);
    assert_non_null(parsed);
    config_defaults(&read);
    assert_int_equal(config_from_json(&read, parsed), STATUS_OK);
    assert_same_values(&config, &read);
    cJSON_Delete(parsed);
    free(text);
    cJSON_Delete(object);
}

static void bad_json_is_refused(void **state) {
    (void)state;
    static const struct { const char *text, *words; } cases[] = {
        {"[]", "no JSON object"},
        {"{\"train.steps\": 5}", "expected text as the value of \"train.steps\""},
        {"{\"train.stops\": \"5\"}", "the saved configuration: unknown key \"train.stops\""},
        {"{\"train.steps\": \"x\"}", "the saved configuration: train.steps: expected whole number"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct config config;
        config_defaults(&config);
        cJSON *object = cJSON_Parse(cases[i].text);
        assert_int_equal(config_from_json(&config, object), STATUS_CONFIG);
        assert_message_has(cases[i].words);
        cJSON_Delete(object);
    }
    struct config config;
    assert_int_equal(config_from_json(&config, NULL), STATUS_CONFIG);
}

static void help_has_every_key_with_default_range_and_meaning(void **state) {
    (void)state;
    char *text = NULL;
    capture(&text, NULL, print_help);
    for (size_t i = 0; i < config_key_count; i++) {
        const struct config_key *key = &config_keys[i];
        char range[CONFIG_RANGE_BYTES], line[512];
        snprintf(line, sizeof line, "--%s (default %s; %s)\n      %s\n", key->name,
                 key->default_text[0] == '\0' ? "empty" : key->default_text,
                 config_range(range, key), key->help);
        assert_non_null(strstr(text, line));
    }
    for (size_t i = 0; i < config_section_count; i++) {
        char header[64];
        snprintf(header, sizeof header, "\n[%s]\n", config_sections[i]);
        const char *first = strstr(text, header);
        assert_non_null(first);
        assert_null(strstr(first + 1, header)); /* keys of a section stand together */
    }
    free(text);
}

static void checks_across_keys_name_both(void **state) {
    (void)state;
    static const struct { const char *options[4], *words, *more_words; } cases[] = {
        {{"model.width", "100"}, "model.width = 100", "model.heads = 12"},
        {{"train.batch", "10"}, "train.batch = 10", "train.micro_batch = 16"},
        {{"train.sequence_length", "1025"}, "train.sequence_length = 1025", "model.context = 1024"},
        {{"optimizer.decay_steps", "5"}, "optimizer.decay_steps = 5", "optimizer.schedule = wsd"},
        {{"optimizer.decay_steps", "18166", "optimizer.schedule", "wsd"},
         "optimizer.decay_steps = 18166", "train.steps = 18865"},
        {{"train.out", ""}, "train.out is empty", ""},
        {{"train.resume", ""}, "train.resume is empty", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct config config;
        config_defaults(&config);
        for (size_t k = 0; k < 4 && cases[i].options[k] != NULL; k += 2) {
            assert_int_equal(config_set(&config, cases[i].options[k], cases[i].options[k + 1]),
                             STATUS_OK);
        }
        assert_int_equal(config_check(&config), STATUS_CONFIG);
        assert_message_has(cases[i].words);
        assert_message_has(cases[i].more_words);
    }
}

static void zeros_resolve(void **state) {
    (void)state;
    struct config config;
    config_defaults(&config);
    assert_int_equal(config_sequence_length(&config), 1024);
    assert_int_equal(config_validation_micro_batch(&config), 16);
    config.train.micro_batch = 0;
    assert_int_equal(config_micro_batch(&config), 512);
    assert_int_equal(config_validation_micro_batch(&config), 512);
    config.train.sequence_length = 100;
    config.validation.micro_batch = 4;
    assert_int_equal(config_sequence_length(&config), 100);
    assert_int_equal(config_validation_micro_batch(&config), 4);

    assert_false(config_loss_scaling(&config));
    config.precision.recipe = CONFIG_RECIPE_FP16;
    assert_true(config_loss_scaling(&config));
    config.precision.loss_scaling = CONFIG_SCALING_OFF;
    assert_false(config_loss_scaling(&config));
    config.precision.recipe = CONFIG_RECIPE_FP32;
    config.precision.loss_scaling = CONFIG_SCALING_ON;
    assert_true(config_loss_scaling(&config));
}

static void schedule_from_the_configuration(void **state) {
    (void)state;
    struct config config;
    config_defaults(&config);
    config.optimizer.schedule = SCHEDULE_WSD;
    assert_int_equal(config_schedule(&config).decay_steps, 3773); /* 18865 / 5 */
    config.train.steps = 800;
    assert_int_equal(config_schedule(&config).decay_steps, 100); /* 160, but 700 are warm-up */
    config.train.steps = 3;
    config.optimizer.warmup_steps = 0;
    assert_int_equal(config_schedule(&config).decay_steps, 1);
    config.optimizer.decay_steps = 2;
    const struct schedule schedule = config_schedule(&config);
    assert_int_equal(schedule.decay_steps, 2);
    assert_int_equal(schedule.kind, SCHEDULE_WSD);
    assert_int_equal(schedule.steps, 3);
    assert_true(schedule.peak == 6e-4 && schedule.final_fraction == 0.0);
}

static void committed_configurations_are_sound(void **state) {
    (void)state;
    char **names = NULL;
    size_t count = 0, seen = 0;
    assert_int_equal(folder_list("configs", &names, &count), STATUS_OK);
    for (size_t i = 0; i < count; i++) {
        const size_t length = strlen(names[i]);
        if (length < 5 || strcmp(names[i] + length - 5, ".conf") != 0) continue;
        struct config config;
        char path[PATH_BYTES];
        assert_int_equal(path_join(path, "configs", names[i]), STATUS_OK);
        config_defaults(&config);
        if (config_load(&config, path) != STATUS_OK || config_check(&config) != STATUS_OK) {
            fail_msg("%s: %s", path, status_message());
        }
        seen++;
    }
    names_free(names, count);
    assert_true(seen >= 6);
}

static void the_documentation_is_the_tables_own(void **state) {
    (void)state;
    char *expected = NULL, *found = NULL;
    size_t bytes = 0;
    capture(&expected, NULL, print_markdown);
    assert_int_equal(file_read("docs/configuration.md", 1 << 20, &found, &bytes), STATUS_OK);
    if (strcmp(expected, found) != 0) {
        fail_msg("docs/configuration.md is stale; make it anew with\n"
                 "bazel run //train:configuration_markdown > docs/configuration.md");
    }
    free(found);
    free(expected);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_accepted_and_sound),
        cmocka_unit_test(decay_roles_are_the_roles_of_the_tensor_table),
        cmocka_unit_test(good_values),
        cmocka_unit_test(bad_values_are_refused_with_key_range_and_found),
        cmocka_unit_test(the_longest_text_fits_and_one_more_does_not),
        cmocka_unit_test(options),
        cmocka_unit_test(bad_options),
        cmocka_unit_test(printed_configuration_reads_back),
        cmocka_unit_test(json_reads_back),
        cmocka_unit_test(bad_json_is_refused),
        cmocka_unit_test(help_has_every_key_with_default_range_and_meaning),
        cmocka_unit_test(checks_across_keys_name_both),
        cmocka_unit_test(zeros_resolve),
        cmocka_unit_test(schedule_from_the_configuration),
        cmocka_unit_test(committed_configurations_are_sound),
        cmocka_unit_test(the_documentation_is_the_tables_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

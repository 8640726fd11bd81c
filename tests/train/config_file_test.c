/*
 * Configuration files. Oracle: tables of good files with a value they must set and of bad files
 * with words that the message must hold, the line among them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "train/config.h"
#include "train/config_table.h"

static void assert_message_has(const char *words) {
    if (strstr(status_message(), words) != NULL) return;
    fail_msg("expected \"%s\" in the message \"%s\"", words, status_message());
}

static enum status load(struct config *config, const char *text) {
    return config_load_text(config, "a.conf", text, strlen(text));
}

static void good_files(void **state) {
    (void)state;
    static const struct { const char *text, *key, *value; } cases[] = {
        {"[train]\nsteps = 5\n", "train.steps", "5"},
        {"[train]\nsteps=5", "train.steps", "5"}, /* no newline at the end */
        {"[train]\n  steps\t=  5  \n", "train.steps", "5"},
        {"[train]\r\nsteps = 5\r\n", "train.steps", "5"},
        {"\xEF\xBB\xBF" "device = cpu\n", "device", "cpu"},
        {"\xEF\xBB\xBF[train]\nsteps = 5\n", "train.steps", "5"},
        {"# c\n; c\n   # c\n\n\n[train]\n# c\nsteps = 5\n", "train.steps", "5"},
        {"[train]\nsteps = 5\n[model]\nlayers = 2\n[train]\nbatch = 16\n", "train.batch", "16"},
        {"[train]  \nsteps = 5\n", "train.steps", "5"},
        {"  [train]\nsteps = 5\n", "train.steps", "5"},
        {"[sample]\nprompt =\n", "sample.prompt", ""},
        {"[sample]\nprompt = \"\"\n", "sample.prompt", ""},
        {"[sample]\nprompt = a ; b # c\n", "sample.prompt", "a ; b # c"},
        {"[sample]\nprompt = say \"x\" \\n\n", "sample.prompt", "say \"x\" \\n"},
        {"[sample]\nprompt = \"  two\\nlines\\t\\\"\\\\n \"\n", "sample.prompt",
         "  two\nlines\t\"\\n "},
        {"[data]\ntrain = a=b:c[d]*.bin\n", "data.train", "a=b:c[d]*.bin"},
        {"", "train.steps", "18865"},
        {"\n\n", "train.steps", "18865"},
        {"\xEF\xBB\xBF", "train.steps", "18865"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct config config;
        char value[CONFIG_TEXT_BYTES];
        config_defaults(&config);
        if (load(&config, cases[i].text) != STATUS_OK) fail_msg("%zu: %s", i, status_message());
        assert_string_equal(config_value(value, &config, config_key_find(cases[i].key)),
                            cases[i].value);
    }
}

static void bad_files_are_refused_with_the_line(void **state) {
    (void)state;
    static const struct { const char *text, *words; } cases[] = {
        {"[train]\n\nstep = 5\n", "a.conf:3: unknown key \"train.step\" (did you mean train.steps"},
        {"steps = 5\n", "a.conf:1: unknown key \"steps\" (did you mean train.steps?)"},
        {"[training]\nsteps = 5\n", "a.conf:1: unknown section [training]; expected one of model"},
        {"[training]\n", "a.conf:1: unknown section [training]"},
        {"\xEF\xBB\xBF[training]\n", "a.conf:1: unknown section [training]"},
        {"[]\n", "unknown section []"},
        {"[ train ]\n", "unknown section [ train ]"},
        {"[Train]\n", "unknown section [Train]"},
        {"[train\nsteps = 5\n", "a.conf:1: expected \"]\""},
        {"[train] steps = 5\n", "a.conf:1: expected nothing behind the section's name"},
        {"[train]\nsteps\n", "a.conf:2: expected \"key = value\""},
        {"[train]\n= 5\n", "a.conf:2: unknown key \"train.\""},
        {"[train]\nsteps = 5\nbatch = 16\nsteps = 6\n",
         "a.conf:4: train.steps is set twice, here and on line 2"},
        {"[train]\nsteps = 5\n[train]\nsteps = 5\n", "a.conf:4: train.steps is set twice"},
        {"[train]\nsteps = 5 ; five\n", "a comment needs a line of its own"},
        {"[train]\nsteps = \"5\"\n", "a.conf:2: train.steps: expected whole number"},
        {"[train]\nsteps =\n", "a.conf:2: train.steps: expected whole number"},
        {"[train]\nsteps = 5\n   6\n", "a.conf:3: expected \"key = value\""}, /* no continuation */
        {"device = cpu\rthreads = 2\r", "a.conf:1: device: expected auto, cpu or cuda"},
        {"[sample]\nprompt = \"a\n", "a.conf:2: expected \" at the end"},
        {"[sample]\nprompt = \"a\" b\n", "a.conf:2: expected \" at the end"},
        {"[sample]\nprompt = \"a\\x\"\n", "a.conf:2: expected \" at the end"},
        {"[sample]\nprompt = \"a\\\"\n", "a.conf:2: expected \" at the end"},
        {"[sample]\nprompt = \"\n", "a.conf:2: expected \" at the end"},
        {"[sample]\nprompt = \"\\\n", "a.conf:2: expected \" at the end"},
        {"[sample]\nprompt = a\xFF\n", "a.conf:2: sample.prompt: expected UTF-8"},
        {"\xFF\xFE[\n", "a.conf:1: "},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct config config;
        config_defaults(&config);
        assert_int_equal(load(&config, cases[i].text), STATUS_CONFIG);
        assert_message_has(cases[i].words);
    }
}

static void an_error_leaves_the_configuration_as_it_was(void **state) {
    (void)state;
    struct config config;
    config_defaults(&config);
    assert_int_equal(load(&config, "[train]\nsteps = 5\nbatch = x\n"), STATUS_CONFIG);
    assert_int_equal(config.train.steps, 18865);
}

static void a_zero_byte_is_refused(void **state) {
    (void)state;
    static const char text[] = "[train]\nsteps = 5\0 7\n";
    struct config config;
    config_defaults(&config);
    assert_int_equal(config_load_text(&config, "a.conf", text, sizeof text - 1), STATUS_CONFIG);
    assert_message_has("a.conf:2: expected text, found a zero byte");
}

/* inih alone would cut the line at its buffer and read the rest as another line. */
static void no_line_is_cut_in_silence(void **state) {
    (void)state;
    enum { ROOM = 10000 };
    char *text = malloc(ROOM);
    assert_non_null(text);
    struct config config;
    /* the longest text there can be, in quotes, every byte of it escaped */
    strcpy(text, "[sample]\nprompt = \"");
    for (int i = 0; i < CONFIG_TEXT_BYTES - 1; i++) strcat(text, "\\n");
    strcat(text, "\"\n");
    config_defaults(&config);
    assert_int_equal(load(&config, text), STATUS_OK);
    assert_int_equal(strlen(config.sample.prompt), CONFIG_TEXT_BYTES - 1);
    /* one byte more is too long for the value */
    strcpy(strrchr(text, '"'), "x\"\n");
    assert_int_equal(load(&config, text), STATUS_CONFIG);
    assert_message_has("a.conf:2: sample.prompt: expected at most 1023 bytes of text, found 1024");
    /* and far more too long for a line */
    memset(text, 'x', ROOM);
    memcpy(text, "[train]\nout = ", 14);
    text[ROOM - 1] = '\0';
    assert_int_equal(load(&config, text), STATUS_CONFIG);
    assert_message_has("a.conf:2: expected a line of at most");
    /* comments too: a cut comment's tail would be read as a key */
    memset(text, '#', ROOM - 1);
    assert_int_equal(load(&config, text), STATUS_CONFIG);
    assert_message_has("a.conf:1: expected a line of at most");
    free(text);
}

static void later_sources_win(void **state) {
    (void)state;
    struct config config;
    int index = 0;
    char option[] = "--train.steps=7";
    char *arguments[] = {option, NULL};
    config_defaults(&config);
    assert_int_equal(load(&config, "[train]\nsteps = 5\nseed = 6\n"), STATUS_OK);
    assert_int_equal(config_option(&config, 1, arguments, &index), STATUS_OK);
    assert_int_equal(config.train.steps, 7);
    assert_int_equal(config.train.seed, 6);
    assert_int_equal(config.train.batch, 512);
}

static void files_on_disk(void **state) {
    (void)state;
    char folder[] = "/tmp/config_file_test_XXXXXX", path[PATH_BYTES];
    assert_non_null(mkdtemp(folder));
    assert_int_equal(path_join(path, folder, "run.conf"), STATUS_OK);
    static const char text[] = "[train]\nsteps = 5\nbatch = 0\n";
    assert_int_equal(file_write_durable(path, text, sizeof text - 1), STATUS_OK);
    struct config config;
    config_defaults(&config);
    assert_int_equal(config_load(&config, path), STATUS_CONFIG);
    assert_message_has("run.conf:3: train.batch: expected whole number, 1 to ");
    assert_int_equal(config_load(&config, folder), STATUS_CONFIG); /* a folder is no file */
    assert_int_equal(unlink(path), 0);
    assert_int_equal(config_load(&config, path), STATUS_CONFIG);
    assert_message_has("the configuration file: cannot open ");
    assert_message_has("run.conf: No such file or directory");
    assert_int_equal(folder_remove(folder), STATUS_OK);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_files),
        cmocka_unit_test(bad_files_are_refused_with_the_line),
        cmocka_unit_test(an_error_leaves_the_configuration_as_it_was),
        cmocka_unit_test(a_zero_byte_is_refused),
        cmocka_unit_test(no_line_is_cut_in_silence),
        cmocka_unit_test(later_sources_win),
        cmocka_unit_test(files_on_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

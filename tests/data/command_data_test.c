/*
 * The command line of `deepwell data`. Oracles: a table of wrong command lines with the words that
 * the message must hold; the files and the text that right ones give.
 */
#include "tests/data/data_test.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "train/command_data.h"

enum { ARGUMENTS_MAX = 12 };

/* Runs `deepwell data LINE` in the test's folder; the line is cut at its spaces. stdout goes to the
 * file "printed" there. */
static enum status run(void **state, const char *line) {
    char copy[512], *rest = copy, *argv[ARGUMENTS_MAX] = {"data"};
    int argc = 1;
    assert_true(strlen(line) < sizeof copy);
    strcpy(copy, line);
    for (char *word; (word = strsep(&rest, " ")) != NULL && word[0] != '\0';) {
        assert_true(argc < ARGUMENTS_MAX);
        argv[argc++] = word;
    }
    fflush(stdout);
    const int terminal = dup(STDOUT_FILENO);
    assert_true(terminal >= 0 && chdir(*state) == 0);
    assert_non_null(freopen("printed", "w", stdout));
    const enum status status = command_data(argc, argv);
    fflush(stdout);
    assert_true(dup2(terminal, STDOUT_FILENO) >= 0);
    close(terminal);
    return status;
}

static void assert_prints(void **state, const char *words) {
    char *text = NULL;
    size_t bytes = 0;
    assert_int_equal(file_read(in_folder(state, "printed"), 1 << 20, &text, &bytes), STATUS_OK);
    (void)status_set(STATUS_OK, "%s", text); /* to be searched like a message */
    free(text);
    assert_message(words);
}

static void wrong_command_lines(void **state) {
    static const struct {
        const char *line, *words;
    } wrong[] = {
        {"", "subcommand|prepare, info or show"},
        {"prepair", "unknown subcommand prepair|did you mean prepare"},
        {"xyzzyxyzzy", "unknown subcommand|there are prepare, info and show"},
        {"prepare text", "expected --out FOLDER"},
        {"prepare --out", "expected a value after --out"},
        {"prepare --out= text", "expected --out FOLDER"},
        {"prepare --out out", "found none"},
        {"prepare --out out --out out text", "--out once"},
        {"prepare --out out --overwite text", "unknown option --overwite|did you mean --overwrite"},
        {"prepare --out out --overwrite=yes text", "--overwrite without a value"},
        {"prepare --out out --validation-fraction 0 text", "above 0 and below 1|\"0\""},
        {"prepare --out out --validation-fraction 1 text", "above 0 and below 1"},
        {"prepare --out out --validation-fraction 0.1x text", "\"0.1x\""},
        {"prepare --out out --validation-fraction 0x1p-2 text", "\"0x1p-2\""},
        {"prepare --out out --validation-fraction nan text", "\"nan\""},
        {"prepare --out out --validation-fraction= text", "\"\""},
        {"info", "found none"},
        {"info --frist 3 text", "unknown option --frist"},
        {"show", "expected one shard|found 0"},
        {"show a b", "expected one shard|found 2"},
        {"show text --frist 3", "did you mean --first"},
        {"show text --first -1", "whole number of 0 or more after --first|\"-1\""},
        {"show text --first +1", "\"+1\""},
        {"show text --first 1.5", "\"1.5\""},
        {"show text --first 99999999999999999999", "\"99999999999999999999\""},
        {"show text --count 0", "whole number of 1 or more after --count"},
        {"show text --count=", "\"\""},
    };
    write_text(in_folder(state, "text"), "some text for both sides\n");
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_int_equal(run(state, wrong[i].line), STATUS_CONFIG);
        assert_message(wrong[i].words);
    }
    assert_false(path_is_folder(in_folder(state, "out")));
}

static void text_goes_to_shards_and_back(void **state) {
    write_text(in_folder(state, "text"), "one\ntwo\nthree\nfour\n");
    write_text(in_folder(state, "-dash"), "more text\n");
    assert_int_equal(run(state, "prepare --out out --validation-fraction=0.25 text"), STATUS_OK);
    assert_prints(state, "documents   1|train       14 tokens|validation  6 tokens|written to out");
    assert_int_equal(run(state, "info out/train.bin out/validation.bin"), STATUS_OK);
    assert_prints(state, "uint16|largest token|out/train.bin|out/validation.bin");
    assert_int_equal(run(state, "show out/train.bin --first 4 --count 3"), STATUS_OK);
    assert_prints(state, "out/train.bin: tokens 4 to 7 of 14\ntwo\n");
    assert_int_equal(run(state, "show out/validation.bin"), STATUS_OK);
    assert_prints(state, "four\n\\x00\n");
    assert_int_equal(run(state, "prepare --out out text"), STATUS_CONFIG);
    assert_int_equal(run(state, "prepare --out out --overwrite -- -dash"), STATUS_OK);
    assert_int_equal(run(state, "show out/train.bin"), STATUS_OK);
    assert_prints(state, "more text");
}

static void help_is_printed(void **state) {
    static const struct {
        const char *line, *words;
    } helps[] = {
        {"--help", "data prepare|data info|data show"},
        {"-h", "data prepare"},
        {"prepare --help", "--out FOLDER|--validation-fraction|--overwrite|Examples"},
        {"info --help", "PATTERN|Examples"},
        {"show -h", "--first|--count|Example"},
    };
    for (size_t i = 0; i < sizeof helps / sizeof helps[0]; i++) {
        assert_int_equal(run(state, helps[i].line), STATUS_OK);
        assert_prints(state, helps[i].words);
    }
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, folder_setup, folder_teardown)
    const struct CMUnitTest tests[] = {
        TEST(wrong_command_lines),
        TEST(text_goes_to_shards_and_back),
        TEST(help_is_printed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/*
 * The command line of `deepwell data`. Oracles: a table of wrong command lines with the words that
 * the message must hold; the files and the text that right ones give.
 */
#include "tests/data/data_test.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ARGUMENTS_MAX = 12 };

static char binary[PATH_MAX];

/* Runs `deepwell data LINE` in the test's folder; the line is cut at its spaces. stdout goes to the
 * file "printed" there, stderr to "complained". Returns the exit code. */
static int run(void **state, const char *line) {
    char copy[512], *rest = copy, *argv[ARGUMENTS_MAX + 1] = {binary, "data"};
    int argc = 2, end = -1;
    assert_true(strlen(line) < sizeof copy);
    strcpy(copy, line);
    for (char *word; (word = strsep(&rest, " ")) != NULL && word[0] != '\0';) {
        assert_true(argc < ARGUMENTS_MAX);
        argv[argc++] = word;
    }
    fflush(stdout);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (chdir(*state) == 0 && freopen("printed", "w", stdout) != NULL &&
            freopen("complained", "w", stderr) != NULL) {
            execv(binary, argv);
        }
        _exit(127);
    }
    assert_int_equal(waitpid(child, &end, 0), child);
    assert_true(WIFEXITED(end));
    return WEXITSTATUS(end);
}

/* The file in the test's folder holds the words. */
static void assert_file(void **state, const char *name, const char *words) {
    char *text = NULL;
    size_t bytes = 0;
    assert_int_equal(file_read(in_folder(state, name), 1 << 20, &text, &bytes), STATUS_OK);
    (void)status_set(STATUS_OK, "%s", text); /* to be searched like a message */
    free(text);
    assert_message(words);
}

static void assert_prints(void **state, const char *words) {
    assert_file(state, "printed", words);
}

static void wrong_command_lines(void **state) {
    static const struct {
        const char *line, *words;
    } wrong[] = {
        {"", "subcommand|prepare, info, check or show"},
        {"prepair", "unknown subcommand prepair|did you mean prepare"},
        {"xyzzyxyzzy", "unknown subcommand|there are prepare, info, check and show"},
        {"prepare text", "expected --out FOLDER"},
        {"prepare --out", "--out: its value is missing"},
        {"prepare --out= text", "expected --out FOLDER"},
        {"prepare --out out", "found none"},
        {"prepare --out out --overwite text", "unknown option --overwite|did you mean --overwrite"},
        {"prepare --out out --overwrite=yes text", "--overwrite takes no value"},
        {"prepare --out out --validation-fraction 0 text", "above 0 and below 1|\"0\""},
        {"prepare --out out --validation-fraction 1 text", "above 0 and below 1"},
        {"prepare --out out --validation-fraction 0.1x text", "\"0.1x\""},
        {"prepare --out out --validation-fraction 0x1p-2 text", "\"0x1p-2\""},
        {"prepare --out out --validation-fraction nan text", "\"nan\""},
        {"prepare --out out --validation-fraction= text", "\"\""},
        {"info", "data info: expected PATTERN"},
        {"info --frist 3 text", "unknown option --frist"},
        {"show", "data show: expected SHARD"},
        {"show a b", "one name too many|\"b\""},
        {"show text --frist 3", "did you mean --first"},
        {"show text --first -1", "--first: expected a whole number from 0|\"-1\""},
        {"show text --first +1", "\"+1\""},
        {"show text --first 1.5", "\"1.5\""},
        {"show text --first 99999999999999999999", "\"99999999999999999999\""},
        {"show text --count 0", "--count: expected a whole number from 1"},
        {"show text --count=", "\"\""},
    };
    write_text(in_folder(state, "text"), "some text for both sides\n");
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_int_equal(run(state, wrong[i].line), STATUS_CONFIG);
        assert_file(state, "complained", wrong[i].words);
    }
    assert_false(path_is_folder(in_folder(state, "out")));
}

static void text_goes_to_shards_and_back(void **state) {
    write_text(in_folder(state, "text"), "one\ntwo\nthree\nfour\n");
    write_text(in_folder(state, "-dash"), "more text\n");
    assert_int_equal(run(state, "prepare --out out --validation-fraction=0.25 text"), STATUS_OK);
    assert_prints(
        state,
        "documents   1 (passed over: 0 binary|train       14 tokens|validation  6 tokens|"
        "written to out");
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

static void what_is_passed_over_is_named(void **state) {
    static const char *const names[] = {"a.bin", "b.bin", "c.bin", "d.bin"};
    write_text(in_folder(state, "text"), "some text for both sides\n");
    for (size_t i = 0; i < 4; i++) write_file(in_folder(state, names[i]), "a\0b", 3);
    assert_int_equal(run(state, "prepare --out out text b.bin a.bin"), STATUS_OK);
    assert_prints(state, "passed over: 2 binary|\nbinary      b.bin, a.bin\n");
    assert_int_equal(run(state, "prepare --out out --overwrite a.bin b.bin c.bin d.bin text"),
                     STATUS_OK);
    assert_prints(state, "\nbinary      a.bin, b.bin, c.bin and 1 more\n");
}

static size_t file_bytes(const char *path) {
    struct file_map map;
    assert_int_equal(file_map_open(path, &map), STATUS_OK);
    const size_t bytes = map.bytes;
    file_map_close(&map);
    return bytes;
}

/* The heading of a table stands only over a table. */
static void what_is_no_shard_has_no_row(void **state) {
    write_text(in_folder(state, "text"), "some text for both sides\n");
    assert_int_equal(run(state, "info text"), STATUS_DATA);
    assert_file(state, "complained", "text|looks like text");
    assert_int_equal(file_bytes(in_folder(state, "printed")), 0);
}

static void help_is_printed(void **state) {
    static const struct {
        const char *line, *words;
    } helps[] = {
        {"--help", "data prepare|data info|data check|data show"},
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

/* Standard output that cannot be written is an error and not silence. */
static void full_output_is_noticed(void **state) {
    write_counting_shard(in_folder(state, "a.bin"), 2, 0, 100);
    assert_int_equal(symlink("/dev/full", in_folder(state, "printed")), 0);
    assert_int_equal(run(state, "show a.bin"), STATUS_IO);
    assert_file(state, "complained", "standard output|No space left");
}

int main(int argc, char **argv) {
    if (argc != 2 || realpath(argv[1], binary) == NULL) {
        fprintf(stderr, "expected the path of the program as the only argument\n");
        return 1;
    }
#define TEST(name) cmocka_unit_test_setup_teardown(name, folder_setup, folder_teardown)
    const struct CMUnitTest tests[] = {
        TEST(wrong_command_lines),
        TEST(text_goes_to_shards_and_back),
        TEST(what_is_passed_over_is_named),
        TEST(what_is_no_shard_has_no_row),
        TEST(help_is_printed),
        TEST(full_output_is_noticed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

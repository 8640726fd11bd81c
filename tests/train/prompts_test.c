/* Prompts of a file. Oracle: a table of files with the lines that they hold, by hand. */
#include "train/prompts.h"

#include <string.h>

#include "tests/kernels/testing.h"

static const struct vocabulary bytes = {.size = 256, .end_of_text = 0};
static const struct vocabulary four = {.size = 4, .end_of_text = -1};

static void lines_are_prompts(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t count;
        const char *prompts[4];
    } cases[] = {
        {"one", 1, {"one"}},
        {"one\n", 1, {"one"}},
        {"one\ntwo words", 2, {"one", "two words"}},
        {"\n", 1, {""}},
        {"a\n\n\nb\n", 4, {"a", "", "", "b"}},
        {"a\r\nb\r", 2, {"a", "b"}},
        {" a \r\r\n", 1, {" a \r"}},
        {"caf\xC3\xA9\n\xFF", 2, {"caf\xC3\xA9", "\xFF"}},
    };
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        struct prompt_list list = {.items = NULL};
        const char *text = cases[c].text;
        EXPECT_OK(prompt_list_parse(&list, &bytes, "file", text, strlen(text)));
        assert_int_equal(list.count, cases[c].count);
        for (size_t i = 0; i < list.count; i++) {
            const struct prompt *prompt = &list.items[i];
            const char *expected = cases[c].prompts[i];
            assert_string_equal(prompt->text, expected);
            assert_int_equal(prompt->line, i + 1);
            assert_int_equal(prompt->token_count, expected[0] == '\0' ? 1 : strlen(expected));
            for (size_t t = 0; t < prompt->token_count; t++) {
                assert_int_equal(prompt->tokens[t], (unsigned char)expected[t]);
            }
        }
        prompt_list_free(&list);
    }
}

static void many_lines(void **state) {
    (void)state;
    enum { LINES = 1000 };
    static char text[2 * LINES];
    struct prompt_list list = {.items = NULL};
    for (size_t i = 0; i < sizeof text; i++) text[i] = i % 2 == 0 ? (char)('0' + i / 2 % 4) : '\n';
    EXPECT_OK(prompt_list_parse(&list, &four, "file", text, sizeof text));
    assert_int_equal(list.count, LINES);
    for (size_t i = 0; i < LINES; i++) assert_int_equal(list.items[i].tokens[0], i % 4);
    prompt_list_free(&list);
}

static void bad_lines_are_named(void **state) {
    (void)state;
    static const struct {
        const struct vocabulary *vocabulary;
        const char *text;
        size_t bytes;
        enum status status;
        const char *words;
    } cases[] = {
        {&bytes, "", 0, STATUS_DATA, "file: expected prompts"},
        {&bytes, "a\nb\0c\n", 6, STATUS_DATA, "file:2: expected text, found a zero byte"},
        {&four, "1 2\n3\n4", 7, STATUS_CONFIG, "file:3: prompt: expected token numbers"},
        {&four, "1\n\n", 3, STATUS_CONFIG, "file:2: expected a prompt, or data.end_of_text"},
    };
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        struct prompt_list list = {.items = NULL};
        expect_status(cases[c].status, prompt_list_parse(&list, cases[c].vocabulary, "file",
                                                         cases[c].text, cases[c].bytes));
        if (strstr(status_message(), cases[c].words) == NULL) fail_msg("%s", status_message());
        prompt_list_free(&list);
    }
    struct prompt_list list = {.items = NULL};
    expect_status(STATUS_IO, prompt_list_read(&list, &bytes, "/nowhere/prompts.txt"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_are_prompts),
        cmocka_unit_test(many_lines),
        cmocka_unit_test(bad_lines_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

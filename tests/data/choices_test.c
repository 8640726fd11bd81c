/*
 * Multiple-choice files. Oracle: a file made by hand word by word, and a table of malformed ones
 * with the words that the message must hold.
 */
#include "data/choices.h"

#include <string.h>

#include "tests/data/data_test.h"

enum { HEADER_WORDS = 512, WORDS_MAX = 64 };

/* Two examples: three completions, two completions. */
/* clang-format off */
static const uint16_t body[] = {
    65535, 34, 0, 2, 3, /* context */ 2, 10, 11, /* completions */ 1, 12, 3, 13, 14, 15, 2, 16, 17,
    65535, 22, 1, 0, 2, /* context */ 1, 9, /* completions */ 1, 8, 1, 7,
};
/* clang-format on */
enum { BODY = sizeof body / sizeof body[0], SECOND = 17 };

static void write_choices(const char *path, int32_t magic, int32_t version, int32_t count,
                          const uint16_t *words, size_t word_count) {
    uint16_t file[HEADER_WORDS + WORDS_MAX] = {0};
    const int32_t header[] = {magic, version, count, 34};
    memcpy(file, header, sizeof header);
    memcpy(file + HEADER_WORDS, words, word_count * sizeof *words);
    write_file(path, file, (HEADER_WORDS + word_count) * sizeof *file);
}

static void reads_a_file_made_by_hand(void **state) {
    const char *path = in_folder(state, "choices.bin");
    struct choices choices;
    write_choices(path, 20240522, 1, 2, body, BODY);
    if (choices_open(&choices, path, 18) != STATUS_OK) fail_msg("%s", status_message());
    assert_int_equal(choices.count, 2);
    assert_int_equal(choices.completions, 5);
    assert_int_equal(choices.longest_tokens, 5);
    struct choice_example first = choices_get(&choices, 0), second = choices_get(&choices, 1);
    assert_int_equal(first.label, 2);
    assert_int_equal(first.context_tokens, 2);
    assert_int_equal(first.context[1], 11);
    assert_int_equal(first.completion_count, 3);
    assert_int_equal(first.completion_tokens[1], 3);
    assert_int_equal(first.completions[1][2], 15);
    assert_int_equal(first.completions[2][0], 16);
    assert_int_equal(second.label, 0);
    assert_int_equal(second.completions[1][0], 7);
    choices_close(&choices);
}

static void malformed_files_are_refused(void **state) {
    static const struct {
        int32_t magic, version, count;
        size_t at; /* of a word that is changed */
        uint16_t value;
        size_t words; /* of the body; 0: all */
        const char *reason;
    } cases[] = {
        {20240520, 1, 2, 0, 65535, 0, "20240522|found 20240520"},
        {20240522, 2, 2, 0, 65535, 0, "version 1|found 20240522, 2"},
        {20240522, 1, 0, 0, 65535, 0, "at least one example"},
        {20240522, 1, -1, 0, 65535, 0, "at least one example"},
        {20240522, 1, 2000000000, 0, 65535, 0, "2000000000 examples are promised"},
        {20240522, 1, 3, 0, 65535, 0, "example 2: expected a whole example"},
        {20240522, 1, 1, 0, 65535, 0, "expected its end behind example 1, found 11 words"},
        {20240522, 1, 2, 0, 1, 0, "example 0: expected 65535"},
        {20240522, 1, 2, 1, 33, 0, "size within the file"},
        {20240522, 1, 2, 1, 65534, 0, "size within the file"},
        {20240522, 1, 2, 1, 30, 0, "within the example"},
        {20240522, 1, 2, 1, 36, 0, "words too many"},
        {20240522, 1, 2, 3, 3, 0, "a label that is a completion"},
        {20240522, 1, 2, 4, 1, 0, "2 to 64 completions"},
        {20240522, 1, 2, 4, 65, 0, "2 to 64 completions"},
        {20240522, 1, 2, 4, 4, 0, "example 0: expected a length"},
        {20240522, 1, 2, 5, 0, 0, "a length of at least 1"},
        {20240522, 1, 2, 5, 60000, 0, "within the example"},
        {20240522, 1, 2, 8, 0, 0, "a length of at least 1"},
        {20240522, 1, 2, 16, 18, 0, "below the model's vocabulary|18"},
        {20240522, 1, 2, 0, 65535, BODY - 1, "example 1"},
        {20240522, 1, 2, 0, 65535, SECOND, "example 1"},
    };
    const char *path = in_folder(state, "choices.bin");
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        uint16_t words[BODY];
        struct choices choices;
        memcpy(words, body, sizeof body);
        words[cases[c].at] = cases[c].value;
        write_choices(path, cases[c].magic, cases[c].version, cases[c].count, words,
                      cases[c].words > 0 ? cases[c].words : BODY);
        if (choices_open(&choices, path, 18) != STATUS_DATA) fail_msg("case %zu was taken", c);
        assert_message(cases[c].reason);
    }
    struct choices choices;
    write_file(path, body, sizeof body);
    assert_int_equal(choices_open(&choices, path, 18), STATUS_DATA);
    assert_message("a header of 1024");
    assert_int_equal(choices_open(&choices, in_folder(state, "nowhere"), 18), STATUS_IO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(reads_a_file_made_by_hand, folder_setup, folder_teardown),
        cmocka_unit_test_setup_teardown(malformed_files_are_refused, folder_setup, folder_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

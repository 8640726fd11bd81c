/*
 * Multiple-choice files. Oracle: a file made by hand word by word, and a table of malformed ones
 * with the words that the message must hold; for text, its bytes, and the tokenizer's own encoding
 * of "context" and " ending".
 */
#include "data/choices.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/data/data_test.h"
#include "tests/fuzz/small_tokenizer.h"

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
        {20240522, 1, 2, 1, 0, 0, "size within the file"}, /* less than its own head */
        {20240522, 1, 2, 1, 2, 0, "size within the file"},
        {20240522, 1, 2, 1, 8, 0, "size within the file"},
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

/* ---- text ---- */

static const char two_lines[] =
    "{\"ind\": 24, \"ctx\": \"A man\", \"label\": 1, "
    "\"endings\": [\"sits.\", \"r\\u00e9d\", \"\"]}\n"
    " \r\n"
    "{\"endings\": [\"no\", \"<e>\"], \"ctx\": \"Yes\\\\u0000\", "
    "\"label\": \"0\", \"split\": null}";

static void assert_bytes(const int32_t *tokens, size_t count, const char *expected) {
    assert_int_equal(count, strlen(expected));
    for (size_t i = 0; i < count; i++) assert_int_equal(tokens[i], (unsigned char)expected[i]);
}

static void lines_become_bytes(void **state) {
    const char *path = in_folder(state, "choices.jsonl");
    char place[CHOICES_PLACE_BYTES], expected[CHOICES_PLACE_BYTES];
    struct choices choices;
    write_text(path, two_lines);
    if (choices_open(&choices, path, 256) != STATUS_OK) fail_msg("%s", status_message());
    assert_int_equal(choices.count, 2); /* known before there are tokens */
    assert_int_equal(choices.completions, 5);
    for (size_t again = 0; again < 2; again++) { /* the second call has nothing to do */
        assert_int_equal(choices_tokenise(&choices, NULL), STATUS_OK);
    }
    assert_int_equal(choices.count, 2);
    assert_int_equal(choices.completions, 5);
    assert_int_equal(choices.longest_tokens, 13); /* the second's context, and " <e>" */
    const struct choice_example first = choices_get(&choices, 0), second = choices_get(&choices, 1);
    assert_int_equal(first.label, 1);
    assert_int_equal(first.completion_count, 3);
    assert_bytes(first.context, first.context_tokens, "A man");
    assert_bytes(first.completions[0], first.completion_tokens[0], " sits.");
    assert_bytes(first.completions[1], first.completion_tokens[1], " r\xC3\xA9" "d");
    assert_bytes(first.completions[2], first.completion_tokens[2], " ");
    assert_int_equal(second.label, 0);
    assert_bytes(second.context, second.context_tokens, "Yes\\u0000");
    assert_bytes(second.completions[1], second.completion_tokens[1], " <e>");
    snprintf(expected, sizeof expected, "%s:3", path);
    assert_string_equal(choices_place(&choices, 1, place), expected);
    choices_close(&choices);
}

static void assert_encoded(const struct tokenizer *tokenizer, const char *text,
                           const int32_t *tokens, size_t count) {
    int32_t *expected = NULL;
    size_t expected_count = 0;
    assert_int_equal(tokenizer_encode(tokenizer, text, strlen(text), false, &expected,
                                      &expected_count), STATUS_OK);
    assert_int_equal(count, expected_count);
    assert_memory_equal(tokens, expected, count * sizeof *tokens);
    free(expected);
}

/* "<e>" is a special token; in a question it is text. */
static void lines_become_tokens(void **state) {
    (void)state;
    static char json[16384];
    struct tokenizer *tokenizer = NULL;
    struct choices choices;
    const size_t bytes = small_tokenizer(json, sizeof json, "{\"type\":\"ByteLevel\","
                                         "\"add_prefix_space\":false}");
    static const char line[] = "{\"ctx\":\"the cat\",\"endings\":[\"the\",\"<e>\"],\"label\":0}";
    assert_int_equal(tokenizer_parse(&tokenizer, "small", json, bytes), STATUS_OK);
    assert_int_equal(choices_parse(&choices, "memory", line, strlen(line)), STATUS_OK);
    assert_int_equal(choices_tokenise(&choices, tokenizer), STATUS_OK);
    const struct choice_example example = choices_get(&choices, 0);
    assert_encoded(tokenizer, "the cat", example.context, example.context_tokens);
    assert_encoded(tokenizer, " the", example.completions[0], example.completion_tokens[0]);
    assert_encoded(tokenizer, " <e>", example.completions[1], example.completion_tokens[1]);
    assert_int_equal(example.completion_tokens[0], 1); /* the merge with its space */
    assert_true(example.completion_tokens[1] > 1);
    choices_close(&choices);
    tokenizer_close(tokenizer);
}

#define GOOD "{\"ctx\":\"a\",\"endings\":[\"b\",\"c\"],\"label\":0}\n"
#define WITH_LABEL(label) GOOD "{\"ctx\":\"a\",\"endings\":[\"b\",\"c\"],\"label\":" label "}"

static void malformed_lines_are_refused(void **state) {
    static const struct {
        const char *text, *reason;
    } cases[] = {
        {"", "choices.jsonl: expected at least one question"},
        {"\n \n\t\r\n", "choices.jsonl: expected at least one question"},
        {"no JSON", "choices.jsonl:1: expected a JSON object|at byte 1 of the line's 7"},
        {GOOD GOOD "\n" GOOD "{\"ctx\":", "choices.jsonl:5: expected a JSON object"},
        {GOOD "{} {}", ":2: expected a JSON object"},
        {GOOD "[]", ":2: expected an object"},
        {GOOD "7", ":2: expected an object"},
        {GOOD "{}", ":2: expected text as \"ctx\""},
        {"\xEF\xBB\xBFno", ":1: expected a JSON object"},
        {GOOD "{\"ctx\":3}", "expected text as \"ctx\""},
        {"{\"ctx\":\"a\",\"ctx\":\"b\"}", ":1: the key \"ctx\" stands twice"},
        {"{\"ctx\":\"a\"}", "expected a list of texts as \"endings\""},
        {"{\"ctx\":\"a\",\"endings\":\"b\"}", "expected a list of texts as \"endings\""},
        {"{\"ctx\":\"a\",\"endings\":{\"0\":\"b\"}}", "expected a list of texts"},
        {"{\"ctx\":\"a\",\"endings\":[\"b\",2]}", "expected text as ending 1"},
        {"{\"ctx\":\"a\",\"endings\":[]}", "expected 2 to 64 \"endings\", found 0"},
        {"{\"ctx\":\"a\",\"endings\":[\"b\"]}", "expected 2 to 64 \"endings\", found 1"},
        {"{\"ctx\":\"\",\"endings\":[\"b\",\"c\"],\"label\":0}", "as \"ctx\", found an empty"},
        {"{\"ctx\":\"a\",\"endings\":[\"b\",\"c\"]}", "the number of an ending"},
        {WITH_LABEL("2"), ":2: expected as \"label\"|from 0 to 1"},
        {WITH_LABEL("-1"), "from 0 to 1"},
        {WITH_LABEL("0.5"), "a whole one"},
        {WITH_LABEL("1e300"), "from 0 to 1"},
        {WITH_LABEL("true"), "from 0 to 1"},
        {WITH_LABEL("null"), "from 0 to 1"},
        {WITH_LABEL("\"\""), "from 0 to 1"}, /* HellaSwag's test set has none */
        {WITH_LABEL("\"2\""), "from 0 to 1"},
        {WITH_LABEL("\"1 \""), "from 0 to 1"},
        {WITH_LABEL("\"0x1\""), "from 0 to 1"},
        {WITH_LABEL("\"000\""), "from 0 to 1"},
        {"{\"ctx\":\"a\\u0000b\",\"endings\":[\"b\",\"c\"],\"label\":0}", "\\u0000"},
        {"{\"ctx\":\"a\\\\\\u0000\",\"endings\":[\"b\",\"c\"],\"label\":0}", "\\u0000"},
        {"{\"ctx\":\"\\ud800\",\"endings\":[\"b\",\"c\"],\"label\":0}", "expected a JSON object"},
    };
    const char *path = in_folder(state, "choices.jsonl");
    struct choices choices;
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        write_text(path, cases[c].text);
        if (choices_open(&choices, path, 256) != STATUS_DATA) fail_msg("case %zu was taken", c);
        assert_message(cases[c].reason);
    }
    write_file(path, GOOD "\0", sizeof GOOD);
    assert_int_equal(choices_open(&choices, path, 256), STATUS_DATA);
    assert_message("choices.jsonl:2: expected text, found a zero byte");
    static char many[1024], deep[4096];
    size_t used = (size_t)snprintf(many, sizeof many, "{\"ctx\":\"a\",\"endings\":[\"b\"");
    for (size_t i = 0; i < CHOICES_COMPLETIONS_MAX; i++) {
        used += (size_t)snprintf(many + used, sizeof many - used, ",\"b\"");
    }
    snprintf(many + used, sizeof many - used, "],\"label\":0}");
    assert_int_equal(choices_parse(&choices, "many", many, strlen(many)), STATUS_DATA);
    assert_message("many:1: expected 2 to 64 \"endings\", found 65");
    memset(deep, '[', sizeof deep);
    assert_int_equal(choices_parse(&choices, "deep", deep, sizeof deep), STATUS_DATA);
    assert_int_equal(choices_open(&choices, in_folder(state, "nowhere.jsonl"), 18), STATUS_IO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(reads_a_file_made_by_hand, folder_setup, folder_teardown),
        cmocka_unit_test_setup_teardown(malformed_files_are_refused, folder_setup, folder_teardown),
        cmocka_unit_test_setup_teardown(lines_become_bytes, folder_setup, folder_teardown),
        cmocka_unit_test(lines_become_tokens),
        cmocka_unit_test_setup_teardown(malformed_lines_are_refused, folder_setup, folder_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

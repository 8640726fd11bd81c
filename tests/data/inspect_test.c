/* What is printed about shards. Oracle: the expected text, written down. */
#include "tests/data/data_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/inspect.h"

/* The text that one of the two functions prints; release with free(). */
static char *printed(enum status (*print)(void **state, FILE *out), void **state) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    const enum status status = print(state, out);
    assert_int_equal(fclose(out), 0);
    if (status != STATUS_OK) fail_msg("%s", status_message());
    return text;
}

static void assert_printed(enum status (*print)(void **state, FILE *out), void **state,
                           const char *expected) {
    char *text = printed(print, state);
    assert_string_equal(text, expected);
    free(text);
}

static enum status print_shards(void **state, FILE *out) {
    return inspect_shards(in_folder(state, "*.bin"), out);
}

static void shards_are_described(void **state) {
    char expected[PATH_BYTES * 4];
    write_counting_shard(in_folder(state, "a.bin"), 2, 100, 1488);
    write_counting_shard(in_folder(state, "b.bin"), 4, 3000000, 256);
    snprintf(expected, sizeof expected,
             "dtype            tokens  largest token        size  shard\n"
             "uint16            1,488          1,587    3.91 KiB  %s\n"
             "uint32              256      3,000,255    2.00 KiB  %s\n"
             "sum               1,744                   5.91 KiB  %s\n",
             in_folder(state, "a.bin"), in_folder(state, "b.bin"), in_folder(state, "*.bin"));
    assert_printed(print_shards, state, expected);
}

static enum status print_tokens(void **state, FILE *out) {
    const struct inspect_range range = {.first = 2, .count = 20, .tokenizer = ""};
    return inspect_tokens(in_folder(state, "a.bin"), &range, out);
}

static void bytes_are_shown_as_text(void **state) {
    /* an escape sequence, a carriage return and a backspace, which must not reach a terminal */
    const unsigned char text[] = "ab\x1b[31mG\xc3\xbc\tx\r\b\x7f\0\ncut";
    unsigned char body[2 * sizeof text] = {0};
    char expected[PATH_BYTES + 64];
    for (size_t i = 0; i < sizeof text; i++) body[2 * i] = text[i];
    write_raw_shard(in_folder(state, "a.bin"), 20240520, 1, (int32_t)sizeof text - 1, body,
                    sizeof body, 1024 + 2 * (sizeof text - 1));
    snprintf(expected, sizeof expected,
             "%s: tokens 2 to %zu of %zu\n\\x1B[31mG\xc3\xbc\tx\\x0D\\x08\\x7F\\x00\ncut\n",
             in_folder(state, "a.bin"), sizeof text - 1, sizeof text - 1);
    assert_printed(print_tokens, state, expected);
}

static void others_are_shown_as_numbers(void **state) {
    char expected[PATH_BYTES + 256];
    write_counting_shard(in_folder(state, "a.bin"), 4, 250, 50);
    snprintf(expected, sizeof expected,
             "%s: tokens 2 to 22 of 50\n"
             "252 253 254 255 256 257 258 259 260 261 262 263 264 265 266 267\n"
             "268 269 270 271\n", in_folder(state, "a.bin"));
    assert_printed(print_tokens, state, expected);
}

static void impossible_wishes_are_refused(void **state) {
    const struct inspect_range late = {.first = 10, .count = 1, .tokenizer = ""};
    const struct inspect_range first = {.first = 0, .count = 1, .tokenizer = ""};
    write_counting_shard(in_folder(state, "a.bin"), 2, 0, 10);
    assert_int_equal(inspect_tokens(in_folder(state, "a.bin"), &late, stdout), STATUS_CONFIG);
    assert_message("below 10|found 10");
    assert_int_equal(inspect_tokens(in_folder(state, "b.bin"), &first, stdout), STATUS_DATA);
    assert_message("no such file");
    assert_int_equal(inspect_shards(in_folder(state, "b*.bin"), stdout), STATUS_DATA);
    write_text(in_folder(state, "b.bin"), "text");
    assert_int_equal(inspect_tokens(in_folder(state, "b.bin"), &first, stdout), STATUS_DATA);
    assert_message("b.bin|looks like text");
}

/* dataset.json beside a shard: right, then each thing it says made wrong. */
static void shards_are_checked(void **state) {
    static const struct {
        const char *json, *words;
    } cases[] = {
        {"{\"tokenizer\":\"bytes\",\"vocabulary\":256,\"end_of_text\":0,\"shards\":"
         "[{\"name\":\"a.bin\",\"tokens\":10}]}", NULL},
        {"{\"tokenizer\":\"bytes\",\"vocabulary\":256,\"end_of_text\":0}", NULL},
        {"{\"tokenizer\":\"bytes\",\"vocabulary\":256,\"end_of_text\":0,\"shards\":"
         "[{\"name\":\"a.bin\",\"tokens\":11}]}", "expected 11 tokens|found 10"},
        {"{\"tokenizer\":\"bytes\",\"vocabulary\":9,\"end_of_text\":0}",
         "vocabulary of 9|token 9"},
        {"{\"tokenizer\":\"bytes\",\"vocabulary\":256,\"end_of_text\":0,\"shards\":"
         "[{\"name\":\"a.bin\",\"tokens\":10,\"xxh3_128\":\"00\"}]}", "XXH3-128 00|changed"},
        {"{\"tokenizer\":\"no.json\",\"vocabulary\":256,\"end_of_text\":0,"
         "\"tokenizer_xxh3_128\":\"00\"}", "no.json"},
        {"{\"tokenizer\":\"../t.json\",\"vocabulary\":256,\"end_of_text\":0}", "\"tokenizer\""},
        {"{\"tokenizer\":\"bytes\",\"vocabulary\":1e99,\"end_of_text\":0}", "\"vocabulary\""},
        {"{\"tokenizer\":\"bytes\",\"vocabulary\":256,\"end_of_text\":-1}", "\"end_of_text\""},
        {"[]", "JSON object"},
        {"{", "JSON object"},
    };
    char *printed_text = NULL;
    size_t bytes = 0;
    write_counting_shard(in_folder(state, "a.bin"), 2, 0, 10);
    FILE *out = open_memstream(&printed_text, &bytes);
    assert_int_equal(inspect_check(in_folder(state, "a.bin"), out), STATUS_OK);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        write_text(in_folder(state, "dataset.json"), cases[i].json);
        const enum status status = inspect_check(in_folder(state, "*.bin"), out);
        assert_true((status == STATUS_OK) == (cases[i].words == NULL));
        if (cases[i].words != NULL) assert_message(cases[i].words);
    }
    assert_int_equal(fclose(out), 0);
    assert_non_null(strstr(printed_text, "no dataset.json"));
    assert_non_null(strstr(printed_text, "as dataset.json says"));
    assert_non_null(strstr(printed_text, "not named in dataset.json"));
    free(printed_text);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, folder_setup, folder_teardown)
    const struct CMUnitTest tests[] = {
        TEST(shards_are_described),
        TEST(bytes_are_shown_as_text),
        TEST(others_are_shown_as_numbers),
        TEST(impossible_wishes_are_refused),
        TEST(shards_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

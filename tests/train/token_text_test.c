/*
 * Tokens to text and back. Oracle: UTF-8 (RFC 3629) written out by hand, one U+FFFD for every byte
 * that belongs to no character and for every control character.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/utf8.h"
#include "train/token_text.h"

enum { TEXT_ROOM = 4096 };
static const struct vocabulary bytes_vocabulary = {.size = 256, .end_of_text = 0};
static const struct vocabulary gpt2 = {.size = 50257, .end_of_text = 50256};
static const struct vocabulary four = {.size = 4, .end_of_text = 3};
static const struct vocabulary endless = {.size = 50257, .end_of_text = -1};
#define BYTES &bytes_vocabulary
#define GPT2 &gpt2
#define FFFD "\xEF\xBF\xBD"

static void assert_message_has(const char *words) {
    if (strstr(status_message(), words) == NULL) {
        fail_msg("expected \"%s\" in the message \"%s\"", words, status_message());
    }
}

/* What the printer prints for a token; -1: at the end. */
static const char *printed(struct token_printer *printer, int32_t token) {
    static char text[64];
    text[0] = '\0'; /* what fmemopen leaves alone if nothing is printed */
    FILE *out = fmemopen(text, sizeof text, "w");
    assert_non_null(out);
    if (token >= 0) token_printer_add(printer, token, out);
    else token_printer_end(printer, out);
    assert_int_equal(fclose(out), 0);
    return text;
}

/* All that a printer says about these bytes; every single answer must be whole UTF-8. */
static const char *print_bytes(const char *bytes, size_t count, char out[TEXT_ROOM]) {
    struct token_printer printer = {.vocabulary = BYTES};
    size_t used = 0;
    for (size_t i = 0; i <= count; i++) {
        const char *text = printed(&printer, i < count ? (unsigned char)bytes[i] : -1);
        for (size_t at = 0, length = strlen(text); at < length;) {
            const size_t sequence = utf8_sequence(text + at, length - at);
            assert_true(sequence > 0);
            at += sequence;
        }
        used += (size_t)snprintf(out + used, TEXT_ROOM - used, "%s", text);
        assert_true(used < TEXT_ROOM);
    }
    assert_int_equal(printer.waiting_bytes, 0);
    return out;
}

static void bytes_become_whole_characters(void **state) {
    (void)state;
    static const struct {
        const char *bytes, *text;
    } cases[] = {
        {"", ""},
        {"plain text\n\tnext", "plain text\n\tnext"},
        {"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80",
         "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80"}, /* 2, 3, 4 bytes */
        {"\xF4\x8F\xBF\xBF", "\xF4\x8F\xBF\xBF"}, /* U+10FFFF, the last */
        {"\x80z", FFFD "z"},     /* continues nothing */
        {"\xC0\xAF", FFFD FFFD}, /* overlong */
        {"\xC3(", FFFD "("},     /* ends too early */
        {"\xE2\x82z", FFFD FFFD "z"},              /* byte by byte */
        {"\xED\xA0\x80", FFFD FFFD FFFD},          /* a surrogate */
        {"\xF4\x90\x80\x80", FFFD FFFD FFFD FFFD}, /* beyond U+10FFFF */
        {"\xF5\xFE\xFF", FFFD FFFD FFFD},          /* never in UTF-8 */
        {"\xC3", FFFD},                            /* the end comes first */
        {"\xF0\x9F\x98", FFFD FFFD FFFD},
        {"\xE2\xC3\xA9", FFFD "\xC3\xA9"},                     /* what follows is whole */
        {"\x1B[2J\a\r\b\x7F", FFFD "[2J" FFFD FFFD FFFD FFFD}, /* nothing steers a terminal */
        /* U+0080 to U+009F, and U+00A0, which is no control */
        {"\xC2\x80\xC2\x9B[J\xC2\x9F\xC2\xA0", FFFD FFFD "[J" FFFD "\xC2\xA0"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char out[TEXT_ROOM];
        assert_string_equal(print_bytes(cases[i].bytes, strlen(cases[i].bytes), out),
                            cases[i].text);
    }
    char out[TEXT_ROOM];
    assert_string_equal(print_bytes("\0a", 2, out), FFFD "a");
}

/* A character comes with the token that completes it, not before. */
static void characters_wait(void **state) {
    (void)state;
    struct token_printer printer = {.vocabulary = BYTES};
    assert_string_equal(printed(&printer, 0xF0), "");
    assert_string_equal(printed(&printer, 0x9F), "");
    assert_string_equal(printed(&printer, 0x98), "");
    assert_string_equal(printed(&printer, 0x80), "\xF0\x9F\x98\x80");
    assert_string_equal(printed(&printer, 'a'), "a");
    assert_string_equal(printed(&printer, -1), "");
    /* The longest answer: three that wait, and one that shows they never will. */
    printed(&printer, 0xF0);
    printed(&printer, 0x9F);
    printed(&printer, 0x98);
    assert_string_equal(printed(&printer, 'a'), FFFD FFFD FFFD "a");
}

/* Any bytes: never more than the room, never stuck. Every byte is in the text or part of what
 * one U+FFFD of three bytes stands for, so the text is never shorter, and at most three times as
 * long. */
static void any_bytes(void **state) {
    (void)state;
    uint32_t noise = 1;
    for (int round = 0; round < 20000; round++) {
        char bytes[8], out[TEXT_ROOM];
        for (size_t i = 0; i < sizeof bytes; i++) {
            noise = noise * 1664525u + 1013904223u;
            bytes[i] = (char)(noise >> 24 | (round % 2 == 0 ? 0x80u : 0u));
        }
        print_bytes(bytes, sizeof bytes, out);
        assert_true(strlen(out) >= sizeof bytes && strlen(out) <= 3 * sizeof bytes);
    }
}

static void other_vocabularies_are_numbers(void **state) {
    (void)state;
    struct token_printer printer = {.vocabulary = GPT2};
    assert_string_equal(printed(&printer, 50256), "50256 ");
    assert_string_equal(printed(&printer, 0), "0 ");
    assert_string_equal(printed(&printer, INT32_MAX), "2147483647 ");
    assert_string_equal(printed(&printer, -1), "");
}

static void prompts(void **state) {
    (void)state;
    static const struct {
        const char *prompt;
        const struct vocabulary *vocabulary;
        size_t count;
        int32_t tokens[4];
    } cases[] = {
        {"ab\xC3", BYTES, 3, {'a', 'b', 0xC3}},
        {" 1\n", BYTES, 3, {' ', '1', '\n'}},
        {"", BYTES, 1, {0}},
        {"", GPT2, 1, {50256}},
        {" \t\n", GPT2, 1, {50256}},
        {"15496", GPT2, 1, {15496}},
        {"  0 50256\n7\t ", GPT2, 3, {0, 50256, 7}},
        {"1 2 3 0", &four, 4, {1, 2, 3, 0}},
        {"+3", &four, 1, {3}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int32_t *tokens = NULL;
        size_t count = 0;
        assert_int_equal(prompt_tokens(cases[i].vocabulary, cases[i].prompt, &tokens, &count),
                         STATUS_OK);
        assert_int_equal(count, cases[i].count);
        assert_memory_equal(tokens, cases[i].tokens, count * sizeof *tokens);
        free(tokens);
    }
    int32_t *tokens = NULL;
    size_t count = 0;
    assert_int_equal(prompt_tokens(&endless, "", &tokens, &count), STATUS_CONFIG);
    assert_message_has("data.end_of_text");
    assert_null(tokens);
}

static void bad_prompts(void **state) {
    (void)state;
    static const struct { const char *prompt, *words; } cases[] = {
        {"Hello", "found \"Hello\""},
        {"1 2 x", "found \"x\""},
        {"1 2x 3", "found \"2x 3\""},
        {"50257", "from 0 to 50256"},
        {"-1", "found \"-1\""},
        {"1,2", "separated by spaces"},
        {"1.5", "found \"1.5\""},
        {"99999999999999999999", "found \"99999999999999999999\""},
        {"0x10", "found \"0x10\""},
        {"this text is longer than a message should be", "\"this text is longer \""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int32_t *tokens = NULL;
        size_t count = 0;
        assert_int_equal(prompt_tokens(GPT2, cases[i].prompt, &tokens, &count), STATUS_CONFIG);
        assert_message_has(cases[i].words);
        assert_null(tokens);
    }
}

/* Stops of text are bytes, of numbers tokens: 1 is no part of 11. */
static void stops(void **state) {
    (void)state;
    static const struct {
        const struct vocabulary *vocabulary;
        const char *stop;
        int32_t tokens[6];
        size_t count, taken; /* up to the one that ends the text; 0: none does */
        const char *text;
    } cases[] = {
        {BYTES, "b", {'a', 'b', 'c'}, 3, 2, "a"},
        {BYTES, "bc", {'a', 'b', 'b', 'c'}, 4, 4, "ab"},
        {BYTES, "bc", {'a', 'b'}, 2, 0, "ab"}, /* held to the end, and printed */
        {BYTES, "\n\n", {'a', '\n', 'b', '\n', '\n'}, 5, 5, "a\nb"},
        {BYTES, "\xC3\xA9", {'a', 0xC3, 0xA9}, 3, 3, "a"},
        {BYTES, "\xA9", {'a', 0xC3, 0xA9}, 3, 3, "a" FFFD}, /* inside a character */
        {GPT2, "1", {11, 2, 1, 3}, 4, 3, "11 2 "},
        {GPT2, " 2 1", {1, 2, 2, 1}, 4, 4, "1 2 "},
    };
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        struct stop_list list = {.count = 0};
        struct stop_filter filter = {.list = &list};
        struct token_printer printer = {.vocabulary = cases[c].vocabulary, .stops = &filter};
        char text[64] = "";
        size_t taken = 0;
        assert_int_equal(stop_list_add(&list, cases[c].vocabulary, cases[c].stop), STATUS_OK);
        FILE *out = fmemopen(text, sizeof text, "w");
        assert_non_null(out);
        for (size_t i = 0; i < cases[c].count && taken == 0; i++) {
            if (!token_printer_add(&printer, cases[c].tokens[i], out)) taken = i + 1;
        }
        token_printer_end(&printer, out);
        assert_int_equal(fclose(out), 0);
        assert_int_equal(taken, cases[c].taken);
        assert_string_equal(text, cases[c].text);
        stop_list_free(&list);
    }
}

static void bad_stops(void **state) {
    (void)state;
    char text[STOP_SYMBOLS_MAX + 2] = "";
    struct stop_list list = {.count = 0};
    assert_int_equal(stop_list_add(&list, BYTES, ""), STATUS_CONFIG);
    assert_message_has("stop: expected 1 to 256 bytes, found 0");
    memset(text, 'x', STOP_SYMBOLS_MAX + 1);
    assert_int_equal(stop_list_add(&list, BYTES, text), STATUS_CONFIG);
    assert_message_has("found 257");
    assert_int_equal(stop_list_add(&list, GPT2, "end"), STATUS_CONFIG);
    assert_message_has("stop: expected token numbers from 0 to 50256");
    assert_int_equal(list.count, 0);
    for (size_t i = 0; i < STOPS_MAX; i++) {
        assert_int_equal(stop_list_add(&list, BYTES, text + 1), STATUS_OK);
    }
    assert_int_equal(stop_list_add(&list, BYTES, "x"), STATUS_CONFIG);
    assert_message_has("at most 16 stops");
    stop_list_free(&list);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_become_whole_characters),
        cmocka_unit_test(characters_wait),
        cmocka_unit_test(any_bytes),
        cmocka_unit_test(other_vocabularies_are_numbers),
        cmocka_unit_test(prompts),
        cmocka_unit_test(bad_prompts),
        cmocka_unit_test(stops),
        cmocka_unit_test(bad_stops),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

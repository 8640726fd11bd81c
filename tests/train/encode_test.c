/*
 * Numbers and UTF-8. Oracle: strtod gives the same bits back; the table of well-formed byte
 * sequences in the Unicode Standard (table 3-7), written out as cases.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/random.h"
#include "base/utf8.h"
#include "train/encode.h"

static void doubles_read_back_to_the_same_bits(void **state) {
    (void)state;
    for (uint64_t i = 0; i < 100000; i++) {
        uint32_t words[4];
        uint64_t bits, back_bits;
        double value;
        char text[REAL_TEXT_BYTES];
        random_words(1, RANDOM_TEST, i, words);
        bits = (uint64_t)words[0] << 32 | words[1];
        memcpy(&value, &bits, sizeof value);
        if (!isfinite(value)) continue;
        const double back = strtod(real_text(text, value), NULL);
        memcpy(&back_bits, &back, sizeof back_bits);
        assert_true(back_bits == bits);
    }
}

static void short_numbers_stay_short(void **state) {
    (void)state;
    static const struct { double value; const char *text; } cases[] = {
        {0.1, "0.1"}, {6e-4, "0.0006"}, {1e-8, "1e-08"}, {65536, "65536"}, {0, "0"}, {-0.0, "-0"},
        {1.0 / 3.0, "0.3333333333333333"}, {0.1 + 0.2, "0.30000000000000004"},
    };
    char text[REAL_TEXT_BYTES];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_string_equal(real_text(text, cases[i].value), cases[i].text);
    }
    assert_string_equal(real_text(text, (double)NAN), "nan");
    assert_string_equal(real_text(text, -(double)NAN), "nan");
    assert_string_equal(real_text(text, -(double)INFINITY), "-inf");
}

static void utf8_sequences(void **state) {
    (void)state;
    static const struct { const char *text; size_t length; } cases[] = {
        {"", 0}, {"a", 1}, {"\x7F", 1}, {"\x80", 0}, {"\xC1\xBF", 0}, {"\xC2\x80", 2},
        {"\xC2", 0}, {"\xC2g", 0}, {"\xDF\xBF", 2}, {"\xE0\x9F\xBF", 0}, {"\xE0\xA0\x80", 3},
        {"\xE2\x82\xAC", 3}, {"\xE2\x82", 0}, {"\xE2\x82g", 0}, {"\xED\x9F\xBF", 3},
        {"\xED\xA0\x80", 0}, {"\xEF\xBF\xBD", 3}, {"\xF0\x8F\xBF\xBF", 0},
        {"\xF0\x9F\x98\x80", 4}, {"\xF0\x9F\x98", 0}, {"\xF4\x8F\xBF\xBF", 4},
        {"\xF4\x90\x80\x80", 0}, {"\xF5\x80\x80\x80", 0}, {"\xFF", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(utf8_sequence(cases[i].text, strlen(cases[i].text)), cases[i].length);
    }
    assert_int_equal(utf8_sequence("\xE2\x82\xAC", 2), 0); /* the third byte is not looked at */
}

static void repairs(void **state) {
    (void)state;
    static const struct { const char *text, *repaired; } cases[] = {
        {"", ""},
        {"plain", "plain"},
        {"caf\xC3\xA9", "caf\xC3\xA9"},
        {"\xFFx\xFE", "\xEF\xBF\xBDx\xEF\xBF\xBD"},
        {"\xE2\x82", "\xEF\xBF\xBD\xEF\xBF\xBD"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *repaired = utf8_repaired(cases[i].text);
        assert_non_null(repaired);
        assert_string_equal(repaired, cases[i].repaired);
        free(repaired);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(doubles_read_back_to_the_same_bits),
        cmocka_unit_test(short_numbers_stay_short),
        cmocka_unit_test(utf8_sequences),
        cmocka_unit_test(repairs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* The byte tokenizer. Oracle: every byte is its own number, and comes back. */
#include "tests/data/data_test.h"

#include "data/tokenizer.h"

static void every_byte_comes_back(void **state) {
    (void)state;
    unsigned char text[256];
    int32_t tokens[256];
    for (size_t i = 0; i < 256; i++) text[i] = (unsigned char)i;
    byte_encode(text, 256, tokens);
    for (int32_t i = 0; i < 256; i++) {
        unsigned char byte = 0;
        assert_int_equal(tokens[i], i);
        assert_int_equal(byte_decode(tokens[i], &byte), STATUS_OK);
        assert_int_equal(byte, i);
    }
}

static void other_tokens_are_refused(void **state) {
    (void)state;
    const int32_t others[] = {-1, 256, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < 4; i++) {
        unsigned char byte = 7;
        assert_int_equal(byte_decode(others[i], &byte), STATUS_DATA);
        assert_message("0 to 255|another tokenizer");
        assert_int_equal(byte, 7);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_byte_comes_back),
        cmocka_unit_test(other_tokens_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

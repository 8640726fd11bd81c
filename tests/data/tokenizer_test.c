/* The byte tokenizer. Oracle: every byte is its own number. */
#include "tests/data/data_test.h"

#include "data/tokenizer.h"

static void every_byte_is_its_own_number(void **state) {
    (void)state;
    unsigned char text[256];
    int32_t tokens[256];
    for (size_t i = 0; i < 256; i++) text[i] = (unsigned char)i;
    byte_encode(text, 256, tokens);
    for (int32_t i = 0; i < 256; i++) {
        assert_int_equal(tokens[i], i);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_byte_is_its_own_number),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

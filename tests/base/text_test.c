/* Formatting and nearest names, status messages, and checked sizes. Oracle: expected texts and
 * numbers, by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/checked.h"
#include "base/status.h"
#include "base/text.h"

static void test_bytes(void **state) {
    char text[TEXT_BYTES];
    (void)state;
    assert_string_equal(text_bytes(text, 0), "0 B");
    assert_string_equal(text_bytes(text, 1023), "1023 B");
    assert_string_equal(text_bytes(text, 1024), "1.00 KiB");
    assert_string_equal(text_bytes(text, 1536 * 1024), "1.50 MiB");
    assert_string_equal(text_bytes(text, SIZE_MAX), "16.00 EiB");
}

static void test_count(void **state) {
    char text[TEXT_BYTES];
    (void)state;
    assert_string_equal(text_count(text, 0), "0");
    assert_string_equal(text_count(text, 999), "999");
    assert_string_equal(text_count(text, 1000), "1,000");
    assert_string_equal(text_count(text, 124439808), "124,439,808");
    assert_string_equal(text_count(text, UINT64_MAX), "18,446,744,073,709,551,615");
}

static void test_duration(void **state) {
    char text[TEXT_BYTES];
    (void)state;
    assert_string_equal(text_duration(text, 0.85), "850 ms");
    assert_string_equal(text_duration(text, 1.2), "0:01");
    assert_string_equal(text_duration(text, 245.0), "4:05");
    assert_string_equal(text_duration(text, 3723.0), "1:02:03");
    assert_string_equal(text_duration(text, 360000.0), "100:00:00");
    assert_string_equal(text_duration(text, -1.0), "?");
    assert_string_equal(text_duration(text, 1e300), "?");
}

static void test_nearest(void **state) {
    static const char *const names[] = {"train.steps", "train.micro_batch", "model.layers", "seed"};
    char longest[200];
    (void)state;
    assert_string_equal(text_nearest("train.step", names, 4), "train.steps");
    assert_string_equal(text_nearest("train.micro-batch", names, 4), "train.micro_batch");
    assert_string_equal(text_nearest("sede", names, 4), "seed"); /* neighbours exchanged */
    assert_null(text_nearest("sode", names, 4));                 /* half of it is wrong */
    assert_null(text_nearest("", names, 4));
    assert_null(text_nearest("optimizer.learning_rate", names, 4));
    assert_null(text_nearest("x", names, 0));
    memset(longest, 'a', sizeof longest);
    longest[sizeof longest - 1] = '\0';
    assert_null(text_nearest(longest, names, 4));
}

static void test_hint_and_list(void **state) {
    static const char *const names[] = {"auto", "cpu", "cuda"};
    char hint[TEXT_HINT_BYTES], list[32];
    (void)state;
    assert_string_equal(text_hint(hint, "cuad", names, 3), " (did you mean cuda?)");
    assert_string_equal(text_hint(hint, "gpu", names, 3), ""); /* no slip of the fingers */
    assert_string_equal(text_list(list, sizeof list, names, 3, " or "), "auto, cpu or cuda");
    assert_string_equal(text_list(list, sizeof list, names, 1, " or "), "auto");
    assert_string_equal(text_list(list, sizeof list, names, 0, " or "), "");
    assert_string_equal(text_list(list, 8, names, 3, " or "), "auto, c");
}

static enum status fail_inside(void) {
    return status_set(STATUS_DATA, "expected %d, found %d", 1, 2);
}

static enum status pass_on(void) {
    TRY(fail_inside());
    return STATUS_OK;
}

static enum status clean_up(int *cleaned) {
    enum status status = STATUS_OK;
    TRY_GOTO(fail_inside(), done);
    return STATUS_INTERNAL;
done:
    *cleaned = 1;
    return status;
}

static void test_status(void **state) {
    char filler[4096];
    int cleaned = 0;
    (void)state;
    assert_int_equal(pass_on(), STATUS_DATA);
    assert_string_equal(status_message(), "expected 1, found 2");
    assert_int_equal(clean_up(&cleaned), STATUS_DATA);
    assert_int_equal(cleaned, 1);
    assert_int_equal(status_context(STATUS_DATA, "shard %s", "a.bin"), STATUS_DATA);
    assert_string_equal(status_message(), "shard a.bin: expected 1, found 2");
    status_set(STATUS_IO, "again: %s", status_message()); /* its own text as an argument */
    assert_string_equal(status_message(), "again: shard a.bin: expected 1, found 2");
    memset(filler, 'x', sizeof filler);
    filler[sizeof filler - 1] = '\0';
    status_set(STATUS_IO, "start %s", filler);
    assert_true(strlen(status_message()) < sizeof filler);
    status_context(STATUS_IO, "context");
    assert_int_equal(strncmp(status_message(), "context: start xx", 17), 0);
}

static void test_checked(void **state) {
    size_t out = 42;
    (void)state;
    assert_true(size_mul(SIZE_MAX, 1, &out) && out == SIZE_MAX);
    assert_false(size_mul(SIZE_MAX / 2 + 1, 2, &out));
    assert_true(size_add(SIZE_MAX - 1, 1, &out) && out == SIZE_MAX);
    assert_false(size_add(SIZE_MAX, 1, &out));
    assert_true(ceil_div(0, 3) == 0 && ceil_div(1, 3) == 1 && ceil_div(3, 3) == 1);
    assert_true(ceil_div(SIZE_MAX, 2) == SIZE_MAX / 2 + 1);
    assert_true(align_up(0, 8) == 0 && align_up(1, 8) == 8 && align_up(16, 8) == 16);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes),         cmocka_unit_test(test_count),
        cmocka_unit_test(test_duration),      cmocka_unit_test(test_nearest),
        cmocka_unit_test(test_hint_and_list), cmocka_unit_test(test_status),
        cmocka_unit_test(test_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

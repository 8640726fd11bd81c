/*
 * Saving in the background. Oracle: bit equality of the checkpoint with the state at the moment of
 * saver_start(), although the state goes on changing; and the file system's own refusals.
 */
#include "checkpoints/saver.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/checkpoints/fixture.h"

static void start(struct fixture *fixture, struct saver *saver, int64_t step) {
    fixture_fill(fixture, step);
    const size_t bytes = fixture->params.elements * sizeof(float);
    float *const *buffers = saver_buffers(saver);
    memcpy(buffers[0], fixture->masters, bytes);
    memcpy(buffers[1], fixture->moments1, bytes);
    memcpy(buffers[2], fixture->moments2, bytes);
    saver_start(saver, &fixture->content, cJSON_Duplicate(fixture->state, 1), &keep_all);
    fixture_fill(fixture, step + 1000); /* training goes on */
}

static struct saver *open_saver(struct fixture *fixture) {
    struct saver *saver = NULL;
    struct saver_result result;
    assert_int_equal(saver_open(&saver, fixture->run, &fixture->params), STATUS_OK);
    assert_false(saver_take(saver, &result)); /* nothing was started */
    return saver;
}

static void what_was_copied_is_saved(void **state) {
    (void)state;
    struct fixture fixture;
    struct saver_result result;
    fixture_open(&fixture);
    struct saver *saver = open_saver(&fixture);
    for (int64_t step = 1; step <= 20; step++) {
        start(&fixture, saver, step);
        if (step % 2 == 0) {
            while (!saver_poll(saver, &result)) usleep(100);
        } else {
            assert_true(saver_take(saver, &result));
        }
        assert_int_equal(result.status, STATUS_OK);
        assert_int_equal(result.step, step);
        assert_true(result.seconds > 0.0);
        assert_false(saver_poll(saver, &result)); /* a result is given once */
        assert_int_equal(fixture_expect_newest(&fixture), step);
    }
    saver_close(saver);
    fixture_close(&fixture);
}

static void closing_waits_for_the_save(void **state) {
    (void)state;
    struct fixture fixture;
    fixture_open(&fixture);
    struct saver *saver = open_saver(&fixture);
    start(&fixture, saver, 7);
    saver_close(saver);
    assert_int_equal(fixture_expect_newest(&fixture), 7);
    saver_close(NULL);
    fixture_close(&fixture);
}

static void a_failure_is_handed_over_and_the_next_save_works(void **state) {
    (void)state;
    struct fixture fixture;
    struct saver_result result;
    fixture_open(&fixture);
    struct saver *saver = open_saver(&fixture);
    test_write_file(fixture.run, "x", 1); /* a file where the run's folder belongs */
    start(&fixture, saver, 3);
    assert_true(saver_take(saver, &result));
    assert_int_equal(result.status, STATUS_IO);
    assert_int_equal(result.step, 3);
    assert_non_null(strstr(result.message, fixture.run));
    assert_int_equal(unlink(fixture.run), 0);
    start(&fixture, saver, 3);
    assert_true(saver_take(saver, &result));
    assert_int_equal(result.status, STATUS_OK);
    assert_string_equal(result.message, "");
    assert_int_equal(fixture_expect_newest(&fixture), 3);
    saver_close(saver);
    fixture_close(&fixture);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_copied_is_saved),
        cmocka_unit_test(closing_waits_for_the_save),
        cmocka_unit_test(a_failure_is_handed_over_and_the_next_save_works),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/*
 * Learning rate schedules. Oracle: the closed forms of train/schedule.h, evaluated by hand at
 * points where they are simple, and the properties that hold everywhere (continuity, monotony,
 * bounds). Tolerance: a value is a handful of double operations, each within half an ulp: 1e-14 of
 * the peak.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "train/schedule.h"

#define TOLERANCE 1e-14

static const enum schedule_kind kinds[] = {SCHEDULE_CONSTANT, SCHEDULE_LINEAR, SCHEDULE_COSINE,
                                           SCHEDULE_WSD};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

/* Peak 1, final 0.1. */
static struct schedule make(enum schedule_kind kind, int64_t steps, int64_t warmup, int64_t decay) {
    return (struct schedule){kind, 1.0, 0.1, steps, warmup, decay};
}

static void check(struct schedule schedule, int64_t step, double expected) {
    assert_true(fabs(schedule_learning_rate(&schedule, step) - expected) <= TOLERANCE);
}

static void warmup_is_linear_from_the_first_step(void **state) {
    (void)state;
    for (int k = 0; k < KINDS; k++) {
        const struct schedule s = make(kinds[k], 1000, 10, 200);
        check(s, 0, 0.1); /* peak / warm-up */
        check(s, 4, 0.5);
        check(s, 9, 1.0);
        check(s, 10, 1.0);
    }
}

static void closed_forms_at_simple_points(void **state) {
    (void)state;
    const struct schedule constant = make(SCHEDULE_CONSTANT, 110, 10, 0);
    check(constant, 60, 1.0);
    check(constant, 109, 1.0);
    const struct schedule linear = make(SCHEDULE_LINEAR, 110, 10, 0);
    check(linear, 60, 0.55); /* half of the way from 1 to 0.1 */
    check(linear, 109, 1.0 - 0.9 * 0.99);
    const struct schedule cosine = make(SCHEDULE_COSINE, 130, 10, 0);
    check(cosine, 50, 0.1 + 0.9 * 0.75); /* a third of the way: (1 + cos 60 degrees) / 2 = 0.75 */
    check(cosine, 70, 0.55);
    check(cosine, 90, 0.1 + 0.9 * 0.25);
    const struct schedule wsd = make(SCHEDULE_WSD, 110, 10, 20);
    check(wsd, 89, 1.0);
    check(wsd, 90, 1.0);
    check(wsd, 100, 0.55);
    check(wsd, 109, 1.0 - 0.9 * 0.95);
}

static void the_step_behind_the_last_has_the_final_value(void **state) {
    (void)state;
    for (int k = 0; k < KINDS; k++) {
        const struct schedule s = make(kinds[k], 137, 11, 30);
        const double final = kinds[k] == SCHEDULE_CONSTANT ? 1.0 : 0.1;
        check(s, 137, final);
        check(s, 1000000000000, final);
        /* the last step is one increment before it; the steepest of them is wsd's, 0.9 / 30 */
        assert_true(schedule_learning_rate(&s, 136) - final <= 0.9 / 30 + TOLERANCE);
        if (kinds[k] != SCHEDULE_CONSTANT) assert_true(schedule_learning_rate(&s, 136) > final);
    }
}

static void continuous_and_monotone(void **state) {
    (void)state;
    enum { STEPS = 500, WARMUP = 50, DECAY = 100 };
    for (int k = 0; k < KINDS; k++) {
        const struct schedule s = make(kinds[k], STEPS, WARMUP, DECAY);
        for (int64_t step = 1; step < STEPS; step++) {
            const double before = schedule_learning_rate(&s, step - 1);
            const double now = schedule_learning_rate(&s, step);
            assert_true(step < WARMUP ? now > before : now <= before);
            assert_true(now > 0.0 && now <= 1.0);
            /* steepest: the warm-up with 1 / 50; linear 0.9 / 450, wsd 0.9 / 100,
             * cosine 0.45 pi / 450 */
            assert_true(fabs(now - before) <= 1.0 / WARMUP + TOLERANCE);
        }
    }
}

static void no_warmup_and_a_single_step(void **state) {
    (void)state;
    for (int k = 0; k < KINDS; k++) {
        check(make(kinds[k], 100, 0, 20), 0, 1.0);
        check(make(kinds[k], 1, 0, 1), 0, 1.0);
        check(make(kinds[k], 1, 1, 0), 0, 1.0);
        check(make(kinds[k], 100, 100, 0), 99, 1.0); /* nothing but warm-up */
    }
}

static void a_final_fraction_of_one_stays_at_the_peak(void **state) {
    (void)state;
    for (int k = 0; k < KINDS; k++) {
        const struct schedule s = {kinds[k], 3e-4, 1.0, 100, 0, 20};
        for (int64_t step = 0; step <= 100; step++) check(s, step, 3e-4);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(warmup_is_linear_from_the_first_step),
        cmocka_unit_test(closed_forms_at_simple_points),
        cmocka_unit_test(the_step_behind_the_last_has_the_final_value),
        cmocka_unit_test(continuous_and_monotone),
        cmocka_unit_test(no_warmup_and_a_single_step),
        cmocka_unit_test(a_final_fraction_of_one_stays_at_the_peak),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

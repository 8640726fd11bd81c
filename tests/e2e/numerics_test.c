/*
 * Losses and gradients that are not finite: stopping, skipping, and the loss scale.
 *
 * Oracle: a learning rate and weight decay that no training survives, FP16's range (65504), a loss
 * scale far beyond it; the checkpoint that is left must be that of the step before, which the
 * program's own checks of a checkpoint (finite, complete) and an evaluation confirm.
 */
#include "tests/e2e/e2e.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char diverge[] = "--optimizer.learning_rate 10 --optimizer.weight_decay 10 "
                              "--optimizer.warmup_steps 0 --optimizer.clip_norm 0 --train.steps 40 "
                              "--checkpoint.every 0 --validation.every 0";

static const char *skip_of(const cJSON *record) {
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(record, "skip"));
}

/* Runs into the wall; returns the step that was not finite. */
static int64_t run_into_the_wall(const char *options) {
    const struct outcome *stopped = e2e_expect(STATUS_NUMERICS,
                                               "on rank 0 is not finite|loss|gradient norm|"
                                               "found first in|micro-batch|not applied|is saved|"
                                               "optimizer.learning_rate",
                                               "train ../tiny.conf %s %s", diverge, options);
    return strtol(e2e_value(stopped->err, "deepwell: step"), NULL, 10);
}

static void a_run_that_diverges_stops(void **state) {
    (void)state;
    static const char *const recipes[] = {"fp32", "bf16", "fp16", "fp8"};
    for (size_t i = 0; i < sizeof recipes / sizeof recipes[0]; i++) {
        char before[64], options[64];
        assert_int_equal(folder_remove("run"), STATUS_OK);
        snprintf(options, sizeof options, "--precision.recipe %s", recipes[i]);
        const int64_t step = run_into_the_wall(options);
        assert_in_range(step, 2, 40);
        cJSON *metrics = e2e_metrics("run");
        assert_string_equal(skip_of(e2e_record(metrics, "step", (size_t)step - 1)), "nonfinite");
        assert_null(e2e_record(metrics, "step", (size_t)step));
        /* The scaler may have had steps skipped for their gradients, but none for its loss. */
        for (size_t k = 0; k + 1 < (size_t)step; k++) {
            assert_true(isfinite(e2e_number(e2e_record(metrics, "step", k), "loss")));
        }
        cJSON_Delete(metrics);
        snprintf(before, sizeof before, "run/step_%08lld", (long long)step - 1);
        const struct outcome *eval = e2e_expect(0, "", "eval %s", before);
        e2e_assert_words("eval", eval->out, before);
        char *saved = e2e_tree(before);
        /* Nothing changed, so the same command runs into the same wall, and saves the same. */
        assert_true(run_into_the_wall(options) == step);
        e2e_assert_same_tree(before, saved);
        e2e_assert_steps("run", step);
        free(saved);
    }
}

static void skipping_has_an_end(void **state) {
    (void)state;
    e2e_expect(STATUS_NUMERICS, "too many in a row (train.nonfinite_max)|found first in",
               "train ../tiny.conf %s --train.nonfinite skip --train.nonfinite_max 3", diverge);
    cJSON *metrics = e2e_metrics("run");
    size_t steps = 0;
    while (e2e_record(metrics, "step", steps) != NULL) steps++;
    assert_true(steps > 3);
    for (size_t i = 0; i < 3; i++) {
        assert_string_equal(skip_of(e2e_record(metrics, "step", steps - 1 - i)), "nonfinite");
    }
    cJSON_Delete(metrics);
    e2e_expect(0, "", "eval run");
}

/* Gradients of this model overflow above 5e5 or so, which takes about 14 halvings from 1e10. A step
 * that is skipped leaves the weights alone, and the count of updates too. */
static void an_absurd_loss_scale_is_halved(void **state) {
    (void)state;
    enum { STEPS = 40 };
    e2e_expect(0, "",
               "train ../tiny.conf --precision.recipe fp16 --precision.loss_scale 1e10 "
               "--train.steps %d",
               STEPS);
    cJSON *metrics = e2e_metrics("run");
    size_t skipped = 0;
    double scale = (double)1e10f;
    for (; strcmp(skip_of(e2e_record(metrics, "step", skipped)), "nonfinite") == 0; skipped++) {
        scale *= 0.5;
        const cJSON *record = e2e_record(metrics, "step", skipped);
        assert_true(e2e_number(record, "loss_scale") == scale);
        assert_true(isfinite(e2e_number(record, "loss")));
    }
    print_message("  %zu steps skipped, scale %g\n", skipped, scale);
    assert_in_range(skipped, 1, STEPS / 2);
    for (size_t i = skipped; i < STEPS; i++) {
        const cJSON *record = e2e_record(metrics, "step", i);
        assert_string_equal(skip_of(record), "none");
        assert_true(e2e_number(record, "loss_scale") == scale);
    }
    const double first = e2e_number(e2e_record(metrics, "step", skipped), "loss");
    assert_true(e2e_number(e2e_record(metrics, "step", STEPS - 1), "loss") < first - 0.1);
    cJSON_Delete(metrics);
    size_t bytes = 0;
    char *text = e2e_read("run/step_00000040/state.json", &bytes);
    cJSON *saved = cJSON_Parse(text);
    const cJSON *control = cJSON_GetObjectItemCaseSensitive(saved, "step_control");
    assert_true(e2e_number(control, "updates") == (double)(STEPS - skipped));
    assert_true(e2e_number(control, "skipped_nonfinite") == (double)skipped);
    assert_true(e2e_number(control, "loss_scale") == scale);
    cJSON_Delete(saved);
    free(text);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        E2E_TEST(a_run_that_diverges_stops),
        E2E_TEST(skipping_has_an_end),
        E2E_TEST(an_absurd_loss_scale_is_halved),
    };
    return E2E_MAIN(argc, argv, tests);
}

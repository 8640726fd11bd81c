/*
 * The optimizer step as a whole: micro-batches, loss scaling, clipping, outliers. Oracles: the
 * rules of step_control.h followed by hand; bit equality with a single pass, and of everything that
 * a skipped step must not touch; the message of the operation that breaks a recording.
 *
 * The norm is summed in double on both sides, in another order: equal to a relative 1e-12, and
 * after the rounding to FP32 to one unit.
 */
#include "tests/train/small_run.h"

static double norm_of_gradients(const struct small_run *run) {
    double sum = 0.0;
    for (size_t i = 0; i < run->engine.gpt.table.elements; i++) {
        sum += (double)run->engine.gradients[i] * (double)run->engine.gradients[i];
    }
    return sqrt(sum) / (double)run->engine.state->loss_scale;
}

static void assert_close(double got, double expected) {
    struct comparison c = {.what = "number"};
    compare(&c, 0, got, expected, 0x1p-23 * fabs(expected));
    compare_end(&c);
}

/* The gradient of the mean over the step's tokens, whatever the gradients held before. At once:
 * the bits of one forward and backward pass with that scale. In micro-batches: the same sums in
 * another order, so off by the tolerance of tests/layers/gpt_train_test.c, s = 2 * 19 results
 * and one more a micro-batch, K = 96. */
static void micro_batches_add_up(void **state) {
    (void)state;
    struct small_run at_once, in_parts;
    small_config(&at_once.config, CONFIG_RECIPE_FP32);
    in_parts.config = at_once.config;
    at_once.config.train.micro_batch = BATCH;
    small_run_open(&at_once, ENGINE_TRAIN);
    small_run_open(&in_parts, ENGINE_TRAIN);
    const struct param_table *table = &at_once.engine.gpt.table;
    const struct step_policy policy = step_policy(&at_once.config, 0);
    for (size_t i = 0; i < table->elements; i++) {
        at_once.engine.gradients[i] = in_parts.engine.gradients[i] = NAN;
    }
    small_run_gradients(&at_once, &policy);
    small_run_gradients(&in_parts, &policy);
    const double loss = at_once.engine.state->loss_sum;
    assert_true(fabs(in_parts.engine.state->loss_sum - loss) <= 1e-5 * loss);
    for (size_t row = 0; row < table->length; row++) {
        const struct param *param = &table->params[row];
        const float *expected = at_once.engine.gradients + param->offset;
        const float *got = in_parts.engine.gradients + param->offset;
        struct comparison c = {.what = param->name};
        double size = 0.0;
        for (size_t i = 0; i < param->count; i++) size = fmax(size, fabs((double)expected[i]));
        for (size_t i = 0; i < param->count; i++) {
            compare(&c, i, (double)got[i], (double)expected[i],
                    2.0 * 1.2 * sqrt(40.0 * 96.0) * 0x1p-23 * size);
        }
        compare_end(&c);
    }
    const size_t bytes = table->elements * sizeof(float);
    struct tensor kept = copied_tensor(tensor_make(at_once.engine.gradients, DTYPE_F32, 1,
                                                   table->elements));
    const float unscaled = 1.0f;
    const struct gpt_gradient_request request = {.gradient_scale = 1.0f / (BATCH * LENGTH),
                                                 .loss_scale = &unscaled};
    EXPECT_OK(gpt_forward_backward(&at_once.engine.training, &request));
    assert_memory_equal(at_once.engine.gradients, kept.data, bytes);
    free(kept.data);
    small_run_close(&in_parts);
    small_run_close(&at_once);
}

/* A scale far beyond what FP16 holds: step by step it halves, nothing else changes, until the
 * gradients fit; then three good steps double it again, and so on. */
static void overflow_skips_and_scales(void **state) {
    (void)state;
    struct small_run run;
    small_config(&run.config, CONFIG_RECIPE_FP16);
    run.config.precision.loss_scale = 0x1p40;
    run.config.precision.loss_scale_interval = 3;
    small_run_open(&run, ENGINE_TRAIN);
    const struct step_policy policy = step_policy(&run.config, 0);
    struct snapshot before = snapshot_of(&run);
    float scale = 0x1p40f;
    int64_t skipped = 0;
    struct step_state s = small_run_step(&run, &policy);
    while (s.skip == SKIP_NONFINITE) {
        struct snapshot after = snapshot_of(&run);
        assert_true(snapshot_equal(before, after));
        free(after.memory);
        scale *= 0.5f;
        skipped++;
        assert_true(s.loss_scale == scale);
        assert_true(s.updates == 0 && s.good_steps == 0 && s.skipped_nonfinite == skipped);
        assert_true(s.losses.seen == 0 && s.norms.seen == 0); /* NaN must not enter a window */
        assert_true(isfinite(s.loss));                        /* the loss itself is not scaled */
        assert_true(skipped < 40);
        s = small_run_step(&run, &policy);
    }
    assert_true(skipped > 10); /* (softmax - onehot) / tokens * 2^31 is above FP16's 65504 */
    struct snapshot after = snapshot_of(&run);
    assert_false(snapshot_equal(before, after));
    assert_true(s.skip == SKIP_NONE && s.updates == 1 && s.good_steps == 1 &&
                s.loss_scale == scale);
    assert_weights_follow_masters(&run.engine);
    s = small_run_step(&run, &policy);
    assert_true(s.updates == 2 && s.good_steps == 2 && s.loss_scale == scale);
    s = small_run_step(&run, &policy);
    assert_true(s.updates == 3 && s.good_steps == 0 && s.loss_scale == 2.0f * scale);
    free(before.memory);
    free(after.memory);
    small_run_close(&run);
}

/* The scale stays within its bounds, and stays what it is where scaling is off. */
static void the_scale_has_bounds(void **state) {
    (void)state;
    struct small_run run;
    small_config(&run.config, CONFIG_RECIPE_FP32);
    run.config.precision.loss_scaling = CONFIG_SCALING_ON;
    run.config.precision.loss_scale = (double)LOSS_SCALE_MAX;
    run.config.precision.loss_scale_interval = 1;
    small_run_open(&run, ENGINE_TRAIN);
    const struct step_policy policy = step_policy(&run.config, 0);
    assert_true(small_run_step(&run, &policy).loss_scale == LOSS_SCALE_MAX);
    run.engine.state->loss_scale = LOSS_SCALE_MIN;
    run.engine.masters[0] = NAN;
    const struct step_state s = small_run_step(&run, &policy);
    assert_true(s.skip == SKIP_NONFINITE && s.loss_scale == LOSS_SCALE_MIN);
    small_run_close(&run);

    run.config.precision.loss_scaling = CONFIG_SCALING_OFF;
    small_run_open(&run, ENGINE_TRAIN);
    const struct step_policy off = step_policy(&run.config, 0);
    assert_true(small_run_step(&run, &off).loss_scale == 1.0f);
    run.engine.masters[0] = NAN;
    assert_true(small_run_step(&run, &off).loss_scale == 1.0f);
    small_run_close(&run);
}

/* Loss scaling by a power of two changes nothing but exponents in FP32: the same bits after the
 * step. */
static void scaling_is_exact_in_fp32(void **state) {
    (void)state;
    struct snapshot snapshots[2];
    for (int scaled = 0; scaled < 2; scaled++) {
        struct small_run run;
        small_config(&run.config, CONFIG_RECIPE_FP32);
        run.config.precision.loss_scaling = scaled ? CONFIG_SCALING_ON : CONFIG_SCALING_OFF;
        run.config.precision.loss_scale = 1024.0;
        run.config.optimizer.clip_norm = 0.0;
        small_run_open(&run, ENGINE_TRAIN);
        const struct step_policy policy = step_policy(&run.config, 0);
        small_run_step(&run, &policy);
        snapshots[scaled] = snapshot_of(&run);
        small_run_close(&run);
    }
    assert_true(snapshot_equal(snapshots[0], snapshots[1]));
    free(snapshots[0].memory);
    free(snapshots[1].memory);
}

static void clipping(void **state) {
    (void)state;
    struct small_run run;
    small_config(&run.config, CONFIG_RECIPE_FP16);
    run.config.precision.loss_scale = 256.0;
    small_run_open(&run, ENGINE_TRAIN);
    struct step_policy policy = step_policy(&run.config, 0);
    small_run_gradients(&run, &policy);
    const double norm = norm_of_gradients(&run);
    /* off, not reached, active, active */
    const double clips[] = {0.0, norm * 1.01, norm * 0.5, norm * 1e-6};
    for (size_t i = 0; i < sizeof clips / sizeof clips[0]; i++) {
        policy.clip_norm = (float)clips[i];
        const struct step_state s = small_run_step(&run, &policy);
        assert_true(s.loss_scale == 256.0f);
        const double now = norm_of_gradients(&run); /* the weights have moved */
        const double clip = (double)policy.clip_norm;
        const bool active = clip > 0.0 && now > clip;
        assert_true(active == (i >= 2));
        assert_close((double)s.gradient_norm, now);
        assert_close((double)s.gradient_multiplier, (active ? clip / now : 1.0) / 256.0);
    }
    small_run_close(&run);
}

/* The multiplier really is what AdamW uses: after one step m = (1 - beta1) g, of norm (1 -
 * beta1) clip. */
static void the_clipped_gradient_is_applied(void **state) {
    (void)state;
    struct small_run run;
    double sum = 0.0;
    small_config(&run.config, CONFIG_RECIPE_FP32);
    run.config.optimizer.clip_norm = 0.125;
    small_run_open(&run, ENGINE_TRAIN);
    const struct step_policy policy = step_policy(&run.config, 0);
    assert_true((double)small_run_step(&run, &policy).gradient_norm > 0.125);
    for (size_t i = 0; i < run.engine.gpt.table.elements; i++) {
        sum += (double)run.engine.moments1[i] * (double)run.engine.moments1[i];
    }
    /* 1 - 0.9f, a product and the multiplier, each rounded */
    assert_true(fabs(sqrt(sum) - 0.1 * 0.125) < 4.0 * 0x1p-23 * 0.1 * 0.125);
    small_run_close(&run);
}

/* Windows of losses and norms that this step lies far above: with a threshold it is skipped,
 * without one it is not; the value enters the window in both cases. */
static void outliers_change_no_weight(void **state) {
    (void)state;
    for (int which = 0; which < 3; which++) {
        struct small_run run;
        small_config(&run.config, CONFIG_RECIPE_BF16);
        run.config.optimizer.loss_z_max = which == 0 ? 5.0 : 0.0;
        run.config.optimizer.norm_z_max = which == 1 ? 5.0 : 0.0;
        small_run_open(&run, ENGINE_TRAIN);
        struct step_state *control = run.engine.state;
        for (size_t i = 0; i < OUTLIER_WINDOW; i++) { /* mean 1e-3, deviation 1e-4 */
            control->losses.values[i] = control->norms.values[i] = i % 2 == 0 ? 9e-4 : 11e-4;
        }
        control->losses.seen = control->norms.seen = OUTLIER_WINDOW;
        struct snapshot before = snapshot_of(&run);
        const struct step_policy policy = step_policy(&run.config, 0);
        const struct step_state s = small_run_step(&run, &policy);
        struct snapshot after = snapshot_of(&run);
        static const enum step_skip skips[] = {SKIP_LOSS_OUTLIER, SKIP_NORM_OUTLIER, SKIP_NONE};
        assert_int_equal(s.skip, skips[which]);
        assert_int_equal(snapshot_equal(before, after), which < 2);
        assert_int_equal(s.updates, which < 2 ? 0 : 1);
        assert_int_equal(s.skipped_outlier, which < 2 ? 1 : 0);
        assert_int_equal(s.skipped_nonfinite, 0);
        assert_int_equal(s.losses.seen, OUTLIER_WINDOW + 1);
        assert_true((float)s.losses.values[0] == s.loss &&
                    (float)s.norms.values[0] == s.gradient_norm);
        assert_close((double)s.loss_z, ((double)s.loss - 1e-3) / 1e-4);
        free(before.memory);
        free(after.memory);
        small_run_close(&run);
    }
}

/* Policies come from the configuration; only the learning rate moves with the step. */
static void policies(void **state) {
    (void)state;
    struct config config;
    small_config(&config, CONFIG_RECIPE_FP16);
    config.optimizer.warmup_steps = 10;
    config.optimizer.clip_norm = 0.5;
    config.optimizer.loss_z_max = 6.0;
    config.optimizer.norm_z_max = 7.0;
    const struct step_policy first = step_policy(&config, 0);
    struct step_policy later = step_policy(&config, 500);
    assert_true(first.learning_rate < later.learning_rate);
    assert_true(first.clip_norm == 0.5f && first.loss_z_max == 6.0f && first.norm_z_max == 7.0f);
    assert_true(first.growth == 2.0f && first.backoff == 0.5f && first.growth_interval == 2000);
    assert_true(first.dynamic_scaling && first.tokens == BATCH * LENGTH);
    assert_int_equal(step_tokens(&config), BATCH * LENGTH);
    config.precision.recipe = CONFIG_RECIPE_BF16;
    assert_false(step_policy(&config, 0).dynamic_scaling);
    config.train.sequence_length = 0;
    assert_int_equal(step_tokens(&config), BATCH * 9);
}

/* A recording that breaks in its midst: how the device takes its end must not hide why. */
static int recordings_open;
static bool end_fails;

static enum status begin_recording(struct device *device) {
    (void)device;
    return STATUS_OK;
}

static enum status end_recording(struct device *device, struct device_recording **out) {
    (void)device;
    *out = NULL;
    if (end_fails) return status_set(STATUS_DEVICE, "the capture was invalidated");
    *out = (struct device_recording *)&recordings_open;
    recordings_open++;
    return STATUS_OK;
}

static enum status replay_recording(struct device *device, struct device_recording *recording) {
    (void)device;
    assert_ptr_equal(recording, &recordings_open);
    return STATUS_OK;
}

static void close_recording(struct device_recording *recording) {
    assert_ptr_equal(recording, &recordings_open);
    recordings_open--;
}

static enum status refuse_loss_sum(struct device *device, struct step_state *state,
                                   const float *losses, size_t count) {
    (void)device;
    (void)state;
    (void)losses;
    (void)count;
    return status_set(STATUS_MEMORY, "what went wrong first");
}

static void a_broken_recording_says_what_broke_it(void **state) {
    (void)state;
    for (int fails = 0; fails < 2; fails++) {
        struct small_run run;
        small_config(&run.config, CONFIG_RECIPE_FP32);
        small_run_open(&run, ENGINE_TRAIN);
        struct device *device = &run.engine.device;
        const struct step_policy policy = step_policy(&run.config, 0);
        const struct device_calls *const own_calls = device->calls;
        const struct ops *const own_ops = device->ops;
        struct device_calls calls = *own_calls;
        struct ops ops = *own_ops;
        calls.record_begin = begin_recording;
        calls.record_end = end_recording;
        calls.replay = replay_recording;
        calls.recording_close = close_recording;
        device->calls = &calls;
        device->ops = &ops;
        small_run_gradients(&run, &policy); /* the first of each is not recorded */
        ops.loss_sum = refuse_loss_sum;
        end_fails = fails == 1;
        expect_status(STATUS_MEMORY, step_micro_batch(&run.engine, &policy, true));
        assert_string_equal(status_message(), "what went wrong first");
        assert_null(run.engine.micro_batches[0].recording);
        assert_int_equal(recordings_open, 0);
        ops.loss_sum = own_ops->loss_sum;
        end_fails = false;
        EXPECT_OK(step_micro_batch(&run.engine, &policy, true));
        assert_int_equal(recordings_open, 1);
        device_recording_close(device, run.engine.micro_batches[0].recording);
        run.engine.micro_batches[0].recording = NULL;
        device->calls = own_calls;
        device->ops = own_ops;
        small_run_close(&run);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_broken_recording_says_what_broke_it),
        cmocka_unit_test(micro_batches_add_up),
        cmocka_unit_test(overflow_skips_and_scales),
        cmocka_unit_test(the_scale_has_bounds),
        cmocka_unit_test(scaling_is_exact_in_fp32),
        cmocka_unit_test(clipping),
        cmocka_unit_test(the_clipped_gradient_is_applied),
        cmocka_unit_test(outliers_change_no_weight),
        cmocka_unit_test(policies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

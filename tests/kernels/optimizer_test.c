/*
 * AdamW, the sums of a step, and the decision about it. Oracles: the update rule in FP64 from FP64
 * state over ten steps; dtype_round of the masters, bit for bit, for the rounded weights; closed
 * forms for everything that step_control_decide decides; FP64 sums in index order. Tolerance of
 * AdamW, u = 2^-24: an update is at most about lr in size and a dozen FP32 operations, the moments
 * are sums of ten positive or bounded terms: 64 u times lr a step and u times the parameter.
 */
#include "tests/kernels/testing.h"

enum { ELEMENTS = 5000, STEPS = 10, GAP_FIRST = 3000, GAP_END = 3072 };

static const struct adamw_range ranges[] = {
    {0, 1999, 0.1f}, {1999, GAP_FIRST - 1999, 0.0f}, {GAP_END, ELEMENTS - GAP_END, 0.3f}};

static struct device any_device(void) {
    return test_device_open(2, &(struct op_limits){.tokens = 1, .width = 1});
}

struct reference {
    double p[ELEMENTS], m[ELEMENTS], v[ELEMENTS];
};

static void reference_step(struct reference *r, const struct adamw *op, int t) {
    const struct step_state *s = op->state;
    const double beta1 = (double)op->beta1, beta2 = (double)op->beta2;
    for (size_t range = 0; range < op->range_count; range++) {
        const struct adamw_range *a = &op->ranges[range];
        for (size_t i = a->offset; i < a->offset + a->count; i++) {
            const double g = (double)op->gradients[i] * (double)s->gradient_multiplier;
            r->m[i] = beta1 * r->m[i] + (1.0 - beta1) * g;
            r->v[i] = beta2 * r->v[i] + (1.0 - beta2) * g * g;
            const double m_hat = r->m[i] / (1.0 - pow(beta1, t));
            const double v_hat = r->v[i] / (1.0 - pow(beta2, t));
            r->p[i] -= (double)s->learning_rate * (m_hat / (sqrt(v_hat) + (double)op->epsilon) +
                                                   (double)a->weight_decay * r->p[i]);
        }
    }
}

static void check_adamw(enum dtype type) {
    struct device device = any_device();
    struct tensor p = random_tensor(DTYPE_F32, 1, ELEMENTS, 1, 0.0, 1.0), start = copied_tensor(p);
    struct tensor m = filled_tensor(DTYPE_F32, 1, ELEMENTS, 0.0), v = copied_tensor(m);
    struct tensor w = filled_tensor(type, 1, ELEMENTS, 77.0), none = {0};
    struct reference *r = calloc(1, sizeof *r);
    struct step_state state = {.gradient_multiplier = 0.25f, .learning_rate = 0.01f};
    for (size_t i = 0; i < ELEMENTS; i++) r->p[i] = value_at(p, i);
    for (int t = 1; t <= STEPS; t++) {
        struct tensor g = random_tensor(DTYPE_F32, 1, ELEMENTS, (uint64_t)(100 + t), 0.1, 4.0);
        const struct adamw op = {
            .masters = p.data, .moments1 = m.data, .moments2 = v.data, .gradients = g.data,
            .weights = type == DTYPE_F32 ? none : w, .ranges = ranges, .range_count = 3,
            .beta1 = 0.9f, .beta2 = 0.95f, .epsilon = 1e-8f, .state = &state};
        state.updates = t;
        EXPECT_OK(device.ops->adamw(&device, &op));
        reference_step(r, &op, t);
        FREE_TENSORS(&g);
    }
    struct comparison c = {.what = "masters"};
    for (size_t i = 0; i < ELEMENTS; i++) {
        compare(&c, i, value_at(p, i), r->p[i],
                STEPS * (64.0 * 0x1p-24 * 0.01 + 0x1p-24 * (fabs(r->p[i]) + 0.2)));
        const bool gap = i >= GAP_FIRST && i < GAP_END; /* in no range: not touched */
        if (gap) assert_true(value_at(p, i) == value_at(start, i) && value_at(v, i) == 0.0);
        const double weight = gap || type == DTYPE_F32
                                  ? 77.0 : (double)dtype_round(type, ((const float *)p.data)[i]);
        assert_true(value_at(w, i) == weight);
    }
    compare_end(&c);
    free(r);
    FREE_TENSORS(&p, &start, &m, &v, &w);
    test_device_close(&device);
}

static void test_adamw(void **state) {
    (void)state;
    for (int type = 0; type < TEST_DTYPES; type++) check_adamw(test_dtypes[type]);
}

static void test_adamw_skips(void **unused) {
    (void)unused;
    struct device device = any_device();
    struct tensor p = random_tensor(DTYPE_F32, 4, ELEMENTS, 1, 0.0, 1.0), before = copied_tensor(p);
    struct tensor w = random_tensor(DTYPE_BF16, 1, ELEMENTS, 2, 0.0, 1.0);
    struct tensor w_before = copied_tensor(w);
    float *flat = p.data;
    const struct step_state state = {.skip = SKIP_NONFINITE, .gradient_multiplier = NAN,
                                     .learning_rate = 1.0f, .updates = 1};
    const struct adamw op = {
        .masters = flat, .moments1 = flat + ELEMENTS, .moments2 = flat + 2 * ELEMENTS,
        .gradients = flat + 3 * ELEMENTS, .weights = w, .ranges = ranges, .range_count = 3,
        .beta1 = 0.9f, .beta2 = 0.95f, .epsilon = 1e-8f, .state = &state};
    EXPECT_OK(device.ops->adamw(&device, &op));
    assert_memory_equal(p.data, before.data, tensor_bytes(p));
    assert_memory_equal(w.data, w_before.data, tensor_bytes(w));
    FREE_TENSORS(&p, &before, &w, &w_before);
    test_device_close(&device);
}

/* FP32 squares of large counts would lose the small ones; double keeps 2^-40 relatively. */
static void test_sums(void **unused) {
    static const size_t counts[] = {0, 1, 1023, 1025, 100003};
    (void)unused;
    struct device device = any_device();
    struct tensor g = random_tensor(DTYPE_F32, 1, 100003, 1, 0.0, 1.0);
    const float *values = g.data;
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        struct step_state state = {.loss_sum = 3.5, .gradient_sumsq = NAN};
        double squares = 0.0, sum = 3.5;
        for (size_t i = 0; i < counts[c]; i++) {
            squares += (double)values[i] * (double)values[i];
            sum += (double)values[i];
        }
        EXPECT_OK(device.ops->gradient_sumsq(&device, &state, values, counts[c]));
        EXPECT_OK(device.ops->loss_sum(&device, &state, values, counts[c]));
        assert_true(fabs(state.gradient_sumsq - squares) <= 0x1p-40 * squares);
        assert_true(state.loss_sum == sum);
        const struct step_policy kept = {.tokens = 7};
        EXPECT_OK(device.ops->step_begin(&device, &state, &kept));
        assert_int_equal(state.policy.tokens, 7);
        assert_true(state.loss_sum == 0.0 && state.gradient_sumsq == 0.0);
    }
    struct step_state state = {0};
    value_set(g, 77777, INFINITY);
    EXPECT_OK(device.ops->gradient_sumsq(&device, &state, values, 100003));
    assert_true(isinf(state.gradient_sumsq));
    value_set(g, 100002, NAN);
    EXPECT_OK(device.ops->gradient_sumsq(&device, &state, values, 100003));
    assert_true(isnan(state.gradient_sumsq));
    FREE_TENSORS(&g);
    test_device_close(&device);
}

/* Oracle: the same additions in FP32, one after the other, bit for bit. */
static void test_sums_of_parts(void **unused) {
    enum { PARTS = 3, COUNT = 2500 };
    static const enum dtype types[] = {DTYPE_F32, DTYPE_BF16};
    (void)unused;
    struct device device = any_device();
    for (size_t t = 0; t < 2; t++) {
        for (int accumulate = 0; accumulate <= 1; accumulate++) {
            struct tensor parts = random_tensor(types[t], PARTS, COUNT, 1, 0.0, 1.0);
            struct tensor out = random_tensor(DTYPE_F32, 1, COUNT, 2, 0.0, 1.0);
            struct tensor before = copied_tensor(out);
            if (!accumulate) value_set(out, 17, NAN); /* not read */
            EXPECT_OK(device.ops->sum_parts(&device, out.data, parts, accumulate != 0));
            for (size_t i = 0; i < COUNT; i++) {
                float sum = (float)value_at(before, i);
                for (size_t part = 0; part < PARTS; part++) {
                    const float x = (float)value_at(parts, part * COUNT + i);
                    sum = part > 0 || accumulate ? sum + x : x;
                }
                assert_true((float)value_at(out, i) == sum);
            }
            FREE_TENSORS(&parts, &out, &before);
        }
    }
    test_device_close(&device);
}

/* Oracle: FP64 sums within 2^-40; and that zeros between the blocks, and who summed which block,
 * change no bit. */
static void test_squares_by_blocks(void **unused) {
    enum { BLOCKS = 7 };
    (void)unused;
    struct device device = any_device();
    struct tensor g = random_tensor(DTYPE_F32, 1, BLOCKS * SUMSQ_BLOCK, 1, 0.0, 1.0);
    const float *values = g.data;
    double sums[BLOCKS], spread[2 * BLOCKS] = {0}, squares = 0.0;
    struct step_state state = {.gradient_sumsq = NAN};
    EXPECT_OK(device.ops->block_sumsq(&device, sums, values, BLOCKS * SUMSQ_BLOCK));
    for (size_t b = 0; b < BLOCKS; b++) {
        EXPECT_OK(device.ops->block_sumsq(&device, &spread[2 * b], values + b * SUMSQ_BLOCK,
                                          SUMSQ_BLOCK));
    }
    for (size_t i = 0; i < BLOCKS * SUMSQ_BLOCK; i++) {
        squares += (double)values[i] * (double)values[i];
    }
    EXPECT_OK(device.ops->total_sumsq(&device, &state, sums, BLOCKS));
    const double total = state.gradient_sumsq;
    assert_true(fabs(total - squares) <= 0x1p-40 * squares);
    EXPECT_OK(device.ops->total_sumsq(&device, &state, spread, 2 * BLOCKS));
    assert_true(state.gradient_sumsq == total);
    value_set(g, 5000, INFINITY);
    EXPECT_OK(device.ops->block_sumsq(&device, sums, values, BLOCKS * SUMSQ_BLOCK));
    EXPECT_OK(device.ops->total_sumsq(&device, &state, sums, BLOCKS));
    assert_true(isinf(state.gradient_sumsq));
    FREE_TENSORS(&g);
    test_device_close(&device);
}

static const struct step_policy policy = {
    .learning_rate = 0.5f, .clip_norm = 1.0f, .dynamic_scaling = 1, .growth = 2.0f, .backoff = 0.5f,
    .scale_min = 1.0f, .scale_max = 64.0f, .growth_interval = 3, .tokens = 10};

/* One step with these sums; the norm is sqrt(sumsq) / loss_scale. */
static void decide(struct step_state *s, const struct step_policy *p, double loss_sum,
                   double sumsq) {
    struct device device = any_device();
    EXPECT_OK(device.ops->step_begin(&device, s, p));
    s->loss_sum = loss_sum;
    s->gradient_sumsq = sumsq;
    EXPECT_OK(device.ops->step_decide(&device, s));
    test_device_close(&device);
}

static void test_decide_clips(void **unused) {
    (void)unused;
    struct step_state s = {.loss_scale = 16.0f};
    decide(&s, &policy, 25.0, 64.0 * 64.0); /* norm 4 */
    assert_int_equal(s.skip, SKIP_NONE);
    assert_true(s.loss == 2.5f && s.gradient_norm == 4.0f && s.learning_rate == 0.5f);
    /* 1 / 4 for clipping, 1 / 16 for the scale. */
    assert_true(s.gradient_multiplier == 1.0f / 64.0f);
    decide(&s, &policy, 25.0, 64.0); /* norm 0.5: not clipped */
    assert_true(s.gradient_norm == 0.5f && s.gradient_multiplier == 1.0f / 16.0f);
    struct step_policy unclipped = policy;
    unclipped.clip_norm = 0.0f;
    decide(&s, &unclipped, 25.0, 64.0 * 64.0);
    assert_true(s.gradient_multiplier == 1.0f / 16.0f);
    assert_int_equal(s.updates, 3);
}

static void test_decide_scales(void **unused) {
    (void)unused;
    struct step_state s = {.loss_scale = 16.0f};
    decide(&s, &policy, 1.0, INFINITY);
    assert_int_equal(s.skip, SKIP_NONFINITE);
    assert_true(s.loss_scale == 8.0f && s.updates == 0 && s.skipped_nonfinite == 1);
    assert_int_equal(s.losses.seen, 0); /* what is not finite does not enter the windows */
    decide(&s, &policy, NAN, 1.0);
    assert_true(s.loss_scale == 4.0f && s.updates == 0 && s.skipped_nonfinite == 2);
    for (int i = 0; i < 2; i++) decide(&s, &policy, 1.0, 1.0);
    assert_true(s.loss_scale == 4.0f && s.updates == 2);
    decide(&s, &policy, 1.0, 1.0); /* the third good step in a row */
    assert_true(s.loss_scale == 8.0f && s.good_steps == 0 && s.updates == 3);
    decide(&s, &policy, 1.0, 1.0);
    decide(&s, &policy, 1.0, NAN); /* starts the count anew */
    for (int i = 0; i < 2; i++) decide(&s, &policy, 1.0, 1.0);
    assert_true(s.loss_scale == 4.0f && s.good_steps == 2 && s.updates == 6);
    for (int i = 0; i < 10; i++) decide(&s, &policy, 1.0, INFINITY);
    assert_true(s.loss_scale == 1.0f); /* scale_min */
    for (int i = 0; i < 30; i++) decide(&s, &policy, 1.0, 1.0);
    assert_true(s.loss_scale == 64.0f); /* scale_max */
    struct step_policy fixed = policy;
    fixed.dynamic_scaling = 0;
    decide(&s, &fixed, 1.0, INFINITY);
    assert_true(s.loss_scale == 64.0f && s.skip == SKIP_NONFINITE);
}

/* A full window of mean losses alternating 1 and 3: mean 2, standard deviation 1; norms the
 * same. */
static void window_fill(struct step_state *s) {
    *s = (struct step_state){.loss_scale = 1.0f};
    for (int i = 0; i < OUTLIER_WINDOW; i++) {
        const double value = i % 2 == 0 ? 1.0 : 3.0;
        struct step_policy off = policy;
        off.dynamic_scaling = 0;
        decide(s, &off, value * 10.0, value * value);
        assert_true(s->loss_z == 0.0f && s->skip == SKIP_NONE);
    }
}

static void test_decide_outliers(void **unused) {
    (void)unused;
    struct step_state s;
    struct step_policy watched = policy;
    watched.dynamic_scaling = 0;
    watched.loss_z_max = watched.norm_z_max = 4.0f;
    window_fill(&s);
    decide(&s, &watched, 55.0, 4.0); /* loss 5.5, norm 2 */
    assert_true(fabsf(s.loss_z - 3.5f) < 1e-5f && fabsf(s.norm_z) < 1e-5f);
    assert_true(s.skip == SKIP_NONE && s.updates == OUTLIER_WINDOW + 1);
    window_fill(&s);
    decide(&s, &watched, 65.0, 4.0); /* loss 6.5: z = 4.5 */
    assert_true(fabsf(s.loss_z - 4.5f) < 1e-5f && s.skip == SKIP_LOSS_OUTLIER);
    assert_true(s.updates == OUTLIER_WINDOW && s.skipped_outlier == 1);
    assert_int_equal(s.losses.seen, OUTLIER_WINDOW + 1); /* it entered the window all the same */
    window_fill(&s);
    decide(&s, &watched, 20.0, 49.0); /* norm 7: z = 5 */
    assert_true(fabsf(s.norm_z - 5.0f) < 1e-5f && s.skip == SKIP_NORM_OUTLIER);
    window_fill(&s);
    decide(&s, &watched, -65.0, 4.0); /* far below is no reason to skip */
    assert_true(s.loss_z < -8.0f && s.skip == SKIP_NONE);
    watched.loss_z_max = watched.norm_z_max = 0.0f;
    decide(&s, &watched, 1e6, 1e6);
    assert_int_equal(s.skip, SKIP_NONE);
}

/* Which steps halt: the table of step_control.h's words. */
static void test_decide_halts(void **unused) {
    (void)unused;
    static const struct {
        int halt_nonfinite, dynamic_scaling;
        int64_t nonfinite_max;
        float loss_scale;
        double loss_sum, sumsq;
        int halted;
    } cases[] = {
        {1, 0, 100, 1.0f, 1.0, INFINITY, 1}, {1, 0, 100, 1.0f, NAN, 1.0, 1},
        {0, 0, 100, 1.0f, NAN, 1.0, 0},      {0, 0, 1, 1.0f, NAN, 1.0, 1},
        {1, 1, 100, 8.0f, 1.0, INFINITY, 0}, {1, 1, 100, 1.0f, 1.0, INFINITY, 1},
        {1, 1, 100, 8.0f, NAN, 1.0, 1},      {1, 1, 1, 8.0f, 1.0, INFINITY, 1},
        {1, 1, 100, 8.0f, 1.0, 1.0, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct step_state s = {.loss_scale = cases[i].loss_scale, .updates = 5};
        struct step_policy p = policy;
        p.halt_nonfinite = cases[i].halt_nonfinite;
        p.dynamic_scaling = cases[i].dynamic_scaling;
        p.nonfinite_max = cases[i].nonfinite_max;
        decide(&s, &p, cases[i].loss_sum, cases[i].sumsq);
        assert_int_equal(s.halted, cases[i].halted);
        if (!s.halted) continue;
        /* What comes behind changes nothing but the sums and the reason. */
        struct step_state after = s;
        decide(&after, &p, 1.0, 1.0);
        assert_int_equal(after.skip, SKIP_HALTED);
        assert_int_equal(after.updates, 5);
        after.skip = s.skip;
        after.loss_sum = s.loss_sum;
        after.gradient_sumsq = s.gradient_sumsq;
        assert_memory_equal(&after, &s, sizeof s);
    }
    struct step_state s = {.loss_scale = 64.0f};
    struct step_policy p = policy;
    p.nonfinite_max = 3;
    for (int i = 0; i < 2; i++) decide(&s, &p, 1.0, INFINITY);
    decide(&s, &p, 1.0, 1.0); /* a good step starts the count anew */
    for (int i = 0; i < 2; i++) decide(&s, &p, 1.0, INFINITY);
    assert_int_equal(s.halted, 0);
    decide(&s, &p, 1.0, INFINITY);
    assert_int_equal(s.halted, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adamw),          cmocka_unit_test(test_adamw_skips),
        cmocka_unit_test(test_sums_of_parts),  cmocka_unit_test(test_squares_by_blocks),
        cmocka_unit_test(test_sums),           cmocka_unit_test(test_decide_clips),
        cmocka_unit_test(test_decide_halts),
        cmocka_unit_test(test_decide_scales),  cmocka_unit_test(test_decide_outliers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

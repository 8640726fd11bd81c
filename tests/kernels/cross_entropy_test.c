/*
 * Oracle: log-sum-exp in FP64 over the logits as stored; the gradient by central differences of it.
 * Tolerances, u = 2^-24: the exponentials are off by 3 u each and summed in lanes of at most
 * ROW_TILE numbers, all positive, so the loss is off by at most 64 u plus its own rounding; a
 * probability by 64 u relatively, so by 64 u scale. Gradients in BF16 or FP16 add one rounding when
 * stored.
 */
#include "tests/kernels/testing.h"

enum { TOKENS = 13, VOCABULARY = 1101, PADDED = 1152 };

static const float LOSS_SCALE = 8.0f, GRADIENT_SCALE = 0.25f;

struct row {
    double *logits; /* (V) */
    size_t target;
};

static double reference_loss(const void *context) {
    const struct row *row = context;
    double top = -INFINITY, sum = 0.0;
    for (size_t v = 0; v < VOCABULARY; v++) top = fmax(top, row->logits[v]);
    for (size_t v = 0; v < VOCABULARY; v++) sum += exp(row->logits[v] - top);
    return top + log(sum) - row->logits[row->target];
}

static struct tensor logits_make(enum dtype type, double std) {
    struct tensor logits = random_tensor(type, TOKENS, PADDED, 1, 0.0, std);
    for (size_t i = 0; i < tensor_count(logits); i++) {
        if (i % PADDED >= VOCABULARY) value_set(logits, i, NAN); /* padding is not read */
    }
    value_set(logits, 2 * PADDED + VOCABULARY - 2, 4.5 * std); /* the largest comes last */
    return logits;
}

static void targets_make(int32_t targets[TOKENS]) {
    for (size_t n = 0; n < TOKENS; n++) targets[n] = (int32_t)(n * 97 % VOCABULARY);
    targets[0] = 0;
    targets[1] = VOCABULARY - 1;
    targets[4] = targets[TOKENS - 1] = -1;
}

static struct device any_device(void) {
    return test_device_open(2, &(struct op_limits){.tokens = TOKENS, .width = 1});
}

static void check(enum dtype type, double std, bool write_gradient) {
    int32_t targets[TOKENS];
    float losses[TOKENS];
    struct device device = any_device();
    struct tensor logits = logits_make(type, std), before = copied_tensor(logits);
    const double scale = (double)GRADIENT_SCALE * (double)LOSS_SCALE;
    targets_make(targets);
    for (size_t n = 0; n < TOKENS; n++) losses[n] = NAN;
    const struct cross_entropy op = {
        .logits = logits, .targets = targets, .losses = losses, .vocabulary = VOCABULARY,
        .write_gradient = write_gradient, .gradient_scale = GRADIENT_SCALE,
        .loss_scale = write_gradient ? &LOSS_SCALE : NULL};
    EXPECT_OK(device.ops->cross_entropy(&device, &op));
    double *values = doubles_of(before);
    struct comparison loss = {.what = "losses"}, gradient = {.what = "gradient"};
    for (size_t n = 0; n < TOKENS; n++) {
        struct row row = {values + n * PADDED, (size_t)targets[n]};
        const double expected = targets[n] < 0 ? 0.0 : reference_loss(&row);
        compare(&loss, n, (double)losses[n], expected,
                tolerance_of(DTYPE_F32, expected, 64.0 * 0x1p-24));
        for (size_t v = 0; write_gradient && v < PADDED; v++) {
            /* A difference for every 7th column and the target; padding and ignored rows hold
             * zeros. */
            const bool zero = targets[n] < 0 || v >= VOCABULARY;
            if (!zero && v % 7 != 0 && v != row.target) continue;
            const double slope = zero ? 0.0 : scale * central_difference(&row.logits[v],
                                                                         reference_loss, &row);
            compare(&gradient, n * PADDED + v, value_at(logits, n * PADDED + v), slope,
                    zero ? 0x1p-149 : tolerance_of(type, slope, scale * 64.0 * 0x1p-24));
        }
    }
    compare_end(&loss);
    if (write_gradient) compare_end(&gradient);
    else assert_memory_equal(logits.data, before.data, tensor_bytes(logits));
    free(values);
    FREE_TENSORS(&logits, &before);
    test_device_close(&device);
}

/* Standard deviation 30: most probabilities underflow, some losses are above 100. */
static void test_cross_entropy(void **state) {
    (void)state;
    for (int type = 0; type < TEST_DTYPES; type++) {
        check(test_dtypes[type], 1.0, true);
        check(test_dtypes[type], 30.0, true);
        check(test_dtypes[type], 1.0, false);
    }
}

/* A logit that is no number must not vanish: the loss of its row is no number either. */
static void test_nonfinite_carries_through(void **state) {
    static const double bad[] = {NAN, INFINITY};
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        int32_t targets[TOKENS] = {0};
        float losses[TOKENS];
        struct device device = any_device();
        struct tensor logits = logits_make(DTYPE_F32, 1.0);
        value_set(logits, 3 * PADDED + 1050, bad[i]);
        const struct cross_entropy op = {
            .logits = logits, .targets = targets, .losses = losses, .vocabulary = VOCABULARY};
        EXPECT_OK(device.ops->cross_entropy(&device, &op));
        for (size_t n = 0; n < TOKENS; n++) assert_true(isfinite(losses[n]) ? n != 3 : n == 3);
        FREE_TENSORS(&logits);
        test_device_close(&device);
    }
}

static void test_refusals(void **state) {
    (void)state;
    int32_t targets[TOKENS] = {0};
    float losses[TOKENS];
    struct device device = any_device();
    struct tensor logits = logits_make(DTYPE_F32, 1.0);
    struct cross_entropy op = {
        .logits = logits, .targets = targets, .losses = losses, .vocabulary = VOCABULARY};
    targets[5] = VOCABULARY;
    expect_status(STATUS_INTERNAL, device.ops->cross_entropy(&device, &op));
    targets[5] = -2;
    expect_status(STATUS_INTERNAL, device.ops->cross_entropy(&device, &op));
    targets[5] = 0;
    op.vocabulary = PADDED + 1;
    expect_status(STATUS_INTERNAL, device.ops->cross_entropy(&device, &op));
    FREE_TENSORS(&logits);
    test_device_close(&device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cross_entropy),
        cmocka_unit_test(test_nonfinite_carries_through),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

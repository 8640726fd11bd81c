/*
 * The engine against Hugging Face's GPT-2 and PyTorch's AdamW.
 *
 * Oracle: gpt2_fixture.safetensors, computed in FP64 by make_fixture.py from the same FP32 numbers.
 * It also holds how far results move when the FP64 model is disturbed by as much as a precision may
 * disturb it (`spread:`), which is where the tolerances below come from. The last three tests need
 * no fixture values: their oracle is bit equality, or the engine in another order of the same sums.
 *
 * Tolerances
 * - Units are 2^-23 (the spacing of FP32 at 1) times the largest number of the tensor judged.
 * - A value that went through s roundings, each of a sum of up to K products, is off by about
 *   sqrt(s) sqrt(K) / 2 units if the errors are independent. Here K <= 4 C = 128. Forward, a logit
 *   has s = 3 blocks * 8 results + 3 behind them: 29 units, hence LOGIT_UNITS. A gradient of the
 *   first block has twice as many: 41, hence the fixture's 64. (PyTorch's own FP32 is off by 6.)
 * - A loss is log-sum-exp minus a logit, so it is off by at most twice what the logits are.
 * - After training: the fixture's spread is the largest of 16 disturbed runs. Another run's error
 *   may point elsewhere; four times the largest of 16 is beyond what one more draw can give. To
 *   that, one unit a step for rounding the weight itself.
 * - bf16 and fp16: four standard deviations of the disturbed loss and gradient. The gradient also
 *   has the roundings of backward, which the fixture does not imitate: as many again, so sqrt(2).
 */
#include <stdbool.h>
#include <stdio.h>

#include "tests/parity/parity_run.h"

static const double epsilon_fp32 = 0x1p-23;
static const double spread_factor = 4.0;

enum { LOGIT_UNITS = 32 };

static void assert_near(const char *what, double got, double expected, double tolerance) {
    if (!(fabs(got - expected) <= tolerance)) {
        fail_msg("%s: expected %.9g within %.3g, found %.9g: off by %.3g", what, expected,
                 tolerance, got, fabs(got - expected));
    }
}

static double largest(const float *values, size_t count) {
    double most = 0.0;
    for (size_t i = 0; i < count; i++) most = fmax(most, fabs((double)values[i]));
    return most;
}

static double logit_tolerance(void) {
    const struct numbers logits = fixture_numbers("first", "logits");
    return LOGIT_UNITS * epsilon_fp32 * largest(logits.values, logits.count);
}

/* Every parameter's gradient, each against its own largest; padding exactly zero. */
static void assert_gradients(const struct param_table *table, const float *got,
                             const float *expected, double units) {
    for (size_t i = 0; i < table->length; i++) {
        const struct param *param = &table->params[i];
        const double tolerance =
            units * epsilon_fp32 * largest(expected + param->offset, param_count(param));
        for (size_t n = 0; n < param->count; n++) {
            const size_t at = param->offset + n;
            assert_near(param->name, (double)got[at], (double)expected[at],
                        n < param_count(param) ? tolerance : 0.0);
        }
    }
}

static const struct variant whole_batch = {CONFIG_RECIPE_FP32, CONFIG_RECOMPUTE_NONE, 3, 3, 0};

/* The mean over `count` tokens. */
static double mean(const float *losses, size_t count) {
    double sum = 0.0;
    for (size_t i = 0; i < count; i++) sum += (double)losses[i];
    return sum / (double)count;
}

/* Logits, and both batches' losses, of a forward pass without backward. */
static void test_evaluation(void **state) {
    (void)state;
    struct run run;
    run_open(&run, &whole_batch);
    struct gpt_training *evaluation = &run.engine.evaluation;
    const size_t tokens = evaluation->shape.batch * evaluation->shape.sequence_length;
    const size_t vocabulary = run.engine.gpt.config.vocabulary;
    const struct numbers expected = fixture_numbers("first", "logits");
    assert_int_equal(expected.count, tokens * vocabulary);

    for (size_t batch = fixture_shape(BATCHES); batch-- > 0;) {
        upload_sequences(&run, evaluation, batch * evaluation->shape.batch);
        EXPECT_OK(gpt_evaluate(evaluation));
        float *losses = download(&run, evaluation->losses, tokens);
        assert_near("mean loss", mean(losses, tokens),
                    fixture_number("first", "batch_losses", batch), 2.0 * logit_tolerance());
        for (size_t row = 0; row < evaluation->shape.batch && batch == 0; row++) {
            const size_t length = evaluation->shape.sequence_length;
            assert_near("loss of a row", mean(losses + row * length, length),
                        fixture_number("first", "micro_batch_losses", row),
                        2.0 * logit_tolerance());
        }
        free(losses);
    }
    /* The first batch came last, in one chunk: its logits still lie there. */
    const struct tensor logits = evaluation->loss.logits;
    assert_int_equal(logits.rows, tokens);
    float *got = download(&run, logits.data, tensor_count(logits));
    for (size_t n = 0; n < tokens; n++) {
        for (size_t v = 0; v < vocabulary; v++) {
            assert_near("logit", (double)got[n * logits.columns + v],
                        (double)expected.values[n * vocabulary + v], logit_tolerance());
        }
    }
    free(got);
    run_close(&run);
}

/* Loss and every gradient, the batch at once and row by row. */
static void test_gradients(void **state) {
    (void)state;
    const double units = fixture_number("run", "gradient_error_units", 0);
    for (int64_t micro_batch = 1; micro_batch <= 3; micro_batch += 2) {
        struct variant variant = whole_batch;
        variant.micro_batch = micro_batch;
        struct run run;
        run_open(&run, &variant);
        assert_near("loss", run_first_batch(&run), fixture_number("first", "loss", 0),
                    2.0 * logit_tolerance());
        float *got = gradients_of(&run);
        float *expected = fixture_flat(&run.engine.gpt.table, "gradients");
        assert_gradients(&run.engine.gpt.table, got, expected, units);
        free(expected);
        free(got);
        run_close(&run);
    }
}

/* The keys' part of the query, key and value bias: softmax does not see it, so it has no gradient
 * but rounding's, and AdamW makes a full step of that. */
static bool without_gradient(const struct param *param, size_t n) {
    const size_t width = param->columns / 3;
    return strstr(param->hf_name, "attn.c_attn.bias") != NULL && n >= width && n < 2 * width;
}

static void assert_final_weights(const struct param_table *table, const float *got,
                                 const float *expected) {
    for (size_t i = 0; i < table->length; i++) {
        const struct param *param = &table->params[i];
        char name[PARAM_NAME_BYTES + 8];
        snprintf(name, sizeof name, "final:%s", param->hf_name);
        const double rounding = (double)fixture_shape(STEPS) * epsilon_fp32 *
                                largest(expected + param->offset, param_count(param));
        const double tolerance = spread_factor * fixture_number("spread", name, 0) + rounding;
        for (size_t n = 0; n < param->count; n++) {
            if (without_gradient(param, n)) continue;
            const size_t at = param->offset + n;
            assert_near(param->name, (double)got[at], (double)expected[at],
                        n < param_count(param) ? tolerance : 0.0);
        }
    }
}

/* Ten steps of AdamW with warm-up, with and without clipping: losses, norms and final weights. */
static void test_training(void **state) {
    (void)state;
    struct run run;
    run_open(&run, &whole_batch);
    const double units = fixture_number("run", "gradient_error_units", 0);
    for (size_t step = 0; step < fixture_shape(STEPS); step++) {
        struct step_policy policy = step_policy(&run.config, (int64_t)step);
        policy.learning_rate = (float)fixture_number("steps", "learning_rate", step);
        const size_t batch = step % fixture_shape(BATCHES);
        run_gradients(&run, &policy, batch * fixture_shape(ROWS));
        EXPECT_OK(step_update(&run.engine, &run.config));

        const struct step_state decided = state_of(&run);
        const double norm = fixture_number("steps", "gradient_norm", step);
        assert_near("loss", (double)decided.loss, fixture_number("steps", "loss", step),
                    2.0 * logit_tolerance() +
                        spread_factor * fixture_number("spread", "loss", step));
        assert_near("gradient norm", (double)decided.gradient_norm, norm,
                    units * epsilon_fp32 * norm +
                        spread_factor * fixture_number("spread", "gradient_norm", step));
        assert_int_equal(decided.skip, SKIP_NONE);
        assert_int_equal(decided.updates, step + 1);
    }
    float *got = download(&run, run.engine.masters, run.engine.gpt.table.elements);
    float *expected = fixture_flat(&run.engine.gpt.table, "final");
    assert_final_weights(&run.engine.gpt.table, got, expected);
    free(expected);
    free(got);
    run_close(&run);
}

/* The 2-norm of (got / scale - expected) over that of expected. */
static double relative_distance(const float *got, double scale, const float *expected,
                                size_t count) {
    double difference = 0.0, size = 0.0;
    for (size_t i = 0; i < count; i++) {
        const double d = (double)got[i] / scale - (double)expected[i];
        difference += d * d;
        size += (double)expected[i] * (double)expected[i];
    }
    return sqrt(difference / size);
}

/* bf16, and fp16 with its gradients scaled by the loss scale. */
static void test_low_precision(void **state) {
    (void)state;
    static const struct {
        enum config_recipe recipe;
        const char *spread;
    } cases[] = {{CONFIG_RECIPE_BF16, "first_bf16"}, {CONFIG_RECIPE_FP16, "first_fp16"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct variant variant = whole_batch;
        variant.recipe = cases[i].recipe;
        struct run run;
        run_open(&run, &variant);
        assert_near(cases[i].spread, run_first_batch(&run), fixture_number("first", "loss", 0),
                    spread_factor * fixture_number("spread", cases[i].spread, 0));
        const double scale = (double)state_of(&run).loss_scale;
        assert_true(cases[i].recipe == CONFIG_RECIPE_FP16 ? scale > 1.0 : scale == 1.0);
        float *got = gradients_of(&run);
        float *expected = fixture_flat(&run.engine.gpt.table, "gradients");
        assert_near("distance of the gradient",
                    relative_distance(got, scale, expected, run.engine.gpt.table.elements), 0.0,
                    spread_factor * sqrt(2.0) * fixture_number("spread", cases[i].spread, 1));
        free(expected);
        free(got);
        run_close(&run);
    }
}

/* What one variant makes of the first batch, in bits. */
struct outcome {
    float *losses;    /* (tokens of a micro-batch) */
    float *gradients; /* (elements) */
    size_t tokens, elements;
};

static struct outcome outcome_of(const struct variant *variant) {
    struct run run;
    run_open(&run, variant);
    run_first_batch(&run);
    struct outcome outcome = {
        .tokens = run.engine.training.shape.batch * run.engine.training.shape.sequence_length,
        .elements = run.engine.gpt.table.elements,
    };
    outcome.losses = download(&run, run.engine.training.losses, outcome.tokens);
    outcome.gradients = gradients_of(&run);
    run_close(&run);
    return outcome;
}

static void outcome_free(struct outcome *outcome) {
    free(outcome->losses);
    free(outcome->gradients);
}

static void assert_same_bits(const struct outcome *a, const struct outcome *b) {
    assert_int_equal(a->tokens, b->tokens);
    assert_memory_equal(a->losses, b->losses, a->tokens * sizeof *a->losses);
    assert_memory_equal(a->gradients, b->gradients, a->elements * sizeof *a->gradients);
}

/* Oracle: bit equality. Recomputing repeats the same operations on the same numbers. */
static void test_recompute(void **state) {
    (void)state;
    for (int recipe = CONFIG_RECIPE_FP32; recipe <= CONFIG_RECIPE_FP16; recipe++) {
        struct variant variant = whole_batch;
        variant.recipe = (enum config_recipe)recipe;
        struct outcome kept = outcome_of(&variant);
        for (int r = CONFIG_RECOMPUTE_GELU; r <= CONFIG_RECOMPUTE_BLOCK; r++) {
            variant.recompute = (enum config_recompute)r;
            struct outcome recomputed = outcome_of(&variant);
            assert_same_bits(&kept, &recomputed);
            outcome_free(&recomputed);
        }
        outcome_free(&kept);
    }
}

/* Oracle: the same sums in another order. Each side may err by the fixture's units, so together by
 * twice. */
static void test_accumulation(void **state) {
    (void)state;
    const double units = 2.0 * fixture_number("run", "gradient_error_units", 0);
    struct variant variant = whole_batch;
    struct run at_once, one_by_one;
    variant.batch = variant.micro_batch = 8;
    run_open(&at_once, &variant);
    variant.micro_batch = 1;
    run_open(&one_by_one, &variant);

    assert_near("loss", run_first_batch(&one_by_one), run_first_batch(&at_once),
                4.0 * logit_tolerance());
    float *expected = gradients_of(&at_once), *got = gradients_of(&one_by_one);
    assert_gradients(&at_once.engine.gpt.table, got, expected, units);
    free(expected);
    free(got);
    run_close(&one_by_one);
    run_close(&at_once);
}

/* Oracle: bit equality where the chunk holds all tokens; elsewhere the same sums, which the BLAS
 * may order by the number of rows. 51 tokens: chunks of 1, a divisor, two with a remainder. */
static void test_logits_chunk(void **state) {
    (void)state;
    static const int64_t sizes[] = {51, 1000, 1, 17, 20, 50};
    const double units = 2.0 * fixture_number("run", "gradient_error_units", 0);
    struct variant variant = whole_batch;
    struct run run; /* for its table */
    run_open(&run, &variant);
    struct outcome automatic = outcome_of(&variant);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        variant.logits_chunk = sizes[i];
        struct outcome chunked = outcome_of(&variant);
        if ((size_t)sizes[i] >= automatic.tokens) assert_same_bits(&automatic, &chunked);
        for (size_t n = 0; n < automatic.tokens; n++) {
            assert_near("loss", (double)chunked.losses[n], (double)automatic.losses[n],
                        4.0 * logit_tolerance());
        }
        assert_gradients(&run.engine.gpt.table, chunked.gradients, automatic.gradients, units);
        outcome_free(&chunked);
    }
    outcome_free(&automatic);
    run_close(&run);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_evaluation),   cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_training),     cmocka_unit_test(test_low_precision),
        cmocka_unit_test(test_recompute),    cmocka_unit_test(test_accumulation),
        cmocka_unit_test(test_logits_chunk),
    };
    if (test_device() == CONFIG_DEVICE_CUDA) {
        const struct device_options options = {.gemm_effort = GEMM_EFFORT_OFF};
        struct device device;
        if (device_open_cuda(&device, &options) != STATUS_OK) {
            printf("skipped: %s\n", status_message());
            return 0;
        }
        device_close(&device);
    }
    return cmocka_run_group_tests(tests, fixture_open, fixture_close);
}

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

#include "checkpoints/safetensors.h"
#include "tests/kernels/testing.h"
#include "train/step.h"

static const char fixture_path[] = "tests/parity/gpt2_fixture.safetensors";

static const double epsilon_fp32 = 0x1p-23;
static const double spread_factor = 4.0;

enum { LOGIT_UNITS = 32 };

static struct safetensors fixture;

struct numbers {
    const float *values;
    size_t count;
};

static struct numbers fixture_numbers(const char *group, const char *name) {
    char full[SAFETENSORS_NAME_BYTES];
    snprintf(full, sizeof full, "%s:%s", group, name);
    const struct safetensors_entry *entry = safetensors_find(&fixture, full);
    if (entry == NULL) fail_msg("the fixture has no %s", full);
    const void *data = fixture.data + entry->offset;
    return (struct numbers){data, entry->bytes / sizeof(float)};
}

static double fixture_number(const char *group, const char *name, size_t index) {
    const struct numbers numbers = fixture_numbers(group, name);
    assert_true(index < numbers.count);
    return (double)numbers.values[index];
}

enum shape_index { BATCHES, ROWS, TOKENS, STEPS };

static size_t fixture_shape(enum shape_index index) {
    return (size_t)fixture_number("run", "shape", index);
}

/* The group's tensors in the engine's layout: flat, [out, in], padding zero. Release with free. */
static float *fixture_flat(const struct param_table *table, const char *group) {
    float *flat = test_memory(table->elements * sizeof *flat);
    memset(flat, 0, table->elements * sizeof *flat);
    for (size_t i = 0; i < table->length; i++) {
        const struct param *param = &table->params[i];
        const struct numbers hf = fixture_numbers(group, param->hf_name);
        assert_int_equal(hf.count, param_count(param));
        for (size_t r = 0; r < param->rows; r++) {
            for (size_t c = 0; c < param->columns; c++) {
                const size_t here = r * param->columns + c, there = c * param->rows + r;
                flat[param->offset + here] = hf.values[param->hf_transposed ? there : here];
            }
        }
    }
    return flat;
}

struct variant {
    enum config_recipe recipe;
    enum config_recompute recompute;
    int64_t batch, micro_batch, logits_chunk;
};

struct run {
    struct config config;
    struct engine engine;
};

/* DEEPWELL_TEST_DEVICE=cuda: the same tests on a GPU. */
static enum config_device test_device(void) {
    const char *device = getenv("DEEPWELL_TEST_DEVICE");
    return device != NULL && strcmp(device, "cuda") == 0 ? CONFIG_DEVICE_CUDA : CONFIG_DEVICE_CPU;
}

static void configure(struct config *config, const struct variant *variant) {
    config_defaults(config);
    config->device = (int)test_device();
    config->model.vocabulary = (int64_t)fixture_number("run", "model", 0);
    config->model.context = (int64_t)fixture_number("run", "model", 1);
    config->model.layers = (int64_t)fixture_number("run", "model", 2);
    config->model.heads = (int64_t)fixture_number("run", "model", 3);
    config->model.width = (int64_t)fixture_number("run", "model", 4);
    config->optimizer.beta1 = fixture_number("run", "optimizer", 0);
    config->optimizer.beta2 = fixture_number("run", "optimizer", 1);
    config->optimizer.epsilon = fixture_number("run", "optimizer", 2);
    config->optimizer.weight_decay = fixture_number("run", "optimizer", 3);
    config->optimizer.clip_norm = fixture_number("run", "optimizer", 4);
    config->optimizer.decay_roles = 1 << ROLE_EMBEDDING | 1 << ROLE_POSITION | 1 << ROLE_LINEAR;
    config->train.batch = variant->batch;
    config->train.micro_batch = variant->micro_batch;
    config->train.sequence_length = (int64_t)fixture_shape(TOKENS);
    config->train.logits_chunk = variant->logits_chunk;
    config->train.recompute = (int)variant->recompute;
    config->precision.recipe = (int)variant->recipe;
    EXPECT_OK(config_check(config));
}

/* An engine with the fixture's initial weights. */
static void run_open(struct run *run, const struct variant *variant) {
    struct engine *engine = &run->engine;
    configure(&run->config, variant);
    EXPECT_OK(engine_open(engine, &run->config, ENGINE_TRAIN | ENGINE_EVALUATE, ENGINE_REAL));
    EXPECT_OK(engine_initialise(engine, &run->config));

    const struct param_table *table = &engine->gpt.table;
    float *weights = fixture_flat(table, "weights");
    EXPECT_OK(device_upload(&engine->device, engine->masters, weights,
                            table->elements * sizeof *weights));
    free(weights);
    if (engine->weights.data != engine->masters) {
        const struct tensor masters = tensor_make(engine->masters, DTYPE_F32, 1, table->elements);
        EXPECT_OK(engine->device.ops->convert(&engine->device, engine->weights, masters));
    }
}

static void run_close(struct run *run) { engine_close(&run->engine); }

static float *download(struct run *run, const void *memory, size_t count) {
    float *host = test_memory(count * sizeof *host);
    EXPECT_OK(device_download(&run->engine.device, host, memory, count * sizeof *host));
    return host;
}

static float *gradients_of(struct run *run) {
    return download(run, run->engine.gradients, run->engine.gpt.table.elements);
}

static struct step_state state_of(struct run *run) {
    struct step_state state;
    EXPECT_OK(device_download(&run->engine.device, &state, run->engine.state, sizeof state));
    return state;
}

/* Uploads sequences [first, first + rows) of the fixture's stream, which begins anew at its end. */
static void upload_sequences(struct run *run, struct gpt_training *training, size_t first) {
    const struct numbers stream = fixture_numbers("run", "tokens");
    const size_t length = training->shape.sequence_length, rows = training->shape.batch;
    const size_t bytes = rows * length * sizeof(int32_t);
    int32_t *inputs = test_memory(bytes), *targets = test_memory(bytes);
    for (size_t i = 0; i < rows * length; i++) {
        const size_t at = (first * length + i) % (stream.count - 1);
        inputs[i] = (int32_t)stream.values[at];
        targets[i] = (int32_t)stream.values[at + 1];
    }
    EXPECT_OK(device_upload(&run->engine.device, training->inputs, inputs, bytes));
    EXPECT_OK(device_upload(&run->engine.device, training->targets, targets, bytes));
    free(inputs);
    free(targets);
}

/* Forward and backward of all micro-batches of one step that starts at sequence `first`. */
static void run_gradients(struct run *run, const struct step_policy *policy, size_t first) {
    const size_t batch = (size_t)run->config.train.batch;
    const size_t rows = run->engine.training.shape.batch;
    EXPECT_OK(step_begin(&run->engine));
    for (size_t row = 0; row < batch; row += rows) {
        upload_sequences(run, &run->engine.training, first + row);
        EXPECT_OK(step_micro_batch(&run->engine, policy, row == 0));
    }
}

/* Runs the first batch's gradients; the mean loss. */
static double run_first_batch(struct run *run) {
    const struct step_policy policy = step_policy(&run->config, 0);
    run_gradients(run, &policy, 0);
    return state_of(run).loss_sum / (double)policy.tokens;
}

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
        EXPECT_OK(step_update(&run.engine, &run.config, &policy));

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

static int open_fixture(void **state) {
    (void)state;
    if (safetensors_open(&fixture, fixture_path) == STATUS_OK) return 0;
    fprintf(stderr, "%s\n", status_message());
    return -1;
}

static int close_fixture(void **state) {
    (void)state;
    safetensors_close(&fixture);
    return 0;
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
    return cmocka_run_group_tests(tests, open_fixture, close_fixture);
}

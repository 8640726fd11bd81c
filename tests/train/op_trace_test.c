/*
 * The trace of a step. Oracles: the FLOPs of flops.h, exactly (they are whole numbers below 2^53);
 * the number of calls by hand; bit equality with an untraced step.
 */
#include "tests/train/small_run.h"
#include "train/flops.h"
#include "train/op_trace.h"

enum { LAYERS = 2, MICRO_BATCHES = BATCH / MICRO_BATCH };

static const struct op_total *find(const struct op_trace *trace, const char *name) {
    for (size_t i = 0; i < trace->op_count; i++) {
        if (strcmp(trace->ops[i].name, name) == 0) return &trace->ops[i];
    }
    return NULL;
}

static double flops_of(const struct op_trace *trace, const char *name) {
    const struct op_total *total = find(trace, name);
    return total == NULL ? 0.0 : total->flops;
}

static size_t calls_of(const struct op_trace *trace, const char *name) {
    const struct op_total *total = find(trace, name);
    return total == NULL ? 0 : total->calls;
}

/* A step in memory that is only reserved: a read or a write anywhere in it would be a fault. */
static struct op_trace record(const struct config *config) {
    struct op_trace trace;
    struct engine engine;
    EXPECT_OK(engine_open(&engine, config, ENGINE_TRAIN, ENGINE_RESERVED));
    const struct step_policy policy = step_policy(config, 0);
    op_trace_attach(&trace, &engine.device, true);
    EXPECT_OK(step_begin(&engine, &policy));
    for (int64_t done = 0; done < config->train.batch; done += config_micro_batch(config)) {
        EXPECT_OK(step_micro_batch(&engine, &policy, done == 0));
    }
    EXPECT_OK(step_update(&engine, config));
    op_trace_detach(&trace, &engine.device);
    engine_close(&engine);
    return trace;
}

/* FP8 with delayed scaling multiplies the same products: every linear's three on copies, the head's
 * three as they are. */
static void narrow_products_are_those_of_the_formula(void **state) {
    (void)state;
    struct config config;
    small_config(&config, CONFIG_RECIPE_FP8);
    config.model.width = 48;
    config.model.context = config.train.sequence_length = 16;
    const struct op_trace trace = record(&config);
    small_config(&config, CONFIG_RECIPE_BF16);
    config.model.width = 48;
    config.model.context = config.train.sequence_length = 16;
    const struct op_trace plain = record(&config);
    assert_true(flops_of(&trace, "gemm") + flops_of(&trace, "quantised_gemm") ==
                flops_of(&plain, "gemm"));
    assert_int_equal(calls_of(&trace, "quantised_gemm"), MICRO_BATCHES * LAYERS * 4 * 3);
    assert_int_equal(calls_of(&trace, "gemm"), MICRO_BATCHES * 3);
    assert_int_equal(calls_of(&trace, "scales_begin"), MICRO_BATCHES);
    assert_int_equal(calls_of(&trace, "scales_update"), 1);
}

static struct flops count_flops(const struct config *config) {
    const struct gpt_config model = engine_model(config);
    struct flops flops;
    struct gpt gpt;
    EXPECT_OK(gpt_open(&gpt, &model, 0));
    EXPECT_OK(flops_count(&gpt.table, model.layers, model.width,
                          (size_t)config_sequence_length(config), &flops));
    gpt_close(&gpt);
    return flops;
}

/* Linear layers, head and attention of the code that runs are those of the formula. The padding
 * of the vocabulary is multiplied too, and is no part of the formula: 6 C a row and token. */
static void flops_are_those_of_the_formula(void **state) {
    (void)state;
    static const int64_t vocabularies[] = {VOCABULARY, 256};
    for (size_t i = 0; i < 2; i++) {
        for (int recipe = CONFIG_RECIPE_FP32; recipe <= CONFIG_RECIPE_FP16; recipe++) {
            struct config config;
            small_config(&config, (enum config_recipe)recipe);
            config.model.vocabulary = vocabularies[i];
            const struct op_trace trace = record(&config);
            const struct flops flops = count_flops(&config);
            const double tokens = (double)step_tokens(&config);
            const double padding = i == 0 ? (128.0 - VOCABULARY) * 6.0 * 24.0 * tokens : 0.0;
            const double attention = flops_of(&trace, "attention_forward") +
                                     flops_of(&trace, "attention_backward");
            assert_true(attention == (double)flops.attention * tokens);
            assert_true(flops_of(&trace, "gemm") - padding ==
                        (double)(flops.linear + flops.head) * tokens);
            assert_true(flops_of(&trace, "gemm") - padding + attention ==
                        (double)flops.total * tokens);
        }
    }
}

struct expected_calls {
    const char *name;
    size_t calls;
};

static void assert_calls(const struct op_trace *trace, const struct expected_calls *expected,
                         size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (calls_of(trace, expected[i].name) != expected[i].calls) {
            fail_msg("%s: %zu calls, expected %zu", expected[i].name,
                     calls_of(trace, expected[i].name), expected[i].calls);
        }
    }
    assert_int_equal(trace->op_count, count); /* and no others */
}

static void calls_by_hand(void **state) {
    (void)state;
    enum { M = MICRO_BATCHES, L = LAYERS, CHUNKS = 2 };
    struct config config;
    small_config(&config, CONFIG_RECIPE_FP32);
    config.train.logits_chunk = 9; /* 14 tokens: two chunks */
    for (int r = CONFIG_RECOMPUTE_NONE; r <= CONFIG_RECOMPUTE_BLOCK; r++) {
        config.train.recompute = r;
        /* What is run again: a GELU, or a block's forward pass up to it, for all blocks but the
         * last. */
        const size_t gelus = r == CONFIG_RECOMPUTE_NONE ? 0 : L - 1;
        const size_t blocks = r == CONFIG_RECOMPUTE_BLOCK ? L - 1 : 0;
        const struct op_trace trace = record(&config);
        const struct expected_calls expected[] = {
            {"gemm", M * (3 * (4 * L + CHUNKS) + 3 * blocks)},
            {"embedding_forward", M},
            {"embedding_backward", M},
            {"norm_forward", M * (2 * L + 1 + 2 * blocks)},
            {"norm_backward", M * (2 * L + 1)},
            {"attention_forward", M * (L + blocks)},
            {"attention_backward", M * L},
            {"gelu_forward", M * (L + gelus)},
            {"gelu_backward", M * L},
            {"bias_backward", M * L}, /* query, key and value; the others are fused elsewhere */
            {"cross_entropy", M * CHUNKS},
            {"loss_sum", M},
            {"step_begin", 1},
            {"gradient_sumsq", 1},
            {"step_decide", 1},
            {"adamw", 1},
        };
        assert_calls(&trace, expected, sizeof expected / sizeof expected[0]);
    }
}

/* Every shape of GEMM once, by hand for one block; their totals are the operation's. */
static void gemm_shapes(void **state) {
    (void)state;
    enum { N = MICRO_BATCH * LENGTH, C = 24, V = 128 };
    static const struct {
        size_t m, n, k;
        bool ta, tb;
    } expected[] = {
        {N, 3 * C, C, false, true},  {N, C, C, false, true},  {N, 4 * C, C, false, true},
        {N, C, 4 * C, false, true},  {N, V, C, false, true}, /* forward */
        {N, C, 3 * C, false, false}, {N, C, C, false, false}, {N, C, 4 * C, false, false},
        {N, 4 * C, C, false, false}, {N, C, V, false, false}, /* dgrad */
        {3 * C, C, N, true, false},  {C, C, N, true, false},  {4 * C, C, N, true, false},
        {C, 4 * C, N, true, false},  {V, C, N, true, false}, /* wgrad */
    };
    struct config config;
    small_config(&config, CONFIG_RECIPE_BF16);
    config.model.layers = 1;
    const struct op_trace trace = record(&config);
    struct op_total sum = {0};
    assert_int_equal(trace.gemm_count, sizeof expected / sizeof expected[0]);
    for (size_t i = 0; i < trace.gemm_count; i++) {
        const struct gemm_total *got = &trace.gemms[i];
        size_t found = 0;
        for (size_t e = 0; e < trace.gemm_count; e++) {
            found += got->m == expected[e].m && got->n == expected[e].n &&
                     got->k == expected[e].k && got->transpose_a == expected[e].ta &&
                     got->transpose_b == expected[e].tb;
        }
        assert_int_equal(found, 1);
        assert_string_equal(got->a, "bf16");
        assert_string_equal(got->b, "bf16");
        /* gradients of weights are FP32 */
        assert_int_equal(got->c, got->transpose_a ? DTYPE_F32 : DTYPE_BF16);
        assert_true(got->total.flops == 2.0 * (double)(got->m * got->n * got->k) *
                                            (double)got->total.calls);
        sum.calls += got->total.calls;
        sum.flops += got->total.flops;
        sum.bytes += got->total.bytes;
    }
    const struct op_total *gemm = find(&trace, "gemm");
    assert_true(sum.calls == gemm->calls && sum.flops == gemm->flops && sum.bytes == gemm->bytes);
}

/* A step behind the trace is the same step, and the device is the same device afterwards. */
static void a_traced_step_is_the_same_step(void **state) {
    (void)state;
    struct small_run run;
    struct snapshot snapshots[2];
    struct op_trace trace;
    small_config(&run.config, CONFIG_RECIPE_BF16);
    const struct op_trace recorded = record(&run.config);
    for (int traced = 0; traced < 2; traced++) {
        small_run_open(&run, ENGINE_TRAIN);
        const struct step_policy policy = step_policy(&run.config, 0);
        const struct ops *own = run.engine.device.ops;
        if (traced) op_trace_attach(&trace, &run.engine.device, false);
        small_run_step(&run, &policy);
        if (traced) {
            assert_ptr_not_equal(run.engine.device.ops, own);
            op_trace_detach(&trace, &run.engine.device);
        }
        assert_ptr_equal(run.engine.device.ops, own);
        assert_null(run.engine.device.interposed);
        snapshots[traced] = snapshot_of(&run);
        small_run_close(&run);
    }
    assert_true(snapshot_equal(snapshots[0], snapshots[1]));
    assert_int_equal(trace.op_count, recorded.op_count);
    for (size_t i = 0; i < trace.op_count; i++) {
        const struct op_total *other = find(&recorded, trace.ops[i].name);
        assert_non_null(other);
        assert_true(trace.ops[i].calls == other->calls && trace.ops[i].flops == other->flops);
        assert_true(trace.ops[i].bytes == other->bytes && trace.ops[i].bytes > 0.0);
        assert_true(trace.ops[i].seconds > 0.0);
    }
    free(snapshots[0].memory);
    free(snapshots[1].memory);
}

/* Errors of the operations behind it come through. */
static void errors_come_through(void **state) {
    (void)state;
    struct device device;
    struct op_trace trace;
    float number[4] = {0};
    const struct tensor wide = tensor_make(number, DTYPE_F32, 1, 2);
    const struct gemm mismatched = {.c = wide, .a = wide, .b = wide};
    EXPECT_OK(device_open_cpu(&device, 1));
    op_trace_attach(&trace, &device, false);
    expect_status(STATUS_INTERNAL, device.ops->gemm(&device, &mismatched));
    expect_status(STATUS_INTERNAL, device.ops->convert(&device, wide, tensor_rows(wide, 0, 0)));
    op_trace_detach(&trace, &device);
    device_close(&device);
}

/* A step of more operations than the device has marks is refused with the way out, and the trace
 * comes off all the same. */
static void too_many_operations_are_refused(void **state) {
    (void)state;
    static struct op_trace trace;
    struct small_run run;
    enum status status = STATUS_OK;
    small_config(&run.config, CONFIG_RECIPE_FP32);
    small_run_open(&run, ENGINE_TRAIN);
    struct device *device = &run.engine.device;
    EXPECT_OK(op_trace_attach(&trace, device, false));
    for (size_t i = 1; i < DEVICE_MARKS; i++) EXPECT_OK(op_trace_data(device, 8));
    status = device->ops->loss_sum(device, run.engine.state, run.engine.training.losses, 1);
    expect_status(STATUS_CONFIG, status);
    assert_non_null(strstr(status_message(), "Lower train.batch"));
    EXPECT_OK(op_trace_detach(&trace, device));
    const struct op_total *data = find(&trace, "data");
    assert_int_equal(data->calls, DEVICE_MARKS - 1);
    assert_true(data->bytes == 8.0 * (DEVICE_MARKS - 1) && data->flops == 0.0);
    EXPECT_OK(op_trace_data(device, 8)); /* nobody counts any more */
    assert_int_equal(data->calls, DEVICE_MARKS - 1);
    small_run_close(&run);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(narrow_products_are_those_of_the_formula),
        cmocka_unit_test(flops_are_those_of_the_formula),
        cmocka_unit_test(calls_by_hand),
        cmocka_unit_test(gemm_shapes),
        cmocka_unit_test(a_traced_step_is_the_same_step),
        cmocka_unit_test(errors_come_through),
        cmocka_unit_test(too_many_operations_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

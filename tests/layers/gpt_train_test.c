/*
 * What must not change a GPT's losses and gradients: recomputation, micro-batches, chunks of
 * logits, and leaving the backward pass out; and the activations' memory and observer.
 *
 * Oracle: bit equality where the same operations run on the same numbers. Where sums are taken in
 * another order, both sides err as derived in gpt_gradient_test.c (1.2 sqrt(s K) 2^-23 of a
 * tensor's largest number), so they differ by twice that at most; a sum over M micro-batches adds M
 * results to s.
 */
#include "tests/layers/fixture.h"

enum { GRADIENT_RESULTS = 2 * (2 * 8 + 3), MICRO_BATCHES = 8 };

static double tolerance(size_t results, double size) {
    return 2.0 * 1.2 * sqrt((double)results * 4.0 * WIDTH) * 0x1p-23 * size;
}

/* ---- what one pass gave ---- */

struct outcome {
    float *losses;    /* (tokens) */
    float *gradients; /* (elements); the gaps between tensors are set to zero */
    size_t tokens, elements;
};

/* No operation writes between two tensors. */
static void clear_gaps(const struct param_table *table, float *gradients) {
    for (size_t i = 0; i < table->length; i++) {
        const size_t end = table->params[i].offset + table->params[i].count;
        const size_t next = i + 1 < table->length ? table->params[i + 1].offset : table->elements;
        for (size_t at = end; at < next; at++) {
            assert_true(isnan(gradients[at]));
            gradients[at] = 0.0f;
        }
    }
}

static struct outcome outcome_of(const struct model *model) {
    const struct param_table *table = &model->gpt.table;
    struct outcome o = {.tokens = model->tokens, .elements = table->elements};
    o.losses = copied_tensor(tensor_make(model->training.losses, DTYPE_F32, 1, o.tokens)).data;
    o.gradients = copied_tensor(tensor_make(model->gradients, DTYPE_F32, 1, o.elements)).data;
    clear_gaps(table, o.gradients);
    for (size_t i = 0; i < o.elements; i++) assert_true(isfinite(o.gradients[i]));
    return o;
}

/* A forward and backward pass over the first micro-batch, into gradients of NaN. */
static struct outcome run(const struct gpt_training_shape *shape) {
    struct model model;
    model_open(&model, shape);
    model_run(&model, shape->dtype == DTYPE_F16 ? 1024.0f : 1.0f, false);
    const struct outcome o = outcome_of(&model);
    model_close(&model);
    return o;
}

static void outcome_free(struct outcome *o) {
    free(o->losses);
    free(o->gradients);
}

static void assert_same_bits(const struct outcome *a, const struct outcome *b) {
    assert_memory_equal(a->losses, b->losses, a->tokens * sizeof(float));
    assert_memory_equal(a->gradients, b->gradients, a->elements * sizeof(float));
}

static void assert_near_gradients(const float *got, const float *expected, size_t results) {
    struct gpt gpt;
    EXPECT_OK(gpt_open(&gpt, &small_config, 0));
    for (size_t row = 0; row < gpt.table.length; row++) {
        const struct param *param = &gpt.table.params[row];
        double size = 0.0;
        for (size_t i = 0; i < param->count; i++) {
            size = fmax(size, fabs((double)expected[param->offset + i]));
        }
        struct comparison c = {.what = param->name};
        for (size_t i = 0; i < param->count; i++) {
            compare(&c, i, (double)got[param->offset + i], (double)expected[param->offset + i],
                    tolerance(results, size));
        }
        compare_end(&c);
    }
    gpt_close(&gpt);
}

/* ---- tests ---- */

static void test_recompute(void **state) {
    (void)state;
    for (int type = 0; type < TEST_DTYPES; type++) {
        struct gpt_training_shape shape = small_shape;
        shape.dtype = test_dtypes[type];
        struct outcome kept = run(&shape);
        for (enum recompute r = RECOMPUTE_GELU; r <= RECOMPUTE_BLOCK; r++) {
            shape.recompute = r;
            struct outcome recomputed = run(&shape);
            assert_same_bits(&recomputed, &kept);
            outcome_free(&recomputed);
        }
        outcome_free(&kept);
    }
}

/* Eight sequences at once, and one by one; the first pass writes over NaN, the others add. */
static void test_accumulate(void **state) {
    (void)state;
    struct gpt_training_shape shape = small_shape;
    shape.batch = MICRO_BATCHES;
    struct outcome at_once = run(&shape);
    struct model model;
    shape.batch = 1;
    model_open(&model, &shape);
    struct comparison losses = {.what = "loss"};
    for (size_t i = 0; i < MICRO_BATCHES; i++) {
        model_upload(&model, i);
        model.tokens = MICRO_BATCHES * LENGTH; /* of the step: the gradient's scale */
        model_run(&model, 1.0f, i > 0);
        for (size_t n = 0; n < LENGTH; n++) {
            const double expected = (double)at_once.losses[i * LENGTH + n];
            /* the logits are no larger than the losses */
            compare(&losses, i * LENGTH + n, (double)model.training.losses[n], expected,
                    tolerance(2 * 8 + 3, 2.0 * expected));
        }
    }
    compare_end(&losses);
    model.tokens = LENGTH;
    struct outcome added = outcome_of(&model);
    assert_near_gradients(added.gradients, at_once.gradients, GRADIENT_RESULTS + MICRO_BATCHES);
    model_close(&model);
    outcome_free(&added);
    outcome_free(&at_once);
}

/* What lies in the gradients must not matter unless accumulating: NaN or numbers, the same bits. */
static void test_overwrites(void **state) {
    (void)state;
    for (enum recompute r = RECOMPUTE_NONE; r <= RECOMPUTE_BLOCK; r++) {
        struct gpt_training_shape shape = small_shape;
        shape.recompute = r;
        struct outcome clean = run(&shape);
        struct model model;
        model_open(&model, &shape);
        model_run(&model, 3.0f, false); /* other gradients first */
        model_run(&model, 1.0f, false);
        struct outcome second = outcome_of(&model);
        assert_same_bits(&second, &clean);
        model_close(&model);
        outcome_free(&second);
        outcome_free(&clean);
    }
}

/* A chunk of all tokens or more is the same GEMM, so the same bits as the automatic one. Smaller
 * chunks give the BLAS fewer rows, for which it may add the same products in another order (one
 * row is even a product of matrix and vector); and the head's gradient becomes a sum over
 * chunks. */
static void test_logits_chunk(void **state) {
    (void)state;
    static const size_t chunks[] = {1, 3, BATCH * LENGTH, 1000};
    struct outcome automatic = run(&small_shape);
    for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
        struct gpt_training_shape shape = small_shape;
        shape.logits_chunk = chunks[i];
        struct outcome chunked = run(&shape);
        if (chunks[i] >= automatic.tokens) assert_same_bits(&chunked, &automatic);
        struct comparison losses = {.what = "loss"};
        for (size_t n = 0; n < automatic.tokens; n++) {
            const double expected = (double)automatic.losses[n];
            /* equal inputs: only the logits' own sums differ */
            compare(&losses, n, (double)chunked.losses[n], expected, tolerance(1, 2.0 * expected));
        }
        compare_end(&losses);
        assert_near_gradients(chunked.gradients, automatic.gradients,
                              GRADIENT_RESULTS + ceil_div(automatic.tokens, chunks[i]));
        outcome_free(&chunked);
    }
    outcome_free(&automatic);
}

/* Evaluation lays its memory out otherwise, and runs the same operations. */
static void test_evaluate(void **state) {
    (void)state;
    for (int type = 0; type < TEST_DTYPES; type++) {
        for (size_t chunk = 0; chunk <= 4; chunk += 2) {
            struct gpt_training_shape shape = small_shape;
            shape.dtype = test_dtypes[type];
            shape.logits_chunk = chunk;
            struct outcome trained = run(&shape);
            struct model model;
            shape.backward = false;
            model_open(&model, &shape);
            EXPECT_OK(gpt_evaluate(&model.training));
            assert_memory_equal(model.training.losses, trained.losses,
                                model.tokens * sizeof(float));
            for (size_t i = 0; i < model.gpt.table.elements; i++) {
                assert_true(isnan(model.gradients[i]));
            }
            model_close(&model);
            outcome_free(&trained);
        }
    }
}

/* The rows of the vocabulary's padding get no gradient, whatever lies there before. */
static void test_padding_gradient(void **state) {
    (void)state;
    struct model model;
    model_open(&model, &small_shape);
    const struct param *token = param_table_find(&model.gpt.table, "token_embedding");
    for (int pass = 0; pass < 2; pass++) {
        model_run(&model, 1.0f, pass > 0);
        for (size_t i = param_count(token); i < token->count; i++) {
            assert_true(model.gradients[token->offset + i] == 0.0f);
        }
    }
    model_close(&model);
}

/* model_open opens the arena with what was measured and not a byte more: that it succeeds and is
 * filled is the equality. Less recomputation costs memory, by at least the tensors that are
 * kept. */
static void test_arena(void **state) {
    (void)state;
    const size_t number = BATCH * LENGTH * WIDTH * sizeof(float); /* one (N, C) */
    size_t used[3] = {0};
    struct model model;
    struct gpt_training_shape shape = small_shape;
    for (enum recompute r = RECOMPUTE_NONE; r <= RECOMPUTE_BLOCK; r++) {
        shape.recompute = r;
        model_open(&model, &shape);
        assert_int_equal(model.arena.used_bytes, model.arena.capacity_bytes);
        used[r] = model.arena.used_bytes;
        model_close(&model);
    }
    /* All but the first block share: 4 C of a GELU, then 3 C + C + C + C + C + 4 C of a block. */
    assert_true(used[RECOMPUTE_NONE] - used[RECOMPUTE_GELU] >= (LAYERS - 1) * 4 * number);
    assert_true(used[RECOMPUTE_GELU] - used[RECOMPUTE_BLOCK] >= (LAYERS - 1) * 11 * number);
    shape.backward = false;
    model_open(&model, &shape);
    assert_int_equal(model.arena.used_bytes, model.arena.capacity_bytes);
    assert_true(model.arena.used_bytes < used[RECOMPUTE_BLOCK]);
    model_close(&model);

    /* One byte less than measured is noticed. */
    struct device device = {0};
    struct gpt gpt;
    struct arena arena, measured = arena_measure("activations");
    struct gpt_training training;
    EXPECT_OK(device_open_cpu(&device, 1));
    EXPECT_OK(gpt_open(&gpt, &small_config, 0));
    EXPECT_OK(
        gpt_training_open(&training, &gpt, &device, &small_shape, &measured, &measured));
    gpt_training_close(&training);
    EXPECT_OK(arena_open(&arena, "activations", &device, measured.used_bytes - 1));
    expect_status(STATUS_INTERNAL,
                  gpt_training_open(&training, &gpt, &device, &small_shape, &arena, &arena));
    arena_close(&arena);
    gpt_close(&gpt);
    device_close(&device);
}

static void test_refused_shapes(void **state) {
    (void)state;
    static const struct {
        size_t batch, sequence_length;
        const char *words;
    } cases[] = {
        {1, 0, "sequence length of 1 to 9 (model.context), found 0"},
        {1, CONTEXT + 1, "sequence length of 1 to 9 (model.context), found 10"},
        {0, 1, "at least one sequence"},
        {SIZE_MAX, 2, "2^64"},
    };
    struct gpt gpt;
    struct device device = {0};
    EXPECT_OK(gpt_open(&gpt, &small_config, 0));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct gpt_training training;
        struct arena arena = arena_measure("activations");
        const struct gpt_training_shape shape = {.batch = cases[i].batch,
                                                 .sequence_length = cases[i].sequence_length};
        expect_status(STATUS_CONFIG,
                      gpt_training_open(&training, &gpt, &device, &shape, &arena, &arena));
        assert_non_null(strstr(status_message(), cases[i].words));
    }
    gpt_close(&gpt);
}

/* ---- the observer ---- */

struct sight {
    const char *what;
    int layer;
    size_t columns;
};

struct witness {
    struct gpt_observer observer; /* first: the observer is the witness */
    struct sight sights[64];
    size_t count, stop_at;
};

static enum status see(struct gpt_observer *self, const char *what, int layer,
                       struct tensor tensor) {
    struct witness *witness = (struct witness *)self;
    assert_true(witness->count < sizeof witness->sights / sizeof witness->sights[0]);
    assert_int_equal(tensor.rows, BATCH * LENGTH);
    for (size_t i = 0; i < tensor_count(tensor); i++) assert_true(isfinite(value_at(tensor, i)));
    witness->sights[witness->count++] = (struct sight){what, layer, tensor.columns};
    return witness->count == witness->stop_at ? STATUS_INTERRUPTED : STATUS_OK;
}

static void assert_sights(const struct witness *witness, const struct sight *expected,
                          size_t count) {
    assert_true(witness->count >= count);
    for (size_t i = 0; i < count; i++) {
        assert_string_equal(witness->sights[i].what, expected[i].what);
        assert_int_equal(witness->sights[i].layer, expected[i].layer);
        assert_int_equal(witness->sights[i].columns, expected[i].columns);
    }
}

static void test_observer(void **state) {
    (void)state;
    static const struct sight block[] = {
        {"norm1 output", 0, WIDTH}, {"query, key and value", 0, 3 * WIDTH},
        {"attention output", 0, WIDTH}, {"attention projection", 0, WIDTH},
        {"norm2 output", 0, WIDTH}, {"MLP fc output", 0, 4 * WIDTH},
        {"GELU output", 0, 4 * WIDTH}, {"MLP projection", 0, WIDTH},
    };
    enum { IN_BLOCK = sizeof block / sizeof block[0], ALL = 1 + LAYERS * IN_BLOCK + 1 };
    struct sight expected[ALL] = {{"embedding", -1, WIDTH}};
    for (size_t i = 0; i < LAYERS * IN_BLOCK; i++) {
        expected[1 + i] = block[i % IN_BLOCK];
        expected[1 + i].layer = (int)(i / IN_BLOCK);
    }
    expected[ALL - 1] = (struct sight){"final norm output", -1, WIDTH};

    struct model model;
    struct witness witness = {.observer = {.see = see}};
    model_open(&model, &small_shape);
    model.training.observer = &witness.observer;
    EXPECT_OK(gpt_evaluate(&model.training));
    assert_int_equal(witness.count, ALL);
    assert_sights(&witness, expected, ALL);
    witness.count = 0;
    model_run(&model, 1.0f, false);
    assert_int_equal(witness.count, ALL); /* backward makes no activation */
    assert_sights(&witness, expected, ALL);
    /* What it returns ends the pass. */
    for (size_t stop = 1; stop <= ALL; stop++) {
        witness.count = 0;
        witness.stop_at = stop;
        expect_status(STATUS_INTERRUPTED, gpt_evaluate(&model.training));
        assert_int_equal(witness.count, stop);
    }
    model_close(&model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_recompute),        cmocka_unit_test(test_accumulate),
        cmocka_unit_test(test_overwrites),       cmocka_unit_test(test_logits_chunk),
        cmocka_unit_test(test_evaluate),         cmocka_unit_test(test_padding_gradient),
        cmocka_unit_test(test_arena),           cmocka_unit_test(test_refused_shapes),
        cmocka_unit_test(test_observer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

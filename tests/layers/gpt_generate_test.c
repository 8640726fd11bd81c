/*
 * Generation against training. Oracle: the logits of the training forward pass over the same
 * tokens, however the tokens are fed; bit equality after a reset.
 *
 * Tolerance: both sides err as derived in gpt_gradient_test.c, by 1.2 sqrt(s K) 2^-23 of the
 * largest logit, s = 19, K = 96, because cached attention and the BLAS add in another order. In
 * BF16 and FP16 such a difference may tip a rounding, so that a result is off by one unit of its
 * type: s of them in a row, four standard deviations, are 1.2 sqrt(s) units, and the training
 * side's logits are rounded besides.
 */
#include "layers/gpt_generate.h"
#include "tests/layers/fixture.h"

enum { RESULTS = 2 * 8 + 3 };

static double tolerance(enum dtype dtype, double size) {
    const double fp32 = 1.2 * sqrt(RESULTS * 4.0 * WIDTH) * 0x1p-23;
    const double rounding = dtype == DTYPE_F32 ? 0.0 : 2.0 * unit_roundoff(dtype);
    return (2.0 * fp32 + (1.2 * sqrt(RESULTS) + 0.5) * rounding) * size;
}

/* A generation over the model's weights, with memory of its own. */
struct writer {
    struct model *model;
    struct gpt_generation generation;
    struct device device;
    struct arena arena;
};

static void writer_open(struct writer *writer, struct model *model, size_t batch, size_t chunk) {
    const enum dtype dtype = model->weights.dtype;
    const struct op_limits limits = gpt_generation_limits(&model->gpt, dtype, batch, chunk);
    struct arena measured = arena_measure("generation");
    *writer = (struct writer){.model = model, .device = test_device_open(2, &limits)};
    EXPECT_OK(gpt_generation_open(&writer->generation, &model->gpt, &writer->device, dtype, batch,
                                  chunk, &measured));
    gpt_generation_close(&writer->generation);
    EXPECT_OK(arena_open(&writer->arena, "generation", &writer->device, measured.used_bytes));
    EXPECT_OK(gpt_generation_open(&writer->generation, &model->gpt, &writer->device, dtype, batch,
                                  chunk, &writer->arena));
    assert_int_equal(writer->arena.used_bytes, measured.used_bytes);
}

static void writer_close(struct writer *writer) {
    gpt_generation_close(&writer->generation);
    arena_close(&writer->arena);
    test_device_close(&writer->device);
}

/* Tokens [first, first + count) of each sequence of the micro-batch, side by side. */
static void gather(const struct writer *writer, size_t first, size_t count, int32_t *tokens) {
    for (size_t b = 0; b < writer->generation.batch; b++) {
        for (size_t t = 0; t < count; t++) {
            tokens[b * count + t] = writer->model->training.inputs[b * LENGTH + first + t];
        }
    }
}

/* Feeds `count` tokens in pieces and steps over one more; the logits of what follows it. */
static struct tensor feed_and_step(struct writer *writer, size_t count, size_t piece) {
    int32_t tokens[BATCH * LENGTH];
    struct tensor logits;
    gpt_generation_reset(&writer->generation);
    for (size_t first = 0; first < count; first += piece) {
        const size_t now = size_min(piece, count - first);
        gather(writer, first, now, tokens);
        EXPECT_OK(gpt_generation_feed(&writer->generation, tokens, now));
    }
    gather(writer, count, 1, tokens);
    EXPECT_OK(gpt_generation_step(&writer->generation, tokens, &logits));
    assert_int_equal(writer->generation.past, count + 1);
    return logits;
}

static void check_pieces(enum dtype dtype, size_t batch) {
    struct gpt_training_shape shape = small_shape;
    struct model model;
    struct writer writer;
    shape.dtype = dtype;
    shape.backward = false;
    model_open(&model, &shape);
    writer_open(&writer, &model, batch, LENGTH);
    EXPECT_OK(gpt_evaluate(&model.training));
    const struct tensor expected = model.training.loss.logits; /* all of them, in one chunk */
    double size = 0.0;
    for (size_t i = 0; i < tensor_count(expected); i++) {
        size = fmax(size, fabs(value_at(expected, i)));
    }
    struct comparison c = {.what = dtype_name(dtype)};
    for (size_t count = 0; count < LENGTH; count++) {
        for (size_t piece = 1; piece <= LENGTH; piece += 2) {
            const struct tensor logits = feed_and_step(&writer, count, piece);
            assert_true(logits.rows == batch && logits.dtype == DTYPE_F32);
            for (size_t i = 0; i < batch * VOCABULARY; i++) {
                const size_t b = i / VOCABULARY, v = i % VOCABULARY;
                compare(&c, count, value_at(logits, b * logits.columns + v),
                        value_at(expected, (b * LENGTH + count) * expected.columns + v),
                        tolerance(dtype, size));
            }
        }
    }
    compare_end(&c);
    writer_close(&writer);
    model_close(&model);
}

static void test_pieces(void **state) {
    (void)state;
    for (int type = 0; type < TEST_DTYPES; type++) {
        check_pieces(test_dtypes[type], 1);
        check_pieces(test_dtypes[type], BATCH);
    }
}

/* Memory of the past that a reset must hide: another text in the caches before, the same bits
 * after. */
static void test_reset(void **state) {
    (void)state;
    struct model model;
    struct writer writer;
    model_open(&model, &small_shape);
    writer_open(&writer, &model, BATCH, LENGTH);
    struct tensor first = copied_tensor(feed_and_step(&writer, 4, 3));
    for (size_t i = 0; i < writer.generation.gpt->config.layers; i++) {
        const struct tensor *const caches[] = {&writer.generation.keys[i],
                                               &writer.generation.values[i]};
        for (size_t n = 0; n < tensor_count(*caches[0]); n++) {
            value_set(*caches[0], n, NAN);
            value_set(*caches[1], n, NAN);
        }
    }
    const struct tensor again = feed_and_step(&writer, 4, 3);
    assert_memory_equal(again.data, first.data, tensor_bytes(first));
    free(first.data);
    writer_close(&writer);
    model_close(&model);
}

/* Up to the last place of the context, and no further; what is refused changes nothing. */
static void test_context(void **state) {
    (void)state;
    static const int32_t tokens[CONTEXT + 1] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    struct model model;
    struct writer writer;
    struct tensor logits;
    model_open(&model, &small_shape);
    writer_open(&writer, &model, 1, 1000);
    struct gpt_generation *g = &writer.generation;
    assert_int_equal(g->chunk, CONTEXT);
    expect_status(STATUS_CONFIG, gpt_generation_feed(g, tokens, CONTEXT + 1));
    expect_status(STATUS_CONFIG, gpt_generation_feed(g, tokens, 0));
    EXPECT_OK(gpt_generation_feed(g, tokens, CONTEXT - 1));
    expect_status(STATUS_CONFIG, gpt_generation_feed(g, tokens, 2));
    assert_non_null(
        strstr(status_message(), "in a context of 9 of which 8 are taken"));
    assert_int_equal(g->past, CONTEXT - 1);
    EXPECT_OK(gpt_generation_step(g, &tokens[CONTEXT - 1], &logits));
    for (size_t v = 0; v < VOCABULARY; v++) assert_true(isfinite(value_at(logits, v)));
    expect_status(STATUS_CONFIG, gpt_generation_step(g, tokens, &logits));
    expect_status(STATUS_CONFIG, gpt_generation_feed(g, tokens, 1));
    assert_int_equal(g->past, CONTEXT);
    gpt_generation_reset(g);
    EXPECT_OK(gpt_generation_step(g, tokens, &logits));
    writer_close(&writer);

    writer_open(&writer, &model, 1, 3); /* the chunk, not the context, is full */
    expect_status(STATUS_CONFIG, gpt_generation_feed(g, tokens, 4));
    EXPECT_OK(gpt_generation_feed(g, tokens, 3));
    writer_close(&writer);
    model_close(&model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_reset),
        cmocka_unit_test(test_context),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

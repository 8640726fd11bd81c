/*
 * Tensors of more than 2^31 elements: conversion, the search for a NaN, embeddings, sums of
 * everything and AdamW. Oracle: large_test.c says.
 */
#include "tests/gpu/large_testing.h"

/* FP32 to BF16 is one rounding: bit equal; and a NaN beyond 2^31 is found where it lies. */
void test_convert_and_find(void **state) {
    const size_t columns = 6400, rows = beyond / columns + 77, bad = beyond + 12345;
    const uint16_t nan = 0x7fc0;
    size_t index = 0;
    (void)state;
    if (!room_for("convert", 6 * rows * columns)) return;
    struct large in = large_pattern(DTYPE_F32, rows, columns, 1);
    struct large out = large_zeros(DTYPE_BF16, rows, columns);
    const struct samples s = sample_rows(rows, columns);
    struct tensor is = gather(&in, &s), os = filled_tensor(DTYPE_BF16, s.count, columns, NAN);
    uint16_t *got = test_memory(columns * 2);
    EXPECT_OK(gpu.ops->convert(&gpu, out.there, in.there));
    EXPECT_OK(cpu.ops->convert(&cpu, os, is));
    for (size_t i = 0; i < s.count; i++) {
        const uint16_t *from = (const uint16_t *)out.there.data + s.at[i] * columns;
        EXPECT_OK(device_download(&gpu, got, from, columns * 2));
        assert_memory_equal(got, (uint16_t *)os.data + i * columns, columns * 2);
    }
    EXPECT_OK(gpu.ops->find_nonfinite(&gpu, out.there, &index));
    assert_true(index == SIZE_MAX);
    EXPECT_OK(device_upload(&gpu, (uint16_t *)out.there.data + bad, &nan, 2));
    EXPECT_OK(gpu.ops->find_nonfinite(&gpu, out.there, &index));
    assert_true(index == bad);
    FREE_TENSORS(&is, &os);
    free(got);
    large_free(&in);
    large_free(&out);
}

/* Column sums by token and by position, in double, against the GPU's at the sampled columns. */
static void expect_embedding_gradient(const struct embedding_backward *k, const struct large *g,
                                      const int32_t *tokens) {
    const size_t rows = g->there.rows, vocabulary = k->token_gradient.rows;
    const size_t columns = g->there.columns, length = k->sequence_length;
    struct tensor some = gather_columns(g);
    double *by_token = test_memory(vocabulary * 8), *by_position = test_memory(length * 8);
    float *token_gradient = test_memory(tensor_bytes(k->token_gradient));
    float *position_gradient = test_memory(tensor_bytes(k->position_gradient));
    struct comparison c = {.what = "embedding gradient"};
    EXPECT_OK(device_download(&gpu, token_gradient, k->token_gradient.data,
                              tensor_bytes(k->token_gradient)));
    EXPECT_OK(device_download(&gpu, position_gradient, k->position_gradient.data,
                              tensor_bytes(k->position_gradient)));
    for (size_t i = 0; i < COLUMNS; i++) {
        const size_t at = column_at(i, columns);
        memset(by_token, 0, vocabulary * 8);
        memset(by_position, 0, length * 8);
        for (size_t n = 0; n < rows; n++) {
            by_token[tokens[n]] += value_at(some, n * COLUMNS + i);
            by_position[n % length] += value_at(some, n * COLUMNS + i);
        }
        for (size_t v = 0; v < vocabulary; v++) {
            compare(&c, v, (double)token_gradient[v * columns + at], by_token[v],
                    32 * u * sqrt((double)rows));
        }
        for (size_t t = 0; t < length; t++) {
            compare(&c, t, (double)position_gradient[t * columns + at], by_position[t],
                    32 * u * sqrt((double)rows));
        }
    }
    compare_end(&c);
    free(some.data);
    free(by_token);
    free(by_position);
    free(token_gradient);
    free(position_gradient);
}

void test_embedding(void **state) {
    const size_t columns = 1600, length = 1000, rows = (beyond / columns / length + 1) * length;
    const size_t vocabulary = 5000;
    (void)state;
    if (!room_for("embedding", 2 * rows * columns + 8 * vocabulary * columns)) return;
    struct large tw = large_pattern(DTYPE_BF16, vocabulary, columns, 1);
    struct large pw = large_pattern(DTYPE_BF16, length, columns, 2);
    struct large out = large_zeros(DTYPE_BF16, rows, columns);
    struct large tg = large_zeros(DTYPE_F32, vocabulary, columns);
    struct large pg = large_zeros(DTYPE_F32, length, columns);
    struct large tokens = large_zeros(DTYPE_F32, 1, rows);
    const struct samples s = sample_rows(rows, columns);
    struct tensor os = filled_tensor(DTYPE_BF16, s.count, columns, NAN);
    int32_t *all = test_memory(rows * 4);
    for (size_t n = 0; n < rows; n++) all[n] = (int32_t)(n * 7919 % vocabulary);
    EXPECT_OK(device_upload(&gpu, tokens.there.data, all, rows * 4));
    EXPECT_OK(
        gpu.ops->embedding_forward(&gpu, &(struct embedding_forward){.out = out.there,
                                                                     .tokens = tokens.there.data,
                                                                     .token_weight = tw.there,
                                                                     .position_weight = pw.there,
                                                                     .sequence_length = length}));
    for (size_t i = 0; i < s.count; i++) { /* the sum of two rows, rounded once */
        const size_t token = (size_t)all[s.at[i]], position = s.at[i] % length;
        const struct samples t = {{token}, 1}, p = {{position}, 1};
        struct tensor a = gather(&tw, &t), b = gather(&pw, &p);
        for (size_t c = 0; c < columns; c++) {
            value_set(os, i * columns + c, value_at(a, c) + value_at(b, c));
        }
        FREE_TENSORS(&a, &b);
    }
    expect_rows("embedding", out.there, &s, os, 2 * u);
    large_free(&out);
    struct large g = large_pattern(DTYPE_BF16, rows, columns, 3);
    const struct embedding_backward k = {.token_gradient = tg.there,
                                         .position_gradient = pg.there,
                                         .out_gradient = g.there,
                                         .tokens = tokens.there.data,
                                         .sequence_length = length};
    EXPECT_OK(gpu.ops->embedding_backward(&gpu, &k));
    expect_embedding_gradient(&k, &g, all);
    free(os.data);
    free(all);
    large_free(&tw);
    large_free(&pw);
    large_free(&tg);
    large_free(&pg);
    large_free(&g);
    large_free(&tokens);
}

/* Sums of `count` numbers of the pattern and of their squares. */
static void pattern_sums(const struct large *t, double *sum, double *magnitude, double *squares) {
    const size_t count = tensor_count(t->there), whole = count / PERIOD;
    *sum = *magnitude = *squares = 0.0;
    for (size_t i = 0; i < PERIOD; i++) {
        const double x = large_at(t, i), times = (double)(whole + (i < count % PERIOD ? 1 : 0));
        *sum += times * x;
        *magnitude += times * fabs(x);
        *squares += times * x * x;
    }
}

/* One row on the CPU, all of it under one decay. */
static void update_row(struct adamw k, float decay) {
    const struct adamw_range range = {0, tensor_count(k.weights), decay};
    k.ranges = &range;
    k.range_count = 1;
    EXPECT_OK(cpu.ops->adamw(&cpu, &k));
}

/* One AdamW step; decay differs on both sides of a row beyond the middle. */
void test_update(void **state) {
    const size_t columns = 8192, rows = beyond / columns + 33, border = rows - 3;
    const size_t count = rows * columns;
    double sum, magnitude, squares;
    (void)state;
    if (!room_for("adamw", 18 * count)) return;
    struct large p = large_pattern(DTYPE_F32, rows, columns, 1);
    struct large g = large_pattern(DTYPE_F32, rows, columns, 2);
    struct large m = large_pattern(DTYPE_F32, rows, columns, 3);
    struct large v = large_fill(POSITIVE, DTYPE_F32, rows, columns, 4);
    struct large w = large_zeros(DTYPE_BF16, rows, columns);
    const struct samples s = sample_rows(rows, columns);
    struct step_state host = {.learning_rate = 0.01f,
                              .gradient_multiplier = 0.5f,
                              .loss_scale = 1.0f,
                              .updates = 4};
    struct large control = large_zeros(DTYPE_F32, 1, sizeof host / 4);
    struct step_state *there = control.there.data;
    EXPECT_OK(device_upload(&gpu, there, &host, sizeof host));
    EXPECT_OK(gpu.ops->gradient_sumsq(&gpu, there, g.there.data, count));
    EXPECT_OK(gpu.ops->loss_sum(&gpu, there, g.there.data, count));
    const struct adamw_range ranges[] = {{0, border * columns, 0.1f},
                                         {border * columns, count - border * columns, 0.3f}};
    struct adamw k = {.masters = p.there.data,
                      .moments1 = m.there.data,
                      .moments2 = v.there.data,
                      .gradients = g.there.data,
                      .weights = tensor_make(w.there.data, DTYPE_BF16, 1, count),
                      .ranges = ranges,
                      .range_count = 2,
                      .beta1 = 0.9f,
                      .beta2 = 0.95f,
                      .epsilon = 1e-8f,
                      .state = there};
    EXPECT_OK(gpu.ops->adamw(&gpu, &k));
    struct step_state got;
    EXPECT_OK(device_download(&gpu, &got, there, sizeof got));
    pattern_sums(&g, &sum, &magnitude, &squares);
    /* each in double, 2^31 roundings of 2^-53: below 2^-22 if they all went one way */
    assert_true(fabs(got.gradient_sumsq - squares) <= 1e-9 * squares);
    assert_true(fabs(got.loss_sum - sum) <= 1e-9 * magnitude);

    struct tensor ps = gather(&p, &s), gs = gather(&g, &s), ms = gather(&m, &s);
    struct tensor vs = gather(&v, &s);
    struct tensor ws = filled_tensor(DTYPE_BF16, s.count, columns, NAN);
    k.state = &host;
    for (size_t i = 0; i < s.count; i++) {
        k.masters = floats(&ps) + i * columns;
        k.gradients = floats(&gs) + i * columns;
        k.moments1 = floats(&ms) + i * columns;
        k.moments2 = floats(&vs) + i * columns;
        k.weights = tensor_make((uint16_t *)ws.data + i * columns, DTYPE_BF16, 1, columns);
        update_row(k, s.at[i] < border ? 0.1f : 0.3f);
    }
    expect_rows("masters", p.there, &s, ps, 8 * u);
    expect_rows("first moments", m.there, &s, ms, 4 * u);
    expect_rows("second moments", v.there, &s, vs, 4 * u);
    expect_rows("weights", w.there, &s, ws, 8 * u);
    FREE_TENSORS(&ps, &gs, &ms, &vs, &ws);
    large_free(&p);
    large_free(&g);
    large_free(&m);
    large_free(&v);
    large_free(&w);
    large_free(&control);
}

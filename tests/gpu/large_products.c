/* Tensors of more than 2^31 elements: GEMMs and attention. Oracle: large_test.c says. */
#include "tests/gpu/large_testing.h"

static void logits_case(const struct large *x, const struct large *w) {
    const size_t rows = x->there.rows, n = w->there.rows, k = w->there.columns;
    struct large logits = large_zeros(DTYPE_BF16, rows, n);
    const struct samples s = sample_rows(rows, n);
    struct tensor xs = gather(x, &s), made = filled_tensor(DTYPE_BF16, s.count, n, NAN);
    struct tensor ws = gather_all(w);
    const struct gemm there = {.c = logits.there,
                               .a = x->there,
                               .b = w->there,
                               .transpose_b = true};
    const struct gemm host = {.c = made, .a = xs, .b = ws, .transpose_b = true};
    EXPECT_OK(gpu.ops->gemm(&gpu, &there));
    EXPECT_OK(cpu.ops->gemm(&cpu, &host));
    expect_rows("logits", logits.there, &s, made, gemm_tolerance(DTYPE_BF16, (double)k));
    FREE_TENSORS(&xs, &made, &ws);
    large_free(&logits);
}

static void dgrad_case(const struct large *g, const struct large *w) {
    const size_t rows = g->there.rows, n = w->there.rows, k = w->there.columns;
    struct large dx = large_zeros(DTYPE_BF16, rows, k);
    const struct samples s = sample_rows(rows, n);
    struct tensor gs = gather(g, &s), made = filled_tensor(DTYPE_BF16, s.count, k, NAN);
    struct tensor ws = gather_all(w);
    EXPECT_OK(gpu.ops->gemm(&gpu, &(struct gemm){.c = dx.there, .a = g->there, .b = w->there}));
    EXPECT_OK(cpu.ops->gemm(&cpu, &(struct gemm){.c = made, .a = gs, .b = ws}));
    expect_rows("dgrad", dx.there, &s, made, gemm_tolerance(DTYPE_BF16, (double)n));
    FREE_TENSORS(&gs, &made, &ws);
    large_free(&dx);
}

static void wgrad_case(const struct large *g, const struct large *x) {
    const size_t rows = g->there.rows, n = g->there.columns, k = x->there.columns;
    struct large dw = large_zeros(DTYPE_F32, n, k);
    struct samples columns = {.count = COLUMNS};
    for (size_t i = 0; i < COLUMNS; i++) columns.at[i] = column_at(i, n);
    struct tensor gc = gather_columns(g), xs = gather_all(x);
    struct tensor made = filled_tensor(DTYPE_F32, COLUMNS, k, 0.0);
    const struct gemm there = {.c = dw.there,
                               .a = g->there,
                               .b = x->there,
                               .transpose_a = true,
                               .accumulate = true};
    const struct gemm host = {.c = made, .a = gc, .b = xs, .transpose_a = true};
    EXPECT_OK(gpu.ops->gemm(&gpu, &there));
    EXPECT_OK(cpu.ops->gemm(&cpu, &host));
    expect_rows("wgrad", dw.there, &columns, made, gemm_tolerance(DTYPE_BF16, (double)rows));
    FREE_TENSORS(&gc, &xs, &made);
    large_free(&dw);
}

/* The head's three GEMMs: c, a and a transposed a of more than 2^31 elements. */
void test_gemm(void **state) {
    const size_t n = 50304, k = 64, rows = beyond / n + 29;
    (void)state;
    if (!room_for("gemm", 2 * 2 * rows * n)) return; /* the search has operands of its own */
    struct large x = large_pattern(DTYPE_BF16, rows, k, 1), w = large_pattern(DTYPE_BF16, n, k, 2);
    logits_case(&x, &w);
    struct large g = large_pattern(DTYPE_BF16, rows, n, 3);
    dgrad_case(&g, &w);
    wgrad_case(&g, &x);
    large_free(&x);
    large_free(&w);
    large_free(&g);
}

/* One sequence against the CPU. */
static void expect_sequence(const struct attention_backward *there, const struct large *qkv,
                            const struct large *g, size_t sequence) {
    struct samples rows = {.count = 0};
    const enum dtype type = qkv->there.dtype;
    const size_t first = sequence * LENGTH;
    struct tensor q = filled_tensor(type, LENGTH, 3 * WIDTH, 0.0);
    struct tensor o = filled_tensor(type, LENGTH, WIDTH, NAN);
    struct tensor og = filled_tensor(type, LENGTH, WIDTH, 0.0);
    struct tensor qg = filled_tensor(type, LENGTH, 3 * WIDTH, NAN);
    struct tensor lse = filled_tensor(DTYPE_F32, HEADS, LENGTH, NAN);
    for (size_t i = 0; i < tensor_count(q); i++) {
        value_set(q, i, large_at(qkv, first * 3 * WIDTH + i));
    }
    for (size_t i = 0; i < tensor_count(o); i++) value_set(og, i, large_at(g, first * WIDTH + i));
    EXPECT_OK(
        cpu.ops->attention_forward(&cpu, &(struct attention_forward){.out = o,
                                                                     .log_sum_exp = lse.data,
                                                                     .qkv = q,
                                                                     .batch = 1,
                                                                     .sequence_length = LENGTH,
                                                                     .heads = HEADS}));
    EXPECT_OK(
        cpu.ops->attention_backward(&cpu, &(struct attention_backward){.qkv_gradient = qg,
                                                                       .out_gradient = og,
                                                                       .qkv = q,
                                                                       .out = o,
                                                                       .log_sum_exp = lse.data,
                                                                       .batch = 1,
                                                                       .sequence_length = LENGTH,
                                                                       .heads = HEADS}));
    /* as in ops_cases.h; out is the GPU's own there, one rounding off the CPU's in backward */
    const double format = type == DTYPE_F32 ? 0.0 : unit_roundoff(type);
    struct tensor some_o = filled_tensor(type, 3, WIDTH, 0.0);
    struct tensor some_qg = filled_tensor(type, 3, 3 * WIDTH, 0.0);
    for (size_t i = 0; i < 3; i++) {
        const size_t row = i * (LENGTH - 1) / 2, number = dtype_bytes(type);
        rows.at[rows.count++] = first + row;
        memcpy((char *)some_o.data + i * WIDTH * number, (char *)o.data + row * WIDTH * number,
               WIDTH * number);
        memcpy((char *)some_qg.data + i * 3 * WIDTH * number,
               (char *)qg.data + row * 3 * WIDTH * number, 3 * WIDTH * number);
    }
    expect_rows("attention", there->out, &rows, some_o, 128 * u + 4 * format);
    expect_rows("attention gradient", there->qkv_gradient, &rows, some_qg, 512 * u + 32 * format);
    FREE_TENSORS(&q, &o, &og, &qg, &lse, &some_o, &some_qg);
}

static void attention_case(enum dtype type) {
    const size_t batch = attention_batch(), rows = batch * LENGTH;
    if (!room_for("attention", dtype_bytes(type) * rows * 8 * WIDTH)) return;
    struct large qkv = large_pattern(type, rows, 3 * WIDTH, 1);
    struct large g = large_pattern(type, rows, WIDTH, 2);
    struct large out = large_zeros(type, rows, WIDTH);
    struct large qg = large_zeros(type, rows, 3 * WIDTH);
    struct large lse = large_zeros(DTYPE_F32, batch * HEADS, LENGTH);
    const struct attention_backward k = {.qkv_gradient = qg.there,
                                         .out_gradient = g.there,
                                         .qkv = qkv.there,
                                         .out = out.there,
                                         .log_sum_exp = lse.there.data,
                                         .batch = batch,
                                         .sequence_length = LENGTH,
                                         .heads = HEADS};
    EXPECT_OK(
        gpu.ops->attention_forward(&gpu, &(struct attention_forward){.out = out.there,
                                                                     .log_sum_exp = lse.there.data,
                                                                     .qkv = qkv.there,
                                                                     .batch = batch,
                                                                     .sequence_length = LENGTH,
                                                                     .heads = HEADS}));
    EXPECT_OK(gpu.ops->attention_backward(&gpu, &k));
    expect_sequence(&k, &qkv, &g, 0);
    expect_sequence(&k, &qkv, &g, batch / 2 + 3);
    expect_sequence(&k, &qkv, &g, batch - 1); /* the 2^31-th element lies in it */
    large_free(&qkv);
    large_free(&g);
    large_free(&out);
    large_free(&qg);
    large_free(&lse);
}

void test_attention(void **state) {
    (void)state;
    attention_case(DTYPE_BF16); /* cuDNN */
    attention_case(DTYPE_F32);  /* own kernels */
}

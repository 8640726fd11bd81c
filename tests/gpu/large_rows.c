/*
 * Tensors of more than 2^31 elements: the operations that go row by row (gelu, norm, cross entropy)
 * and the sums down their columns. Oracle: large_test.c says.
 */
#include "tests/gpu/large_testing.h"

/* gelu, its gradient and bias_backward, (N, F). */
void test_pointwise(void **state) {
    const size_t columns = 6400, rows = beyond / columns + 77;
    float sums[COLUMNS] = {0};
    (void)state;
    if (!room_for("gelu", 3 * 2 * rows * columns)) return;
    struct large x = large_pattern(DTYPE_BF16, rows, columns, 1);
    struct large g = large_pattern(DTYPE_BF16, rows, columns, 2);
    struct large out = large_zeros(DTYPE_BF16, rows, columns);
    struct large bias = large_pattern(DTYPE_BF16, 1, columns, 3);
    struct large sum = large_zeros(DTYPE_F32, 1, columns);
    const struct samples s = sample_rows(rows, columns), one = {.count = 1};
    struct tensor xs = gather(&x, &s), gs = gather(&g, &s), bs = gather(&bias, &one);
    struct tensor xc = gather_columns(&x), gc = gather_columns(&g), bc = gather_columns(&bias);
    struct tensor made = filled_tensor(DTYPE_BF16, s.count, columns, NAN);
    float *row_sums = test_memory(columns * sizeof *row_sums); /* of the samples: not compared */
    const double root = sqrt((double)rows);

    EXPECT_OK(gpu.ops->bias_backward(&gpu, &(struct bias_backward){.bias_gradient = sum.there.data,
                                                                   .out_gradient = g.there}));
    EXPECT_OK(cpu.ops->bias_backward(&cpu, &(struct bias_backward){.bias_gradient = sums,
                                                                   .out_gradient = gc}));
    expect_columns("bias gradient", sum.there, sums, 512 * u * root);

    EXPECT_OK(gpu.ops->gelu_forward(&gpu, &(struct gelu_forward){.out = out.there,
                                                                 .x = x.there,
                                                                 .bias = bias.there}));
    EXPECT_OK(
        cpu.ops->gelu_forward(&cpu, &(struct gelu_forward){.out = made, .x = xs, .bias = bs}));
    expect_rows("gelu", out.there, &s, made, 64 * u);

    struct gelu_backward k = {.x_gradient = g.there,
                              .out_gradient = g.there,
                              .x = x.there,
                              .bias = bias.there,
                              .bias_gradient = sum.there.data};
    EXPECT_OK(gpu.ops->gelu_backward(&gpu, &k));
    k = (struct gelu_backward){.x_gradient = made,
                               .out_gradient = gs,
                               .x = xs,
                               .bias = bs,
                               .bias_gradient = row_sums};
    EXPECT_OK(cpu.ops->gelu_backward(&cpu, &k));
    expect_rows("gelu gradient", g.there, &s, made, 128 * u);
    k = (struct gelu_backward){.x_gradient = gc,
                               .out_gradient = gc,
                               .x = xc,
                               .bias = bc,
                               .bias_gradient = sums};
    EXPECT_OK(cpu.ops->gelu_backward(&cpu, &k));
    expect_columns("gelu bias gradient", sum.there, sums, 1024 * u * root);
    FREE_TENSORS(&xs, &gs, &bs, &xc, &gc, &bc, &made);
    free(row_sums);
    large_free(&x);
    large_free(&g);
    large_free(&out);
    large_free(&bias);
    large_free(&sum);
}

/* The norm with residual and bias, forward. */
static void norm_forward_case(const struct norm_forward *f, const struct large *in,
                              const struct large *delta, const struct large vectors[3],
                              const struct samples *s, struct tensor *residual) {
    const struct samples one = {.count = 1};
    const size_t columns = in->there.columns;
    struct tensor is = gather(in, s), ds = gather(delta, s),
                  out = filled_tensor(DTYPE_BF16, s->count, columns, NAN);
    struct tensor v[3];
    float mean[SAMPLES_MAX], rstd[SAMPLES_MAX];
    for (size_t i = 0; i < 3; i++) v[i] = gather(&vectors[i], &one);
    *residual = filled_tensor(DTYPE_BF16, s->count, columns, NAN);
    EXPECT_OK(gpu.ops->norm_forward(&gpu, f));
    EXPECT_OK(cpu.ops->norm_forward(&cpu, &(struct norm_forward){.out = out,
                                                                 .residual = *residual,
                                                                 .residual_in = is,
                                                                 .delta = &ds,
                                                                 .delta_bias = &v[0],
                                                                 .weight = v[1],
                                                                 .bias = v[2],
                                                                 .mean = mean,
                                                                 .rstd = rstd}));
    expect_rows("residual", f->residual, s, *residual, 4 * u);
    expect_rows("norm", f->out, s, out, 32 * u * sqrt((double)columns));
    FREE_TENSORS(&is, &ds, &out, &v[0], &v[1], &v[2]);
}

/* Column sums of the norm's gradient from the statistics that forward stored (checked through its
 * output) and the pattern, in double. */
static void norm_sums(const struct norm_backward *k, const struct large *in,
                      const struct large *delta, const struct large *delta_bias,
                      const struct large *gradient, float weight[COLUMNS], float bias[COLUMNS]) {
    const size_t rows = in->there.rows;
    float *mean = test_memory(rows * 4), *rstd = test_memory(rows * 4);
    struct tensor x = gather_columns(in), d = gather_columns(delta), b = gather_columns(delta_bias);
    struct tensor g = gather_columns(gradient);
    EXPECT_OK(device_download(&gpu, mean, k->mean, rows * 4));
    EXPECT_OK(device_download(&gpu, rstd, k->rstd, rows * 4));
    for (size_t i = 0; i < COLUMNS; i++) {
        double weight_sum = 0.0, bias_sum = 0.0;
        for (size_t n = 0; n < rows; n++) {
            const size_t at = n * COLUMNS + i;
            value_set(x, at, value_at(x, at) + value_at(d, at) + value_at(b, i));
            const double normal = (value_at(x, at) - (double)mean[n]) * (double)rstd[n];
            weight_sum += value_at(g, at) * normal;
            bias_sum += value_at(g, at);
        }
        weight[i] = (float)weight_sum;
        bias[i] = (float)bias_sum;
    }
    FREE_TENSORS(&x, &d, &b, &g);
    free(mean);
    free(rstd);
}

void test_norm(void **state) {
    const size_t columns = 1600, rows = beyond / columns + 77, bytes = 2 * rows * columns;
    float weight[COLUMNS], bias[COLUMNS], mean[SAMPLES_MAX], rstd[SAMPLES_MAX];
    (void)state;
    if (!room_for("norm", 5 * bytes)) return;
    struct large in = large_pattern(DTYPE_BF16, rows, columns, 1);
    struct large delta = large_pattern(DTYPE_BF16, rows, columns, 2), vectors[3], sums[2], stats[2];
    struct large out = large_zeros(DTYPE_BF16, rows, columns);
    struct large residual = large_zeros(DTYPE_BF16, rows, columns);
    for (size_t i = 0; i < 3; i++) vectors[i] = large_pattern(DTYPE_BF16, 1, columns, 3 + i);
    for (size_t i = 0; i < 2; i++) sums[i] = large_zeros(DTYPE_F32, 1, columns);
    for (size_t i = 0; i < 2; i++) stats[i] = large_zeros(DTYPE_F32, 1, rows);
    const struct samples s = sample_rows(rows, columns), one = {.count = 1};
    struct tensor rs;
    const struct norm_forward f = {.out = out.there,
                                   .residual = residual.there,
                                   .residual_in = in.there,
                                   .delta = &delta.there,
                                   .delta_bias = &vectors[0].there,
                                   .weight = vectors[1].there,
                                   .bias = vectors[2].there,
                                   .mean = stats[0].there.data,
                                   .rstd = stats[1].there.data};
    norm_forward_case(&f, &in, &delta, vectors, &s, &rs);
    large_free(&out);

    struct large g = large_pattern(DTYPE_BF16, rows, columns, 7);
    struct norm_backward k = {.residual_gradient = in.there,
                              .out_gradient = g.there,
                              .residual = residual.there,
                              .weight = vectors[1].there,
                              .mean = f.mean,
                              .rstd = f.rstd,
                              .weight_gradient = sums[0].there.data,
                              .bias_gradient = sums[1].there.data};
    EXPECT_OK(gpu.ops->norm_backward(&gpu, &k));
    norm_sums(&k, &in, &delta, &vectors[0], &g, weight, bias);
    const double root = sqrt((double)rows);
    expect_columns("norm weight gradient", sums[0].there, weight, 1024 * u * root);
    expect_columns("norm bias gradient", sums[1].there, bias, 512 * u * root);

    struct tensor is = gather(&in, &s), gs = gather(&g, &s), ws = gather(&vectors[1], &one);
    float *unused = test_memory(2 * columns * sizeof *unused);
    for (size_t i = 0; i < s.count; i++) {
        EXPECT_OK(device_download(&gpu, &mean[i], f.mean + s.at[i], 4));
        EXPECT_OK(device_download(&gpu, &rstd[i], f.rstd + s.at[i], 4));
    }
    k = (struct norm_backward){.residual_gradient = is,
                               .out_gradient = gs,
                               .residual = rs,
                               .weight = ws,
                               .mean = mean,
                               .rstd = rstd,
                               .weight_gradient = unused,
                               .bias_gradient = unused + columns};
    EXPECT_OK(cpu.ops->norm_backward(&cpu, &k));
    expect_rows("norm gradient", in.there, &s, is, 96 * u * sqrt((double)columns));
    FREE_TENSORS(&is, &gs, &ws, &rs);
    free(unused);
    for (size_t i = 0; i < 3; i++) large_free(&vectors[i]);
    for (size_t i = 0; i < 2; i++) large_free(&sums[i]);
    for (size_t i = 0; i < 2; i++) large_free(&stats[i]);
    large_free(&in);
    large_free(&delta);
    large_free(&residual);
    large_free(&g);
}

void test_cross_entropy(void **state) {
    const size_t vocabulary = 50257, columns = 50304, rows = beyond / columns + 29;
    (void)state;
    if (!room_for("cross_entropy", 2 * rows * columns)) return;
    struct large x = large_pattern(DTYPE_BF16, rows, columns, 1);
    struct large targets = large_zeros(DTYPE_F32, 1, rows),
                 losses = large_zeros(DTYPE_F32, rows, 1);
    const struct samples s = sample_rows(rows, columns);
    struct tensor xs = gather(&x, &s);
    struct tensor ls = filled_tensor(DTYPE_F32, s.count, 1, NAN);
    struct pair scale = pair_of(filled_tensor(DTYPE_F32, 1, 1, 8.0));
    int32_t *all = test_memory(rows * 4), some[SAMPLES_MAX];
    for (size_t n = 0; n < rows; n++) all[n] = (int32_t)(n * 7919 % vocabulary);
    for (size_t i = 0; i < s.count; i++) some[i] = all[s.at[i]];
    EXPECT_OK(device_upload(&gpu, targets.there.data, all, rows * 4));
    struct cross_entropy k = {.logits = x.there,
                              .targets = targets.there.data,
                              .losses = losses.there.data,
                              .vocabulary = vocabulary,
                              .write_gradient = true,
                              .gradient_scale = 0.25f,
                              .loss_scale = scale.there.data};
    EXPECT_OK(gpu.ops->cross_entropy(&gpu, &k));
    k = (struct cross_entropy){.logits = xs,
                               .targets = some,
                               .losses = ls.data,
                               .vocabulary = vocabulary,
                               .write_gradient = true,
                               .gradient_scale = 0.25f,
                               .loss_scale = scale.host.data};
    EXPECT_OK(cpu.ops->cross_entropy(&cpu, &k));
    expect_rows("losses", losses.there, &s, ls, 128 * u);
    expect_rows("logits' gradient", x.there, &s, xs, 2 * 128 * u);
    FREE_TENSORS(&xs, &ls);
    FREE_PAIRS(&scale);
    free(all);
    large_free(&x);
    large_free(&targets);
    large_free(&losses);
}

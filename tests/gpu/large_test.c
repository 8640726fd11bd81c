/*
 * The operations of kernels/cuda on tensors of more than 2^31 elements, where an index of 32 bits
 * goes wrong. Oracle: kernels/cpu on sampled rows alone (the first, the last, those about the
 * 2^31-th element, random ones); sums down the columns against kernels/cpu on sampled columns;
 * sums of everything against sums of the pattern.
 *
 * Operands repeat one pattern of random numbers whose period divides no power of two, so that an
 * index that lost its upper bits finds other numbers, and the host knows every element without
 * keeping any. A case that the GPU has too little memory for says so and is skipped.
 */
#include "tests/gpu/gpu_testing.h"

static const double u = 0x1p-24;

/* 8 times a prime: 2^31 and 2^32 leave remainders, and slices stay aligned to 16 bytes. */
enum { PERIOD = 8 * 131071, SHIFT_STEP = 8 * 9973, SAMPLES_MAX = 16, COLUMNS = 3 };
static const size_t beyond = (size_t)1 << 31;

/* FP32 numbers, two periods on each side: normal ones, and for second moments 0.5 and more. */
enum { NORMAL, POSITIVE, PATTERNS };
static struct pair patterns[PATTERNS]; /* (1, 2 PERIOD) */

/* A tensor in GPU memory; element i is the pattern's (shift + i) % PERIOD-th, rounded. */
struct large {
    struct tensor there;
    size_t shift;
    int pattern;
};

static bool room_for(const char *what, size_t bytes) {
    if (bytes <= gpu.memory_bytes - size_min(gpu.memory_bytes, gpu.scratch_bytes)) return true;
    printf("skipped: %s needs %.1f GB of GPU memory, %.1f are free\n", what, (double)bytes * 1e-9,
           (double)gpu.memory_bytes * 1e-9);
    return false;
}

static struct large large_zeros(enum dtype type, size_t rows, size_t columns) {
    struct large t = {.there = tensor_make(NULL, type, rows, columns)};
    t.there.data = gpu_memory(tensor_bytes(t.there));
    return t;
}

static struct large large_fill(int kind, enum dtype type, size_t rows, size_t columns, size_t key) {
    struct large t = large_zeros(type, rows, columns);
    float *from_there = patterns[kind].there.data;
    const size_t count = tensor_count(t.there), number = dtype_bytes(type);
    t.shift = key * SHIFT_STEP % PERIOD;
    t.pattern = kind;
    for (size_t first = 0; first < count; first += PERIOD) {
        const size_t part = size_min(PERIOD, count - first);
        const struct tensor from = tensor_make(from_there + t.shift, DTYPE_F32, 1, part);
        const struct tensor to = tensor_make((char *)t.there.data + first * number, type, 1, part);
        EXPECT_OK(gpu.ops->convert(&gpu, to, from));
    }
    return t;
}

static struct large large_pattern(enum dtype type, size_t rows, size_t columns, size_t key) {
    return large_fill(NORMAL, type, rows, columns, key);
}

static void large_free(struct large *t) {
    device_release(&gpu, t->there.data, tensor_bytes(t->there));
}

static double large_at(const struct large *t, size_t i) {
    return (double)floats(&patterns[t->pattern].host)[(t->shift + i % PERIOD) % PERIOD];
}

/* Rows of the samples, in order, each once. */
struct samples {
    size_t at[SAMPLES_MAX], count;
};

static void add_sample(struct samples *s, size_t row, size_t rows) {
    if (row >= rows) return;
    for (size_t i = 0; i < s->count; i++) {
        if (s->at[i] == row) return;
    }
    s->at[s->count++] = row;
}

static struct samples sample_rows(size_t rows, size_t columns) {
    const size_t middle = beyond / columns;
    const size_t fixed[] = {0, middle - 1, middle, middle + 1, rows - 2, rows - 1};
    struct samples s = {.count = 0};
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++) add_sample(&s, fixed[i], rows);
    for (size_t i = 0; i < 6; i++) {
        add_sample(&s, (size_t)(random_uniform(3, RANDOM_TEST, i) * (float)rows), rows);
    }
    return s;
}

/* The samples' rows on the host, as the pattern says they are. */
static struct tensor gather(const struct large *t, const struct samples *s) {
    const size_t columns = t->there.columns;
    struct tensor rows = filled_tensor(t->there.dtype, s->count, columns, 0.0);
    for (size_t i = 0; i < s->count; i++) {
        for (size_t c = 0; c < columns; c++) {
            value_set(rows, i * columns + c, large_at(t, s->at[i] * columns + c));
        }
    }
    return rows;
}

/* All of it on the host. */
static struct tensor gather_all(const struct large *t) {
    struct tensor all = filled_tensor(t->there.dtype, t->there.rows, t->there.columns, 0.0);
    for (size_t i = 0; i < tensor_count(all); i++) value_set(all, i, large_at(t, i));
    return all;
}

/* Columns 0, the middle one and the last, whole. */
static size_t column_at(size_t i, size_t columns) { return i * (columns - 1) / (COLUMNS - 1); }

static struct tensor gather_columns(const struct large *t) {
    const size_t columns = t->there.columns;
    struct tensor some = filled_tensor(t->there.dtype, t->there.rows, COLUMNS, 0.0);
    for (size_t n = 0; n < t->there.rows; n++) {
        for (size_t i = 0; i < COLUMNS; i++) {
            value_set(some, n * COLUMNS + i, large_at(t, n * columns + column_at(i, columns)));
        }
    }
    return some;
}

/* The samples' rows of what the GPU made, against `expected` (samples, columns). */
static void expect_rows(const char *what, struct tensor there, const struct samples *s,
                        struct tensor expected, double absolute) {
    const size_t bytes = there.columns * dtype_bytes(there.dtype);
    struct tensor row = tensor_make(test_memory(bytes), there.dtype, 1, there.columns);
    struct comparison c = {.what = what};
    for (size_t i = 0; i < s->count; i++) {
        const char *from = (const char *)there.data + s->at[i] * bytes;
        EXPECT_OK(device_download(&gpu, row.data, from, bytes));
        for (size_t k = 0; k < there.columns; k++) {
            const double wanted = value_at(expected, i * there.columns + k);
            const double rounding = 2.0 * tolerance_of(there.dtype, wanted, absolute);
            compare(&c, s->at[i] * there.columns + k, value_at(row, k), wanted,
                    absolute + rounding);
        }
    }
    compare_end(&c);
    free(row.data);
}

/* A vector over columns that the GPU made, at the sampled columns. A column repeats its part of the
 * pattern up to ten times, so a sum of N numbers of order 1 is some sqrt(10 N); up to 1024 parts of
 * it are added in FP32, at u of it each: 100 sqrt(N) u, and callers allow five times that (an index
 * that wraps is off by some sqrt(N)). */
static void expect_columns(const char *what, struct tensor there, const float *expected,
                           double absolute) {
    float *got = test_memory(tensor_bytes(there));
    struct comparison c = {.what = what};
    EXPECT_OK(device_download(&gpu, got, there.data, tensor_bytes(there)));
    for (size_t i = 0; i < COLUMNS; i++) {
        const size_t at = column_at(i, there.columns);
        compare(&c, at, (double)got[at], (double)expected[i],
                absolute + 2 * u * fabs((double)expected[i]));
    }
    compare_end(&c);
    free(got);
}

/* gelu, its gradient and bias_backward, (N, F). */
static void test_pointwise(void **state) {
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

static void test_norm(void **state) {
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

static void test_cross_entropy(void **state) {
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

/* FP32 to BF16 is one rounding: bit equal; and a NaN beyond 2^31 is found where it lies. */
static void test_convert_and_find(void **state) {
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

static void test_embedding(void **state) {
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
static void test_update(void **state) {
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
static void test_gemm(void **state) {
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

enum { LENGTH = 1024, HEADS = 25, HEAD_WIDTH = 64, WIDTH = HEADS * HEAD_WIDTH };

static size_t attention_batch(void) { return beyond / (3 * WIDTH) / LENGTH + 1; }

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

static void test_attention(void **state) {
    (void)state;
    attention_case(DTYPE_BF16); /* cuDNN */
    attention_case(DTYPE_F32);  /* own kernels */
}

static void make_patterns(void) {
    for (int kind = 0; kind < PATTERNS; kind++) {
        struct tensor host = filled_tensor(DTYPE_F32, 1, 2 * PERIOD, 0.0);
        float *x = host.data;
        for (size_t i = 0; i < PERIOD; i++) {
            const float normal = random_normal(5, RANDOM_TEST, i);
            x[i] = x[PERIOD + i] = kind == NORMAL ? normal : 0.5f + fabsf(normal);
        }
        patterns[kind] = pair_of(host);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pointwise),     cmocka_unit_test(test_norm),
        cmocka_unit_test(test_cross_entropy), cmocka_unit_test(test_convert_and_find),
        cmocka_unit_test(test_embedding),     cmocka_unit_test(test_update),
        cmocka_unit_test(test_gemm),          cmocka_unit_test(test_attention),
    };
    const size_t rows = attention_batch() * LENGTH;
    const struct op_limits limits[] = {
        {.tokens = beyond / 1600 + 1024,
         .width = 6400,
         .sequence_length = LENGTH,
         .heads = 1,
         .head_width = HEAD_WIDTH,
         .dtype = DTYPE_F32},
        {.tokens = rows,
         .width = 6400,
         .sequence_length = LENGTH,
         .heads = HEADS,
         .head_width = HEAD_WIDTH,
         .dtype = DTYPE_BF16},
    };
    const struct device_options options = {.gemm_effort = GEMM_EFFORT_OFF};
    if (!devices_open(&options, limits, sizeof limits / sizeof limits[0])) return 0;
    make_patterns();
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    FREE_PAIRS(&patterns[NORMAL], &patterns[POSITIVE]);
    devices_close();
    return failed;
}

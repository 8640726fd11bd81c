/*
 * One case of every operation: kernels/cuda against kernels/cpu from the same random numbers.
 * ops_test.c runs them on shapes that find errors, race_test.c on tiny ones under a sanitizer.
 *
 * Tolerances: u = 2^-24; a sum of K terms of order 1 in another order differs by some sqrt(K) u;
 * what an operation needs beyond that stands beside its `absolute`.
 */
#ifndef DEEPWELL_TESTS_GPU_OPS_CASES_H_
#define DEEPWELL_TESTS_GPU_OPS_CASES_H_

#include "tests/gpu/gpu_testing.h"

static const double u = 0x1p-24;

struct shape {
    size_t rows, columns;
};

/* Runs the operation on both devices. */
#define ON_BOTH(name, cpu_args, gpu_args)         \
    do {                                          \
        EXPECT_OK(cpu.ops->name(&cpu, cpu_args)); \
        EXPECT_OK(gpu.ops->name(&gpu, gpu_args)); \
        EXPECT_OK(device_wait(&gpu));             \
    } while (0)

struct norm_pairs {
    enum dtype type;
    const struct shape *s;
    bool delta, overwrite, accumulate;
    struct pair in, d, db, w, b, out, res, mean, rstd;
};

#define AT(p) (i == 0 ? (p).host : (p).there)

static inline void norm_forward_case(struct norm_pairs *p) {
    const struct tensor *const ds[2] = {&p->d.host, &p->d.there};
    const struct tensor *const dbs[2] = {&p->db.host, &p->db.there};
    struct norm_forward f[2];
    for (int i = 0; i < 2; i++) {
        f[i] = (struct norm_forward){
            .out = AT(p->out),
            .residual = AT(p->res),
            .residual_in = AT(p->in),
            .delta = p->delta ? ds[i] : NULL,
            .delta_bias = p->delta ? dbs[i] : NULL,
            .weight = AT(p->w),
            .bias = AT(p->b),
            .mean = AT(p->mean).data,
            .rstd = AT(p->rstd).data,
        };
    }
    ON_BOTH(norm_forward, &f[0], &f[1]);
    if (p->delta) expect_same("residual", &p->res, 4 * u);
    const double root = sqrt((double)p->s->columns);
    expect_same("mean", &p->mean, root * u * 2);
    /* rstd of a row of one number is 1 / sqrt(eps): its last bits amplify nothing else */
    expect_same("rstd", &p->rstd, root * u * 8 + (p->s->columns == 1 ? 1e-4 : 0.0));
    expect_same("norm out", &p->out, root * u * 32);
}

static inline void norm_backward_case(struct norm_pairs *p) {
    const size_t rows = p->s->rows, columns = p->s->columns;
    struct pair g = pair_random(p->type, rows, columns, 6, 0.0, 1.0);
    struct pair rg = p->overwrite ? pair_poison(p->type, rows, columns)
                                  : pair_random(p->type, rows, columns, 7, 0.0, 1.0);
    struct pair sums[3];
    for (int i = 0; i < 3; i++) {
        sums[i] = p->accumulate ? pair_random(DTYPE_F32, 1, columns, 8 + (uint64_t)i, 0.0, 1.0)
                                : pair_poison(DTYPE_F32, 1, columns);
    }
    struct norm_backward k[2];
    for (int i = 0; i < 2; i++) {
        k[i] = (struct norm_backward){
            .residual_gradient = AT(rg),
            .out_gradient = AT(g),
            .residual = p->delta ? AT(p->res) : AT(p->in),
            .weight = AT(p->w),
            .mean = AT(p->mean).data,
            .rstd = AT(p->rstd).data,
            .weight_gradient = AT(sums[0]).data,
            .bias_gradient = AT(sums[1]).data,
            .delta_bias_gradient = p->delta ? AT(sums[2]).data : NULL,
            .overwrite_residual_gradient = p->overwrite,
            .accumulate = p->accumulate,
        };
    }
    ON_BOTH(norm_backward, &k[0], &k[1]);
    /* rstd is below 3 where a row has many numbers; a single one has 1 / sqrt(eps) = 316 */
    const double scale = columns == 1 ? 1000.0 : 3.0;
    const double root = sqrt((double)columns), root_rows = sqrt((double)rows);
    expect_same("residual gradient", &rg, root * u * 32 * scale);
    expect_same("weight gradient", &sums[0], (root + 16 * root_rows) * u * 16 * scale);
    expect_same("bias gradient", &sums[1], root_rows * 16 * u * 4);
    if (p->delta) {
        expect_same("delta bias gradient", &sums[2], (root + 16 * root_rows) * u * 32 * scale);
    }
    FREE_PAIRS(&g, &rg, &sums[0], &sums[1], &sums[2]);
}

static inline void norm_case(enum dtype type, const struct shape *s, bool delta, bool overwrite,
                             bool accumulate) {
    struct norm_pairs p = {
        .type = type,
        .s = s,
        .delta = delta,
        .overwrite = overwrite,
        .accumulate = accumulate,
        .in = pair_random(type, s->rows, s->columns, 1, 0.3, 1.0),
        .d = pair_random(type, s->rows, s->columns, 2, 0.0, 1.0),
        .db = pair_random(type, 1, s->columns, 3, 0.0, 0.5),
        .w = pair_random(type, 1, s->columns, 4, 1.0, 0.2),
        .b = pair_random(type, 1, s->columns, 5, 0.0, 0.2),
        .out = pair_poison(type, s->rows, s->columns),
        .res = pair_poison(type, s->rows, s->columns),
        .mean = pair_poison(DTYPE_F32, 1, s->rows),
        .rstd = pair_poison(DTYPE_F32, 1, s->rows),
    };
    norm_forward_case(&p);
    norm_backward_case(&p);
    FREE_PAIRS(&p.in, &p.d, &p.db, &p.w, &p.b, &p.out, &p.res, &p.mean, &p.rstd);
}

static inline void gelu_case(enum dtype type, const struct shape *s, bool accumulate) {
    struct pair x = pair_random(type, s->rows, s->columns, 1, 0.0, 3.0);
    struct pair b = pair_random(type, 1, s->columns, 2, 0.0, 1.0);
    struct pair out = pair_poison(type, s->rows, s->columns);
    struct pair g = pair_random(type, s->rows, s->columns, 3, 0.0, 1.0);
    struct pair sum = pair_random(DTYPE_F32, 1, s->columns, 4, 0.0, 1.0);
    struct gelu_forward f[2];
    struct gelu_backward k[2];
    for (int i = 0; i < 2; i++) {
        f[i] = (struct gelu_forward){.out = AT(out), .x = AT(x), .bias = AT(b)};
        k[i] = (struct gelu_backward){.x_gradient = AT(g),
                                      .out_gradient = AT(g),
                                      .x = AT(x),
                                      .bias = AT(b),
                                      .bias_gradient = AT(sum).data,
                                      .accumulate = accumulate};
    }
    ON_BOTH(gelu_forward, &f[0], &f[1]);
    expect_same("gelu", &out, 64 * u); /* the fast exponential: 2 units, times |2 z| up to 20 */
    ON_BOTH(gelu_backward, &k[0], &k[1]);
    expect_same("gelu gradient", &g, 128 * u);
    expect_same("gelu bias gradient", &sum, 512 * u * sqrt((double)s->rows));
    FREE_PAIRS(&x, &b, &out, &g, &sum);
}

static inline void bias_case(enum dtype type, const struct shape *s, bool accumulate) {
    struct pair g = pair_random(type, s->rows, s->columns, 3, 0.0, 1.0);
    struct pair sum = accumulate ? pair_random(DTYPE_F32, 1, s->columns, 4, 0.0, 1.0)
                                 : pair_poison(DTYPE_F32, 1, s->columns);
    struct bias_backward k[2];
    for (int i = 0; i < 2; i++) {
        k[i] = (struct bias_backward){.bias_gradient = AT(sum).data,
                                      .out_gradient = AT(g),
                                      .accumulate = accumulate};
    }
    ON_BOTH(bias_backward, &k[0], &k[1]);
    expect_same("bias gradient", &sum, 16 * u * sqrt((double)s->rows) * 4);
    FREE_PAIRS(&g, &sum);
}

static inline void cross_entropy_case(enum dtype type, size_t rows, size_t columns,
                                      size_t vocabulary) {
    struct pair x = pair_random(type, rows, columns, 5, 0.0, 4.0);
    struct pair losses = pair_poison(DTYPE_F32, 1, rows);
    struct pair scale = pair_of(filled_tensor(DTYPE_F32, 1, 1, 8.0));
    struct pair targets = pair_poison(DTYPE_F32, 1, rows);
    int32_t *host = targets.host.data;
    for (size_t i = 0; i < rows; i++) {
        host[i] = i % 5 == 4 ? -1 : (int32_t)(i * 7919 % vocabulary);
    }
    EXPECT_OK(device_upload(&gpu, targets.there.data, host, rows * 4));
    struct cross_entropy k[2];
    for (int i = 0; i < 2; i++) {
        k[i] = (struct cross_entropy){.logits = AT(x),
                                      .targets = AT(targets).data,
                                      .losses = AT(losses).data,
                                      .vocabulary = vocabulary,
                                      .write_gradient = true,
                                      .gradient_scale = 0.25f,
                                      .loss_scale = AT(scale).data};
    }
    for (int gradient = 0; gradient < 2; gradient++) {
        k[0].write_gradient = k[1].write_gradient = gradient == 1;
        ON_BOTH(cross_entropy, &k[0], &k[1]);
        /* each exponential is off by some |x| u, x up to 40 below the top */
        expect_same("losses", &losses, 128 * u);
    }
    expect_same("logits' gradient", &x, 2 * 128 * u);
    FREE_PAIRS(&x, &losses, &scale, &targets);
}

/* Tokens of so many kinds; in the gradient they meet in runs of every length. */
static inline void embedding_case(enum dtype type, size_t kinds, size_t columns, size_t batch,
                                  bool accumulate) {
    const size_t length = 61, rows = batch * length;
    struct pair tw = pair_random(type, 1000, columns, 1, 0.0, 1.0);
    struct pair pw = pair_random(type, 80, columns, 2, 0.0, 1.0);
    struct pair out = pair_poison(type, rows, columns);
    struct pair g = pair_random(type, rows, columns, 3, 0.0, 1.0);
    struct pair tg = pair_random(DTYPE_F32, 1000, columns, 4, 0.0, 1.0);
    struct pair pg = !accumulate ? pair_poison(DTYPE_F32, 80, columns)
                                 : pair_random(DTYPE_F32, 80, columns, 5, 0.0, 1.0);
    struct pair tokens = pair_poison(DTYPE_F32, 1, rows);
    int32_t *host = tokens.host.data;
    for (size_t i = 0; i < rows; i++) {
        host[i] = (int32_t)((size_t)(random_uniform(9, RANDOM_TEST, i) * (float)kinds) * 37 % 1000);
    }
    EXPECT_OK(device_upload(&gpu, tokens.there.data, host, rows * 4));
    struct embedding_forward f[2];
    struct embedding_backward k[2];
    for (int i = 0; i < 2; i++) {
        f[i] = (struct embedding_forward){.out = AT(out),
                                          .tokens = AT(tokens).data,
                                          .token_weight = AT(tw),
                                          .position_weight = AT(pw),
                                          .sequence_length = length,
                                          .first_position = 11};
        k[i] = (struct embedding_backward){.token_gradient = AT(tg),
                                           .position_gradient = AT(pg),
                                           .out_gradient = AT(g),
                                           .tokens = AT(tokens).data,
                                           .sequence_length = length,
                                           .accumulate = accumulate};
    }
    ON_BOTH(embedding_forward, &f[0], &f[1]);
    expect_same("embedding", &out, 2 * u);
    ON_BOTH(embedding_backward, &k[0], &k[1]);
    expect_same("token gradient", &tg, 32 * u * sqrt((double)rows));
    expect_same("position gradient", &pg, 32 * u);
    FREE_PAIRS(&tw, &pw, &out, &g, &tg, &pg, &tokens);
}

static inline void gemm_case(enum dtype type, enum dtype result, size_t m, size_t n, size_t k,
                             int how) {
    const bool ta = how & 1, tb = how & 2, accumulate = how & 4;
    struct pair a = pair_random(type, ta ? k : m, ta ? m : k, 1, 0.0, 1.0);
    struct pair b = pair_random(type, tb ? n : k, tb ? k : n, 2, 0.0, 1.0);
    struct pair c = accumulate ? pair_random(result, m, n, 3, 0.0, 1.0) : pair_poison(result, m, n);
    struct pair bias = pair_random(result, 1, n, 4, 0.0, 1.0);
    const bool biased = (how & 8) && (type == result);
    struct gemm g[2];
    for (int i = 0; i < 2; i++) {
        g[i] = (struct gemm){.c = AT(c),
                             .a = AT(a),
                             .b = AT(b),
                             .transpose_a = ta,
                             .transpose_b = tb,
                             .accumulate = accumulate,
                             .bias = !biased  ? NULL
                                     : i == 0 ? &bias.host
                                              : &bias.there};
    }
    ON_BOTH(gemm, &g[0], &g[1]);
    /* a product may be rounded to c's format before it is added to what c holds */
    const bool rounded = accumulate && result != DTYPE_F32;
    const double twice = rounded ? 8 * sqrt((double)k) * unit_roundoff(result) : 0.0;
    expect_same("gemm", &c, gemm_tolerance(type, (double)k) + twice);
    FREE_PAIRS(&a, &b, &c, &bias);
}

static inline void attention_case(enum dtype type, size_t batch, size_t length, size_t heads,
                                  size_t width) {
    const size_t c = heads * width, rows = batch * length;
    struct pair qkv = pair_random(type, rows, 3 * c, 1, 0.0, 1.0);
    struct pair out = pair_poison(type, rows, c),
                lse = pair_poison(DTYPE_F32, batch * heads, length);
    struct pair g = pair_random(type, rows, c, 2, 0.0, 1.0), qg = pair_poison(type, rows, 3 * c);
    struct attention_forward f[2];
    struct attention_backward k[2];
    for (int i = 0; i < 2; i++) {
        f[i] = (struct attention_forward){.out = AT(out),
                                          .log_sum_exp = AT(lse).data,
                                          .qkv = AT(qkv),
                                          .batch = batch,
                                          .sequence_length = length,
                                          .heads = heads};
        k[i] = (struct attention_backward){.qkv_gradient = AT(qg),
                                           .out_gradient = AT(g),
                                           .qkv = AT(qkv),
                                           .out = AT(out),
                                           .log_sum_exp = AT(lse).data,
                                           .batch = batch,
                                           .sequence_length = length,
                                           .heads = heads};
    }
    ON_BOTH(attention_forward, &f[0], &f[1]);
    /* tests/kernels/attention_test.c: 128 u and 512 u; cuDNN rounds probabilities, and in
     * backward their gradients, to the format before it multiplies them: of values of order 1,
     * some 8 roundoffs */
    const double format = type == DTYPE_F32 ? 0.0 : unit_roundoff(type);
    expect_same("log sum exp", &lse, 64 * u);
    expect_same("attention", &out, 128 * u + 4 * format);
    EXPECT_OK(device_upload(&gpu, out.there.data, out.host.data, tensor_bytes(out.host)));
    ON_BOTH(attention_backward, &k[0], &k[1]);
    expect_same("attention gradient", &qg, 512 * u + 16 * format);
    FREE_PAIRS(&qkv, &out, &lse, &g, &qg);
}

/* Sums over ranks are added one after the other on both: the same bits. Squares within a block are
 * not: 2^-40. */
static inline void parts_case(enum dtype type, size_t count) {
    enum { PARTS = 3, BLOCKS = 5 };
    for (int accumulate = 0; accumulate <= 1; accumulate++) {
        struct pair parts = pair_random(type, PARTS, count, 1, 0.0, 1.0);
        struct pair sum = pair_random(DTYPE_F32, 1, count, 2, 0.0, 1.0);
        EXPECT_OK(cpu.ops->sum_parts(&cpu, sum.host.data, parts.host, accumulate != 0));
        EXPECT_OK(gpu.ops->sum_parts(&gpu, sum.there.data, parts.there, accumulate != 0));
        expect_same("sum of parts", &sum, 0.0);
        FREE_PAIRS(&parts, &sum);
    }
    struct pair x = pair_random(DTYPE_F32, BLOCKS, SUMSQ_BLOCK, 3, 0.0, 1.0);
    struct pair sums = pair_poison(DTYPE_F32, 1, 2 * BLOCKS); /* doubles */
    struct pair control = pair_poison(DTYPE_F32, 1, (sizeof(struct step_state) + 3) / 4);
    struct step_state got, *host = control.host.data;
    EXPECT_OK(cpu.ops->block_sumsq(&cpu, sums.host.data, x.host.data, BLOCKS * SUMSQ_BLOCK));
    EXPECT_OK(gpu.ops->block_sumsq(&gpu, sums.there.data, x.there.data, BLOCKS * SUMSQ_BLOCK));
    EXPECT_OK(cpu.ops->total_sumsq(&cpu, host, sums.host.data, BLOCKS));
    EXPECT_OK(gpu.ops->total_sumsq(&gpu, control.there.data, sums.there.data, BLOCKS));
    EXPECT_OK(device_download(&gpu, &got, control.there.data, sizeof got));
    assert_true(fabs(got.gradient_sumsq - host->gradient_sumsq) <= 0x1p-40 * host->gradient_sumsq);
    FREE_PAIRS(&x, &sums, &control);
}

static inline void attention_cached_case(enum dtype type) {
    const size_t batch = 2, heads = 3, width = 20, c = heads * width, capacity = 90;
    struct pair keys = pair_random(type, batch * capacity, c, 1, 0.0, 1.0);
    struct pair values = pair_random(type, batch * capacity, c, 2, 0.0, 1.0);
    for (size_t step = 0; step < 3; step++) {
        const size_t length = step == 0 ? 41 : step, past = step == 0 ? 0 : 40 + step;
        struct pair qkv = pair_random(type, batch * length, 3 * c, 3 + step, 0.0, 1.0);
        struct pair out = pair_poison(type, batch * length, c);
        struct attention_cached k[2];
        for (int i = 0; i < 2; i++) {
            k[i] = (struct attention_cached){.out = AT(out),
                                             .qkv = AT(qkv),
                                             .keys = AT(keys),
                                             .values = AT(values),
                                             .batch = batch,
                                             .sequence_length = length,
                                             .heads = heads,
                                             .past = past,
                                             .capacity = capacity};
        }
        ON_BOTH(attention_cached, &k[0], &k[1]);
        expect_same("cached attention", &out, 128 * u);
        FREE_PAIRS(&qkv, &out);
    }
    expect_same("key cache", &keys, 0.0);
    expect_same("value cache", &values, 0.0);
    FREE_PAIRS(&keys, &values);
}

static inline void convert_case(enum dtype in_type, enum dtype out_type) {
    struct pair in = pair_random(in_type, 7, 1003, 1, 0.0, 100.0);
    struct pair out = pair_poison(out_type, 7, 1003);
    EXPECT_OK(cpu.ops->convert(&cpu, out.host, in.host));
    EXPECT_OK(gpu.ops->convert(&gpu, out.there, in.there));
    struct tensor got = copied_tensor(out.host);
    EXPECT_OK(device_download(&gpu, got.data, out.there.data, tensor_bytes(got)));
    /* one rounding: bit equal */
    assert_memory_equal(got.data, out.host.data, tensor_bytes(got));
    size_t index = 0;
    EXPECT_OK(gpu.ops->find_nonfinite(&gpu, out.there, &index));
    assert_true(index == SIZE_MAX);
    value_set(got, 5000, INFINITY);
    value_set(got, 4321, NAN);
    EXPECT_OK(device_upload(&gpu, out.there.data, got.data, tensor_bytes(got)));
    EXPECT_OK(gpu.ops->find_nonfinite(&gpu, out.there, &index));
    assert_int_equal(index, 4321);
    free(got.data);
    FREE_PAIRS(&in, &out);
}

static inline void update_case(enum dtype type) {
    static const struct adamw_range ranges[] = {{0, 1024, 0.1f},
                                                {1024, 128, 0.0f},
                                                {1152, 40064, 0.2f}};
    const size_t count = 41216;
    struct pair p = pair_random(DTYPE_F32, 1, count, 1, 0.0, 1.0),
                g = pair_random(DTYPE_F32, 1, count, 2, 0.0, 1.0);
    struct pair m = pair_random(DTYPE_F32, 1, count, 3, 0.0, 0.1),
                v = pair_random(DTYPE_F32, 1, count, 4, 1.0, 0.1);
    struct pair w = pair_poison(type, 1, count),
                losses = pair_random(DTYPE_F32, 1, 3001, 5, 3.0, 1.0);
    struct pair control = pair_of(filled_tensor(DTYPE_F32, 1, sizeof(struct step_state) / 4, 0.0));
    struct step_state *const state_host = control.host.data,
                             *const state_there = control.there.data, got;
    state_host->loss_scale = 2.0f;
    state_host->loss_sum = 7.0;
    state_host->updates = 3;
    EXPECT_OK(device_upload(&gpu, state_there, state_host, sizeof got));
    const struct step_policy policy = {.learning_rate = 0.01f, .clip_norm = 1.0f, .tokens = 3001};
    struct adamw a[2];
    for (int i = 0; i < 2; i++) {
        struct device *device = i == 0 ? &cpu : &gpu;
        struct step_state *s = AT(control).data;
        EXPECT_OK(device->ops->step_begin(device, s, &policy));
        EXPECT_OK(
            device->ops->loss_sum(device, s, floats(i == 0 ? &losses.host : &losses.there), 3001));
        EXPECT_OK(
            device->ops->gradient_sumsq(device, s, floats(i == 0 ? &g.host : &g.there), count));
        EXPECT_OK(device->ops->step_decide(device, s));
        a[i] = (struct adamw){.masters = AT(p).data,
                              .moments1 = AT(m).data,
                              .moments2 = AT(v).data,
                              .gradients = AT(g).data,
                              .weights = AT(w),
                              .ranges = ranges,
                              .range_count = 3,
                              .beta1 = 0.9f,
                              .beta2 = 0.95f,
                              .epsilon = 1e-8f,
                              .state = AT(control).data};
    }
    ON_BOTH(adamw, &a[0], &a[1]);
    EXPECT_OK(device_download(&gpu, &got, state_there, sizeof got));
    assert_true(fabs(got.loss_sum - state_host->loss_sum) <= 1e-12 * fabs(state_host->loss_sum));
    assert_true(fabs(got.gradient_sumsq - state_host->gradient_sumsq) <=
                1e-12 * state_host->gradient_sumsq);
    assert_true(got.updates == 4 && got.skip == SKIP_NONE && got.losses.seen == 1);
    expect_same("masters", &p, 8 * u);
    expect_same("first moments", &m, 4 * u);
    expect_same("second moments", &v, 4 * u);
    expect_same("weights", &w, 8 * u);
    FREE_PAIRS(&p, &g, &m, &v, &w, &losses, &control);
}

#endif

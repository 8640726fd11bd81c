/*
 * The GPU's operations that quantise what they make, and products of quantised operands, against
 * kernels/cpu (whose own oracles are in tests/kernels).
 *
 * Operations that compute first agree in FP32 up to rounding, so a code may differ by one step and
 * what the numbers differ by, and few do; their transposed copy must be the row copy transposed,
 * byte for byte. Tolerances are in unit roundoffs u of FP32, derived where they stand. A sum of K
 * terms of deviation s rounds each partial sum, s sqrt(k) in size, by u / sqrt(3) of it: a random
 * walk of 0.41 s K u, on two sides of 0.58 s K u, and 4 s K u is seven of those. Tolerances of
 * products are those of kernels/cuda/gemm_check.cu for operands of unit variance, whose products
 * have a root of squares of sqrt(K). One line a case. With the name of a test, that one alone:
 *   compute-sanitizer --tool racecheck quantised_ops_test test_producers
 */
#include "tests/gpu/quantise_testing.h"

static const double u = 0x1p-24;

/* Codes as numbers in order: neighbours in the format differ by one. */
static int code_rank(uint8_t code) { return code & 0x80 ? -(code & 0x7F) : code; }

/* The copies of an operation on both sides, whose numbers are `absolute` apart at most: codes at
 * most a step and that far apart; the amax that far; the transposed copy exactly the other one.
 * Few codes differ: numbers e apart do with probability e / step, and a step is an eighth of a
 * number or less. Of numbers like normal ones, down to E5M2's smallest normal one under a scale of
 * 55.5, 1e-6, the mean of 16 / |x| is 16 * 0.8 * ln(1e6) = 180. Rounding is far below `absolute`,
 * which counts tails: 1e-5 on average would make 1.8 of a thousand differ; two may. */
static void expect_near(const char *name, const struct copies *c, double absolute) {
    const size_t rows = c->host.row.rows, columns = c->host.row.columns, count = rows * columns;
    uint8_t *row = test_memory(count), *transposed = test_memory(count);
    struct scale_state got;
    const struct scale_state *expected = c->host.row.state;
    size_t different = 0;
    EXPECT_OK(device_download(&gpu, row, c->codes[0].there, count));
    EXPECT_OK(device_download(&gpu, transposed, c->codes[1].there, count));
    EXPECT_OK(device_download(&gpu, &got, c->states.there, sizeof got));
    for (size_t i = 0; i < count; i++) {
        const int apart = abs(code_rank(row[i]) - code_rank(c->codes[0].host[i]));
        const double further = fabs((double)format_decode(c->host.row.format, row[i]) -
                                    (double)format_decode(c->host.row.format,
                                                          c->codes[0].host[i])) *
                               (double)expected->inverse;
        if (apart > 1 && !(further <= absolute)) {
            fail_msg("%s: code %zu is 0x%02x, expected 0x%02x", name, i, row[i],
                     c->codes[0].host[i]);
        }
        different += apart != 0;
        if (transposed[i % columns * rows + i / columns] != row[i]) {
            fail_msg("%s: the copies differ at (%zu, %zu)", name, i / columns, i % columns);
        }
    }
    const double amax = (double)float_of_bits(got.amax_bits);
    const double right = (double)float_of_bits(expected->amax_bits);
    if (different > count / 500 + 2 || !(fabs(amax - right) <= absolute)) {
        fail_msg("%s: %zu of %zu codes differ, amax %.9g for %.9g", name, different, count, amax,
                 right);
    }
    printf("%s: %zu of %zu codes a step apart, amax %.9g for %.9g\n", name, different, count, amax,
           right);
    free(row);
    free(transposed);
}

/* `result` NULL: only the copies were wanted. Under current scaling only the amax is: of what is
 * stored, exactly. */
static void expect_result(const char *name, const struct copies *c, bool current,
                          const struct pair *result, double absolute) {
    struct scale_state got;
    if (result != NULL) expect_same(name, result, absolute);
    if (!current) {
        expect_near(name, c, absolute);
        return;
    }
    struct tensor stored = copied_tensor(result->host);
    double most = 0.0;
    EXPECT_OK(device_download(&gpu, stored.data, result->there.data, tensor_bytes(stored)));
    EXPECT_OK(device_download(&gpu, &got, c->states.there, sizeof got));
    for (size_t i = 0; i < tensor_count(stored); i++) most = fmax(most, fabs(value_at(stored, i)));
    if ((double)float_of_bits(got.amax_bits) != most) {
        fail_msg("%s: amax %.9g, the numbers' %.9g", name, (double)float_of_bits(got.amax_bits),
                 most);
    }
    printf("%s: amax %.9g is that of what is stored\n", name, most);
    free(stored.data);
}

static const struct shape producer_shapes[] = {{16, 16},    {48, 208},   {144, 1600}, {320, 768},
                                               {208, 1280}, {1040, 768}, {80, 2048},  {32, 4096}};
enum { PRODUCER_SHAPES = sizeof producer_shapes / sizeof producer_shapes[0] };

/* More strips of 32 rows than COLUMN_PARTS_MAX, the most blocks of norm_backward: each makes two or
 * more, one after the other. The second ends within a strip. */
static const struct shape strip_shapes[] = {{34816, 768}, {33040, 64}};
enum { STRIP_SHAPES = sizeof strip_shapes / sizeof strip_shapes[0] };

struct producer {
    const struct shape *s;
    struct copies c;
    struct quantise_output host, there;
    bool current, stored;
    char name[128];
};

static struct producer *producer_open(const char *what, const struct form *f, const struct shape *s,
                                      bool current, bool stored) {
    struct producer *p = test_memory(sizeof *p);
    *p = (struct producer){.s = s, .current = current, .stored = stored};
    p->c = copies_open(f, s->rows, s->columns, 55.5f);
    p->host.copies = current ? NULL : &p->c.host;
    p->there.copies = current ? NULL : &p->c.there;
    p->host.amax = current ? p->c.host.row.state : NULL;
    p->there.amax = current ? p->c.there.row.state : NULL;
    snprintf(p->name, sizeof p->name, "%s, %s, %zu x %zu%s", what, current ? "amax" : f->name,
             s->rows, s->columns, stored ? ", stored too" : "");
    return p;
}

static void producer_close(struct producer *p) {
    copies_close(&p->c);
    free(p);
}

static struct tensor unless(struct tensor t, bool wanted) {
    if (!wanted) t.data = NULL;
    return t;
}

static void norm_forward_case(struct producer *p) {
    const size_t rows = p->s->rows, columns = p->s->columns;
    struct pair in = pair_random(DTYPE_BF16, rows, columns, 1, 0.3, 1.0);
    struct pair d = pair_random(DTYPE_BF16, rows, columns, 2, 0.0, 1.0);
    struct pair w = pair_random(DTYPE_BF16, 1, columns, 4, 1.0, 0.2);
    struct pair b = pair_random(DTYPE_BF16, 1, columns, 5, 0.0, 0.2);
    struct pair out = pair_poison(DTYPE_BF16, rows, columns);
    struct pair residual = pair_poison(DTYPE_BF16, rows, columns);
    struct pair statistics = pair_poison(DTYPE_F32, 2, rows);
    for (int i = 0; i < 2; i++) {
        const struct pair *const pairs[] = {&in, &d, &w, &b, &out, &residual, &statistics};
        struct tensor t[7];
        for (int k = 0; k < 7; k++) t[k] = i == 0 ? pairs[k]->host : pairs[k]->there;
        const struct norm_forward op = {
            .out = unless(t[4], p->stored),
            .residual = t[5],
            .residual_in = t[0],
            .delta = &t[1],
            .delta_bias = &t[3],
            .weight = t[2],
            .bias = t[3],
            .mean = t[6].data,
            .rstd = (float *)t[6].data + rows,
            .quantise = i == 0 ? p->host : p->there,
        };
        struct device *device = i == 0 ? &cpu : &gpu;
        EXPECT_OK(device->ops->norm_forward(device, &op));
    }
    /* in + (delta + bias) on both sides: the same bits */
    expect_same("residual", &residual, 0.0);
    /* x, the mean and rstd, each a few u of numbers up to 8, times weights below 2, on two sides */
    expect_result(p->name, &p->c, p->current, p->stored ? &out : NULL, 256 * u);
    FREE_PAIRS(&in, &d, &w, &b, &out, &residual, &statistics);
}

/* Means, and inverse deviations of 0.5 to 2, which differ from row to row: the wrong row's show. */
static struct pair statistics_random(size_t rows) {
    struct tensor t = random_tensor(DTYPE_F32, 2, rows, 6, 0.0, 0.5);
    for (size_t i = rows; i < 2 * rows; i++) {
        value_set(t, i, exp2(fmax(-1.0, fmin(1.0, 2.0 * value_at(t, i)))));
    }
    return pair_of(t);
}

static void norm_backward_of(struct producer *p, bool overwrite, bool accumulate,
                             bool delta_bias) {
    const size_t rows = p->s->rows, columns = p->s->columns;
    struct pair gradient = overwrite ? pair_poison(DTYPE_BF16, rows, columns)
                                     : pair_random(DTYPE_BF16, rows, columns, 1, 0.0, 1.0);
    struct pair out_gradient = pair_random(DTYPE_BF16, rows, columns, 2, 0.0, 1.0);
    struct pair residual = pair_random(DTYPE_BF16, rows, columns, 3, 0.0, 1.0);
    struct pair w = pair_random(DTYPE_BF16, 1, columns, 4, 1.0, 0.2);
    struct pair statistics = statistics_random(rows);
    struct pair sums = accumulate ? pair_random(DTYPE_F32, 3, columns, 5, 0.0, 1.0)
                                  : pair_poison(DTYPE_F32, 3, columns);
    for (int i = 0; i < 2; i++) {
        const struct pair *const pairs[] = {&gradient, &out_gradient, &residual,
                                            &w,        &statistics,   &sums};
        struct tensor t[6];
        for (int k = 0; k < 6; k++) t[k] = i == 0 ? pairs[k]->host : pairs[k]->there;
        const struct norm_backward op = {
            .residual_gradient = t[0],
            .out_gradient = t[1],
            .residual = t[2],
            .weight = t[3],
            .mean = t[4].data,
            .rstd = (float *)t[4].data + rows,
            .weight_gradient = t[5].data,
            .bias_gradient = (float *)t[5].data + columns,
            .delta_bias_gradient = delta_bias ? (float *)t[5].data + 2 * columns : NULL,
            .overwrite_residual_gradient = overwrite,
            .accumulate = accumulate,
            .quantise = i == 0 ? p->host : p->there,
        };
        struct device *device = i == 0 ? &cpu : &gpu;
        EXPECT_OK(device->ops->norm_backward(device, &op));
    }
    /* Terms' deviation is below 3. Each is off by some 32 u where the row's sums are, at random. */
    expect_same("column sums", &sums, (12.0 * (double)rows + 192.0 * sqrt((double)rows)) * u);
    /* Of rstd (g w - s1 / C - xhat s2 / C): a sum over C is off by 4 1.5 C u, which times |xhat|
     * rstd / C, to 32 / C, is 192 u; three roundings of |rstd g w|, to 18, 54 u; on two sides */
    expect_result(p->name, &p->c, p->current, &gradient, 512 * u);
    FREE_PAIRS(&gradient, &out_gradient, &residual, &w, &statistics, &sums);
}

static void norm_backward_case(struct producer *p) { norm_backward_of(p, false, false, true); }

/* The last norm of a model: nothing came back before it. */
static void norm_backward_overwriting_case(struct producer *p) {
    norm_backward_of(p, true, true, true);
}

static void norm_backward_without_delta_case(struct producer *p) {
    norm_backward_of(p, false, true, false);
}

static void gelu_forward_case(struct producer *p) {
    const size_t rows = p->s->rows, columns = p->s->columns;
    struct pair x = pair_random(DTYPE_BF16, rows, columns, 1, 0.0, 2.0);
    struct pair b = pair_random(DTYPE_BF16, 1, columns, 2, 0.0, 1.0);
    struct pair out = pair_poison(DTYPE_BF16, rows, columns);
    const struct gelu_forward host = {.out = unless(out.host, p->stored),
                                      .x = x.host,
                                      .bias = b.host,
                                      .quantise = p->host};
    const struct gelu_forward there = {.out = unless(out.there, p->stored),
                                       .x = x.there,
                                       .bias = b.there,
                                       .quantise = p->there};
    EXPECT_OK(cpu.ops->gelu_forward(&cpu, &host));
    EXPECT_OK(gpu.ops->gelu_forward(&gpu, &there));
    /* u s(u), |u| to 12, to 8 u of it for the exponential, the reciprocal and s near 1 */
    expect_result(p->name, &p->c, p->current, p->stored ? &out : NULL, 128 * u);
    FREE_PAIRS(&x, &b, &out);
}

static void gelu_backward_case(struct producer *p) {
    const size_t rows = p->s->rows, columns = p->s->columns;
    struct pair x = pair_random(DTYPE_BF16, rows, columns, 1, 0.0, 2.0);
    struct pair b = pair_random(DTYPE_BF16, 1, columns, 2, 0.0, 1.0);
    struct pair g = pair_random(DTYPE_BF16, rows, columns, 3, 0.0, 1.0);
    struct pair out = pair_poison(DTYPE_BF16, rows, columns);
    struct pair sums = pair_random(DTYPE_F32, 1, columns, 4, 0.0, 1.0);
    for (int i = 0; i < 2; i++) {
        const struct gelu_backward op = {
            .x_gradient = unless(i == 0 ? out.host : out.there, p->stored),
            .out_gradient = i == 0 ? g.host : g.there,
            .x = i == 0 ? x.host : x.there,
            .bias = i == 0 ? b.host : b.there,
            .bias_gradient = i == 0 ? sums.host.data : sums.there.data,
            .accumulate = true,
            .quantise = i == 0 ? p->host : p->there,
        };
        struct device *device = i == 0 ? &cpu : &gpu;
        EXPECT_OK(device->ops->gelu_backward(device, &op));
    }
    /* Terms' deviation is below 1.2; each is off by some 16 u, as forward's, at random. */
    expect_same("bias gradient", &sums, (5.0 * (double)rows + 64.0 * sqrt((double)rows)) * u);
    expect_result(p->name, &p->c, p->current, p->stored ? &out : NULL, 128 * u);
    FREE_PAIRS(&x, &b, &g, &out, &sums);
}

/* The last seven columns are padding; every fifth token has no target. */
static void cross_entropy_case(struct producer *p) {
    const size_t rows = p->s->rows, columns = p->s->columns, vocabulary = columns - 7;
    struct pair logits = pair_random(DTYPE_BF16, rows, columns, 1, 0.0, 3.0);
    struct pair losses = pair_poison(DTYPE_F32, 1, rows);
    struct pair scale = pair_of(filled_tensor(DTYPE_F32, 1, 1, 2.0));
    struct bytes targets = bytes_of(rows * sizeof(int32_t), 0);
    for (size_t n = 0; n < rows; n++) {
        const int32_t target = n % 5 == 4 ? -1 : (int32_t)(n * 37 % vocabulary);
        memcpy(targets.host + n * sizeof target, &target, sizeof target);
    }
    EXPECT_OK(device_upload(&gpu, targets.there, targets.host, targets.count));
    for (int i = 0; i < 2; i++) {
        const struct cross_entropy op = {
            .logits = i == 0 ? logits.host : logits.there,
            .targets = (const void *)(i == 0 ? targets.host : targets.there),
            .losses = i == 0 ? losses.host.data : losses.there.data,
            .vocabulary = vocabulary,
            .write_gradient = true,
            .gradient_scale = 16.0f,
            .loss_scale = i == 0 ? scale.host.data : scale.there.data,
            .quantise = i == 0 ? p->host : p->there,
        };
        struct device *device = i == 0 ? &cpu : &gpu;
        EXPECT_OK(device->ops->cross_entropy(device, &op));
    }
    /* log(sum of exponentials) - logit: exponents to 43 in base 2, each rounded, and so the sum to
     * 32 u of itself; the largest logit, to 15, and the loss, to 30: 128 u on each side */
    expect_same("losses", &losses, 256 * u);
    /* 32 (p - [target]): p to 32 u of itself */
    expect_result(p->name, &p->c, p->current, p->current ? &logits : NULL, 1024 * u);
    bytes_free(&targets);
    FREE_PAIRS(&logits, &losses, &scale);
}

static const struct producer_kind {
    const char *name;
    void (*run)(struct producer *);
    bool always_stored, strips;
} producer_kinds[] = {
    {"norm_forward", norm_forward_case, false, true},
    {"norm_backward", norm_backward_case, true, true},
    {"norm_backward, overwriting", norm_backward_overwriting_case, true, false},
    {"norm_backward, no delta bias", norm_backward_without_delta_case, true, false},
    {"gelu_forward", gelu_forward_case, false, false},
    {"gelu_backward", gelu_backward_case, false, false},
    {"cross_entropy", cross_entropy_case, false, false},
};

static void run_producer(const struct producer_kind *kind, const struct shape *s, int mode) {
    const bool stored = mode >= 2 || kind->always_stored;
    struct producer *p = producer_open(kind->name, &forms[mode == 1], s, mode == 3, stored);
    kind->run(p);
    producer_close(p);
}

static void test_producers(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof producer_kinds / sizeof producer_kinds[0]; i++) {
        const struct producer_kind *kind = &producer_kinds[i];
        for (size_t k = 0; k < PRODUCER_SHAPES; k++) {
            for (int mode = 0; mode < 4; mode++) { /* e4m3, e5m2, stored too, amax */
                run_producer(kind, &producer_shapes[k], mode);
            }
        }
        for (size_t k = 0; kind->strips && k < STRIP_SHAPES; k++) {
            run_producer(kind, &strip_shapes[k], 0);
        }
    }
}

/* ---- products ---- */

static const struct product {
    const struct form *a, *b;
} products[] = {
    {&forms[0], &forms[0]}, {&forms[0], &forms[1]}, {&forms[1], &forms[0]}, {&forms[4], &forms[4]},
    {&forms[4], &forms[6]}, {&forms[6], &forms[4]}, {&forms[7], &forms[7]}, {&forms[8], &forms[9]},
};
enum { PRODUCTS = sizeof products / sizeof products[0] };

struct product_case {
    size_t m, n, k;
    enum dtype result;
    bool bias, accumulate, fast;
    bool twins; /* b's rows are a's */
};

static double product_tolerance(const struct product *p, const struct product_case *c,
                                bool native) {
    const size_t k = c->k;
    const bool fast = c->fast;
    const double spread = sqrt((double)k);
    /* K products around 1 in size. Roundings of partial sums: below 4 K u. A tensor core of BF16
     * cuts K / 16 times, u on average, off a partial sum of 2.7 sqrt(K) on average where its end is
     * four deviations: K / 16 2.7 sqrt(K) u. */
    const double plain = 0x1p-24 * (double)k * (4.0 + spread / 5.0);
    if (!native) return plain;
    /* Each product is cut 13 bits below the partial sum's exponent (kernels/cuda/gemm_check.cu): of
     * 0.7 times its size, the root of the mean square of what is lost is 0.58, and its sign is the
     * product's, random. Where the sum ends four deviations out, the partial ones are 2.3 sqrt(K)
     * (root of mean square): K products lose 0.96 2^-13 K, and six times that is allowed. The new
     * sum is cut each 32 products, always towards zero: 0.36 of 2.7 sqrt(K). Sums that end after
     * 128 products are 8 in size, the largest product too: 3.3 2^-13 a product, random.
     * Twins: the products are squares, their losses add up: of 33 terms a step, 2^-13 of the sum,
     * which grows evenly to K and in the widest of 128 rows to 1.3 K. */
    const double cut = 0x1p-13;
    if (fast && p->a->mode == SCALE_TENSOR) {
        if (c->twins) return plain + cut * 33.0 * 1.3 * (double)k * ((double)k / 32.0 + 1.0) / 2.0;
        return plain + cut * (6.0 * (double)k + (double)k / 32.0 * spread);
    }
    return plain + cut * 20.0 * spread;
}

static void quantise_both(const struct form *f, struct copies *c, const struct pair *in) {
    struct form current = *f;
    current.scaling = SCALING_CURRENT;
    current.amax_known = false;
    const struct quantise host = quantise_of(&current, c->host, in->host, NULL);
    const struct quantise there = quantise_of(&current, c->there, in->there, NULL);
    EXPECT_OK(cpu.ops->quantise(&cpu, &host, 1));
    EXPECT_OK(gpu.ops->quantise(&gpu, &there, 1));
}

static void run_product(const struct product *p, const struct product_case *x) {
    const size_t m = x->m, n = x->n, k = x->k;
    const enum support support = gpu.ops->scale_support(&gpu, p->a->mode);
    char name[160];
    struct pair a = pair_random(DTYPE_BF16, m, k, 1, 0.0, 1.0);
    struct pair b = pair_random(DTYPE_BF16, n, k, x->twins ? 1 : 2, 0.0, 1.0);
    struct pair bias = pair_random(x->result, 1, n, 3, 0.0, 1.0);
    struct pair c = x->accumulate ? pair_random(x->result, m, n, 4, 0.0, 1.0)
                                  : pair_poison(x->result, m, n);
    struct copies qa = copies_open(p->a, m, k, 1.0f), qb = copies_open(p->b, n, k, 1.0f);
    snprintf(name, sizeof name, "%zu x %zu x %zu, %s by %s -> %s%s%s%s%s", m, n, k, p->a->name,
             p->b->name, dtype_name(x->result), x->bias ? ", bias" : "",
             x->accumulate ? ", accumulate" : "", x->fast ? ", fast" : "",
             x->twins ? ", twins" : "");
    quantise_both(p->a, &qa, &a);
    quantise_both(p->b, &qb, &b);
    for (int i = 0; i < 2; i++) {
        struct device *device = i == 0 ? &cpu : &gpu;
        const struct tensor *bias_at = i == 0 ? &bias.host : &bias.there;
        const struct quantised_gemm op = {
            .c = i == 0 ? c.host : c.there,
            .a = i == 0 ? qa.host.row : qa.there.row,
            .b = i == 0 ? qb.host.row : qb.there.row,
            .accumulate = x->accumulate,
            .fast = x->fast,
            .bias = x->bias ? bias_at : NULL,
        };
        if (i == 1 && support == SUPPORT_NONE) {
            expect_status(STATUS_DEVICE, device->ops->quantised_gemm(device, &op));
            printf("product %s: refused: %s\n", name, status_message());
        } else {
            EXPECT_OK(device->ops->quantised_gemm(device, &op));
        }
    }
    if (support != SUPPORT_NONE) {
        expect_same(name, &c, product_tolerance(p, x, support == SUPPORT_NATIVE));
        printf("product %s: %s, right\n", name, support == SUPPORT_NATIVE ? "native" : "emulated");
    }
    copies_close(&qa);
    copies_close(&qb);
    FREE_PAIRS(&a, &b, &bias, &c);
}

static void test_products(void **state) {
    static const size_t shapes[][3] = {{128, 256, 640}, {288, 224, 1600}, {64, 96, 4096}};
    (void)state;
    for (size_t i = 0; i < PRODUCTS; i++) {
        for (size_t j = 0; j < 3; j++) {
            const size_t m = shapes[j][0], n = shapes[j][1], k = shapes[j][2];
            run_product(&products[i], &(struct product_case){m, n, k, DTYPE_BF16, .fast = true});
            run_product(&products[i], &(struct product_case){m, n, k, DTYPE_BF16, .bias = true});
            run_product(&products[i],
                        &(struct product_case){m, n, k, DTYPE_F32, .accumulate = true});
        }
    }
}

/* Sums over all of K as long as those of bench and probe, and of products with one sign. */
static void test_fast_products(void **state) {
    (void)state;
    for (size_t i = 0; i < 3; i++) {
        run_product(&products[i], &(struct product_case){128, 128, 8192, DTYPE_F32, .fast = true});
        if (products[i].a != products[i].b) continue;
        run_product(&products[i], &(struct product_case){128, 128, 3072, DTYPE_BF16, .fast = true,
                                                         .twins = true});
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_producers),
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_fast_products),
    };
    if (!CHOOSE_TEST(argc, argv, tests)) return 2;
    if (!quantise_devices_open()) return 0;
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    devices_close();
    return failed;
}

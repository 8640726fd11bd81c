/*
 * The GPU's quantisers, the operations that quantise what they make, and products of quantised
 * operands, against kernels/cpu (whose own oracle is tests/kernels/quantise_test.c).
 *
 * Quantised tensors, scales and states of `quantise` must be equal bit for bit. Operations that
 * compute first agree in FP32 up to rounding, so a code may differ by one step, and few do; their
 * transposed copy must be the row copy transposed, byte for byte. Tolerances of products are those
 * of kernels/cuda/gemm_check.cu for operands of unit variance, whose products have a root of squares
 * of sqrt(K). One line a case.
 */
#include "tests/gpu/gpu_testing.h"

struct form {
    const char *name;
    enum number_format format;
    enum scale_mode mode;
    enum scaling scaling;
    bool amax_known, square, hadamard, stochastic;
    size_t unit; /* of both dimensions */
};
static const struct form forms[] = {
    {"e4m3 delayed", FORMAT_E4M3, SCALE_TENSOR, SCALING_DELAYED, 0, 0, 0, 0, 16},
    {"e5m2 delayed", FORMAT_E5M2, SCALE_TENSOR, SCALING_DELAYED, 0, 0, 0, 0, 16},
    {"e4m3 current", FORMAT_E4M3, SCALE_TENSOR, SCALING_CURRENT, 0, 0, 0, 0, 16},
    {"e5m2 current, amax known", FORMAT_E5M2, SCALE_TENSOR, SCALING_CURRENT, 1, 0, 0, 0, 16},
    {"1x128", FORMAT_E4M3, SCALE_1X128, SCALING_CURRENT, 0, 0, 0, 0, 16},
    {"1x128 e5m2", FORMAT_E5M2, SCALE_1X128, SCALING_CURRENT, 0, 0, 0, 0, 16},
    {"128x128", FORMAT_E4M3, SCALE_128X128, SCALING_CURRENT, 0, 0, 0, 0, 16},
    {"mx", FORMAT_E4M3, SCALE_MX, SCALING_CURRENT, 0, 0, 0, 0, 32},
    {"nv", FORMAT_E2M1, SCALE_NV, SCALING_CURRENT, 0, 0, 0, 0, 16},
    {"nv square", FORMAT_E2M1, SCALE_NV, SCALING_CURRENT, 0, 1, 0, 0, 16},
    {"nv hadamard", FORMAT_E2M1, SCALE_NV, SCALING_CURRENT, 0, 0, 1, 0, 16},
    {"nv hadamard stochastic", FORMAT_E2M1, SCALE_NV, SCALING_CURRENT, 0, 0, 1, 1, 16},
};
enum { FORMS = sizeof forms / sizeof forms[0] };

/* Multiples of 32 in one place; the others stop within blocks, tiles and 16-row groups. */
static const struct shape {
    size_t rows, columns;
} shapes[] = {{32, 32}, {16, 16}, {48, 208}, {160, 96}, {144, 1600}, {1056, 768}};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

/* ---- memory on both sides ---- */

struct bytes {
    uint8_t *host, *there;
    size_t count;
};

static struct bytes bytes_of(size_t count, int fill) {
    struct bytes b = {test_memory(count), gpu_memory(count), count};
    memset(b.host, fill, count);
    if (count > 0) EXPECT_OK(device_upload(&gpu, b.there, b.host, count));
    return b;
}

static void bytes_free(struct bytes *b) {
    device_release(&gpu, b->there, size_max(b->count, 1));
    free(b->host);
}

static void expect_bytes(const char *name, const char *what, const struct bytes *b) {
    uint8_t *got = test_memory(b->count);
    if (b->count > 0) EXPECT_OK(device_download(&gpu, got, b->there, b->count));
    for (size_t i = 0; i < b->count; i++) {
        if (got[i] != b->host[i]) {
            fail_msg("%s: %s differ at byte %zu of %zu: 0x%02x, expected 0x%02x", name, what, i,
                     b->count, got[i], b->host[i]);
        }
    }
    free(got);
}

/* Two states, a matrix's copies under them, on both sides. */
struct copies {
    struct bytes states, codes[2], scales[2];
    struct quantised host, there;
};

static struct operand operand_of(const struct form *f, size_t rows, size_t columns) {
    return (struct operand){.format = f->format, .mode = f->mode, .rows = rows, .columns = columns};
}

static void place(struct copies *c, int i, struct operand *host, struct operand *there) {
    const bool scaled = host->mode == SCALE_TENSOR || host->mode == SCALE_NV;
    const size_t second = host->mode == SCALE_NV && i == 1 ? sizeof(struct scale_state) : 0;
    c->codes[i] = bytes_of(operand_code_bytes(host), 0xEE);
    c->scales[i] = bytes_of(operand_scale_bytes(host), 0);
    *there = *host;
    host->codes = c->codes[i].host;
    there->codes = c->codes[i].there;
    host->scales = c->scales[i].host;
    there->scales = c->scales[i].there;
    if (!scaled) return;
    host->state = (struct scale_state *)(void *)(c->states.host + second);
    there->state = (struct scale_state *)(void *)(c->states.there + second);
}

static struct copies copies_open(const struct form *f, size_t rows, size_t columns, float scale) {
    struct copies c = {.states = bytes_of(2 * sizeof(struct scale_state), 0)};
    struct scale_state *states = (struct scale_state *)(void *)c.states.host;
    for (int i = 0; i < 2; i++) {
        states[i] = (struct scale_state){
            .scale = scale,
            .inverse = 1.0f / scale,
            .largest = f->mode == SCALE_NV ? NVFP4_MAX : format_max(f->format),
            .draws = 7,
        };
    }
    c.host.row = operand_of(f, rows, columns);
    c.host.transposed = operand_of(f, columns, rows);
    place(&c, 0, &c.host.row, &c.there.row);
    place(&c, 1, &c.host.transposed, &c.there.transposed);
    EXPECT_OK(device_upload(&gpu, c.states.there, c.states.host, c.states.count));
    return c;
}

static void copies_close(struct copies *c) {
    bytes_free(&c->states);
    for (int i = 0; i < 2; i++) {
        bytes_free(&c->codes[i]);
        bytes_free(&c->scales[i]);
    }
}

/* Any NaN is as good as another. */
static void same_nans(struct scale_state *s) {
    float *const numbers[] = {&s->inverse, &s->scale};
    for (size_t i = 0; i < 2; i++) {
        if (isnan(*numbers[i])) *numbers[i] = float_of_bits(0x7FC00000u);
    }
    if (s->amax_bits > 0x7F800000u) s->amax_bits = 0x7FC00000u;
}

static void expect_states(const char *name, const struct bytes *b) {
    struct scale_state *got = test_memory(b->count), *expected = (struct scale_state *)(void *)b->host;
    EXPECT_OK(device_download(&gpu, got, b->there, b->count));
    for (size_t i = 0; i < b->count / sizeof *got; i++) {
        same_nans(&got[i]);
        same_nans(&expected[i]);
        if (memcmp(&got[i], &expected[i], sizeof *got) != 0) {
            fail_msg("%s: state %zu: scale %.9g inverse %.9g amax 0x%08x, expected %.9g %.9g 0x%08x",
                     name, i, (double)got[i].scale, (double)got[i].inverse, got[i].amax_bits,
                     (double)expected[i].scale, (double)expected[i].inverse,
                     expected[i].amax_bits);
        }
    }
    free(got);
}

static void expect_copies(const char *name, const struct copies *c) {
    expect_states(name, &c->states);
    expect_bytes(name, "scales", &c->scales[0]);
    expect_bytes(name, "scales of the transposed copy", &c->scales[1]);
    expect_bytes(name, "codes", &c->codes[0]);
    expect_bytes(name, "codes of the transposed copy", &c->codes[1]);
}

/* ---- quantise ---- */

enum content { NORMAL, WIDE, ZEROS, WITH_NAN, WITH_INFINITY, CONTENTS };
static const char *const content_names[] = {"normal", "wide range", "zero blocks", "a NaN",
                                            "an infinity"};

/* WIDE: blocks of very different sizes, the smallest ones subnormal in FP32. */
static struct tensor content_make(enum content content, enum dtype dtype, size_t rows,
                                  size_t columns) {
    struct tensor t = random_tensor(dtype, rows, columns, 11 + (uint64_t)content, 0.0, 1.0);
    const size_t count = tensor_count(t);
    for (size_t i = 0; i < count; i++) {
        const size_t row = i / columns, column = i % columns;
        const int power = (int)((row / 16 * 7 + column / 16 * 13) % 250) - 130;
        if (content == WIDE) value_set(t, i, ldexp(value_at(t, i), dtype == DTYPE_F16 ? power / 9 : power));
        if (content == ZEROS && (row / 32 + column / 32) % 2 == 0) value_set(t, i, 0.0);
    }
    if (content == WITH_NAN) value_set(t, count / 2, NAN);
    if (content == WITH_INFINITY) value_set(t, count / 2, -INFINITY);
    return t;
}

static struct quantise quantise_of(const struct form *f, struct quantised out, struct tensor in,
                                   float *bias_gradient) {
    return (struct quantise){
        .out = out,
        .in = in,
        .scaling = f->scaling,
        .amax_known = f->amax_known,
        .square = f->square,
        .hadamard = f->hadamard,
        .stochastic = f->stochastic,
        .seed = 0x123456789ABCDEFull,
        .tensor = 29,
        .bias_gradient = bias_gradient,
    };
}

/* Sets a known amax: a quarter of what the tensor holds, so that codes saturate. */
static void know_amax(struct copies *c) {
    ((struct scale_state *)(void *)c->states.host)->amax_bits = bits_of_float(1.0f);
    EXPECT_OK(device_upload(&gpu, c->states.there, c->states.host, c->states.count));
}

static void quantise_case(const struct form *f, enum content content, enum dtype dtype,
                          const struct shape *s, int only) {
    char name[160];
    struct pair in = pair_of(content_make(content, dtype, s->rows, s->columns));
    struct pair bias = pair_poison(DTYPE_F32, 1, s->columns);
    struct copies c = copies_open(f, s->rows, s->columns, 37.25f);
    const bool sums = content == NORMAL && only == 0;
    snprintf(name, sizeof name, "quantise %s, %s, %s, %zu x %zu%s", f->name, content_names[content],
             dtype_name(dtype), s->rows, s->columns,
             only == 0 ? "" : only == 1 ? ", row copy" : ", transposed copy");
    if (f->amax_known) know_amax(&c);
    if (only == 1) c.host.transposed.codes = c.there.transposed.codes = NULL;
    if (only == 2) c.host.row.codes = c.there.row.codes = NULL;
    const struct quantise host = quantise_of(f, c.host, in.host, sums ? bias.host.data : NULL);
    const struct quantise there = quantise_of(f, c.there, in.there, sums ? bias.there.data : NULL);
    EXPECT_OK(cpu.ops->quantise(&cpu, &host, 1));
    EXPECT_OK(gpu.ops->quantise(&gpu, &there, 1));
    expect_copies(name, &c);
    if (sums) expect_same("bias gradient", &bias, sqrt((double)s->rows) * 16 * 0x1p-24 * 4);
    copies_close(&c);
    FREE_PAIRS(&in, &bias);
}

static void test_quantise(void **state) {
    size_t cases = 0;
    (void)state;
    for (size_t i = 0; i < FORMS; i++) {
        for (size_t k = 0; k < SHAPES; k++) {
            const struct shape *s = &shapes[k];
            if (s->rows % forms[i].unit != 0 || s->columns % forms[i].unit != 0) continue;
            for (size_t d = 0; d < TEST_DTYPES; d++) {
                for (enum content content = NORMAL; content < CONTENTS; content++) {
                    quantise_case(&forms[i], content, test_dtypes[d], s, 0);
                    cases++;
                }
            }
            quantise_case(&forms[i], NORMAL, DTYPE_BF16, s, 1);
            quantise_case(&forms[i], WIDE, DTYPE_BF16, s, 2);
        }
        printf("quantise %s: bytes, scales and states equal (%zu cases so far)\n", forms[i].name,
               cases);
    }
}

/* More than one launch holds, of all forms, mixed. */
static void test_many(void **state) {
    enum { MANY = 150 };
    struct copies *all = test_memory(MANY * sizeof *all);
    struct pair *in = test_memory(MANY * sizeof *in);
    struct quantise *host = test_memory(MANY * sizeof *host);
    struct quantise *there = test_memory(MANY * sizeof *there);
    (void)state;
    for (size_t i = 0; i < MANY; i++) {
        const struct form *f = i % 50 == 49 ? &forms[7] : &forms[i % 3];
        const size_t rows = 32 * (1 + i % 7), columns = 32 * (1 + i % 11);
        const enum dtype dtype = i % 40 < 30 ? DTYPE_BF16 : DTYPE_F32;
        all[i] = copies_open(f, rows, columns, 3.0f);
        in[i] = pair_random(dtype, rows, columns, 100 + i, 0.0, 1.0 + (double)i);
        host[i] = quantise_of(f, all[i].host, in[i].host, NULL);
        there[i] = quantise_of(f, all[i].there, in[i].there, NULL);
    }
    EXPECT_OK(cpu.ops->quantise(&cpu, host, MANY));
    EXPECT_OK(gpu.ops->quantise(&gpu, there, MANY));
    for (size_t i = 0; i < MANY; i++) {
        expect_copies("one of many", &all[i]);
        copies_close(&all[i]);
        pair_free(&in[i]);
    }
    free(all);
    free(in);
    free(host);
    free(there);
    printf("quantise %d tensors in one call: equal\n", MANY);
}

/* What a recording replays must be what the call did. */
static void test_recording(void **state) {
    struct copies c = copies_open(&forms[0], 256, 320, 50.0f);
    struct pair in = pair_random(DTYPE_BF16, 256, 320, 5, 0.0, 1.0);
    const struct quantise host = quantise_of(&forms[0], c.host, in.host, NULL);
    const struct quantise there = quantise_of(&forms[0], c.there, in.there, NULL);
    struct device_recording *recording = NULL;
    (void)state;
    EXPECT_OK(cpu.ops->quantise(&cpu, &host, 1));
    EXPECT_OK(device_record_begin(&gpu));
    EXPECT_OK(gpu.ops->quantise(&gpu, &there, 1));
    EXPECT_OK(device_record_end(&gpu, &recording));
    EXPECT_OK(device_replay(&gpu, recording));
    expect_copies("recorded quantise", &c);
    device_recording_close(&gpu, recording);
    copies_close(&c);
    pair_free(&in);
    printf("quantise recorded and replayed: equal\n");
}

/* The layout of MX and NV scales as a list: tile after tile, in each the 128 rows' four bytes, the
 * rows in the order 0, 32, 64, 96, 1, 33, ... Needs no GPU. */
static void check_layout(size_t rows, size_t blocks) {
    size_t at = 0;
    for (size_t tile_row = 0; tile_row < rows; tile_row += 128) {
        for (size_t tile_block = 0; tile_block < blocks; tile_block += 4) {
            for (size_t i = 0; i < 32; i++) {
                for (size_t quarter = 0; quarter < 4; quarter++) {
                    for (size_t block = 0; block < 4; block++, at++) {
                        const size_t row = tile_row + quarter * 32 + i, b = tile_block + block;
                        if (row >= rows || b >= blocks) continue;
                        if (scale_tile_index(row, b, blocks) != at) fail_msg("scale tiles");
                    }
                }
            }
        }
    }
}

/* ---- operations that quantise their result ---- */

/* Codes as numbers in order: neighbours in the format differ by one. */
static int code_rank(uint8_t code) { return code & 0x80 ? -(code & 0x7F) : code; }

/* The copies of an operation on both sides: codes at most a step apart, one in a hundred of them;
 * the amax within rounding; the transposed copy exactly the other one. */
static void expect_near(const char *name, const struct copies *c, double amax_tolerance) {
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
        if (apart > 1) {
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
    if (different > count / 100 + 2 || fabs(amax - right) > amax_tolerance * right) {
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
                          const struct pair *result) {
    struct scale_state got;
    if (result != NULL) expect_same(name, result, 1e-5);
    if (!current) {
        expect_near(name, c, 1e-5);
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
            .out = unless(t[4], p->stored), .residual = t[5], .residual_in = t[0], .delta = &t[1],
            .delta_bias = &t[3], .weight = t[2], .bias = t[3], .mean = t[6].data,
            .rstd = (float *)t[6].data + rows, .quantise = i == 0 ? p->host : p->there,
        };
        struct device *device = i == 0 ? &cpu : &gpu;
        EXPECT_OK(device->ops->norm_forward(device, &op));
    }
    expect_same("residual", &residual, 1e-6);
    expect_result(p->name, &p->c, p->current, p->stored ? &out : NULL);
    FREE_PAIRS(&in, &d, &w, &b, &out, &residual, &statistics);
}

static void norm_backward_case(struct producer *p) {
    const size_t rows = p->s->rows, columns = p->s->columns;
    struct pair gradient = pair_random(DTYPE_BF16, rows, columns, 1, 0.0, 1.0);
    struct pair out_gradient = pair_random(DTYPE_BF16, rows, columns, 2, 0.0, 1.0);
    struct pair residual = pair_random(DTYPE_BF16, rows, columns, 3, 0.0, 1.0);
    struct pair w = pair_random(DTYPE_BF16, 1, columns, 4, 1.0, 0.2);
    struct pair statistics = pair_of(filled_tensor(DTYPE_F32, 2, rows, 1.0));
    struct pair sums = pair_poison(DTYPE_F32, 3, columns);
    for (int i = 0; i < 2; i++) {
        const struct pair *const pairs[] = {&gradient, &out_gradient, &residual,
                                            &w,        &statistics,   &sums};
        struct tensor t[6];
        for (int k = 0; k < 6; k++) t[k] = i == 0 ? pairs[k]->host : pairs[k]->there;
        const struct norm_backward op = {
            .residual_gradient = t[0], .out_gradient = t[1], .residual = t[2], .weight = t[3],
            .mean = t[4].data, .rstd = (float *)t[4].data + rows, .weight_gradient = t[5].data,
            .bias_gradient = (float *)t[5].data + columns,
            .delta_bias_gradient = (float *)t[5].data + 2 * columns,
            .quantise = i == 0 ? p->host : p->there,
        };
        struct device *device = i == 0 ? &cpu : &gpu;
        EXPECT_OK(device->ops->norm_backward(device, &op));
    }
    expect_same("column sums", &sums, 1e-5 * sqrt((double)(rows * columns)));
    expect_result(p->name, &p->c, p->current, &gradient);
    FREE_PAIRS(&gradient, &out_gradient, &residual, &w, &statistics, &sums);
}

static void gelu_forward_case(struct producer *p) {
    const size_t rows = p->s->rows, columns = p->s->columns;
    struct pair x = pair_random(DTYPE_BF16, rows, columns, 1, 0.0, 2.0);
    struct pair b = pair_random(DTYPE_BF16, 1, columns, 2, 0.0, 1.0);
    struct pair out = pair_poison(DTYPE_BF16, rows, columns);
    const struct gelu_forward host = {.out = unless(out.host, p->stored), .x = x.host,
                                      .bias = b.host, .quantise = p->host};
    const struct gelu_forward there = {.out = unless(out.there, p->stored), .x = x.there,
                                       .bias = b.there, .quantise = p->there};
    EXPECT_OK(cpu.ops->gelu_forward(&cpu, &host));
    EXPECT_OK(gpu.ops->gelu_forward(&gpu, &there));
    expect_result(p->name, &p->c, p->current, p->stored ? &out : NULL);
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
    expect_same("bias gradient", &sums, 1e-6 * sqrt((double)rows) * 16);
    expect_result(p->name, &p->c, p->current, p->stored ? &out : NULL);
    FREE_PAIRS(&x, &b, &g, &out, &sums);
}

static void test_producers(void **state) {
    static const struct {
        const char *name;
        void (*run)(struct producer *);
        bool always_stored;
    } producers[] = {{"norm_forward", norm_forward_case, false},
                     {"norm_backward", norm_backward_case, true},
                     {"gelu_forward", gelu_forward_case, false},
                     {"gelu_backward", gelu_backward_case, false}};
    (void)state;
    for (size_t i = 0; i < sizeof producers / sizeof producers[0]; i++) {
        for (size_t k = 0; k < PRODUCER_SHAPES; k++) {
            for (int mode = 0; mode < 4; mode++) { /* e4m3, e5m2, stored too, amax */
                const bool stored = mode >= 2 || producers[i].always_stored;
                struct producer *p = producer_open(producers[i].name, &forms[mode == 1],
                                                   &producer_shapes[k], mode == 3, stored);
                producers[i].run(p);
                producer_close(p);
            }
        }
    }
}

/* ---- products ---- */

static const struct product {
    const struct form *a, *b;
} products[] = {
    {&forms[0], &forms[0]}, {&forms[0], &forms[1]}, {&forms[1], &forms[0]},
    {&forms[4], &forms[4]}, {&forms[4], &forms[6]}, {&forms[6], &forms[4]},
    {&forms[7], &forms[7]}, {&forms[8], &forms[9]},
};
enum { PRODUCTS = sizeof products / sizeof products[0] };

static double product_tolerance(const struct product *p, size_t k, bool fast, bool native) {
    const double spread = sqrt((double)k), sum = 5.0 * spread;
    const double plain = 0x1p-20 * (double)k; /* of k products around 1 in size */
    if (!native) return plain;
    if (fast && p->a->mode == SCALE_TENSOR) {
        return plain + 0x1p-13 * (double)k / 16.0 * (sum + 4.0 * spread);
    }
    return plain + 0x1p-11 * sum + 0x1p-9 * sqrt(fmax(1.0, (double)k / 128.0)) * spread;
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

static void product_case(const struct product *p, const size_t shape[3], enum dtype result,
                         bool with_bias, bool accumulate, bool fast) {
    const size_t m = shape[0], n = shape[1], k = shape[2];
    const enum support support = gpu.ops->scale_support(&gpu, p->a->mode);
    char name[160];
    struct pair a = pair_random(DTYPE_BF16, m, k, 1, 0.0, 1.0);
    struct pair b = pair_random(DTYPE_BF16, n, k, 2, 0.0, 1.0);
    struct pair bias = pair_random(result, 1, n, 3, 0.0, 1.0);
    struct pair c = accumulate ? pair_random(result, m, n, 4, 0.0, 1.0) : pair_poison(result, m, n);
    struct copies qa = copies_open(p->a, m, k, 1.0f), qb = copies_open(p->b, n, k, 1.0f);
    snprintf(name, sizeof name, "%zu x %zu x %zu, %s by %s -> %s%s%s%s", m, n, k, p->a->name,
             p->b->name, dtype_name(result), with_bias ? ", bias" : "",
             accumulate ? ", accumulate" : "", fast ? ", fast" : "");
    quantise_both(p->a, &qa, &a);
    quantise_both(p->b, &qb, &b);
    for (int i = 0; i < 2; i++) {
        struct device *device = i == 0 ? &cpu : &gpu;
        const struct tensor *bias_at = i == 0 ? &bias.host : &bias.there;
        const struct quantised_gemm op = {
            .c = i == 0 ? c.host : c.there,
            .a = i == 0 ? qa.host.row : qa.there.row,
            .b = i == 0 ? qb.host.row : qb.there.row,
            .accumulate = accumulate,
            .fast = fast,
            .bias = with_bias ? bias_at : NULL,
        };
        if (i == 1 && support == SUPPORT_NONE) {
            expect_status(STATUS_DEVICE, device->ops->quantised_gemm(device, &op));
            printf("product %s: refused: %s\n", name, status_message());
        } else {
            EXPECT_OK(device->ops->quantised_gemm(device, &op));
        }
    }
    if (support != SUPPORT_NONE) {
        expect_same(name, &c, product_tolerance(p, k, fast, support == SUPPORT_NATIVE));
        printf("product %s: %s, right\n", name,
               support == SUPPORT_NATIVE ? "native" : "emulated");
    }
    copies_close(&qa);
    copies_close(&qb);
    FREE_PAIRS(&a, &b, &bias, &c);
}

static void test_products(void **state) {
    static const size_t product_shapes[][3] = {{128, 256, 640}, {272, 208, 1600}, {64, 96, 4096}};
    (void)state;
    for (size_t i = 0; i < PRODUCTS; i++) {
        for (size_t k = 0; k < 3; k++) {
            product_case(&products[i], product_shapes[k], DTYPE_BF16, false, false, true);
            product_case(&products[i], product_shapes[k], DTYPE_BF16, true, false, false);
            product_case(&products[i], product_shapes[k], DTYPE_F32, false, true, false);
        }
    }
}

/* ---- states ---- */

static void states_case(bool enter, int spoilt) {
    enum { STATES = 1300 };
    struct bytes states = bytes_of(STATES * sizeof(struct scale_state), 0);
    struct bytes steps = bytes_of(sizeof(struct step_state), 0);
    struct scale_state *all = (struct scale_state *)(void *)states.host;
    struct step_state *step = (struct step_state *)(void *)steps.host;
    step->gradient_sumsq = spoilt == 1 ? INFINITY : 3.0;
    for (size_t i = 0; i < STATES; i++) {
        all[i] = (struct scale_state){
            .scale = 2.0f, .inverse = 0.5f, .largest = E4M3_MAX, .seen = (uint32_t)i % 40,
            .draws = 9, .draws_before = 4,
            .amax_bits = bits_of_float((float)(i % 90) * 0.125f),
        };
        for (size_t h = 0; h < AMAX_HISTORY; h++) all[i].history[h] = (float)((i + h * 5) % 17);
    }
    if (spoilt == 2) all[STATES - 1].amax_bits = 0x7F800000u;
    EXPECT_OK(device_upload(&gpu, states.there, states.host, states.count));
    EXPECT_OK(device_upload(&gpu, steps.there, steps.host, steps.count));
    for (int round = 0; round < 3; round++) {
        EXPECT_OK(cpu.ops->scales_begin(&cpu, all, STATES, round == 2));
        EXPECT_OK(gpu.ops->scales_begin(&gpu, (void *)states.there, STATES, round == 2));
        expect_states("scales_begin", &states);
        EXPECT_OK(cpu.ops->scales_update(&cpu, step, all, STATES, enter));
        EXPECT_OK(gpu.ops->scales_update(&gpu, (void *)steps.there, (void *)states.there, STATES,
                                         enter));
        expect_states("scales_update", &states);
    }
    struct step_state got;
    EXPECT_OK(device_download(&gpu, &got, steps.there, sizeof got));
    if (isnan(got.gradient_sumsq) != isnan(step->gradient_sumsq)) fail_msg("gradient_sumsq");
    bytes_free(&states);
    bytes_free(&steps);
}

static void test_states(void **state) {
    (void)state;
    for (int spoilt = 0; spoilt < 3; spoilt++) {
        states_case(true, spoilt);
        states_case(false, spoilt);
    }
    printf("scales_begin, scales_update: states equal\n");
}

/* What cannot be done is refused by name, nothing is written. */
static void test_refusals(void **state) {
    struct copies c = copies_open(&forms[0], 24, 64, 1.0f);
    struct pair in = pair_random(DTYPE_BF16, 24, 64, 1, 0.0, 1.0);
    const struct quantise op = quantise_of(&forms[0], c.there, in.there, NULL);
    (void)state;
    expect_status(STATUS_INTERNAL, gpu.ops->quantise(&gpu, &op, 1));
    assert_non_null(strstr(status_message(), "multiples"));
    printf("refused: %s\n", status_message());
    copies_close(&c);
    pair_free(&in);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_states),    cmocka_unit_test(test_quantise),
        cmocka_unit_test(test_many),      cmocka_unit_test(test_recording),
        cmocka_unit_test(test_producers), cmocka_unit_test(test_products),
        cmocka_unit_test(test_refusals),
    };
    const struct op_limits limits = {.tokens = 2048, .width = 4096, .sequence_length = 512,
                                     .heads = 8, .head_width = 128, .dtype = DTYPE_F32,
                                     .quantised = true};
    const struct device_options options = {.gemm_effort = GEMM_EFFORT_FAST};
    char folder[] = "/tmp/gpu_quantise_XXXXXX"; /* odd GEMMs, not to be kept */
    check_layout(300, 6);
    check_layout(128, 9);
    if (mkdtemp(folder) == NULL) return 1;
    setenv("XDG_CACHE_HOME", folder, 1);
    if (!devices_open(&options, &limits, 1)) return 0;
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    devices_close();
    return failed;
}

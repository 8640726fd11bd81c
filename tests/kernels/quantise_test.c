/*
 * Quantisation, products of quantised operands, and scale states. Oracles: the definitions in
 * kernels/quantised.h followed one number at a time on kernels/formats.h (which has its own test),
 * bit for bit; the scale layouts as lists of what lies where in memory; FP64 sums of decoded
 * operands for products; bit equality of copies that an operation wrote with copies of what it
 * stored.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/quantise.h"
#include "tests/kernels/testing.h"

enum { ROWS = 96, COLUMNS = 160, MODES = 5 };

static const struct form {
    enum number_format format;
    enum scale_mode mode;
    bool square, hadamard, stochastic;
} forms[] = {
    {FORMAT_E4M3, SCALE_TENSOR, false, false, false},
    {FORMAT_E5M2, SCALE_TENSOR, false, false, false},
    {FORMAT_E4M3, SCALE_1X128, false, false, false},
    {FORMAT_E4M3, SCALE_128X128, false, false, false},
    {FORMAT_E4M3, SCALE_MX, false, false, false},
    {FORMAT_E2M1, SCALE_NV, false, false, false},
    {FORMAT_E2M1, SCALE_NV, true, false, false},
    {FORMAT_E2M1, SCALE_NV, false, true, true},
};
enum { FORMS = sizeof forms / sizeof forms[0] };

struct fixture {
    struct device device;
    struct scale_state states[2];
};

static struct fixture fixture_open(const struct form *form) {
    const struct op_limits limits = {
        .tokens = ROWS, .width = 1024, .sequence_length = ROWS, .heads = 1, .head_width = 16,
        .dtype = DTYPE_BF16, .quantised = true,
    };
    const float largest = form->mode == SCALE_NV ? NVFP4_MAX : format_max(form->format);
    struct fixture f = {.device = {.threads = 2, .ops = &cpu_ops}};
    EXPECT_OK(cpu_threads_start(2));
    for (size_t i = 0; i < 2; i++) {
        f.states[i] = (struct scale_state){.scale = 1.0f, .inverse = 1.0f, .largest = largest};
    }
    const size_t bytes = f.device.ops->scratch_bytes(&f.device, &limits);
    device_set_scratch(&f.device, test_memory(bytes), bytes);
    return f;
}

static void fixture_close(struct fixture *f) { free(f->device.scratch); }

static struct operand operand_make(const struct form *form, size_t rows, size_t columns,
                                   struct scale_state *state) {
    struct operand o = {
        .state = form->mode == SCALE_TENSOR || form->mode == SCALE_NV ? state : NULL,
        .format = form->format, .mode = form->mode, .rows = rows, .columns = columns,
    };
    o.codes = test_memory(operand_code_bytes(&o));
    o.scales = test_memory(operand_scale_bytes(&o));
    memset(o.scales, 0, operand_scale_bytes(&o));
    return o;
}

static struct quantised copies_make(const struct form *form, size_t rows, size_t columns,
                                    struct scale_state states[2]) {
    struct scale_state *second = form->mode == SCALE_NV ? &states[1] : &states[0];
    return (struct quantised){.row = operand_make(form, rows, columns, &states[0]),
                              .transposed = operand_make(form, columns, rows, second)};
}

static void copies_free(struct quantised *copies) {
    free(copies->row.codes);
    free(copies->row.scales);
    free(copies->transposed.codes);
    free(copies->transposed.scales);
}

static uint8_t code_at(const struct operand *o, size_t row, size_t column) {
    const size_t element = row * o->columns + column;
    const uint8_t *codes = o->codes;
    if (o->format != FORMAT_E2M1) return codes[element];
    return codes[element / 2] >> (element % 2 * 4) & 0xF;
}

static float scale_at(const struct operand *o, size_t row, size_t column) {
    const size_t at = scale_index(o->mode, o->rows, o->columns, row, column);
    switch (o->mode) {
    case SCALE_TENSOR: return o->state->inverse;
    case SCALE_1X128:
    case SCALE_128X128: return ((const float *)o->scales)[at];
    case SCALE_MX: return float_from_ue8m0(((const uint8_t *)o->scales)[at]);
    case SCALE_NV: return float_from_e4m3(((const uint8_t *)o->scales)[at]) * o->state->inverse;
    }
    return NAN;
}

static double value_of(const struct operand *o, size_t row, size_t column) {
    return (double)format_decode(o->format, code_at(o, row, column)) *
           (double)scale_at(o, row, column);
}

/* As a product in FP32 or BF16 sees it: an infinity under MX's largest scale is 448 * 2^127. */
static bool finite_at(const struct operand *o, size_t row, size_t column) {
    return isfinite((float)value_of(o, row, column));
}

/* Numbers whose blocks differ by many powers of two. */
static struct tensor uneven_tensor(size_t rows, size_t columns, uint64_t key) {
    struct tensor t = random_tensor(DTYPE_BF16, rows, columns, key, 0.0, 1.0);
    for (size_t i = 0; i < tensor_count(t); i++) {
        const int power = (int)(i / columns / 16 + i % columns / 32) % 9 - 4;
        value_set(t, i, ldexp(value_at(t, i), power));
    }
    return t;
}

/* The matrix that a copy is made of: transposed and transformed as its form says. */
static float *copy_source(const struct tensor *in, const struct form *form, bool transposed) {
    float *x = test_memory(tensor_count(*in) * sizeof *x);
    for (size_t n = 0; n < in->rows; n++) {
        for (size_t c = 0; c < in->columns; c++) {
            x[transposed ? c * in->rows + n : n * in->columns + c] =
                (float)value_at(*in, n * in->columns + c);
        }
    }
    if (transposed && form->hadamard) {
        for (size_t i = 0; i < tensor_count(*in); i += HADAMARD_SIZE) hadamard_transform(x + i);
    }
    return x;
}

/* The largest magnitude of rows [r0, r1) and columns [c0, c1), cut to the matrix. */
static float amax_of(const float *x, const struct operand *o, size_t r0, size_t r1, size_t c0,
                     size_t c1) {
    float most = 0.0f;
    for (size_t r = r0; r < size_min(r1, o->rows); r++) {
        for (size_t c = c0; c < size_min(c1, o->columns); c++) {
            most = fmaxf(most, fabsf(x[r * o->columns + c]));
        }
    }
    return most;
}

static uint8_t rounded_at_random(const struct operand *o, bool transposed, float scaled,
                                 size_t element) {
    uint32_t words[4];
    const uint64_t index = rounding_index(o->state->draws, transposed, element);
    random_words(7, rounding_stream(3), index, words);
    return format_encode_stochastic(o->format, scaled, words[element % 4]);
}

/* One number of a copy by the definition: its code and scale must be these. */
static void check_number(const struct form *form, const struct operand *o, const float *x, size_t r,
                         size_t c, bool transposed) {
    const size_t block = scale_block(o->mode) > 0 ? scale_block(o->mode) : o->columns;
    const bool square = o->mode == SCALE_128X128 || form->square;
    const size_t r0 = square ? r / block * block : r, c0 = c / block * block;
    const float amax = amax_of(x, o, r0, square ? r0 + block : r + 1, c0, c0 + block);
    float scaled = x[r * o->columns + c], scale = 0.0f;
    uint8_t code = 0;
    switch (o->mode) {
    case SCALE_TENSOR:
        scaled *= o->state->scale;
        scale = o->state->inverse;
        break;
    case SCALE_1X128:
    case SCALE_128X128:
        scaled *= scale_from_amax(amax, 448.0f);
        scale = 1.0f / scale_from_amax(amax, 448.0f);
        break;
    case SCALE_MX:
        code = ue8m0_from_amax(amax);
        scaled *= ue8m0_factor(code);
        scale = float_from_ue8m0(code);
        break;
    case SCALE_NV:
        code = nvfp4_block_scale(amax, o->state->scale);
        scaled = nvfp4_scaled(scaled, o->state->scale, float_from_e4m3(code));
        scale = float_from_e4m3(code) * o->state->inverse;
        break;
    }
    code = format_encode(form->format, scaled);
    if (form->stochastic) code = rounded_at_random(o, transposed, scaled, r * o->columns + c);
    assert_int_equal(code_at(o, r, c), code);
    assert_true(scale_at(o, r, c) == scale);
}

static void check_copy(const struct form *form, const struct operand *o, const struct tensor *in,
                       bool transposed) {
    float *x = copy_source(in, form, transposed);
    if (o->state != NULL) {
        const float amax = amax_of(x, o, 0, o->rows, 0, o->columns);
        assert_true(o->state->scale == scale_from_amax(amax, o->state->largest));
        assert_true(o->state->inverse == 1.0f / o->state->scale);
    }
    for (size_t r = 0; r < o->rows; r++) {
        for (size_t c = 0; c < o->columns; c++) check_number(form, o, x, r, c, transposed);
    }
    free(x);
}

static struct quantise request(const struct form *form, struct quantised out, struct tensor in) {
    return (struct quantise){
        .out = out, .in = in, .scaling = SCALING_CURRENT, .square = form->square,
        .hadamard = form->hadamard, .stochastic = form->stochastic, .seed = 7, .tensor = 3,
    };
}

static void every_form_follows_its_definition(void **state) {
    (void)state;
    for (size_t i = 0; i < FORMS; i++) {
        struct fixture f = fixture_open(&forms[i]);
        struct tensor in = uneven_tensor(ROWS, COLUMNS, i + 1);
        struct quantised copies = copies_make(&forms[i], ROWS, COLUMNS, f.states);
        const struct quantise op = request(&forms[i], copies, in);
        EXPECT_OK(f.device.ops->quantise(&f.device, &op, 1));
        check_copy(&forms[i], &copies.row, &in, false);
        check_copy(&forms[i], &copies.transposed, &in, true);
        copies_free(&copies);
        free(in.data);
        fixture_close(&f);
    }
}

/* cuBLASLt's layouts, as lists of (row, block) in the order of memory. */
static void scales_lie_where_the_library_reads_them(void **state) {
    (void)state;
    enum { BIG = 300 };
    const size_t columns[] = {32 * 7, 32 * 4, 32};
    for (size_t i = 0; i < 3; i++) {
        size_t at = 0;
        const size_t blocks = columns[i] / 32;
        for (size_t rows = 0; rows < BIG; rows += 128) {
            for (size_t first = 0; first < blocks; first += 4) {
                for (size_t low = 0; low < 32; low++) {
                    for (size_t cell = 0; cell < 16; cell++, at++) {
                        const size_t row = rows + cell / 4 * 32 + low, block = first + cell % 4;
                        if (row >= BIG || block >= blocks) continue;
                        assert_int_equal(scale_index(SCALE_MX, BIG, columns[i], row, block * 32),
                                         at);
                        assert_int_equal(scale_index(SCALE_NV, BIG, columns[i] / 2, row,
                                                     block * 16 + 15), at);
                    }
                }
            }
        }
        const struct operand mx = {.mode = SCALE_MX, .rows = BIG, .columns = columns[i]};
        assert_int_equal(operand_scale_bytes(&mx), at);
    }
    /* (300, 700): 6 blocks of 128, padded to 8 in the 128 x 128 form */
    assert_int_equal(scale_index(SCALE_1X128, BIG, 700, 17, 650), 5 * BIG + 17);
    assert_int_equal(scale_index(SCALE_128X128, BIG, 700, 290, 650), 2 * 8 + 5);
    const struct operand row = {.mode = SCALE_1X128, .rows = BIG, .columns = 700};
    const struct operand tile = {.mode = SCALE_128X128, .rows = BIG, .columns = 700};
    assert_int_equal(operand_scale_bytes(&row), 6 * BIG * sizeof(float));
    assert_int_equal(operand_scale_bytes(&tile), 3 * 8 * sizeof(float));
}

/* Delayed: the scale stays, what is beyond it saturates, the amax is raised. Known amax: not
 * searched again. */
static void tensor_scales_delayed_and_known(void **state) {
    (void)state;
    struct fixture f = fixture_open(&forms[0]);
    struct tensor in = uneven_tensor(ROWS, COLUMNS, 1);
    struct quantised copies = copies_make(&forms[0], ROWS, COLUMNS, f.states);
    struct quantise op = request(&forms[0], copies, in);
    float *x = copy_source(&in, &forms[0], false);
    const float amax = amax_of(x, &copies.row, 0, ROWS, 0, COLUMNS);
    op.scaling = SCALING_DELAYED;
    f.states[0].scale = 900.0f / amax;
    f.states[0].inverse = amax / 900.0f;
    EXPECT_OK(f.device.ops->quantise(&f.device, &op, 1));
    assert_true(float_of_bits(f.states[0].amax_bits) == amax);
    double most = 0.0;
    for (size_t i = 0; i < ROWS * COLUMNS; i++) {
        most = fmax(most, fabs(value_of(&copies.row, i / COLUMNS, i % COLUMNS)));
    }
    assert_true(most == 448.0 * (double)f.states[0].inverse);
    op.scaling = SCALING_CURRENT;
    op.amax_known = true;
    f.states[0].amax_bits = bits_of_float(2.0f * amax);
    EXPECT_OK(f.device.ops->quantise(&f.device, &op, 1));
    assert_true(f.states[0].scale == 448.0f / (2.0f * amax));
    free(x);
    free(in.data);
    copies_free(&copies);
    fixture_close(&f);
}

/* A NaN or an infinity makes its block not finite (its tensor, where that has one scale), and no
 * other. Under a delayed scale it saturates, and the amax tells. */
static void nothing_hides_what_is_not_finite(void **state) {
    (void)state;
    const double bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < FORMS * 3; i++) {
        const struct form *form = &forms[i / 3];
        if (form->hadamard) continue;
        struct fixture f = fixture_open(form);
        struct tensor in = uneven_tensor(ROWS, COLUMNS, i + 1);
        struct quantised copies = copies_make(form, ROWS, COLUMNS, f.states);
        struct quantise op = request(form, copies, in);
        value_set(in, 5 * COLUMNS + 40, bad[i % 3]);
        EXPECT_OK(f.device.ops->quantise(&f.device, &op, 1));
        assert_true(!finite_at(&copies.row, 5, 40));
        assert_true(!finite_at(&copies.transposed, 40, 5));
        const bool alone = form->mode != SCALE_TENSOR && form->mode != SCALE_NV &&
                           form->mode != SCALE_128X128;
        if (alone) assert_true(finite_at(&copies.row, 6, 40));
        if (form->mode == SCALE_TENSOR) {
            f.states[0] = (struct scale_state){.scale = 1.0f, .inverse = 1.0f, .largest = 448.0f};
            op.scaling = SCALING_DELAYED;
            EXPECT_OK(f.device.ops->quantise(&f.device, &op, 1));
            assert_true(!isfinite(float_of_bits(f.states[0].amax_bits)));
            struct step_state step = {.gradient_sumsq = 1.0, .loss_sum = 1.0, .loss_scale = 1.0f};
            EXPECT_OK(f.device.ops->scales_update(&f.device, &step, f.states, 1, true));
            assert_true(isnan(step.gradient_sumsq));
            assert_true(f.states[0].amax_bits == 0 && f.states[0].seen == 0 &&
                        f.states[0].scale == 1.0f);
        }
        copies_free(&copies);
        free(in.data);
        fixture_close(&f);
    }
}

/* Products of decoded numbers are exact; K additions in FP32 lose K 2^-24 of the sum of magnitudes
 * at most, three scales another 4 2^-24, and the result is rounded once. */
static void check_product(const struct form *a_form, const struct form *b_form, enum dtype type,
                          bool extras) {
    enum { M = 32, N = 64, K = COLUMNS };
    struct fixture f = fixture_open(a_form), g = fixture_open(b_form);
    struct tensor a = uneven_tensor(M, K, 1), b = uneven_tensor(N, K, 2);
    struct tensor bias = random_tensor(DTYPE_BF16, 1, N, 3, 0.0, 1.0);
    struct tensor c = random_tensor(type, M, N, 4, 0.0, 1.0);
    double *old = doubles_of(c);
    struct quantised qa = copies_make(a_form, M, K, f.states), qb = copies_make(b_form, N, K,
                                                                                g.states);
    const struct quantise ops[2] = {request(a_form, qa, a), request(b_form, qb, b)};
    EXPECT_OK(f.device.ops->quantise(&f.device, ops, 2));
    const struct quantised_gemm op = {.c = c, .a = qa.row, .b = qb.row, .accumulate = extras,
                                      .bias = extras ? &bias : NULL};
    EXPECT_OK(f.device.ops->quantised_gemm(&f.device, &op));
    for (size_t i = 0; i < M * N; i++) {
        double sum = 0.0, size = 0.0;
        for (size_t k = 0; k < K; k++) {
            const double product = value_of(&qa.row, i / N, k) * value_of(&qb.row, i % N, k);
            sum += product;
            size += fabs(product);
        }
        if (extras) {
            sum += old[i] + value_at(bias, i % N);
            size += fabs(old[i]) + fabs(value_at(bias, i % N));
        }
        assert_true(fabs(value_at(c, i) - sum) <=
                    tolerance_of(type, sum, (K + 6) * 0x1p-24 * size));
    }
    copies_free(&qa);
    copies_free(&qb);
    free(a.data), free(b.data), free(c.data), free(bias.data), free(old);
    fixture_close(&f);
    fixture_close(&g);
}

static void products_of_every_pair(void **state) {
    (void)state;
    static const size_t pairs[][2] = {{0, 0}, {0, 1}, {1, 0}, {2, 2}, {2, 3}, {3, 2},
                                      {4, 4}, {5, 5}, {5, 6}, {7, 7}};
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        check_product(&forms[pairs[i][0]], &forms[pairs[i][1]], DTYPE_BF16, false);
        check_product(&forms[pairs[i][0]], &forms[pairs[i][1]], DTYPE_F32, true);
    }
}

static void pairs_that_hardware_lacks_are_refused(void **state) {
    (void)state;
    static const size_t pairs[][2] = {{1, 1}, {3, 3}, {0, 2}, {0, 4}, {4, 5}};
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        struct fixture f = fixture_open(&forms[0]);
        struct tensor c = filled_tensor(DTYPE_F32, 32, 32, 0.0);
        struct quantised a = copies_make(&forms[pairs[i][0]], 32, 32, f.states);
        struct quantised b = copies_make(&forms[pairs[i][1]], 32, 32, f.states);
        const struct quantised_gemm op = {.c = c, .a = a.row, .b = b.row};
        expect_status(STATUS_INTERNAL, f.device.ops->quantised_gemm(&f.device, &op));
        assert_non_null(strstr(status_message(), format_name(a.row.format)));
        copies_free(&a);
        copies_free(&b);
        free(c.data);
        fixture_close(&f);
    }
}

/* Column sums are bias_backward's; rounding at random is the same for the same draw, another for
 * the next. */
static void bias_gradient_and_draws(void **state) {
    (void)state;
    const struct form *form = &forms[FORMS - 1];
    struct fixture f = fixture_open(form);
    struct tensor in = uneven_tensor(ROWS, COLUMNS, 1);
    struct quantised copies = copies_make(form, ROWS, COLUMNS, f.states);
    struct quantise op = request(form, copies, in);
    float sums[COLUMNS], expected[COLUMNS];
    const struct bias_backward bias = {.bias_gradient = expected, .out_gradient = in};
    op.bias_gradient = sums;
    EXPECT_OK(f.device.ops->bias_backward(&f.device, &bias));
    EXPECT_OK(f.device.ops->quantise(&f.device, &op, 1));
    assert_memory_equal(sums, expected, sizeof sums);
    uint8_t *before = test_memory(operand_code_bytes(&copies.row));
    memcpy(before, copies.row.codes, operand_code_bytes(&copies.row));
    EXPECT_OK(f.device.ops->quantise(&f.device, &op, 1));
    assert_memory_equal(before, copies.row.codes, operand_code_bytes(&copies.row));
    EXPECT_OK(f.device.ops->scales_begin(&f.device, f.states, 2, true));
    EXPECT_OK(f.device.ops->quantise(&f.device, &op, 1));
    assert_true(memcmp(before, copies.row.codes, operand_code_bytes(&copies.row)) != 0);
    free(before);
    free(in.data);
    copies_free(&copies);
    fixture_close(&f);
}

static void history_gives_the_scale(void **state) {
    (void)state;
    struct fixture f = fixture_open(&forms[0]);
    struct step_state step = {.gradient_sumsq = 1.0, .loss_sum = 1.0, .loss_scale = 1.0f};
    for (int i = 0; i < 40; i++) { /* one outlier, 16 steps long in the history */
        f.states[0].amax_bits = bits_of_float(i == 10 ? 64.0f : 2.0f);
        EXPECT_OK(f.device.ops->scales_update(&f.device, &step, f.states, 1, true));
        const float most = i >= 10 && i < 26 ? 64.0f : 2.0f;
        assert_true(f.states[0].scale == 448.0f / most);
        assert_true(f.states[0].inverse == 1.0f / f.states[0].scale);
        assert_true(f.states[0].amax_bits == 0 && step.gradient_sumsq == 1.0);
    }
    f.states[0].scale = NAN;
    f.states[0].draws_before = 7;
    f.states[0].draws = 9;
    step.gradient_sumsq = INFINITY;
    EXPECT_OK(f.device.ops->scales_update(&f.device, &step, f.states, 1, true));
    assert_true(f.states[0].scale == 1.0f && f.states[0].seen == 40);
    assert_int_equal(f.states[0].draws, 7);
    fixture_close(&f);
}

/* In FP32 an operation stores what it quantises, so the copies that it writes itself are those of
 * its result; and its amax is that of its result. */
static void operations_quantise_what_they_store(void **state) {
    (void)state;
    struct fixture f = fixture_open(&forms[0]);
    struct quantised own = copies_make(&forms[0], ROWS, COLUMNS, f.states);
    struct quantised after = copies_make(&forms[0], ROWS, COLUMNS, f.states);
    struct tensor x = random_tensor(DTYPE_F32, ROWS, COLUMNS, 1, 0.0, 2.0);
    struct tensor gradient = random_tensor(DTYPE_F32, ROWS, COLUMNS, 2, 0.0, 2.0);
    struct tensor vector = random_tensor(DTYPE_F32, 1, COLUMNS, 3, 0.0, 1.0);
    struct tensor out = filled_tensor(DTYPE_F32, ROWS, COLUMNS, 0.0);
    float mean[ROWS], rstd[ROWS], sums[3][COLUMNS];
    struct norm_forward norm = {.out = out, .residual_in = x, .weight = vector, .bias = vector,
                                .mean = mean, .rstd = rstd};
    struct norm_backward norm_back = {
        .residual_gradient = out, .out_gradient = gradient, .residual = x, .weight = vector,
        .mean = mean, .rstd = rstd, .weight_gradient = sums[0], .bias_gradient = sums[1],
        .delta_bias_gradient = sums[2], .overwrite_residual_gradient = true};
    struct gelu_forward gelu = {.out = out, .x = x, .bias = vector};
    struct gelu_backward gelu_back = {.x_gradient = out, .out_gradient = gradient, .x = x,
                                      .bias = vector, .bias_gradient = sums[0]};
    struct quantise_output *const outputs[] = {&norm.quantise, &norm_back.quantise, &gelu.quantise,
                                               &gelu_back.quantise};
    f.states[0].scale = 30.0f;
    f.states[0].inverse = 1.0f / 30.0f;
    for (size_t i = 0; i < 8; i++) {
        const bool copies = i < 4;
        *outputs[i % 4] = (struct quantise_output){.copies = copies ? &own : NULL,
                                                   .amax = copies ? NULL : &f.states[0]};
        f.states[0].amax_bits = 0;
        if (i % 4 == 0) EXPECT_OK(f.device.ops->norm_forward(&f.device, &norm));
        if (i % 4 == 1) EXPECT_OK(f.device.ops->norm_backward(&f.device, &norm_back));
        if (i % 4 == 2) EXPECT_OK(f.device.ops->gelu_forward(&f.device, &gelu));
        if (i % 4 == 3) EXPECT_OK(f.device.ops->gelu_backward(&f.device, &gelu_back));
        assert_int_equal(f.states[0].amax_bits, amax_bits_row(out.data, 0, ROWS * COLUMNS));
        struct quantise op = request(&forms[0], after, out);
        op.scaling = SCALING_DELAYED;
        EXPECT_OK(f.device.ops->quantise(&f.device, &op, 1));
        if (!copies) continue;
        assert_memory_equal(own.row.codes, after.row.codes, ROWS * COLUMNS);
        assert_memory_equal(own.transposed.codes, after.transposed.codes, ROWS * COLUMNS);
    }
    copies_free(&own);
    copies_free(&after);
    free(x.data), free(gradient.data), free(vector.data), free(out.data);
    fixture_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_form_follows_its_definition),
        cmocka_unit_test(scales_lie_where_the_library_reads_them),
        cmocka_unit_test(tensor_scales_delayed_and_known),
        cmocka_unit_test(nothing_hides_what_is_not_finite),
        cmocka_unit_test(products_of_every_pair),
        cmocka_unit_test(pairs_that_hardware_lacks_are_refused),
        cmocka_unit_test(bias_gradient_and_draws),
        cmocka_unit_test(history_gives_the_scale),
        cmocka_unit_test(operations_quantise_what_they_store),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/*
 * Quantisation and scale states. Oracles: the definitions in
 * kernels/quantised.h followed one number at a time on kernels/formats.h (which has its own test),
 * bit for bit; the scale layouts as lists of what lies where in memory; FP64 sums of decoded
 * operands for products; bit equality of copies that an operation wrote with copies of what it
 * stored.
 */
#include "kernels/cpu/quantise.h"
#include "kernels/traffic.h"
#include "tests/kernels/quantise_fixture.h"

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
    size_t written = 0, real = 0; /* bytes that are not zero: those of real blocks at most */
    for (size_t i = 0; i < operand_scale_bytes(o); i++) {
        written += ((const uint8_t *)o->scales)[i] != 0;
    }
    if (o->mode == SCALE_1X128) real = ceil_div(o->columns, 128) * o->rows * sizeof(float);
    if (o->mode == SCALE_128X128) {
        real = ceil_div(o->columns, 128) * ceil_div(o->rows, 128) * sizeof(float);
    }
    if (o->mode == SCALE_MX) real = o->rows * o->columns / 32;
    if (o->mode == SCALE_NV) real = o->rows * o->columns / 16;
    assert_true(written <= real);
    free(x);
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

/* The first step under delayed scaling, whose scales are each rank's own, is not finite: of the two
 * states each word becomes the larger one (train/exchange.c), and what stays must be a pair. */
static void a_dropped_step_leaves_a_pair(void **state) {
    (void)state;
    const struct {
        float scales[2], kept;
    } cases[] = {{{448.0f, 3.0f}, 448.0f}, {{3.0f, 448.0f}, 448.0f}, {{7.0f, 7.0f}, 7.0f},
                 {{3.0f, NAN}, 1.0f}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct scale_state ranks[2];
        uint32_t words[2][sizeof ranks[0] / sizeof(uint32_t)];
        for (size_t rank = 0; rank < 2; rank++) {
            const float scale = cases[i].scales[rank];
            ranks[rank] = (struct scale_state){
                .scale = scale, .inverse = scale_inverse(scale), .largest = 448.0f, .draws = 1};
            memcpy(words[rank], &ranks[rank], sizeof ranks[rank]);
        }
        for (size_t k = 0; k < sizeof words[0] / sizeof words[0][0]; k++) {
            words[0][k] = words[0][k] > words[1][k] ? words[0][k] : words[1][k];
        }
        memcpy(&ranks[0], words[0], sizeof ranks[0]);
        scale_state_drop(&ranks[0]);
        assert_true(ranks[0].scale == cases[i].kept);
        assert_true(ranks[0].inverse == scale_inverse(cases[i].kept));
        assert_true(ranks[0].seen == 0 && ranks[0].draws == 0);
    }
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
    struct tensor logits = filled_tensor(DTYPE_F32, ROWS, COLUMNS, 0.0);
    float losses[ROWS], one = 1.0f;
    int32_t targets[ROWS];
    for (int n = 0; n < ROWS; n++) targets[n] = n % 7 - 1; /* some have none */
    struct cross_entropy loss = {
        .logits = logits, .targets = targets, .losses = losses, .vocabulary = COLUMNS - 9,
        .write_gradient = true, .gradient_scale = 3.0f, .loss_scale = &one};
    struct quantise_output *const outputs[] = {&norm.quantise, &norm_back.quantise, &gelu.quantise,
                                               &gelu_back.quantise, &loss.quantise};
    enum { OPERATIONS = 5 };
    f.states[0].scale = 30.0f;
    f.states[0].inverse = 1.0f / 30.0f;
    for (size_t i = 0; i < 2 * OPERATIONS; i++) {
        const bool copies = i < OPERATIONS;
        const size_t which = i % OPERATIONS;
        *outputs[which] = (struct quantise_output){.copies = copies ? &own : NULL,
                                                   .amax = copies ? NULL : &f.states[0]};
        f.states[0].amax_bits = 0;
        if (which == 0) EXPECT_OK(f.device.ops->norm_forward(&f.device, &norm));
        if (which == 1) EXPECT_OK(f.device.ops->norm_backward(&f.device, &norm_back));
        if (which == 2) EXPECT_OK(f.device.ops->gelu_forward(&f.device, &gelu));
        if (which == 3) EXPECT_OK(f.device.ops->gelu_backward(&f.device, &gelu_back));
        if (which == 4) { /* in place: in FP32 the logits hold the gradient all the same */
            memcpy(logits.data, x.data, tensor_bytes(x));
            EXPECT_OK(f.device.ops->cross_entropy(&f.device, &loss));
            memcpy(out.data, logits.data, tensor_bytes(out));
        }
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
    FREE_TENSORS(&x, &gradient, &vector, &out, &logits);
    fixture_close(&f);
}

/* 92 bytes a token, layer and unit of width move in FP8: here its parts, per number. */
static void bytes_are_those_of_one_pass(void **state) {
    (void)state;
    struct fixture f = fixture_open(&forms[0]);
    struct quantised copies = copies_make(&forms[0], ROWS, COLUMNS, f.states);
    struct tensor x = filled_tensor(DTYPE_BF16, ROWS, COLUMNS, 0.0);
    const size_t numbers = ROWS * COLUMNS;
    struct quantise op = request(&forms[0], copies, x);
    struct tensor none = x;
    none.data = NULL;
    op.amax_known = true; /* read once, both copies written */
    assert_int_equal(quantise_bytes(&op), numbers * (2 + 1 + 1));
    op.amax_known = false;
    assert_int_equal(quantise_bytes(&op), numbers * (2 + 2 + 1 + 1));
    op.scaling = SCALING_DELAYED;
    op.out.transposed.codes = NULL;
    assert_int_equal(quantise_bytes(&op), numbers * (2 + 1));
    const struct gelu_forward gelu = {.out = none, .x = x, .bias = tensor_rows(x, 0, 1),
                                      .quantise.copies = &copies};
    assert_int_equal(gelu_forward_bytes(&gelu), numbers * (2 + 1 + 1) + 2 * COLUMNS);
    const struct quantised_gemm gemm = {.c = tensor_make(NULL, DTYPE_F32, ROWS, ROWS),
                                        .a = copies.row, .b = copies.row, .accumulate = true};
    assert_int_equal(quantised_gemm_bytes(&gemm), 2 * numbers + ROWS * ROWS * 8);
    copies_free(&copies);
    free(x.data);
    fixture_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_form_follows_its_definition),
        cmocka_unit_test(scales_lie_where_the_library_reads_them),
        cmocka_unit_test(tensor_scales_delayed_and_known),
        cmocka_unit_test(nothing_hides_what_is_not_finite),
        cmocka_unit_test(bias_gradient_and_draws),
        cmocka_unit_test(a_dropped_step_leaves_a_pair),
        cmocka_unit_test(history_gives_the_scale),
        cmocka_unit_test(operations_quantise_what_they_store),
        cmocka_unit_test(bytes_are_those_of_one_pass),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/*
 * The GPU's quantisers and scale states against kernels/cpu (whose own oracle is
 * tests/kernels/quantise_test.c): tensors, scales and states must be equal bit for bit. And the
 * layout of the scales in tiles against the order in which they lie. One line a form. With the name
 * of a test, that one alone.
 */
#include "tests/gpu/quantise_testing.h"

/* Multiples of 32 in one place; the others stop within blocks, tiles and 16-row groups. */
static const struct shape shapes[] = {{32, 32},  {16, 16},    {48, 208},
                                      {160, 96}, {144, 1600}, {1056, 768}};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

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
        if (content == WIDE)
            value_set(t, i, ldexp(value_at(t, i), dtype == DTYPE_F16 ? power / 9 : power));
        if (content == ZEROS && (row / 32 + column / 32) % 2 == 0) value_set(t, i, 0.0);
    }
    if (content == WITH_NAN) value_set(t, count / 2, NAN);
    if (content == WITH_INFINITY) value_set(t, count / 2, -INFINITY);
    return t;
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
             only == 0   ? ""
             : only == 1 ? ", row copy"
                         : ", transposed copy");
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
            .scale = 2.0f,
            .inverse = 0.5f,
            .largest = E4M3_MAX,
            .seen = (uint32_t)i % 40,
            .draws = 9,
            .draws_before = 4,
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
        EXPECT_OK(
            gpu.ops->scales_update(&gpu, (void *)steps.there, (void *)states.there, STATES, enter));
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

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_states),   cmocka_unit_test(test_quantise),
        cmocka_unit_test(test_many),     cmocka_unit_test(test_recording),
        cmocka_unit_test(test_refusals),
    };
    if (!CHOOSE_TEST(argc, argv, tests)) return 2;
    check_layout(300, 6);
    check_layout(128, 9);
    if (!quantise_devices_open()) return 0;
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    devices_close();
    return failed;
}

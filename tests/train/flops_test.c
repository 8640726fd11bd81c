/*
 * FLOPs a token. Oracle: arithmetic by hand for the four GPT-2 sizes, T = 1024; exact.
 *
 * Linear parameters of a block: qkv 3 C^2, projection C^2, MLP 4 C^2 and 4 C^2: 12 C^2.
 *   124M   L 12, C 768:  12 * 12 * 768^2  =   84,934,656; head 50257 * 768  = 38,597,376
 *          N = 123,532,032; 6 N = 741,192,192; L C T = 9,437,184; 6 L C T = 56,623,104
 *          total 797,815,296; PaLM's: 741,192,192 + 113,246,208 = 854,438,400
 *   355M   L 24, C 1024: 24 * 12 * 1024^2 =  301,989,888; head 50257 * 1024 = 51,463,168
 *          N = 353,453,056; 6 N = 2,120,718,336; 6 L C T = 150,994,944; total 2,271,713,280
 *   774M   L 36, C 1280: 36 * 12 * 1280^2 =  707,788,800; head 50257 * 1280 = 64,328,960
 *          N = 772,117,760; 6 N = 4,632,706,560; 6 L C T = 283,115,520; total 4,915,822,080
 *   1558M  L 48, C 1600: 48 * 12 * 1600^2 = 1,474,560,000; head 50257 * 1600 = 80,411,200
 *          N = 1,554,971,200; 6 N = 9,329,827,200; 6 L C T = 471,859,200; total 9,801,686,400
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/param_table.h"
#include "train/flops.h"

enum { VOCABULARY = 50257, VOCABULARY_PADDED = 50304, CONTEXT = 1024 };

static void add(struct param_table *table, enum param_role role, size_t rows, size_t columns,
                size_t padded_rows) {
    struct param row = {.role = role, .rows = rows, .columns = columns, .padded_rows = padded_rows};
    /* names must differ for the table to be one of a model */
    row.name[0] = 'p';
    for (size_t n = table->length, i = 1; n > 0; n /= 10, i++) row.name[i] = (char)('0' + n % 10);
    assert_int_equal(param_table_add(table, &row), STATUS_OK);
}

/* The shapes of a GPT-2, norms and biases included, which must not count. */
static void fill(struct param_table *table, size_t layers, size_t width) {
    add(table, ROLE_EMBEDDING, VOCABULARY, width, VOCABULARY_PADDED);
    add(table, ROLE_POSITION, CONTEXT, width, 0);
    for (size_t l = 0; l < layers; l++) {
        for (int norm = 0; norm < 4; norm++) add(table, ROLE_NORM, 1, width, 0);
        add(table, ROLE_LINEAR, 3 * width, width, 0);
        add(table, ROLE_BIAS, 1, 3 * width, 0);
        add(table, ROLE_LINEAR, width, width, 0);
        add(table, ROLE_BIAS, 1, width, 0);
        add(table, ROLE_LINEAR, 4 * width, width, 0);
        add(table, ROLE_BIAS, 1, 4 * width, 0);
        add(table, ROLE_LINEAR, width, 4 * width, 0);
        add(table, ROLE_BIAS, 1, width, 0);
    }
    add(table, ROLE_NORM, 1, width, 0);
    add(table, ROLE_NORM, 1, width, 0);
}

static void gpt2_sizes_by_hand(void **state) {
    (void)state;
    static const struct {
        size_t layers, width;
        uint64_t linear_parameters, head_parameters, matmul_parameters;
        uint64_t attention, total, total_palm;
    } cases[] = {
        {12, 768, 84934656, 38597376, 123532032, 56623104, 797815296, 854438400},
        {24, 1024, 301989888, 51463168, 353453056, 150994944, 2271713280, 2422708224},
        {36, 1280, 707788800, 64328960, 772117760, 283115520, 4915822080, 5198937600},
        {48, 1600, 1474560000, 80411200, 1554971200, 471859200, 9801686400, 10273545600},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct param_table table = {0};
        struct flops flops;
        fill(&table, cases[i].layers, cases[i].width);
        assert_int_equal(flops_count(&table, cases[i].layers, cases[i].width, CONTEXT, &flops),
                         STATUS_OK);
        assert_true(flops.linear_parameters == cases[i].linear_parameters);
        assert_true(flops.head_parameters == cases[i].head_parameters);
        assert_true(flops.matmul_parameters == cases[i].matmul_parameters);
        assert_true(flops.attention == cases[i].attention);
        assert_true(flops.attention_palm == 2 * cases[i].attention);
        assert_true(flops.linear + flops.head == 6 * cases[i].matmul_parameters);
        assert_true(flops.total == cases[i].total);
        assert_true(flops.total_palm == cases[i].total_palm);
        assert_true(flops.forward * 3 == cases[i].total);
        param_table_free(&table);
    }
}

static void attention_grows_with_the_sequence_alone(void **state) {
    (void)state;
    struct param_table table = {0};
    struct flops shorter, longer;
    fill(&table, 2, 64);
    assert_int_equal(flops_count(&table, 2, 64, 256, &shorter), STATUS_OK);
    assert_int_equal(flops_count(&table, 2, 64, 512, &longer), STATUS_OK);
    assert_true(longer.attention == 2 * shorter.attention);
    assert_true(longer.linear == shorter.linear && longer.head == shorter.head);
    param_table_free(&table);
}

static void a_product_beyond_64_bits_is_refused(void **state) {
    (void)state;
    struct param huge = {.role = ROLE_LINEAR, .rows = SIZE_MAX / 2, .columns = 8};
    const struct param_table table = {.params = &huge, .length = 1};
    const struct param_table empty = {0};
    struct flops flops;
    assert_int_equal(flops_count(&table, 1, 1, 1, &flops), STATUS_CONFIG);
    assert_int_equal(flops_count(&empty, SIZE_MAX, 2, 2, &flops), STATUS_CONFIG);
    assert_int_equal(flops_count(&empty, SIZE_MAX / 8, 1, 1, &flops), STATUS_CONFIG);
}

static void tera_per_second(void **state) {
    (void)state;
    /* 124M: a million tokens in two seconds; exact in double up to rounding of 1e-12 */
    const double tflops = flops_tera_per_second(797815296, 1e6, 2.0);
    assert_true(tflops > 398.9076479 && tflops < 398.9076481);
}

static void the_text_has_the_parts(void **state) {
    (void)state;
    struct param_table table = {0};
    struct flops flops;
    char text[FLOPS_TEXT_BYTES];
    fill(&table, 12, 768);
    assert_int_equal(flops_count(&table, 12, 768, CONTEXT, &flops), STATUS_OK);
    flops_text(text, &flops);
    /* 0.797815, 0.509608, 0.231584, 0.056623, 0.854438 GFLOP to four digits */
    static const char *const parts[] = {"0.7978", "0.5096", "0.2316", "0.05662", "123,532,032",
                                        "0.8544"};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        assert_non_null(strstr(text, parts[i]));
    }
    param_table_free(&table);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gpt2_sizes_by_hand),
        cmocka_unit_test(attention_grows_with_the_sequence_alone),
        cmocka_unit_test(a_product_beyond_64_bits_is_refused),
        cmocka_unit_test(tera_per_second),
        cmocka_unit_test(the_text_has_the_parts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

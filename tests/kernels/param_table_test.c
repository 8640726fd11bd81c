/*
 * The tensor table. Oracles: offsets and counts by hand; statistics of the normal distribution for
 * initial values (of n values the mean's standard error is std / sqrt(n), that of the standard
 * deviation is std / sqrt(2 n); 5 of them are allowed); bit equality for repetition.
 */
#include <stdio.h>

#include "kernels/param_table.h"
#include "tests/kernels/testing.h"

static size_t add(struct param_table *table, const char *name, size_t rows, size_t columns,
                  size_t padded_rows, enum param_init init) {
    struct param row = {.role = ROLE_LINEAR, .layer = -1, .rows = rows, .columns = columns,
                        .padded_rows = padded_rows, .init = init, .init_std = 0.02f};
    strcpy(row.name, name);
    EXPECT_OK(param_table_add(table, &row));
    return table->length - 1;
}

static struct param_table small_table(void) {
    struct param_table table = {0};
    assert_int_equal(add(&table, "token", 50, 37, 64, INIT_NORMAL), 0);
    assert_int_equal(add(&table, "scale", 1, 37, 0, INIT_ONE), 1);
    assert_int_equal(add(&table, "shift", 1, 37, 0, INIT_ZERO), 2);
    assert_int_equal(add(&table, "linear", 300, 37, 0, INIT_NORMAL), 3);
    return table;
}

static void test_layout(void **state) {
    (void)state;
    struct param_table table = small_table();
    const struct param *p = table.params;
    assert_true(p[0].offset == 0 && p[0].count == 64 * 37);
    assert_true(p[1].offset == 2432 && p[1].count == 37 && p[1].padded_rows == 1); /* 19 * 128 */
    assert_true(p[2].offset == 2560 && p[3].offset == 2688 && p[3].count == 11100);
    assert_int_equal(table.elements, 13824); /* 108 * 128 */
    assert_int_equal(param_count(&p[0]), 50 * 37);
    assert_int_equal(param_table_count(&table), 50 * 37 + 37 + 37 + 300 * 37);
    assert_ptr_equal(param_table_find(&table, "shift"), &table.params[2]);
    assert_null(param_table_find(&table, "shif"));
    assert_string_equal(param_role_name(ROLE_EMBEDDING), "embedding");
    assert_string_equal(param_role_name(ROLE_NORM), "norm");
    param_table_free(&table);
    assert_null(table.params);
}

static void test_many_rows(void **state) {
    (void)state;
    struct param_table table = {0};
    for (int i = 0; i < 500; i++) {
        char name[16];
        snprintf(name, sizeof name, "row.%d", i);
        assert_int_equal(add(&table, name, 1, 129, 0, INIT_ZERO), i);
    }
    assert_int_equal(table.elements, 500 * 256);
    assert_int_equal(param_table_find(&table, "row.499")->offset, 499 * 256);
    param_table_free(&table);
}

static void test_refusals(void **state) {
    (void)state;
    struct param_table table = small_table();
    struct param row = {.name = "scale", .rows = 1, .columns = 1};
    expect_status(STATUS_INTERNAL, param_table_add(&table, &row)); /* there already */
    row.name[0] = '\0';
    expect_status(STATUS_INTERNAL, param_table_add(&table, &row));
    memset(row.name, 'x', sizeof row.name);
    expect_status(STATUS_INTERNAL, param_table_add(&table, &row)); /* does not end */
    row.name[1] = '\0';
    row.padded_rows = 1;
    row.rows = 2;
    expect_status(STATUS_INTERNAL, param_table_add(&table, &row));
    row.padded_rows = 0;
    row.columns = 0;
    expect_status(STATUS_INTERNAL, param_table_add(&table, &row));
    row.columns = SIZE_MAX;
    expect_status(STATUS_MEMORY, param_table_add(&table, &row));
    row.rows = (size_t)1 << 30;
    row.columns = (size_t)1 << 30;
    expect_status(STATUS_MEMORY, param_table_add(&table, &row));
    assert_int_equal(table.length, 4);
    param_table_free(&table);
}

static void check_normal(const float *values, size_t count, double std) {
    double sum = 0.0, squares = 0.0;
    for (size_t i = 0; i < count; i++) {
        sum += (double)values[i];
        squares += (double)values[i] * (double)values[i];
    }
    const double mean = sum / (double)count, root = sqrt(1.0 / (double)count);
    assert_true(fabs(mean) < 5.0 * std * root);
    assert_true(fabs(sqrt(squares / (double)count) - std) < 5.0 * std * root / sqrt(2.0));
}

static void test_initial_values(void **state) {
    (void)state;
    struct param_table table = small_table();
    float *flat = test_memory(table.elements * sizeof *flat);
    float *again = test_memory(table.elements * sizeof *again);
    for (size_t i = 0; i < table.elements; i++) flat[i] = again[i] = NAN;
    param_table_initialise(&table, 7, flat);
    const struct param *p = table.params;
    check_normal(flat, 50 * 37, 0.02);
    check_normal(flat + p[3].offset, p[3].count, 0.02);
    for (size_t i = 0; i < 128; i++) { /* vectors, and the gaps behind them */
        assert_true(flat[p[1].offset + i] == (i < 37 ? 1.0f : 0.0f));
        assert_true(flat[p[2].offset + i] == 0.0f);
    }
    for (size_t i = 50 * 37; i < p[1].offset; i++) assert_true(flat[i] == 0.0f); /* padding rows */
    for (size_t i = p[3].offset + p[3].count; i < table.elements; i++) assert_true(flat[i] == 0.0f);
    assert_true(flat[0] != flat[p[3].offset]); /* another place, other numbers */
    param_table_initialise(&table, 7, again);
    assert_memory_equal(flat, again, table.elements * sizeof *flat);
    param_table_initialise(&table, 8, again);
    assert_memory_not_equal(flat, again, 50 * 37 * sizeof *flat);
    free(flat);
    free(again);
    param_table_free(&table);
}

/* More padding changes nothing but the padding: the vocabulary may be padded otherwise on other
 * runs. */
static void test_padding_leaves_values_alone(void **state) {
    (void)state;
    struct param_table plain = {0}, padded = {0};
    add(&plain, "a", 10, 7, 10, INIT_NORMAL);
    add(&plain, "b", 5, 7, 0, INIT_NORMAL);
    add(&padded, "a", 10, 7, 128, INIT_NORMAL);
    add(&padded, "b", 5, 7, 0, INIT_NORMAL);
    float *one = test_memory(plain.elements * sizeof *one);
    float *two = test_memory(padded.elements * sizeof *two);
    param_table_initialise(&plain, 3, one);
    param_table_initialise(&padded, 3, two);
    assert_memory_equal(one, two, 70 * sizeof *one);
    assert_memory_equal(one + plain.params[1].offset, two + padded.params[1].offset,
                        35 * sizeof *one);
    free(one);
    free(two);
    param_table_free(&plain);
    param_table_free(&padded);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_many_rows),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_initial_values),
        cmocka_unit_test(test_padding_leaves_values_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/*
 * Products of quantised operands. Oracle: FP64 sums of the decoded numbers, with a bound from the
 * roundings of an FP32 sum; refusals name the formats.
 */
#include "tests/kernels/quantise_fixture.h"

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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_of_every_pair),
        cmocka_unit_test(pairs_that_hardware_lacks_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

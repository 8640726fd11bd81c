/*
 * The operations of kernels/cuda on tensors of more than 2^31 elements, where an index of 32 bits
 * goes wrong. Oracle: kernels/cpu on sampled rows alone (the first, the last, those about the
 * 2^31-th element, random ones); sums down the columns against kernels/cpu on sampled columns;
 * sums of everything against sums of the pattern. The tests lie in large_rows.c, large_tables.c and
 * large_products.c.
 */
#include "tests/gpu/large_testing.h"

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
         .model_width = 6400,
         .sequence_length = LENGTH,
         .heads = 1,
         .head_width = HEAD_WIDTH,
         .dtype = DTYPE_F32},
        {.tokens = rows,
         .width = 6400,
         .model_width = 6400,
         .sequence_length = LENGTH,
         .heads = HEADS,
         .head_width = HEAD_WIDTH,
         .dtype = DTYPE_BF16},
    };
    const struct device_options options = {.gemm_effort = GEMM_EFFORT_OFF};
    if (!devices_open(&options, limits, sizeof limits / sizeof limits[0])) return 0;
    patterns_make();
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    patterns_free();
    devices_close();
    return failed;
}

/*
 * Norms, GELU, biases, cross entropy, embeddings, the attention of our own, conversions, sums,
 * AdamW, and the fill and check of GEMMs, on tiny shapes and without a kernel of any library, so
 * that a sanitizer is done in a minute:
 *   compute-sanitizer --tool racecheck race_test
 *   compute-sanitizer --tool memcheck race_test
 * The same kernels where they write FP8 copies: quantised_ops_test test_producers. Neither runs the
 * quantisers (quantise_test), the expansion of operands, or communication's counters.
 * Oracles: kernels/cpu (ops_cases.h), and the sanitizer, which a plain run lacks.
 */
#include "tests/gpu/ops_cases.h"

#ifdef HAVE_CUDART

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/gemm_call.h"

static void test_rows(void **state) {
    (void)state;
    for (size_t t = 0; t < TEST_DTYPES; t++) {
        const enum dtype type = test_dtypes[t];
        /* a warp a row has a kernel for every 256 numbers; wider and odd rows have a block each */
        for (size_t width = 256; width <= 2560; width += 256) {
            const struct shape s = {3, width};
            norm_case(type, &s, true, false, true);
        }
        /* beyond the registers of a thread, and the widest that is admitted: 1024 threads */
        static const struct shape wide[] = {{5, 6408}, {5, 8192}};
        for (size_t s = 0; s < 2; s++) norm_case(type, &wide[s], true, s == 0, false);
        static const struct shape shapes[] = {{5, 33}, {37, 72}};
        for (size_t s = 0; s < 2; s++) {
            norm_case(type, &shapes[s], true, true, false);
            norm_case(type, &shapes[s], false, false, true);
            gelu_case(type, &shapes[s], s == 0);
            bias_case(type, &shapes[s], s == 1);
        }
        cross_entropy_case(type, 3, 1000, 997);
        cross_entropy_case(type, 2, 103, 103);
        cross_entropy_case(type, 2, 130000, 129999);
        embedding_case(type, 3, 33, 1, false);
        embedding_case(type, 1, 40, 3, true); /* one token in several pieces */
    }
}

static void test_attention(void **state) {
    (void)state;
    for (size_t t = 0; t < TEST_DTYPES; t++) {
        attention_case(test_dtypes[t], 2, 9, 3, 5);
        attention_case(test_dtypes[t], 1, 70, 2, 40);
        attention_cached_case(test_dtypes[t]);
    }
}

static void test_convert_and_update(void **state) {
    (void)state;
    for (size_t from = 0; from < TEST_DTYPES; from++) {
        update_case(test_dtypes[from]);
        parts_case(test_dtypes[from], 4096);
        parts_case(test_dtypes[from], 1003);
        for (size_t to = 0; to < TEST_DTYPES; to++) {
            convert_case(test_dtypes[from], test_dtypes[to]);
        }
    }
}

/* The check of GEMMs passes what kernels/cpu computes, and finds one element that is off. */
static void test_gemm_check(void **state) {
    (void)state;
    for (size_t t = 0; t < TEST_DTYPES; t++) {
        const enum dtype type = test_dtypes[t];
        struct pair a = pair_random(type, 40, 30, 1, 0.0, 1.0);
        struct pair b = pair_random(type, 20, 30, 2, 0.0, 1.0);
        struct pair c = pair_random(DTYPE_F32, 40, 20, 3, 0.0, 1.0);
        const struct gemm there = {.c = c.there,
                                   .a = a.there,
                                   .b = b.there,
                                   .transpose_b = true,
                                   .accumulate = true};
        const struct gemm host = {.c = c.host,
                                  .a = a.host,
                                  .b = b.host,
                                  .transpose_b = true,
                                  .accumulate = true};
        const struct gemm_call call = gemm_call_of(&there);
        double worst = 0.0;
        EXPECT_OK(gemm_verify_begin(&gpu, &call));
        EXPECT_OK(cpu.ops->gemm(&cpu, &host));
        EXPECT_OK(device_upload(&gpu, c.there.data, c.host.data, tensor_bytes(c.host)));
        EXPECT_OK(gemm_verify(&gpu, &call, &worst));
        assert_true(worst > 0.0 && worst <= 1.0);
        value_set(c.host, 799, value_at(c.host, 799) + 0.01);
        EXPECT_OK(device_upload(&gpu, c.there.data, c.host.data, tensor_bytes(c.host)));
        EXPECT_OK(gemm_verify(&gpu, &call, &worst));
        assert_true(worst > 1.0);
        FREE_PAIRS(&a, &b, &c);
    }
}

/* Closed form: mean 0 and variance 1, whose estimates from n numbers have standard deviations of
 * 1 / sqrt(n) and sqrt(2 / n); six of them happen once in 10^9. */
static void test_gemm_fill(void **state) {
    const double n = 4099.0;
    (void)state;
    for (size_t t = 0; t < TEST_DTYPES; t++) {
        struct pair x = pair_poison(test_dtypes[t], 1, 4099);
        const struct gemm_operand operand = gemm_plain_operand(x.there);
        double sum = 0.0, squares = 0.0;
        EXPECT_OK(gemm_fill(&gpu, &operand, 7));
        EXPECT_OK(device_download(&gpu, x.host.data, x.there.data, tensor_bytes(x.host)));
        for (size_t i = 0; i < tensor_count(x.host); i++) {
            const double value = value_at(x.host, i);
            sum += value;
            squares += value * value;
        }
        assert_true(fabs(sum / n) <= 6.0 / sqrt(n));
        assert_true(fabs(squares / n - 1.0) <= 6.0 * sqrt(2.0 / n));
        FREE_PAIRS(&x);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_convert_and_update),
        cmocka_unit_test(test_gemm_check),
        cmocka_unit_test(test_gemm_fill),
    };
    struct op_limits limits[TEST_DTYPES];
    for (size_t t = 0; t < TEST_DTYPES; t++) {
        limits[t] = (struct op_limits){.tokens = 512,
                                       .width = 7680,
                                       .model_width = 7680,
                                       .sequence_length = 128,
                                       .heads = 4,
                                       .head_width = 40,
                                       .dtype = test_dtypes[t]};
    }
    const struct device_options options = {.gemm_effort = GEMM_EFFORT_OFF, .own_attention = true};
    if (!devices_open(&options, limits, TEST_DTYPES)) return 0;
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    devices_close();
    return failed;
}

#else

int main(void) {
    printf("skipped: built without CUDA\n");
    return 0;
}

#endif

/*
 * Every operation of kernels/cuda on shapes that are no multiple of anything and on aligned ones.
 * Oracle: kernels/cpu (whose own is FP64), case by case in ops_cases.h.
 */
#include "tests/gpu/ops_cases.h"

static const struct shape shapes[] = {{1, 1},     {5, 33},    {37, 64},
                                      {131, 768}, {70, 1600}, {1027, 200}};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

static void test_rows(void **state) {
    (void)state;
    for (size_t t = 0; t < TEST_DTYPES; t++) {
        for (size_t s = 0; s < SHAPES; s++) {
            const enum dtype type = test_dtypes[t];
            norm_case(type, &shapes[s], true, false, false);
            norm_case(type, &shapes[s], true, true, true);
            norm_case(type, &shapes[s], false, false, true);
            gelu_case(type, &shapes[s], s % 2 == 0);
            bias_case(type, &shapes[s], s % 2 == 0);
        }
    }
}

static void test_cross_entropy(void **state) {
    (void)state;
    for (size_t t = 0; t < TEST_DTYPES; t++) {
        cross_entropy_case(test_dtypes[t], 3, 128, 101);
        cross_entropy_case(test_dtypes[t], 5, 103, 103);
        cross_entropy_case(test_dtypes[t], 2, 1, 1);
        cross_entropy_case(test_dtypes[t], 67, 50304, 50257);
        cross_entropy_case(test_dtypes[t], 3, 130000, 129999);
    }
}

static void test_embedding(void **state) {
    static const size_t kinds[] = {1, 3, 1000}; /* all alike, few, many */
    (void)state;
    for (size_t t = 0; t < TEST_DTYPES; t++) {
        for (size_t c = 0; c < 6; c++) {
            embedding_case(test_dtypes[t], kinds[c % 3], c < 3 ? 33 : 768, 7, c % 2 == 1);
        }
    }
}

static void test_gemm(void **state) {
    static const size_t sizes[][3] = {{1, 8, 8}, {17, 33, 5}, {64, 128, 256}, {200, 72, 1000}};
    (void)state;
    for (size_t t = 0; t < TEST_DTYPES; t++) {
        for (size_t s = 0; s < 4; s++) {
            for (int how = 0; how < 16; how++) {
                /* cuBLASLt takes two-byte numbers in whole 16 bytes or with other algorithms;
                 * all must do */
                gemm_case(test_dtypes[t], test_dtypes[t], sizes[s][0], sizes[s][1], sizes[s][2],
                          how);
                if (test_dtypes[t] != DTYPE_F32) {
                    gemm_case(test_dtypes[t], DTYPE_F32, sizes[s][0], sizes[s][1], sizes[s][2],
                              how);
                }
            }
        }
    }
}

/* Two-byte formats go to cuDNN, which takes multiples of 8; race_test.c covers the rest. */
static void test_attention(void **state) {
    (void)state;
    for (size_t t = 0; t < TEST_DTYPES; t++) {
        const enum dtype type = test_dtypes[t];
        if (type == DTYPE_F32) {
            attention_case(type, 2, 9, 3, 5);
            attention_case(type, 1, 70, 2, 7);
            attention_case(type, 2, 301, 1, 20);
        }
        attention_case(type, 2, 301, 1, 24);
        attention_case(type, 3, 77, 2, 64);
        attention_case(type, 1, 256, 3, 128);
        attention_cached_case(type);
    }
}

/* Shapes that would run on slow paths are refused before a run, with what to change. */
static void test_refusals(void **state) {
    struct op_limits limits = {.tokens = 128,
                               .width = 3 * 100,
                               .model_width = 100,
                               .sequence_length = 64,
                               .heads = 5,
                               .head_width = 20,
                               .dtype = DTYPE_BF16};
    (void)state;
    expect_status(STATUS_DEVICE, gpu.ops->check(&gpu, &limits, true));
    assert_non_null(strstr(status_message(), "model.width"));
    limits.heads = 4;
    limits.model_width = 80;
    expect_status(STATUS_DEVICE, gpu.ops->check(&gpu, &limits, true));
    assert_non_null(strstr(status_message(), "model.heads"));
    limits.dtype = DTYPE_F32;
    EXPECT_OK(gpu.ops->check(&gpu, &limits, true));
    limits.head_width = 300;
    expect_status(STATUS_DEVICE, gpu.ops->check(&gpu, &limits, true));
    limits.model_width = 8224;
    expect_status(STATUS_DEVICE, gpu.ops->check(&gpu, &limits, true));
    assert_non_null(strstr(status_message(), "norms"));
}

/* An operation that fails while it is recorded: its message is the one that stays, nothing of the
 * recording is kept, and the GPU works on. First one that the backend refuses, which leaves CUDA's
 * capture whole; then one that CUDA does not allow, which breaks it. */
static void test_failed_recording(void **state) {
    struct device_recording *recording = NULL;
    char message[2048];
    (void)state;
    struct pair a = pair_random(DTYPE_F32, 8, 8, 1, 0.0, 1.0), c = pair_poison(DTYPE_F32, 8, 9);
    const struct gemm wrong = {.c = c.there, .a = a.there, .b = a.there};
    EXPECT_OK(device_record_begin(&gpu));
    expect_status(STATUS_INTERNAL, gpu.ops->gemm(&gpu, &wrong));
    snprintf(message, sizeof message, "%s", status_message());
    EXPECT_OK(device_record_end(&gpu, NULL));
    assert_string_equal(status_message(), message);
    EXPECT_OK(device_wait(&gpu));

    EXPECT_OK(device_record_begin(&gpu));
    expect_status(STATUS_DEVICE, device_wait(&gpu));
    snprintf(message, sizeof message, "%s", status_message());
    expect_status(STATUS_DEVICE, device_record_end(&gpu, &recording));
    assert_null(recording);
    assert_string_equal(status_message(), message);
    EXPECT_OK(device_wait(&gpu));
    expect_same("what was uploaded", &a, 0.0);
    FREE_PAIRS(&a, &c);
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

/* Bit equal, checksum and all; counts that fill the grid once, several times, and hardly. */
static void test_stream(void **state) {
    static const size_t counts[][2] =
        {{1, 1},          {3000000, 3000000}, {3000001, 1000000}, {1000000, 3000001},
         {2000000, 1000}, {70, 2000000},      {2000000, 0}};
    (void)state;
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        const size_t reads = counts[i][0], writes = counts[i][1];
        struct pair in = pair_random(DTYPE_F32, 4, reads, 1, 0.0, 1.0),
                    sum = pair_of(filled_tensor(DTYPE_F32, 1, 1, 1.0));
        struct pair out = pair_poison(DTYPE_F32, 4, writes + 1);
        const struct stream a = {out.host.data, in.host.data, reads, writes, sum.host.data};
        const struct stream b = {out.there.data, in.there.data, reads, writes, sum.there.data};
        ON_BOTH(stream, &a, &b);
        struct tensor got = copied_tensor(out.host), got_sum = copied_tensor(sum.host);
        EXPECT_OK(device_download(&gpu, got.data, out.there.data, tensor_bytes(got)));
        EXPECT_OK(device_download(&gpu, got_sum.data, sum.there.data, tensor_bytes(got_sum)));
        assert_memory_equal(got.data, out.host.data, tensor_bytes(got));
        assert_memory_equal(got_sum.data, sum.host.data, tensor_bytes(got_sum));
        free(got.data);
        free(got_sum.data);
        FREE_PAIRS(&in, &out, &sum);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_cross_entropy),
        cmocka_unit_test(test_embedding),
        cmocka_unit_test(test_gemm),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_failed_recording),
        cmocka_unit_test(test_convert_and_update),
        cmocka_unit_test(test_stream),
    };
    const struct op_limits limits = {.tokens = 2048,
                                     .width = 3200,
                                     .model_width = 3200,
                                     .sequence_length = 512,
                                     .heads = 8,
                                     .head_width = 128,
                                     .dtype = DTYPE_F32};
    const struct device_options options = {.gemm_effort = GEMM_EFFORT_FULL};
    gpu_test_folder_make(); /* hundreds of odd GEMMs, not to be kept */
    if (!devices_open(&options, &limits, 1)) return 0;
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    devices_close();
    return failed;
}

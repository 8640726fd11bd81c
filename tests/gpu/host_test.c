/*
 * What kernels/cuda decides on the host, on any machine: the file of chosen GEMM algorithms, which
 * widths and attention are refused, and scratch memory. Oracles: closed form (what was added is
 * found, by every process; the bytes of a refused file stay), arithmetic by hand for shared and
 * scratch memory, and what operations want of it when they find none.
 */
#include <stdio.h>

#include "tests/gpu/presence.h"
#include "tests/kernels/testing.h"

#ifdef HAVE_CUDART

#include <sys/wait.h>
#include <unistd.h>

#include "kernels/cuda/gemm.h"

static const char *root;

static struct gemm_cache cache_at(const char *name) {
    struct gemm_cache cache = {.header = "deepwell gemm 2 test"};
    snprintf(cache.path, sizeof cache.path, "%s/%s/gemm.txt", root, name);
    return cache;
}

/* A choice that no other m shares. */
static struct gemm_kept choice(size_t m, uint64_t word) {
    struct gemm_kept kept = {
        .key = {.m = m,
                .n = 8,
                .k = 16,
                .transpose_b = 1,
                .result = DTYPE_BF16,
                .bias = -1,
                .a = DTYPE_BF16,
                .b = DTYPE_BF16,
                .alignment = 16},
        .us = 1.5f,
    };
    for (size_t i = 0; i < 8; i++) kept.algorithm.data[i] = word + i;
    return kept;
}

/* More kinds than one model has: all are read again, and no number of them is too many. */
static void test_many(void **state) {
    enum { KINDS = 3000 };
    struct gemm_cache cache = cache_at("many"), again = cache_at("many");
    struct gemm_service service = {.cache = cache_at("none")};
    struct gemm_entry *entry = NULL;
    (void)state;
    EXPECT_OK(gemm_cache_writable(&cache));
    for (size_t m = 1; m <= KINDS; m += 500) {
        const struct gemm_kept kept = choice(m, m);
        EXPECT_OK(gemm_cache_add(&cache, &kept));
    }
    EXPECT_OK(gemm_cache_read(&again));
    assert_int_equal(again.count, KINDS / 500);
    for (size_t m = 1; m <= KINDS; m += 500) {
        const struct gemm_kept kept = choice(m, m), *found = gemm_cache_find(&again, &kept.key);
        assert_non_null(found);
        assert_memory_equal(&found->algorithm, &kept.algorithm, sizeof kept.algorithm);
        assert_true(found->us == kept.us);
    }
    for (size_t m = 1; m <= KINDS; m++) {
        const struct gemm_kept kept = choice(m, m);
        EXPECT_OK(gemm_entry_get(&service, &kept.key, &entry));
        assert_int_equal(entry->key.m, m);
    }
    assert_int_equal(service.count, KINDS);
    service.cache = again;
    service.handle = NULL;
    for (size_t i = 0; i < service.count; i++) {
        entry = &service.entries[i];
        cublasLtMatmulDescDestroy(entry->operation);
        cublasLtMatrixLayoutDestroy(entry->a);
        cublasLtMatrixLayoutDestroy(entry->b);
        cublasLtMatrixLayoutDestroy(entry->c);
    }
    free(service.entries);
    gemm_cache_close(&cache);
    gemm_cache_close(&again);
}

/* Processes that add at the same time lose nothing; of one GEMM the first choice stays. */
static void test_processes(void **state) {
    enum { PROCESSES = 4, EACH = 12 };
    struct gemm_cache cache = cache_at("shared");
    (void)state;
    for (size_t p = 0; p < PROCESSES; p++) {
        if (fork() != 0) continue;
        bool right = true;
        for (size_t i = 0; i < EACH; i++) {
            const struct gemm_kept kept = choice(1 + p * EACH + i, p), common = choice(1000, p);
            right = right && gemm_cache_add(&cache, &kept) == STATUS_OK &&
                    gemm_cache_add(&cache, &common) == STATUS_OK;
        }
        _exit(right ? 0 : 1);
    }
    for (size_t p = 0; p < PROCESSES; p++) {
        int how = 0;
        assert_true(wait(&how) > 0);
        assert_true(WIFEXITED(how) && WEXITSTATUS(how) == 0);
    }
    EXPECT_OK(gemm_cache_read(&cache));
    assert_int_equal(cache.count, PROCESSES * EACH + 1);
    const struct gemm_kept other = choice(1000, 99), first = *gemm_cache_find(&cache, &other.key);
    EXPECT_OK(gemm_cache_add(&cache, &other));
    assert_memory_equal(&gemm_cache_find(&cache, &other.key)->algorithm, &first.algorithm,
                        sizeof first.algorithm);
    gemm_cache_close(&cache);
}

static void test_hostile(void **state) {
    static const char line[] = "1 8 16 0 1 0 1 1 1 -1 0 0 16 1.500 1 2 3 4 5 6 7 8\n";
    static const char *const wrong[] = {
        "0 8 16 0 1 0 1 1 1 -1 0 0 16 1.500 1 2 3 4 5 6 7 8\n", /* no rows */
        "4294967296 8 16 0 1 0 1 1 1 -1 0 0 16 1.500 1 2 3 4 5 6 7 8\n",
        "1 8 16 2 1 0 1 1 1 -1 0 0 16 1.500 1 2 3 4 5 6 7 8\n", /* no flag */
        "1 8 16 0 1 0 1 1 1 -1 0 0 512 1.500 1 2 3 4 5 6 7 8\n",
        "1 8 16 0 1 0 1 1 1 -1 0 0 12 1.500 1 2 3 4 5 6 7 8\n",
        "1 8 16 0 1 0 9 1 1 -1 0 0 16 1.500 1 2 3 4 5 6 7 8\n", /* no kind */
        "1 8 16 0 1 0 1 1 1 -1 0 0 16 nan 1 2 3 4 5 6 7 8\n",
        "1 8 16 0 1 0 1 1 1 -1 0 0 16 1.500 1 2 3 4 5 6 7\n",
        "1 8 16 0 1 0 1 1 1 -1 0 0 16 1.500 1 2 3 4 5 6 7 8 9\n",
        "\n",
        "1 8 16 0 1 0 1 1 1 -1 0 0 16 1.500 1 2 3 4 5 6 7 8", /* cut off */
    };
    struct gemm_cache cache = cache_at("hostile");
    char text[1024], *now = NULL;
    size_t bytes = 0;
    (void)state;
    const struct gemm_kept kept = choice(5, 5);
    EXPECT_OK(gemm_cache_add(&cache, &kept)); /* makes the folder */
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        const int length = snprintf(text, sizeof text, "%s\n%s%s", cache.header, line, wrong[i]);
        EXPECT_OK(file_write_durable(cache.path, text, (size_t)length));
        expect_status(STATUS_DEVICE, gemm_cache_read(&cache));
        assert_non_null(strstr(status_message(), cache.path));
        if (i + 1 < sizeof wrong / sizeof wrong[0])
            assert_non_null(strstr(status_message(), "line 3"));
        expect_status(STATUS_DEVICE, gemm_cache_add(&cache, &kept)); /* and is not overwritten */
        EXPECT_OK(file_read(cache.path, sizeof text, &now, &bytes));
        assert_int_equal(bytes, length);
        assert_memory_equal(now, text, bytes);
        free(now);
    }
    const int length = snprintf(text, sizeof text, "%s\n%s", cache.header, line);
    EXPECT_OK(file_write_durable(cache.path, text, (size_t)length));
    EXPECT_OK(gemm_cache_read(&cache));
    assert_int_equal(cache.count, 1);
    cache.header[0] = 'D';
    expect_status(STATUS_DEVICE, gemm_cache_read(&cache));
    assert_non_null(strstr(status_message(), "line 1"));
    gemm_cache_close(&cache);
}

/* Nowhere to write: said as such. */
static void test_unwritable(void **state) {
    struct gemm_cache cache = {0};
    (void)state;
    expect_status(STATUS_CONFIG, gemm_cache_writable(&cache));
    cache = cache_at("file/below");
    char file[PATH_BYTES];
    EXPECT_OK(path_join(file, root, "file"));
    EXPECT_OK(file_write_durable(file, "x", 1));
    const struct gemm_kept kept = choice(1, 1);
    expect_status(STATUS_IO, gemm_cache_writable(&cache));
    expect_status(STATUS_IO, gemm_cache_add(&cache, &kept));
    gemm_cache_close(&cache);
}

/* Rows of norms: at most 8192 numbers, and 4096 where a warp quantises one from its registers. */
static void test_widths(void **state) {
    static const struct {
        size_t width;
        bool tensor_scales, refused;
    } cases[] = {{4096, true, false}, {4160, true, true},  {8192, true, true},
                 {8192, false, false}, {8256, false, true}};
    const unsigned tensor = 1u << SCALE_TENSOR;
    struct cuda_backend backend = {.shared_bytes = 227 << 10};
    struct device device = {.name = "a GPU", .backend = &backend};
    (void)state;
    EXPECT_OK(attention_service_open(&device));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct op_limits limits = {.tokens = 128,
                                         .width = 4 * cases[i].width,
                                         .model_width = cases[i].width,
                                         .sequence_length = 64,
                                         .heads = cases[i].width / 64,
                                         .head_width = 64,
                                         .dtype = DTYPE_F32,
                                         .scale_modes = cases[i].tensor_scales ? tensor : 0};
        const enum status status = cuda_ops.check(&device, &limits, true);
        assert_int_equal(status, cases[i].refused ? STATUS_DEVICE : STATUS_OK);
        if (cases[i].refused) assert_non_null(strstr(status_message(), "model.width"));
    }
    attention_service_close(backend.attention);
}

/* BF16 without cuDNN, and heads whose kernels want more shared memory than there is. */
static void test_attention(void **state) {
    struct cuda_backend backend = {.shared_bytes = 99 << 10};
    struct device device = {.name = "a small GPU", .backend = &backend};
    struct op_limits limits = {.tokens = 128,
                               .width = 1024,
                               .model_width = 256,
                               .sequence_length = 64,
                               .heads = 1,
                               .head_width = 256,
                               .dtype = DTYPE_F32};
    (void)state;
    EXPECT_OK(attention_service_open(&device));
    /* (2 tiles of 32 x 257 + 2 x 32 rows of 256) x 4 bytes = 131,328; forward 98,560 */
    assert_int_equal(simple_attention_shared_bytes(256, true), 131328);
    expect_status(STATUS_DEVICE, cuda_attention_check(&device, &limits, true));
    assert_non_null(strstr(status_message(), "131328"));
    assert_non_null(strstr(status_message(), "model.heads"));
    EXPECT_OK(cuda_attention_check(&device, &limits, false));
    limits.head_width = 64;
    EXPECT_OK(cuda_attention_check(&device, &limits, true));
    limits.dtype = DTYPE_BF16;
    if (device.note[0] != '\0') { /* no cuDNN, or no GPU for it */
        printf("%s\n", device.note);
        expect_status(STATUS_DEVICE, cuda_attention_check(&device, &limits, true));
        printf("%s\n", status_message());
        assert_true(strstr(status_message(), "libcudnn.so.9") != NULL ||
                    strstr(status_message(), "nvidia-cudnn-frontend") != NULL);
    }
    attention_service_close(backend.attention);
    backend.options.own_attention = true;
    EXPECT_OK(attention_service_open(&device));
    EXPECT_OK(cuda_attention_check(&device, &limits, true));
    attention_service_close(backend.attention);
}

/* What the operation wants, from its refusal where there is nothing: no kernel is launched. */
static size_t wanted_bytes(enum status refusal) {
    size_t bytes = 0;
    const char *behind = strstr(status_message(), ": ");
    expect_status(STATUS_INTERNAL, refusal);
    assert_non_null(behind);
    if (sscanf(behind, ": %zu bytes of scratch memory wanted", &bytes) != 1)
        fail_msg("%s", status_message());
    return bytes;
}

static size_t column_sums_want(struct device *device, struct tensor t, enum dtype dtype) {
    float sums[1];
    struct scale_state state = {0};
    const struct quantised copies = {
        .row = {sums, NULL, &state, FORMAT_E4M3, SCALE_TENSOR, t.rows, t.columns}};
    t.data = sums;
    t.dtype = dtype;
    const struct bias_backward bias = {.bias_gradient = sums, .out_gradient = t};
    const size_t most = wanted_bytes(cuda_ops.bias_backward(device, &bias));
    if (dtype != DTYPE_BF16 || t.rows % 16 != 0 || t.columns % 16 != 0) return most;
    const struct gelu_backward gelu = {.x_gradient = t,
                                       .out_gradient = t,
                                       .x = t,
                                       .bias = tensor_make(sums, dtype, 1, t.columns),
                                       .bias_gradient = sums,
                                       .quantise = {.copies = &copies}};
    const struct quantise quantise = {.out = copies, .in = t, .bias_gradient = sums};
    return size_max(most, size_max(wanted_bytes(cuda_ops.gelu_backward(device, &gelu)),
                                   wanted_bytes(cuda_ops.quantise(device, &quantise, 1))));
}

/* Partial sums of columns: of no width more than is planned for the widest, and the largest want
 * most of it. Norms have three of them, in at most 1024 blocks or one for two rows; by hand. */
static void test_column_scratch(void **state) {
    static const size_t rows[] = {7, 64, 1008, 65536}, processors[] = {20, 132};
    struct op_limits limits = {.tokens = 65536, .width = 8192, .model_width = 1600};
    (void)state;
    for (size_t p = 0; p < 2; p++) {
        struct cuda_backend backend = {.multiprocessors = (int)processors[p]};
        struct device device = {.name = "a GPU", .backend = &backend};
        const size_t planned = cuda_column_scratch_bytes(&device, &limits);
        size_t most = 0;
        for (size_t columns = 8; columns <= limits.width; columns += 8) {
            for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
                const struct tensor t = {.rows = rows[i], .columns = columns};
                most = size_max(most, column_sums_want(&device, t, DTYPE_BF16));
                most = size_max(most, column_sums_want(&device, t, DTYPE_F32));
            }
        }
        printf("sums of columns, %zu multiprocessors: %zu bytes wanted at most, %zu planned\n",
               processors[p], most, planned);
        assert_true(most <= planned && most >= planned / 4 * 3);
    }
    assert_int_equal(cuda_norm_scratch_bytes(&limits), 1024 * 3 * 1600 * 4);
    limits.tokens = 1001;
    assert_int_equal(cuda_norm_scratch_bytes(&limits), 501 * 3 * 1600 * 4);
}

/* Operands of emulated products are expanded to two bytes a number: all of b, and of a what 512 MiB
 * hold. By hand; where the hardware multiplies them, nothing. */
static void test_emulated_room(void **state) {
    static const struct {
        int capability;
        unsigned modes;
        bool emulated;
    } cases[] = {{90, 1u << SCALE_MX, true},          {90, 1u << SCALE_NV, true},
                 {90, 1u << SCALE_TENSOR, false},     {80, 1u << SCALE_TENSOR, true},
                 {90, 1u << SCALE_1X128, false},      {100, 1u << SCALE_MX, false},
                 {90, 1u << SCALE_MX | 1u << SCALE_TENSOR, true}, {90, 0, false}};
    struct cuda_backend backend = {0};
    struct device device = {.name = "a GPU", .backend = &backend};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct op_limits limits = {.quantised_a = 1000, .quantised_b = 1001};
        backend.capability = cases[i].capability;
        const size_t without = cuda_quantised_gemm_scratch_bytes(&device, &limits);
        limits.scale_modes = cases[i].modes;
        const size_t small = cuda_quantised_gemm_scratch_bytes(&device, &limits);
        limits.quantised_a = (size_t)300 << 20;
        const size_t large = cuda_quantised_gemm_scratch_bytes(&device, &limits);
        assert_int_equal(small - without, cases[i].emulated ? 2048 + 2000 : 0);
        assert_int_equal(large - without, cases[i].emulated ? 2048 + ((size_t)512 << 20) : 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_many),          cmocka_unit_test(test_processes),
        cmocka_unit_test(test_hostile),       cmocka_unit_test(test_unwritable),
        cmocka_unit_test(test_widths),        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_emulated_room), cmocka_unit_test(test_column_scratch),
    };
    root = gpu_test_folder_make();
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

int main(void) {
    printf("skipped: built without CUDA\n");
    return 0;
}

#endif

/*
 * Arenas, device memory, the device itself, and traffic formulas. Oracles: the measuring pass
 * against the real one (equal sizes, every pointer inside, aligned and apart); refusals by asking
 * for more than there is; affinity and OMP_NUM_THREADS set by the test; traffic counted by hand for
 * one small shape; the definition of `stream`, word by word.
 */
#include <sched.h>
#include <unistd.h>

#include "kernels/arena.h"
#include "kernels/traffic.h"
#include "tests/kernels/testing.h"

static struct device any_device(void) {
    struct device device = {0};
    EXPECT_OK(device_open_cpu(&device, 2));
    return device;
}

static void lay_out(struct arena *arena, void *out[4]) {
    struct tensor t = {0};
    EXPECT_OK(arena_take(arena, 3, 7, &out[0]));
    EXPECT_OK(arena_tensor(arena, DTYPE_BF16, 13, 11, &t));
    out[1] = t.data;
    assert_true(t.rows == 13 && t.columns == 11 && t.dtype == DTYPE_BF16);
    EXPECT_OK(arena_take(arena, 0, 8, &out[2]));
    EXPECT_OK(arena_take(arena, 1000, 4, &out[3]));
}

static void test_arena_measures_what_it_needs(void **state) {
    static const size_t bytes[4] = {21, 286, 0, 4000};
    (void)state;
    struct device device = any_device();
    struct arena measured = arena_measure("test"), arena;
    void *out[4];
    lay_out(&measured, out);
    for (int i = 0; i < 4; i++) assert_null(out[i]);
    EXPECT_OK(arena_open(&arena, "test", &device, measured.used_bytes));
    lay_out(&arena, out);
    assert_int_equal(arena.used_bytes, measured.used_bytes);
    for (int i = 0; i < 4; i++) {
        const char *first = out[i];
        assert_int_equal((uintptr_t)first % ARENA_ALIGNMENT, 0);
        assert_true(first >= arena.base && first + bytes[i] <= arena.base + arena.capacity_bytes);
        if (i > 0) assert_true(first >= (char *)out[i - 1] + bytes[i - 1]);
        for (size_t j = 0; j < bytes[i]; j++) assert_int_equal(first[j], 0);
    }
    void *more = NULL;
    expect_status(STATUS_INTERNAL, arena_take(&arena, 300, 1, &more)); /* nothing is left */
    arena_close(&arena);
    arena_close(&arena); /* closing what is closed does nothing */
    device_close(&device);
}

static void test_arena_overflow(void **state) {
    (void)state;
    struct arena arena = arena_measure("test");
    struct tensor t = {0};
    void *out = NULL;
    expect_status(STATUS_MEMORY, arena_take(&arena, SIZE_MAX / 2, 3, &out));
    expect_status(STATUS_MEMORY, arena_tensor(&arena, DTYPE_F32, SIZE_MAX / 2, 4, &t));
    EXPECT_OK(arena_take(&arena, SIZE_MAX - 100, 1, &out));
    expect_status(STATUS_MEMORY, arena_take(&arena, 1, 1, &out)); /* aligning wraps */
    arena = arena_measure("test");
    EXPECT_OK(arena_take(&arena, SIZE_MAX - 1000, 1, &out));
    expect_status(STATUS_MEMORY, arena_take(&arena, 2000, 1, &out)); /* the end wraps */
}

static void test_device_memory(void **state) {
    static const size_t sizes[] = {1, 4097, 5 << 20};
    (void)state;
    struct device device = any_device();
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        unsigned char *memory = NULL, host[64] = {1, 2, 3}, back[64];
        EXPECT_OK(device_allocate(&device, sizes[i], (void **)&memory));
        assert_int_equal((uintptr_t)memory % 256, 0);
        for (size_t j = 0; j < sizes[i]; j++) assert_int_equal(memory[j], 0);
        const size_t count = size_min(sizes[i], sizeof host);
        EXPECT_OK(device_upload(&device, memory, host, count));
        EXPECT_OK(device_download(&device, back, memory, count));
        assert_memory_equal(host, back, count);
        void *mapped = NULL;
        EXPECT_OK(device_map(&device, memory, count, &mapped));
        assert_memory_equal(host, mapped, count);
        memset(mapped, 7, count);
        EXPECT_OK(device_unmap(&device, memory, mapped, count, true));
        EXPECT_OK(device_download(&device, back, memory, count));
        for (size_t j = 0; j < count; j++) assert_int_equal(back[j], 7);
        device_release(&device, memory, sizes[i]);
    }
    void *none = &device;
    EXPECT_OK(device_allocate(&device, 0, &none));
    assert_null(none);
    device_release(&device, NULL, 0);
    device_close(&device);
}

static void test_too_much_memory_is_refused(void **state) {
    (void)state;
    struct device device = any_device();
    struct arena arena;
    void *memory = &device;
    assert_true(device.memory_bytes > 0 && device.memory_bytes < (size_t)1 << 50);
    expect_status(STATUS_MEMORY, device_allocate(&device, device.memory_bytes * 2, &memory));
    assert_null(memory);
    assert_non_null(strstr(status_message(), "wanted"));
    assert_non_null(strstr(status_message(), "free"));
    expect_status(STATUS_MEMORY, device_allocate(&device, SIZE_MAX, &memory));
    expect_status(STATUS_MEMORY, arena_open(&arena, "activations", &device, SIZE_MAX / 2));
    assert_non_null(strstr(status_message(), "activations"));
    arena_close(&arena);
    device_close(&device);
}

static void test_device_threads(void **state) {
    (void)state;
    struct device device;
    cpu_set_t all, one;
    EXPECT_OK(device_open_cpu(&device, 3));
    assert_int_equal(device.threads, 3);
    assert_non_null(strstr(device.name, ", 3 threads"));
    device_close(&device);
    expect_status(STATUS_CONFIG, device_open_cpu(&device, -1));
    expect_status(STATUS_CONFIG, device_open_cpu(&device, 1 << 20));
    EXPECT_OK(device_open_cpu(&device, 0));
    assert_true(device.threads >= 1 && device.threads <= (int)sysconf(_SC_NPROCESSORS_ONLN));
    device_close(&device);
    assert_int_equal(setenv("OMP_NUM_THREADS", "1", 1), 0);
    EXPECT_OK(device_open_cpu(&device, 0));
    assert_int_equal(device.threads, 1);
    device_close(&device);
    assert_int_equal(unsetenv("OMP_NUM_THREADS"), 0);
    assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
    CPU_ZERO(&one);
    for (size_t cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; cpu++) {
        if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
    }
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    EXPECT_OK(device_open_cpu(&device, 0));
    assert_int_equal(device.threads, 1);
    assert_non_null(strstr(device.name, ", 1 thread"));
    device_close(&device);
    assert_int_equal(sched_setaffinity(0, sizeof all, &all), 0);
}

/* N = 6 tokens of C = 10 in BF16, V = 100 padded to 128, FP32 gradients. */
static void test_traffic(void **state) {
    (void)state;
    const struct tensor x = tensor_make(NULL, DTYPE_BF16, 6, 10);
    const struct tensor qkv = tensor_make(NULL, DTYPE_BF16, 6, 30);
    const struct tensor w = tensor_make(NULL, DTYPE_BF16, 30, 10);
    const struct tensor vector = tensor_make(NULL, DTYPE_BF16, 1, 10);
    const struct tensor bias = tensor_make(NULL, DTYPE_BF16, 1, 30);
    const struct tensor logits = tensor_make(NULL, DTYPE_BF16, 6, 128);
    float gradient[10];
    const struct gemm gemm = {.c = qkv, .a = x, .b = w, .transpose_b = true, .bias = &bias};
    assert_int_equal(gemm_bytes(&gemm), 2 * (180 + 60 + 300 + 30));
    const struct norm_forward norm = {.out = x, .residual = x, .residual_in = x, .delta = &x,
                                      .weight = vector, .bias = vector};
    assert_int_equal(gemm_written_bytes(&gemm), 2 * 180);
    assert_int_equal(norm_forward_bytes(&norm), 2 * (4 * 60 + 20) + 4 * 12);
    assert_int_equal(norm_forward_written_bytes(&norm), 2 * (2 * 60) + 4 * 12);
    const struct norm_backward back = {
        .residual_gradient = x, .out_gradient = x, .residual = x, .weight = vector,
        .delta_bias_gradient = gradient, .accumulate = true};
    assert_int_equal(norm_backward_bytes(&back), 2 * (4 * 60 + 10) + 4 * (12 + 2 * 30));
    assert_int_equal(norm_backward_written_bytes(&back), 2 * 60 + 4 * 30);
    const struct attention_forward attention = {.out = x, .qkv = qkv, .batch = 2,
                                                .sequence_length = 3, .heads = 5};
    assert_int_equal(attention_forward_bytes(&attention), 2 * 240 + 4 * 30);
    assert_int_equal(attention_forward_written_bytes(&attention), 2 * 60 + 4 * 30);
    const struct cross_entropy loss = {.logits = logits, .vocabulary = 100, .write_gradient = true};
    assert_int_equal(cross_entropy_bytes(&loss), 2 * (600 + 768) + 8 * 6);
    assert_int_equal(cross_entropy_written_bytes(&loss), 2 * 768 + 4 * 6);
    const struct gelu_backward gelu = {.x_gradient = x, .out_gradient = x, .x = x, .bias = vector};
    assert_int_equal(gelu_backward_bytes(&gelu), 2 * (3 * 60 + 10) + 4 * 10);
    assert_int_equal(gelu_backward_written_bytes(&gelu), 2 * 60 + 4 * 10);
    /* two copies of (6, 10) in FP8 in place of the results, or beside them */
    uint8_t codes[60];
    const struct operand row = {.codes = codes, .rows = 6, .columns = 10},
                         column = {.codes = codes, .rows = 10, .columns = 6};
    const struct quantised copies = {row, column};
    struct norm_forward narrow_norm = norm;
    narrow_norm.quantise.copies = &copies; /* `out` has no memory */
    assert_int_equal(norm_forward_written_bytes(&narrow_norm), 120 + 2 * 60 + 4 * 12);
    struct norm_backward narrow_back = back;
    narrow_back.quantise.copies = &copies;
    assert_int_equal(norm_backward_written_bytes(&narrow_back), 120 + 2 * 60 + 4 * 30);
    struct gelu_backward narrow_gelu = gelu;
    narrow_gelu.quantise.copies = &copies;
    assert_int_equal(gelu_backward_written_bytes(&narrow_gelu), 120 + 4 * 10);
    struct cross_entropy narrow_loss = loss;
    narrow_loss.quantise.copies = &copies;
    assert_int_equal(cross_entropy_written_bytes(&narrow_loss), 120 + 4 * 6);
    const struct quantise quantise = {.out = copies, .in = x, .scaling = SCALING_CURRENT,
                                      .bias_gradient = gradient};
    assert_int_equal(quantise_bytes(&quantise), 2 * (2 * 60) + 120 + 4 * 10);
    assert_int_equal(quantise_written_bytes(&quantise), 120 + 4 * 10);
    const struct quantised_gemm product = {.c = x, .a = row, .b = column};
    assert_int_equal(quantised_gemm_bytes(&product), 120 + 120);
    assert_int_equal(quantised_gemm_written_bytes(&product), 120);
    assert_int_equal(scales_written_bytes(3), 3 * sizeof(struct scale_state));
    const struct adamw_range ranges[] = {{0, 70, 0.1f}, {128, 30, 0.0f}};
    const struct adamw adamw = {.ranges = ranges, .range_count = 2, .weights = x};
    assert_int_equal(adamw_bytes(&adamw), 100 * 28);
    assert_int_equal(adamw_written_bytes(&adamw), 100 * 12);
    const struct embedding_backward embedding = {
        .out_gradient = x, .position_gradient = w, .sequence_length = 3};
    assert_int_equal(embedding_backward_bytes(&embedding), 2 * 60 + 4 * 6 + 4 * (2 * 60 + 300));
    assert_int_equal(embedding_backward_written_bytes(&embedding), 4 * (60 + 300));
    assert_int_equal(stream_bytes(&(struct stream){.read_units = 5, .write_units = 2}), 16 * 7);
}

/* Against the definition of kernels/ops.h, word by word; counts on both sides of the eighth that
 * decides how many threads walk, and none. Nothing beyond the written units is touched. */
static void test_stream(void **state) {
    static const struct { size_t reads, writes, n; } cases[] = {
        {5000, 5000, 5000}, {9001, 3000, 3000}, {3000, 9001, 3000}, {8000, 1000, 1000},
        {8008, 1000, 8008}, {9000, 0, 9000}, {0, 77, 77}, {1, 1, 1}, {0, 0, 0},
    };
    enum { WORDS = STREAM_UNIT_BYTES / 4, UNITS = 9100 };
    struct device device = any_device();
    uint32_t *in = aligned_alloc(16, UNITS * STREAM_UNIT_BYTES);
    uint32_t *out = aligned_alloc(16, UNITS * STREAM_UNIT_BYTES);
    (void)state;
    assert_true(in != NULL && out != NULL);
    for (size_t i = 0; i < UNITS; i++) random_words(3, RANDOM_TEST, i, in + i * WORDS);
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        uint32_t checksum = 12345, expected = 12345;
        memset(out, 0xAB, UNITS * STREAM_UNIT_BYTES);
        const struct stream op = {out, in, cases[c].reads, cases[c].writes, &checksum};
        EXPECT_OK(device.ops->stream(&device, &op));
        assert_int_equal(stream_threads(&op), cases[c].n);
        for (size_t i = 0; i < op.read_units * WORDS; i++) expected ^= in[i];
        assert_int_equal(checksum, expected);
        for (size_t i = 0; i < UNITS * WORDS; i++) {
            uint32_t x = 0;
            if (i >= op.write_units * WORDS) x = 0xABABABABu;
            else {
                for (size_t j = i % (cases[c].n * WORDS); j < op.read_units * WORDS;
                     j += cases[c].n * WORDS) x ^= in[j];
            }
            assert_int_equal(out[i], x);
        }
    }
    const struct stream crooked = {(char *)out + 8, in, 1, 1, out};
    expect_status(STATUS_INTERNAL, device.ops->stream(&device, &crooked));
    free(in);
    free(out);
    device_close(&device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arena_measures_what_it_needs),
        cmocka_unit_test(test_arena_overflow),
        cmocka_unit_test(test_device_memory),
        cmocka_unit_test(test_too_much_memory_is_refused),
        cmocka_unit_test(test_device_threads),
        cmocka_unit_test(test_traffic),
        cmocka_unit_test(test_stream),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

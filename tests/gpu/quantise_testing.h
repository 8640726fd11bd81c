/*
 * What the GPU tests of quantised tensors share: the forms that a tensor takes, its copies on
 * both sides, and their comparison bit by bit.
 */
#ifndef DEEPWELL_TESTS_GPU_QUANTISE_TESTING_H_
#define DEEPWELL_TESTS_GPU_QUANTISE_TESTING_H_

#include "tests/gpu/gpu_testing.h"

struct form {
    const char *name;
    enum number_format format;
    enum scale_mode mode;
    enum scaling scaling;
    bool amax_known, square, hadamard, stochastic;
    size_t unit; /* of both dimensions */
};
static const struct form forms[] = {
    {"e4m3 delayed", FORMAT_E4M3, SCALE_TENSOR, SCALING_DELAYED, 0, 0, 0, 0, 16},
    {"e5m2 delayed", FORMAT_E5M2, SCALE_TENSOR, SCALING_DELAYED, 0, 0, 0, 0, 16},
    {"e4m3 current", FORMAT_E4M3, SCALE_TENSOR, SCALING_CURRENT, 0, 0, 0, 0, 16},
    {"e5m2 current, amax known", FORMAT_E5M2, SCALE_TENSOR, SCALING_CURRENT, 1, 0, 0, 0, 16},
    {"1x128", FORMAT_E4M3, SCALE_1X128, SCALING_CURRENT, 0, 0, 0, 0, 16},
    {"1x128 e5m2", FORMAT_E5M2, SCALE_1X128, SCALING_CURRENT, 0, 0, 0, 0, 16},
    {"128x128", FORMAT_E4M3, SCALE_128X128, SCALING_CURRENT, 0, 0, 0, 0, 16},
    {"mx", FORMAT_E4M3, SCALE_MX, SCALING_CURRENT, 0, 0, 0, 0, 32},
    {"nv", FORMAT_E2M1, SCALE_NV, SCALING_CURRENT, 0, 0, 0, 0, 16},
    {"nv square", FORMAT_E2M1, SCALE_NV, SCALING_CURRENT, 0, 1, 0, 0, 16},
    {"nv hadamard", FORMAT_E2M1, SCALE_NV, SCALING_CURRENT, 0, 0, 1, 0, 16},
    {"nv hadamard stochastic", FORMAT_E2M1, SCALE_NV, SCALING_CURRENT, 0, 0, 1, 1, 16},
};
enum { FORMS = sizeof forms / sizeof forms[0] };

struct shape {
    size_t rows, columns;
};

struct bytes {
    uint8_t *host, *there;
    size_t count;
};

static inline struct bytes bytes_of(size_t count, int fill) {
    struct bytes b = {test_memory(count), gpu_memory(count), count};
    memset(b.host, fill, count);
    if (count > 0) EXPECT_OK(device_upload(&gpu, b.there, b.host, count));
    return b;
}

static inline void bytes_free(struct bytes *b) {
    device_release(&gpu, b->there, size_max(b->count, 1));
    free(b->host);
}

static inline void expect_bytes(const char *name, const char *what, const struct bytes *b) {
    uint8_t *got = test_memory(b->count);
    if (b->count > 0) EXPECT_OK(device_download(&gpu, got, b->there, b->count));
    for (size_t i = 0; i < b->count; i++) {
        if (got[i] != b->host[i]) {
            fail_msg("%s: %s differ at byte %zu of %zu: 0x%02x, expected 0x%02x", name, what, i,
                     b->count, got[i], b->host[i]);
        }
    }
    free(got);
}

/* Two states, a matrix's copies under them, on both sides. */
struct copies {
    struct bytes states, codes[2], scales[2];
    struct quantised host, there;
};

static inline struct operand operand_of(const struct form *f, size_t rows, size_t columns) {
    return (struct operand){.format = f->format, .mode = f->mode, .rows = rows, .columns = columns};
}

static inline void place(struct copies *c, int i, struct operand *host, struct operand *there) {
    const bool scaled = host->mode == SCALE_TENSOR || host->mode == SCALE_NV;
    const size_t second = host->mode == SCALE_NV && i == 1 ? sizeof(struct scale_state) : 0;
    c->codes[i] = bytes_of(operand_code_bytes(host), 0xEE);
    c->scales[i] = bytes_of(operand_scale_bytes(host), 0xEE);
    *there = *host;
    host->codes = c->codes[i].host;
    there->codes = c->codes[i].there;
    host->scales = c->scales[i].host;
    there->scales = c->scales[i].there;
    if (!scaled) return;
    host->state = (struct scale_state *)(void *)(c->states.host + second);
    there->state = (struct scale_state *)(void *)(c->states.there + second);
}

static inline struct copies copies_open(const struct form *f, size_t rows, size_t columns,
                                        float scale) {
    struct copies c = {.states = bytes_of(2 * sizeof(struct scale_state), 0)};
    struct scale_state *states = (struct scale_state *)(void *)c.states.host;
    for (int i = 0; i < 2; i++) {
        states[i] = (struct scale_state){
            .scale = scale,
            .inverse = 1.0f / scale,
            .largest = f->mode == SCALE_NV ? NVFP4_MAX : format_max(f->format),
            .draws = 7,
        };
    }
    c.host.row = operand_of(f, rows, columns);
    c.host.transposed = operand_of(f, columns, rows);
    place(&c, 0, &c.host.row, &c.there.row);
    place(&c, 1, &c.host.transposed, &c.there.transposed);
    EXPECT_OK(device_upload(&gpu, c.states.there, c.states.host, c.states.count));
    return c;
}

static inline void copies_close(struct copies *c) {
    bytes_free(&c->states);
    for (int i = 0; i < 2; i++) {
        bytes_free(&c->codes[i]);
        bytes_free(&c->scales[i]);
    }
}

/* Any NaN is as good as another. */
static inline void same_nans(struct scale_state *s) {
    float *const numbers[] = {&s->inverse, &s->scale};
    for (size_t i = 0; i < 2; i++) {
        if (isnan(*numbers[i])) *numbers[i] = float_of_bits(0x7FC00000u);
    }
    if (s->amax_bits > 0x7F800000u) s->amax_bits = 0x7FC00000u;
}

static inline void expect_states(const char *name, const struct bytes *b) {
    struct scale_state *got = test_memory(b->count),
                       *expected = (struct scale_state *)(void *)b->host;
    EXPECT_OK(device_download(&gpu, got, b->there, b->count));
    for (size_t i = 0; i < b->count / sizeof *got; i++) {
        same_nans(&got[i]);
        same_nans(&expected[i]);
        if (memcmp(&got[i], &expected[i], sizeof *got) != 0) {
            fail_msg(
                "%s: state %zu: scale %.9g inverse %.9g amax 0x%08x, expected %.9g %.9g 0x%08x",
                name, i, (double)got[i].scale, (double)got[i].inverse, got[i].amax_bits,
                (double)expected[i].scale, (double)expected[i].inverse, expected[i].amax_bits);
        }
    }
    free(got);
}

static inline void expect_copies(const char *name, const struct copies *c) {
    expect_states(name, &c->states);
    expect_bytes(name, "scales", &c->scales[0]);
    expect_bytes(name, "scales of the transposed copy", &c->scales[1]);
    expect_bytes(name, "codes", &c->codes[0]);
    expect_bytes(name, "codes of the transposed copy", &c->codes[1]);
}

static inline struct quantise quantise_of(const struct form *f, struct quantised out,
                                          struct tensor in, float *bias_gradient) {
    return (struct quantise){
        .out = out,
        .in = in,
        .scaling = f->scaling,
        .amax_known = f->amax_known,
        .square = f->square,
        .hadamard = f->hadamard,
        .stochastic = f->stochastic,
        .seed = 0x123456789ABCDEFull,
        .tensor = 29,
        .bias_gradient = bias_gradient,
    };
}

/* Opens both devices for these tests; false, saying why, without a GPU. */
static inline bool quantise_devices_open(void) {
    const struct op_limits least = {.tokens = 2048,
                                    .width = 4096,
                                    .model_width = 4096,
                                    .sequence_length = 512,
                                    .heads = 8,
                                    .head_width = 128,
                                    .dtype = DTYPE_F32,
                                    .scale_modes = (1u << (SCALE_NV + 1)) - 1,
                                    .quantised_a = (size_t)288 * 1600, /* products */
                                    .quantised_b = (size_t)96 * 4096};
    struct op_limits limits[] = {least, least};
    limits[1].tokens = 34816; /* norms in several strips a block */
    limits[1].width = limits[1].model_width = 768;
    const struct device_options options = {.gemm_effort = GEMM_EFFORT_FAST};
    gpu_test_folder_make(); /* odd GEMMs, not to be kept */
    return devices_open(&options, limits, sizeof limits / sizeof limits[0]);
}

#endif

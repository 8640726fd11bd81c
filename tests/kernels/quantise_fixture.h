/* Forms of quantised copies, copies with their memory, and what a copy holds: for the tests of
 * quantisation and of products. */
#ifndef DEEPWELL_TESTS_KERNELS_QUANTISE_FIXTURE_H_
#define DEEPWELL_TESTS_KERNELS_QUANTISE_FIXTURE_H_

#include "kernels/cpu/cpu.h"
#include "tests/kernels/testing.h"

enum { ROWS = 96, COLUMNS = 160, MODES = 5 };

static const struct form {
    enum number_format format;
    enum scale_mode mode;
    bool square, hadamard, stochastic;
} forms[] = {
    {FORMAT_E4M3, SCALE_TENSOR, false, false, false},
    {FORMAT_E5M2, SCALE_TENSOR, false, false, false},
    {FORMAT_E4M3, SCALE_1X128, false, false, false},
    {FORMAT_E4M3, SCALE_128X128, false, false, false},
    {FORMAT_E4M3, SCALE_MX, false, false, false},
    {FORMAT_E2M1, SCALE_NV, false, false, false},
    {FORMAT_E2M1, SCALE_NV, true, false, false},
    {FORMAT_E2M1, SCALE_NV, false, true, true},
};
enum { FORMS = sizeof forms / sizeof forms[0] };

struct fixture {
    struct device device;
    struct scale_state states[2];
};

static inline struct fixture fixture_open(const struct form *form) {
    const struct op_limits limits = {
        .tokens = ROWS, .width = 1024, .sequence_length = ROWS, .heads = 1, .head_width = 16,
        .dtype = DTYPE_BF16,
    };
    const float largest = form->mode == SCALE_NV ? NVFP4_MAX : format_max(form->format);
    struct fixture f = {.device = {.threads = 2, .ops = &cpu_ops}};
    EXPECT_OK(cpu_threads_start(2));
    for (size_t i = 0; i < 2; i++) {
        f.states[i] = (struct scale_state){.scale = 1.0f, .inverse = 1.0f, .largest = largest};
    }
    const size_t bytes = f.device.ops->scratch_bytes(&f.device, &limits);
    device_set_scratch(&f.device, test_memory(bytes), bytes);
    return f;
}

static inline void fixture_close(struct fixture *f) { free(f->device.scratch); }

static inline struct operand operand_make(const struct form *form, size_t rows, size_t columns,
                                   struct scale_state *state) {
    struct operand o = {
        .state = form->mode == SCALE_TENSOR || form->mode == SCALE_NV ? state : NULL,
        .format = form->format, .mode = form->mode, .rows = rows, .columns = columns,
    };
    o.codes = test_memory(operand_code_bytes(&o));
    o.scales = test_memory(operand_scale_bytes(&o));
    memset(o.scales, 0xFF, operand_scale_bytes(&o)); /* NaN, whatever the type */
    return o;
}

static inline struct quantised copies_make(const struct form *form, size_t rows, size_t columns,
                                    struct scale_state states[2]) {
    struct scale_state *second = form->mode == SCALE_NV ? &states[1] : &states[0];
    return (struct quantised){.row = operand_make(form, rows, columns, &states[0]),
                              .transposed = operand_make(form, columns, rows, second)};
}

static inline void copies_free(struct quantised *copies) {
    free(copies->row.codes);
    free(copies->row.scales);
    free(copies->transposed.codes);
    free(copies->transposed.scales);
}

static inline uint8_t code_at(const struct operand *o, size_t row, size_t column) {
    const size_t element = row * o->columns + column;
    const uint8_t *codes = o->codes;
    if (o->format != FORMAT_E2M1) return codes[element];
    return codes[element / 2] >> (element % 2 * 4) & 0xF;
}

static inline float scale_at(const struct operand *o, size_t row, size_t column) {
    const size_t at = scale_index(o->mode, o->rows, o->columns, row, column);
    switch (o->mode) {
    case SCALE_TENSOR: return o->state->inverse;
    case SCALE_1X128:
    case SCALE_128X128: return ((const float *)o->scales)[at];
    case SCALE_MX: return float_from_ue8m0(((const uint8_t *)o->scales)[at]);
    case SCALE_NV: return float_from_e4m3(((const uint8_t *)o->scales)[at]) * o->state->inverse;
    }
    return NAN;
}

static inline double value_of(const struct operand *o, size_t row, size_t column) {
    return (double)format_decode(o->format, code_at(o, row, column)) *
           (double)scale_at(o, row, column);
}

/* As a product in FP32 or BF16 sees it: an infinity under MX's largest scale is 448 * 2^127. */
static inline bool finite_at(const struct operand *o, size_t row, size_t column) {
    return isfinite((float)value_of(o, row, column));
}

/* Numbers whose blocks differ by many powers of two. */
static inline struct tensor uneven_tensor(size_t rows, size_t columns, uint64_t key) {
    struct tensor t = random_tensor(DTYPE_BF16, rows, columns, key, 0.0, 1.0);
    for (size_t i = 0; i < tensor_count(t); i++) {
        const int power = (int)(i / columns / 16 + i % columns / 32) % 9 - 4;
        value_set(t, i, ldexp(value_at(t, i), power));
    }
    return t;
}

static inline struct quantise request(const struct form *form, struct quantised out,
                                      struct tensor in) {
    return (struct quantise){
        .out = out, .in = in, .scaling = SCALING_CURRENT, .square = form->square,
        .hadamard = form->hadamard, .stochastic = form->stochastic, .seed = 7, .tensor = 3,
    };
}

#endif

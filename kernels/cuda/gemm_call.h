/*
 * One GEMM as the service of kernels/cuda/gemm.h sees it, of plain tensors or of quantised
 * operands: what C and the CUDA files that check it share.
 */
#ifndef DEEPWELL_KERNELS_CUDA_GEMM_CALL_H_
#define DEEPWELL_KERNELS_CUDA_GEMM_CALL_H_

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A kind is an enum dtype, or from GEMM_NARROW on a number format and a scale mode. */
enum { GEMM_NARROW = 16, GEMM_MODES = 8 };

static inline int gemm_narrow_kind(enum number_format format, enum scale_mode mode) {
    return GEMM_NARROW + (int)format * GEMM_MODES + (int)mode;
}
DEEPWELL_HOST_DEVICE static inline bool gemm_kind_narrow(int kind) { return kind >= GEMM_NARROW; }
DEEPWELL_HOST_DEVICE static inline enum number_format gemm_kind_format(int kind) {
    return (enum number_format)((kind - GEMM_NARROW) / GEMM_MODES);
}
DEEPWELL_HOST_DEVICE static inline enum scale_mode gemm_kind_mode(int kind) {
    return (enum scale_mode)((kind - GEMM_NARROW) % GEMM_MODES);
}

struct gemm_operand {
    void *data;
    size_t rows, columns;
    int kind;
    const void *scales; /* narrow: of the blocks, or SCALE_TENSOR's own */
};

static inline size_t gemm_operand_bytes(const struct gemm_operand *o) {
    const size_t count = o->rows * o->columns;
    if (!gemm_kind_narrow(o->kind)) return count * dtype_bytes((enum dtype)o->kind);
    return gemm_kind_format(o->kind) == FORMAT_E2M1 ? count / 2 : count;
}

/* c = alpha op(a) op(b) [+ c] [+ bias]. */
struct gemm_call {
    struct tensor c;
    struct gemm_operand a, b;
    bool transpose_a, transpose_b;
    bool accumulate;
    bool fast; /* narrow accumulation */
    const struct tensor *bias;
    const float *alpha_beta; /* device memory: alpha, then 1 if accumulate, else 0; NULL: alpha 1 */
};

static inline struct gemm_operand gemm_plain_operand(struct tensor t) {
    const struct gemm_operand operand = {t.data, t.rows, t.columns, (int)t.dtype, NULL};
    return operand;
}

static inline struct gemm_call gemm_call_of(const struct gemm *op) {
    const struct gemm_call call = {
        op->c,
        gemm_plain_operand(op->a),
        gemm_plain_operand(op->b),
        op->transpose_a,
        op->transpose_b,
        op->accumulate,
        false,
        op->bias,
        NULL,
    };
    return call;
}

/* gemm_check.cu. Before the GEMM runs, _begin keeps what c holds at the places that are looked at;
 * behind it, gemm_verify compares c there with sums made one product at a time: *worst receives the
 * largest error in units of what is allowed. Waits for the result. */
enum status gemm_verify_begin(struct device *device, const struct gemm_call *op);
enum status gemm_verify(struct device *device, const struct gemm_call *op, double *worst);
/* Normal pseudo-random numbers all over o, codes of them if it is narrow; `key` keeps operands
 * apart. */
enum status gemm_fill(struct device *device, const struct gemm_operand *o, size_t key);

#ifdef __cplusplus
}
#endif
#endif

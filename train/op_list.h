/*
 * Operations as they were asked for, in order, with their arguments: what op_trace.h records where
 * it is given a list. floor.c runs the GEMMs and attention calls of one again on operands of its
 * own and streams the bytes of the rest; bench_gemm.c and bench_ops.c time its entries one by one.
 */
#ifndef DEEPWELL_TRAIN_OP_LIST_H_
#define DEEPWELL_TRAIN_OP_LIST_H_

#include <stdint.h>

#include "kernels/ops.h"

enum op_kind {
    OP_GEMM,
    OP_QUANTISED_GEMM,
    OP_QUANTISE,
    OP_EMBEDDING_FORWARD,
    OP_EMBEDDING_BACKWARD,
    OP_NORM_FORWARD,
    OP_NORM_BACKWARD,
    OP_ATTENTION_FORWARD,
    OP_ATTENTION_BACKWARD,
    OP_ATTENTION_CACHED,
    OP_GELU_FORWARD,
    OP_GELU_BACKWARD,
    OP_BIAS_BACKWARD,
    OP_CROSS_ENTROPY,
    OP_CONVERT,
    OP_LOSS_SUM,
    OP_GRADIENT_SUMSQ,
    OP_SCALES_BEGIN,
    OP_SCALES_UPDATE,
    OP_STEP_BEGIN,
    OP_STEP_DECIDE,
    OP_ADAMW,
};

struct op_call {
    enum op_kind kind;
    const char *name;          /* "norm_forward" */
    double flops;
    size_t bytes, written_bytes; /* kernels/traffic.h; written_bytes of bytes are written */
    union {
        struct gemm gemm;
        struct quantised_gemm quantised_gemm;
        struct { const struct quantise *ops; size_t count; } quantise; /* the list's own copy */
        struct embedding_forward embedding_forward;
        struct embedding_backward embedding_backward;
        struct norm_forward norm_forward;
        struct norm_backward norm_backward;
        struct attention_forward attention_forward;
        struct attention_backward attention_backward;
        struct attention_cached attention_cached;
        struct gelu_forward gelu_forward;
        struct gelu_backward gelu_backward;
        struct bias_backward bias_backward;
        struct cross_entropy cross_entropy;
        struct { struct tensor out, in; } convert;
        struct { struct step_state *state; const float *numbers; size_t count; } sum;
        struct { struct step_state *state; struct step_policy policy; } step;
        struct {
            struct step_state *state; /* of an update */
            struct scale_state *scales;
            size_t count;
            bool flag;                /* clear_amax, or enter */
        } scales;
        struct adamw adamw;
    } args;
    /* what the arguments' own pointers pointed to: bias; delta, delta_bias; quantise.copies */
    struct tensor pointees[2];
    struct quantised copies;
};

/* After a call was copied: the pointers of its arguments point to what it holds itself. */
void op_call_own_pointees(struct op_call *call);

struct op_list {
    struct op_call *calls;
    size_t count, capacity;
};

/* Appends a copy; pointers to other arguments (a bias, several quantisations) need not outlive the
 * call. */
enum status op_list_add(struct op_list *list, const struct op_call *call);
void op_list_close(struct op_list *list);

/* Asks the device for the operation again: same arguments, same memory. */
enum status op_call_run(struct device *device, const struct op_call *call);

/* K of a GEMM: the dimension that is summed over. */
size_t gemm_k(const struct gemm *gemm);

/* Whether it is a GEMM, of quantised operands or not; its result; its bias, data NULL: none. */
bool op_call_is_gemm(const struct op_call *call);
struct tensor op_call_result(const struct op_call *gemm);
struct tensor op_call_bias(const struct op_call *gemm);
bool op_call_adds(const struct op_call *gemm);

/* Whether both are the same work on other memory. */
bool op_call_same(const struct op_call *a, const struct op_call *b);

/* Index of the first call with the same work as calls[i]: i itself where it is the first. */
size_t op_list_first_same(const struct op_list *list, size_t i);

/* "gemm 65536 x 2304 x 768 NT bf16 -> bf16, bias", with quantised operands "... e5m2 x e4m3 ->
 * bf16", or the name. Writes into `text` and returns it. */
enum { OP_CALL_TEXT_BYTES = 96 };
const char *op_call_text(char text[OP_CALL_TEXT_BYTES], const struct op_call *call);

#endif

/* The recording table of operations behind train/op_trace.h. */
#include "train/op_trace.h"

#include <string.h>

#include "kernels/traffic.h"

static struct op_total *find_total(struct op_trace *trace, const char *name) {
    for (size_t i = 0; i < trace->op_count; i++) {
        if (strcmp(trace->ops[i].name, name) == 0) return &trace->ops[i];
    }
    struct op_total *fresh = &trace->ops[trace->op_count++]; /* one for each member of struct ops */
    *fresh = (struct op_total){.name = name};
    return fresh;
}

static void add(struct op_total *total, double flops, double bytes) {
    total->calls++;
    total->flops += flops;
    total->bytes += bytes;
}

/* The operation that was just asked for ends here; its time is read when all is done. */
static enum status end_interval(struct op_trace *trace, struct device *device, struct op_total *total,
                                struct op_total *shape) {
    if (trace->inner == NULL) return STATUS_OK;
    if (trace->last_mark + 1 == DEVICE_MARKS) {
        return status_set(STATUS_INTERNAL, "more than %d operations in a traced step", DEVICE_MARKS - 1);
    }
    trace->intervals[++trace->last_mark] = (struct op_interval){total, shape};
    return device_mark(device, trace->last_mark);
}

/* The inner operation, if there is one, then its row of the table. */
#define TRACE_CALL(name, call, flops, bytes)                                                   \
    struct op_total *const total = find_total(trace, name);                                    \
    if (trace->inner != NULL) TRY(trace->inner->call);                                         \
    add(total, (flops), (double)(bytes));                                                      \
    return end_interval(trace, device, total, NULL)

#define TRACED(op, flops)                                                                      \
    static enum status traced_##op(struct device *device, const struct op *a) {                \
        struct op_trace *trace = device->interposed;                                           \
        TRACE_CALL(#op, op(device, a), flops, op##_bytes(a));                                  \
    }

/* Causal: half the square, two products forward; twice that backward. What an implementation
 * computes again is not counted, as in flops.h. */
static double attention_flops(size_t batch, size_t length, size_t width) {
    return 2.0 * (double)batch * (double)length * (double)length * (double)width;
}

TRACED(embedding_forward, 0.0)
TRACED(embedding_backward, 0.0)
TRACED(norm_forward, 0.0)
TRACED(norm_backward, 0.0)
TRACED(attention_forward, attention_flops(a->batch, a->sequence_length, a->out.columns))
TRACED(attention_backward, 2.0 * attention_flops(a->batch, a->sequence_length, a->out.columns))
TRACED(attention_cached, 4.0 * (double)a->out.rows * (double)(a->past + a->sequence_length) *
                             (double)a->out.columns)
TRACED(gelu_forward, 0.0)
TRACED(gelu_backward, 0.0)
TRACED(bias_backward, 0.0)
TRACED(cross_entropy, 0.0)
TRACED(adamw, 0.0)

/* The row of this shape and these types, perhaps new; NULL: the table is full. */
static struct gemm_total *find_gemm(struct op_trace *trace, const struct gemm_total *wanted) {
    for (size_t i = 0; i < trace->gemm_count; i++) {
        struct gemm_total *g = &trace->gemms[i];
        if (g->m == wanted->m && g->n == wanted->n && g->k == wanted->k &&
            g->transpose_a == wanted->transpose_a && g->transpose_b == wanted->transpose_b &&
            strcmp(g->a, wanted->a) == 0 && strcmp(g->b, wanted->b) == 0 && g->c == wanted->c) {
            return g;
        }
    }
    if (trace->gemm_count == OP_TRACE_GEMMS) return NULL;
    struct gemm_total *fresh = &trace->gemms[trace->gemm_count++];
    *fresh = *wanted;
    return fresh;
}

/* A GEMM that has just run, in its operation's row and in its shape's. */
static enum status add_gemm(struct op_trace *trace, struct device *device, const char *name,
                            const struct gemm_total *wanted, double bytes) {
    const double flops = 2.0 * (double)wanted->m * (double)wanted->n * (double)wanted->k;
    struct gemm_total *shape = find_gemm(trace, wanted);
    if (shape == NULL) {
        return status_set(STATUS_INTERNAL, "more than %d shapes of GEMM in a step", OP_TRACE_GEMMS);
    }
    struct op_total *const total = find_total(trace, name);
    add(total, flops, bytes);
    add(&shape->total, flops, bytes);
    return end_interval(trace, device, total, &shape->total);
}

static enum status traced_gemm(struct device *device, const struct gemm *a) {
    struct op_trace *trace = device->interposed;
    const struct gemm_total wanted = {
        .m = a->c.rows, .n = a->c.columns, .k = a->transpose_a ? a->a.rows : a->a.columns,
        .transpose_a = a->transpose_a, .transpose_b = a->transpose_b,
        .a = dtype_name(a->a.dtype), .b = dtype_name(a->b.dtype), .c = a->c.dtype,
    };
    if (trace->inner != NULL) TRY(trace->inner->gemm(device, a));
    return add_gemm(trace, device, "gemm", &wanted, (double)gemm_bytes(a));
}

static enum status traced_quantised_gemm(struct device *device, const struct quantised_gemm *a) {
    struct op_trace *trace = device->interposed;
    const struct gemm_total wanted = {
        .m = a->c.rows, .n = a->c.columns, .k = a->a.columns, .transpose_b = true,
        .a = format_name(a->a.format), .b = format_name(a->b.format), .c = a->c.dtype,
    };
    if (trace->inner != NULL) TRY(trace->inner->quantised_gemm(device, a));
    return add_gemm(trace, device, "quantised_gemm", &wanted, (double)quantised_gemm_bytes(a));
}

static enum status traced_quantise(struct device *device, const struct quantise *ops,
                                   size_t count) {
    struct op_trace *trace = device->interposed;
    double bytes = 0.0;
    for (size_t i = 0; i < count; i++) bytes += (double)quantise_bytes(&ops[i]);
    TRACE_CALL("quantise", quantise(device, ops, count), 0.0, bytes);
}

static enum status traced_scales_begin(struct device *device, struct scale_state *states,
                                       size_t count, bool clear_amax) {
    struct op_trace *trace = device->interposed;
    TRACE_CALL("scales_begin", scales_begin(device, states, count, clear_amax), 0.0,
               scales_bytes(count));
}

static enum status traced_scales_update(struct device *device, struct step_state *state,
                                        struct scale_state *states, size_t count, bool enter) {
    struct op_trace *trace = device->interposed;
    TRACE_CALL("scales_update", scales_update(device, state, states, count, enter), 0.0,
               scales_bytes(count));
}

static enum support traced_scale_support(const struct device *device, enum scale_mode mode) {
    const struct op_trace *trace = device->interposed;
    return trace->own->scale_support(device, mode);
}

static enum status traced_convert(struct device *device, struct tensor out, struct tensor in) {
    struct op_trace *trace = device->interposed;
    TRACE_CALL("convert", convert(device, out, in), 0.0, convert_bytes(out, in));
}

static enum status traced_loss_sum(struct device *device, struct step_state *state,
                                   const float *losses, size_t count) {
    struct op_trace *trace = device->interposed;
    TRACE_CALL("loss_sum", loss_sum(device, state, losses, count), 0.0, loss_sum_bytes(count));
}

static enum status traced_gradient_sumsq(struct device *device, struct step_state *state,
                                         const float *gradients, size_t count) {
    struct op_trace *trace = device->interposed;
    TRACE_CALL("gradient_sumsq", gradient_sumsq(device, state, gradients, count), 0.0,
               gradient_sumsq_bytes(count));
}

static enum status traced_step_begin(struct device *device, struct step_state *state) {
    struct op_trace *trace = device->interposed;
    TRACE_CALL("step_begin", step_begin(device, state), 0.0, sizeof *state);
}

static enum status traced_step_decide(struct device *device, struct step_state *state,
                                      const struct step_policy *policy) {
    struct op_trace *trace = device->interposed;
    TRACE_CALL("step_decide", step_decide(device, state, policy), 0.0, sizeof *state);
}

/* A step asks for no diagnosis; the search is passed on, not counted. */
static enum status traced_find_nonfinite(struct device *device, struct tensor in, size_t *index) {
    const struct op_trace *trace = device->interposed;
    *index = SIZE_MAX;
    return trace->inner == NULL ? STATUS_OK : trace->inner->find_nonfinite(device, in, index);
}

static enum status traced_check(const struct device *device, const struct op_limits *limits,
                                bool backward) {
    const struct op_trace *trace = device->interposed;
    return trace->inner == NULL ? STATUS_OK : trace->inner->check(device, limits, backward);
}

static size_t traced_scratch_bytes(const struct device *device, const struct op_limits *limits) {
    const struct op_trace *trace = device->interposed;
    return trace->inner == NULL ? 0 : trace->inner->scratch_bytes(device, limits);
}

static const struct ops traced_ops = {
    .check = traced_check,
    .scratch_bytes = traced_scratch_bytes,
    .scale_support = traced_scale_support,
    .gemm = traced_gemm,
    .quantised_gemm = traced_quantised_gemm,
    .quantise = traced_quantise,
    .embedding_forward = traced_embedding_forward,
    .embedding_backward = traced_embedding_backward,
    .norm_forward = traced_norm_forward,
    .norm_backward = traced_norm_backward,
    .attention_forward = traced_attention_forward,
    .attention_backward = traced_attention_backward,
    .attention_cached = traced_attention_cached,
    .gelu_forward = traced_gelu_forward,
    .gelu_backward = traced_gelu_backward,
    .bias_backward = traced_bias_backward,
    .cross_entropy = traced_cross_entropy,
    .convert = traced_convert,
    .loss_sum = traced_loss_sum,
    .gradient_sumsq = traced_gradient_sumsq,
    .step_begin = traced_step_begin,
    .scales_begin = traced_scales_begin,
    .scales_update = traced_scales_update,
    .step_decide = traced_step_decide,
    .adamw = traced_adamw,
    .find_nonfinite = traced_find_nonfinite,
};

enum status op_trace_attach(struct op_trace *trace, struct device *device, bool record_only) {
    *trace = (struct op_trace){.own = device->ops, .inner = record_only ? NULL : device->ops};
    device->interposed = trace;
    device->ops = &traced_ops;
    return record_only ? STATUS_OK : device_mark(device, 0);
}

enum status op_trace_detach(struct op_trace *trace, struct device *device) {
    device->ops = trace->own;
    device->interposed = NULL;
    for (size_t i = 1; i <= trace->last_mark; i++) {
        double seconds = 0.0;
        TRY(device_seconds_between(device, i - 1, i, &seconds));
        trace->intervals[i].total->seconds += seconds;
        if (trace->intervals[i].shape != NULL) trace->intervals[i].shape->seconds += seconds;
    }
    return STATUS_OK;
}

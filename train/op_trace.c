/* The recording table of operations behind train/op_trace.h. */
#include "train/op_trace.h"

#include <string.h>

#include "kernels/traffic.h"

static struct op_total *find_total(struct op_trace *trace, const char *name) {
    for (size_t i = 0; i < trace->op_count; i++) {
        if (strcmp(trace->ops[i].name, name) == 0) return &trace->ops[i];
    }
    struct op_total *fresh = &trace->ops[trace->op_count++]; /* one an operation, and data */
    *fresh = (struct op_total){.name = name};
    return fresh;
}

static void add(struct op_total *total, double flops, double bytes) {
    total->calls++;
    total->flops += flops;
    total->bytes += bytes;
}

/* The operation that was just asked for ends here; its time is read when all is done. */
static enum status end_interval(struct op_trace *trace, struct device *device,
                                struct op_total *total, struct op_total *shape) {
    if (trace->inner == NULL) return STATUS_OK;
    if (trace->last_mark + 1 == DEVICE_MARKS) {
        return status_set(STATUS_CONFIG,
                          "more than %d operations in a step: each is timed by a mark of its own, "
                          "and there are no more. Lower train.batch, or raise train.micro_batch: "
                          "fewer micro-batches show the same operations",
                          DEVICE_MARKS - 1);
    }
    trace->intervals[++trace->last_mark] = (struct op_interval){total, shape};
    return device_mark(device, trace->last_mark);
}

/* Counts the call that the inner operation, if there is one, has just been asked for; `shape`
 * NULL: no GEMM. */
static enum status end_call(struct op_trace *trace, struct device *device,
                            const struct op_call *call, struct op_total *shape) {
    struct op_total *const total = find_total(trace, call->name);
    if (trace->list != NULL) TRY(op_list_add(trace->list, call));
    add(total, call->flops, (double)call->bytes);
    if (shape != NULL) add(shape, call->flops, (double)call->bytes);
    return end_interval(trace, device, total, shape);
}

enum status op_trace_data(struct device *device, size_t bytes) {
    struct op_trace *trace = device->interposed;
    if (trace == NULL) return STATUS_OK;
    struct op_total *const total = find_total(trace, "data");
    add(total, 0.0, (double)bytes);
    return end_interval(trace, device, total, NULL);
}

#define TRACE_CALL(call, run, shape)                    \
    if (trace->inner != NULL) TRY(trace->inner->run);   \
    return end_call(trace, device, call, shape)

#define TRACED(op, op_kind, count)                                                             \
    static enum status traced_##op(struct device *device, const struct op *a) {                \
        struct op_trace *trace = device->interposed;                                           \
        const struct op_call call = {                                                          \
            .kind = op_kind, .name = #op, .flops = (count), .bytes = op##_bytes(a),            \
            .written_bytes = op##_written_bytes(a), .args.op = *a,                             \
        };                                                                                     \
        TRACE_CALL(&call, op(device, a), NULL);                                                \
    }

/* Causal: half the square, two products forward; twice that backward. What an implementation
 * computes again is not counted, as in flops.h. */
static double attention_flops(size_t batch, size_t length, size_t width) {
    return 2.0 * (double)batch * (double)length * (double)length * (double)width;
}

TRACED(embedding_forward, OP_EMBEDDING_FORWARD, 0.0)
TRACED(embedding_backward, OP_EMBEDDING_BACKWARD, 0.0)
TRACED(norm_forward, OP_NORM_FORWARD, 0.0)
TRACED(norm_backward, OP_NORM_BACKWARD, 0.0)
TRACED(attention_forward, OP_ATTENTION_FORWARD,
       attention_flops(a->batch, a->sequence_length, a->out.columns))
TRACED(attention_backward, OP_ATTENTION_BACKWARD,
       2.0 * attention_flops(a->batch, a->sequence_length, a->out.columns))
TRACED(attention_cached, OP_ATTENTION_CACHED,
       4.0 * (double)a->out.rows * (double)(a->past + a->sequence_length) * (double)a->out.columns)
TRACED(gelu_forward, OP_GELU_FORWARD, 0.0)
TRACED(gelu_backward, OP_GELU_BACKWARD, 0.0)
TRACED(bias_backward, OP_BIAS_BACKWARD, 0.0)
TRACED(cross_entropy, OP_CROSS_ENTROPY, 0.0)
TRACED(adamw, OP_ADAMW, 0.0)

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
static enum status end_gemm(struct op_trace *trace, struct device *device,
                            const struct op_call *call, const struct gemm_total *wanted) {
    struct gemm_total *shape = find_gemm(trace, wanted);
    if (shape == NULL) {
        return status_set(STATUS_INTERNAL, "more than %d shapes of GEMM in a step", OP_TRACE_GEMMS);
    }
    return end_call(trace, device, call, &shape->total);
}

struct op_call op_call_of_gemm(const struct gemm *a) {
    return (struct op_call){
        .kind = OP_GEMM,
        .name = "gemm",
        .flops = 2.0 * (double)a->c.rows * (double)a->c.columns * (double)gemm_k(a),
        .bytes = gemm_bytes(a),
        .written_bytes = gemm_written_bytes(a),
        .args.gemm = *a,
    };
}

struct op_call op_call_of_quantised_gemm(const struct quantised_gemm *a) {
    return (struct op_call){
        .kind = OP_QUANTISED_GEMM,
        .name = "quantised_gemm",
        .flops = 2.0 * (double)a->c.rows * (double)a->c.columns * (double)a->a.columns,
        .bytes = quantised_gemm_bytes(a),
        .written_bytes = quantised_gemm_written_bytes(a),
        .args.quantised_gemm = *a,
    };
}

static enum status traced_gemm(struct device *device, const struct gemm *a) {
    struct op_trace *trace = device->interposed;
    const struct op_call call = op_call_of_gemm(a);
    const struct gemm_total wanted = {
        .m = a->c.rows,
        .n = a->c.columns,
        .k = gemm_k(a),
        .transpose_a = a->transpose_a,
        .transpose_b = a->transpose_b,
        .a = dtype_name(a->a.dtype),
        .b = dtype_name(a->b.dtype),
        .c = a->c.dtype,
    };
    if (trace->inner != NULL) TRY(trace->inner->gemm(device, a));
    return end_gemm(trace, device, &call, &wanted);
}

/* What ranks do for one another is counted and timed, not listed. */
static enum status refuse_list(const struct op_trace *trace) {
    return trace->list == NULL
               ? STATUS_OK
               : status_set(STATUS_CONFIG, "bench floor, bench gemm, bench ops and bench step "
                            "--floor run one rank without an exchange: expected comm.order = fast, "
                            "found fixed");
}

static enum status traced_quantised_gemm(struct device *device, const struct quantised_gemm *a) {
    struct op_trace *trace = device->interposed;
    const struct op_call call = op_call_of_quantised_gemm(a);
    const struct gemm_total wanted = {
        .m = a->c.rows, .n = a->c.columns, .k = a->a.columns, .transpose_b = true,
        .a = format_name(a->a.format), .b = format_name(a->b.format), .c = a->c.dtype,
    };
    if (trace->inner != NULL) TRY(trace->inner->quantised_gemm(device, a));
    return end_gemm(trace, device, &call, &wanted);
}

static enum status traced_quantise(struct device *device, const struct quantise *ops,
                                   size_t count) {
    struct op_trace *trace = device->interposed;
    struct op_call call = {.kind = OP_QUANTISE, .name = "quantise", .args.quantise = {ops, count}};
    for (size_t i = 0; i < count; i++) {
        call.bytes += quantise_bytes(&ops[i]);
        call.written_bytes += quantise_written_bytes(&ops[i]);
    }
    TRACE_CALL(&call, quantise(device, ops, count), NULL);
}

static enum status traced_scales_begin(struct device *device, struct scale_state *states,
                                       size_t count, bool clear_amax) {
    struct op_trace *trace = device->interposed;
    const struct op_call call = {
        .kind = OP_SCALES_BEGIN, .name = "scales_begin", .bytes = scales_bytes(count),
        .written_bytes = scales_written_bytes(count),
        .args.scales = {.scales = states, .count = count, .flag = clear_amax},
    };
    TRACE_CALL(&call, scales_begin(device, states, count, clear_amax), NULL);
}

static enum status traced_scales_update(struct device *device, struct step_state *state,
                                        struct scale_state *states, size_t count, bool enter) {
    struct op_trace *trace = device->interposed;
    const struct op_call call = {
        .kind = OP_SCALES_UPDATE, .name = "scales_update", .bytes = scales_bytes(count),
        .written_bytes = scales_written_bytes(count),
        .args.scales = {state, states, count, enter},
    };
    TRACE_CALL(&call, scales_update(device, state, states, count, enter), NULL);
}

static enum support traced_scale_support(const struct device *device, enum scale_mode mode) {
    const struct op_trace *trace = device->interposed;
    return trace->own->scale_support(device, mode);
}

static enum status traced_convert(struct device *device, struct tensor out, struct tensor in) {
    struct op_trace *trace = device->interposed;
    const struct op_call call = {
        .kind = OP_CONVERT, .name = "convert", .bytes = convert_bytes(out, in),
        .written_bytes = tensor_bytes(out), .args.convert = {out, in},
    };
    TRACE_CALL(&call, convert(device, out, in), NULL);
}

static enum status traced_loss_sum(struct device *device, struct step_state *state,
                                   const float *losses, size_t count) {
    struct op_trace *trace = device->interposed;
    const struct op_call call = {
        .kind = OP_LOSS_SUM, .name = "loss_sum", .bytes = loss_sum_bytes(count),
        .args.sum = {state, losses, count},
    };
    TRACE_CALL(&call, loss_sum(device, state, losses, count), NULL);
}

static enum status traced_gradient_sumsq(struct device *device, struct step_state *state,
                                         const float *gradients, size_t count) {
    struct op_trace *trace = device->interposed;
    const struct op_call call = {
        .kind = OP_GRADIENT_SUMSQ, .name = "gradient_sumsq", .bytes = gradient_sumsq_bytes(count),
        .args.sum = {state, gradients, count},
    };
    TRACE_CALL(&call, gradient_sumsq(device, state, gradients, count), NULL);
}

static enum status traced_sum_parts(struct device *device, float *out, struct tensor parts,
                                    bool accumulate) {
    struct op_trace *trace = device->interposed;
    const struct op_call call = {.name = "sum_parts", .bytes = sum_parts_bytes(parts, accumulate)};
    TRY(refuse_list(trace));
    TRACE_CALL(&call, sum_parts(device, out, parts, accumulate), NULL);
}

static enum status traced_block_sumsq(struct device *device, double *out, const float *x,
                                      size_t count) {
    struct op_trace *trace = device->interposed;
    const struct op_call call = {.name = "block_sumsq", .bytes = block_sumsq_bytes(count)};
    TRY(refuse_list(trace));
    TRACE_CALL(&call, block_sumsq(device, out, x, count), NULL);
}

static enum status traced_total_sumsq(struct device *device, struct step_state *state,
                                      const double *sums, size_t count) {
    struct op_trace *trace = device->interposed;
    const struct op_call call = {.name = "total_sumsq", .bytes = total_sumsq_bytes(count)};
    TRY(refuse_list(trace));
    TRACE_CALL(&call, total_sumsq(device, state, sums, count), NULL);
}

static enum status traced_step_begin(struct device *device, struct step_state *state,
                                     const struct step_policy *policy) {
    struct op_trace *trace = device->interposed;
    const struct op_call call = {
        .kind = OP_STEP_BEGIN, .name = "step_begin", .bytes = sizeof *state,
        .args.step = {state, *policy},
    };
    TRACE_CALL(&call, step_begin(device, state, policy), NULL);
}

static enum status traced_step_decide(struct device *device, struct step_state *state) {
    struct op_trace *trace = device->interposed;
    const struct op_call call = {
        .kind = OP_STEP_DECIDE, .name = "step_decide", .bytes = sizeof *state,
        .args.step = {.state = state},
    };
    TRACE_CALL(&call, step_decide(device, state), NULL);
}

/* No model asks for it. */
static enum status traced_stream(struct device *device, const struct stream *a) {
    const struct op_trace *trace = device->interposed;
    return trace->inner == NULL ? STATUS_OK : trace->inner->stream(device, a);
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
    .sum_parts = traced_sum_parts,
    .block_sumsq = traced_block_sumsq,
    .total_sumsq = traced_total_sumsq,
    .step_begin = traced_step_begin,
    .scales_begin = traced_scales_begin,
    .scales_update = traced_scales_update,
    .step_decide = traced_step_decide,
    .adamw = traced_adamw,
    .stream = traced_stream,
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

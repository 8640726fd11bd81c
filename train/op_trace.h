/*
 * A table of operations in front of another: counts calls, floating point operations, bytes and
 * time of every operation that a model asks for. Without an inner table it only records, and no
 * memory is touched: so `plan` knows the operations of a step from the code that will run them, and
 * `bench` times the same list.
 */
#ifndef DEEPWELL_TRAIN_OP_TRACE_H_
#define DEEPWELL_TRAIN_OP_TRACE_H_

#include <stdint.h>

#include "kernels/ops.h"
#include "train/op_list.h"

struct op_total {
    const char *name;
    uint64_t calls;
    double flops, bytes; /* what the operation needs at least (kernels/traffic.h) */
    double seconds;
};

struct gemm_total {
    size_t m, n, k;
    bool transpose_a, transpose_b;
    const char *a, *b; /* types of the operands: "bf16", "e4m3" */
    enum dtype c;      /* of the result */
    struct op_total total;
};

enum { OP_TRACE_OPS = 32, OP_TRACE_GEMMS = 64 };

/* Which sums the time between two marks of the device belongs to. */
struct op_interval {
    struct op_total *total, *shape; /* shape NULL: no GEMM */
};

struct op_trace {
    const struct ops *own;   /* the device's table */
    const struct ops *inner; /* the same, or NULL: record only */
    struct op_list *list;    /* NULL, or set after op_trace_attach: every call is kept there too */
    struct op_total ops[OP_TRACE_OPS];
    size_t op_count;
    struct gemm_total gemms[OP_TRACE_GEMMS]; /* every distinct shape; also summed in `ops` */
    size_t gemm_count;
    struct op_interval intervals[DEVICE_MARKS]; /* [i]: from mark i - 1 to mark i */
    size_t last_mark;
};

/* A GEMM as a call, with its FLOPs and bytes. */
struct op_call op_call_of_gemm(const struct gemm *gemm);
struct op_call op_call_of_quantised_gemm(const struct quantised_gemm *gemm);

/* Times are those of the device: it marks the end of every operation, nothing waits, and what lies
 * between two marks belongs to the operation that ends it, so that the times add up to the step.
 * Puts the trace in front of the device's operations (`record_only`: in their place). The trace
 * must stay where it is until op_trace_detach, which gives the device its own table back and reads
 * the times. STATUS_CONFIG from the operation that finds no mark left. */
enum status op_trace_attach(struct op_trace *trace, struct device *device, bool record_only);
enum status op_trace_detach(struct op_trace *trace, struct device *device);

/* The tokens of a micro-batch, so many bytes, were made and uploaded: in a traced step what came
 * before, up to here, is the row "data". Without a trace nothing. */
enum status op_trace_data(struct device *device, size_t bytes);

#endif

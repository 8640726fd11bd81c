/* The recorded calls behind train/op_list.h. */
#include "train/op_list.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Copies what the arguments point to beside them. */
static void keep_pointees(struct op_call *call) {
    const struct tensor *kept[2] = {NULL, NULL};
    if (call->kind == OP_GEMM) kept[0] = call->args.gemm.bias;
    if (call->kind == OP_NORM_FORWARD) {
        kept[0] = call->args.norm_forward.delta;
        kept[1] = call->args.norm_forward.delta_bias;
    }
    for (size_t i = 0; i < 2; i++) {
        if (kept[i] != NULL) call->pointees[i] = *kept[i];
    }
}

enum status op_list_add(struct op_list *list, const struct op_call *call) {
    if (list->count == list->capacity) {
        const size_t capacity = list->capacity == 0 ? 256 : 2 * list->capacity;
        struct op_call *grown = reallocarray(list->calls, capacity, sizeof *grown);
        if (grown == NULL) {
            return status_set(STATUS_MEMORY, "out of memory for a list of %zu operations",
                              capacity);
        }
        list->calls = grown;
        list->capacity = capacity;
    }
    list->calls[list->count] = *call;
    keep_pointees(&list->calls[list->count++]);
    return STATUS_OK;
}

void op_list_close(struct op_list *list) {
    free(list->calls);
    *list = (struct op_list){0};
}

static enum status run_gemm(struct device *device, const struct op_call *call) {
    struct gemm gemm = call->args.gemm;
    if (gemm.bias != NULL) gemm.bias = &call->pointees[0];
    return device->ops->gemm(device, &gemm);
}

static enum status run_norm_forward(struct device *device, const struct op_call *call) {
    struct norm_forward norm = call->args.norm_forward;
    if (norm.delta != NULL) norm.delta = &call->pointees[0];
    if (norm.delta_bias != NULL) norm.delta_bias = &call->pointees[1];
    return device->ops->norm_forward(device, &norm);
}

enum status op_call_run(struct device *device, const struct op_call *call) {
    const struct ops *ops = device->ops;
    switch (call->kind) {
    case OP_GEMM: return run_gemm(device, call);
    case OP_EMBEDDING_FORWARD: return ops->embedding_forward(device, &call->args.embedding_forward);
    case OP_EMBEDDING_BACKWARD:
        return ops->embedding_backward(device, &call->args.embedding_backward);
    case OP_NORM_FORWARD: return run_norm_forward(device, call);
    case OP_NORM_BACKWARD: return ops->norm_backward(device, &call->args.norm_backward);
    case OP_ATTENTION_FORWARD: return ops->attention_forward(device, &call->args.attention_forward);
    case OP_ATTENTION_BACKWARD:
        return ops->attention_backward(device, &call->args.attention_backward);
    case OP_ATTENTION_CACHED: return ops->attention_cached(device, &call->args.attention_cached);
    case OP_GELU_FORWARD: return ops->gelu_forward(device, &call->args.gelu_forward);
    case OP_GELU_BACKWARD: return ops->gelu_backward(device, &call->args.gelu_backward);
    case OP_BIAS_BACKWARD: return ops->bias_backward(device, &call->args.bias_backward);
    case OP_CROSS_ENTROPY: return ops->cross_entropy(device, &call->args.cross_entropy);
    case OP_CONVERT: return ops->convert(device, call->args.convert.out, call->args.convert.in);
    case OP_LOSS_SUM:
        return ops->loss_sum(device, call->args.sum.state, call->args.sum.numbers,
                             call->args.sum.count);
    case OP_GRADIENT_SUMSQ:
        return ops->gradient_sumsq(device, call->args.sum.state, call->args.sum.numbers,
                                   call->args.sum.count);
    case OP_STEP_BEGIN:
        return ops->step_begin(device, call->args.step.state, &call->args.step.policy);
    case OP_STEP_DECIDE: return ops->step_decide(device, call->args.step.state);
    case OP_ADAMW: return ops->adamw(device, &call->args.adamw);
    }
    return status_set(STATUS_INTERNAL, "no operation %d", (int)call->kind);
}

size_t gemm_k(const struct gemm *gemm) {
    return gemm->transpose_a ? gemm->a.rows : gemm->a.columns;
}

static bool same_gemm(const struct gemm *a, const struct gemm *b) {
    return a->c.rows == b->c.rows && a->c.columns == b->c.columns && gemm_k(a) == gemm_k(b) &&
           a->transpose_a == b->transpose_a && a->transpose_b == b->transpose_b &&
           a->accumulate == b->accumulate && a->a.dtype == b->a.dtype && a->b.dtype == b->b.dtype &&
           a->c.dtype == b->c.dtype && (a->bias == NULL) == (b->bias == NULL);
}

/* Equal names, FLOPs and bytes, read and written, are equal work: a step has one width and one
 * number of tokens. GEMMs can be told apart further. */
bool op_call_same(const struct op_call *a, const struct op_call *b) {
    return a->kind == b->kind && a->bytes == b->bytes && a->written_bytes == b->written_bytes &&
           a->flops == b->flops &&
           (a->kind != OP_GEMM || same_gemm(&a->args.gemm, &b->args.gemm));
}

size_t op_list_first_same(const struct op_list *list, size_t i) {
    for (size_t first = 0; first < i; first++) {
        if (op_call_same(&list->calls[first], &list->calls[i])) return first;
    }
    return i;
}

const char *op_call_text(char text[OP_CALL_TEXT_BYTES], const struct op_call *call) {
    const struct gemm *g = &call->args.gemm;
    if (call->kind != OP_GEMM) {
        snprintf(text, OP_CALL_TEXT_BYTES, "%s", call->name);
        return text;
    }
    snprintf(text, OP_CALL_TEXT_BYTES, "gemm %zu x %zu x %zu %s%s %s -> %s%s%s", g->c.rows,
             g->c.columns, gemm_k(g), g->transpose_a ? "T" : "N", g->transpose_b ? "T" : "N",
             dtype_name(g->a.dtype), dtype_name(g->c.dtype), g->bias != NULL ? ", bias" : "",
             g->accumulate ? ", adds" : "");
    return text;
}

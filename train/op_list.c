/* The recorded calls behind train/op_list.h. */
#include "train/op_list.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What an operation does for quantised copies of its result; NULL: it can do nothing. */
static struct quantise_output *output_of(struct op_call *call) {
    switch (call->kind) {
    case OP_NORM_FORWARD: return &call->args.norm_forward.quantise;
    case OP_NORM_BACKWARD: return &call->args.norm_backward.quantise;
    case OP_GELU_FORWARD: return &call->args.gelu_forward.quantise;
    case OP_GELU_BACKWARD: return &call->args.gelu_backward.quantise;
    case OP_CROSS_ENTROPY: return &call->args.cross_entropy.quantise;
    default: return NULL;
    }
}

/* The arguments' pointers to tensors; NULL: it has none there. */
static void tensor_pointers(struct op_call *call, const struct tensor **at[2]) {
    at[0] = at[1] = NULL;
    if (call->kind == OP_GEMM) at[0] = &call->args.gemm.bias;
    if (call->kind == OP_QUANTISED_GEMM) at[0] = &call->args.quantised_gemm.bias;
    if (call->kind != OP_NORM_FORWARD) return;
    at[0] = &call->args.norm_forward.delta;
    at[1] = &call->args.norm_forward.delta_bias;
}

void op_call_own_pointees(struct op_call *call) {
    const struct tensor **at[2];
    struct quantise_output *output = output_of(call);
    if (output != NULL && output->copies != NULL) output->copies = &call->copies;
    tensor_pointers(call, at);
    for (size_t i = 0; i < 2; i++) {
        if (at[i] != NULL && *at[i] != NULL) *at[i] = &call->pointees[i];
    }
}

/* Copies what the arguments point to beside them. */
static enum status keep_pointees(struct op_call *call) {
    const struct tensor **at[2];
    const struct quantise_output *output = output_of(call);
    if (output != NULL && output->copies != NULL) call->copies = *output->copies;
    tensor_pointers(call, at);
    for (size_t i = 0; i < 2; i++) {
        if (at[i] != NULL && *at[i] != NULL) call->pointees[i] = **at[i];
    }
    if (call->kind != OP_QUANTISE) return STATUS_OK;
    const size_t count = call->args.quantise.count;
    struct quantise *ops = calloc(count, sizeof *ops);
    if (ops == NULL) return status_set(STATUS_MEMORY, "out of memory for %zu quantisations", count);
    memcpy(ops, call->args.quantise.ops, count * sizeof *ops);
    call->args.quantise.ops = ops;
    return STATUS_OK;
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
    struct op_call kept = *call;
    TRY(keep_pointees(&kept));
    list->calls[list->count++] = kept;
    return STATUS_OK;
}

void op_list_close(struct op_list *list) {
    for (size_t i = 0; i < list->count; i++) {
        const struct op_call *call = &list->calls[i];
        if (call->kind == OP_QUANTISE) free((void *)call->args.quantise.ops);
    }
    free(list->calls);
    *list = (struct op_list){0};
}

static enum status run_scales_update(struct device *device, const struct op_call *call) {
    return device->ops->scales_update(device, call->args.scales.state, call->args.scales.scales,
                                      call->args.scales.count, call->args.scales.flag);
}

static enum status run(struct device *device, const struct op_call *call) {
    const struct ops *ops = device->ops;
    switch (call->kind) {
    case OP_GEMM: return ops->gemm(device, &call->args.gemm);
    case OP_QUANTISED_GEMM: return ops->quantised_gemm(device, &call->args.quantised_gemm);
    case OP_QUANTISE:
        return ops->quantise(device, call->args.quantise.ops, call->args.quantise.count);
    case OP_EMBEDDING_FORWARD: return ops->embedding_forward(device, &call->args.embedding_forward);
    case OP_EMBEDDING_BACKWARD:
        return ops->embedding_backward(device, &call->args.embedding_backward);
    case OP_NORM_FORWARD: return ops->norm_forward(device, &call->args.norm_forward);
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
    case OP_SCALES_BEGIN:
        return ops->scales_begin(device, call->args.scales.scales, call->args.scales.count,
                                 call->args.scales.flag);
    case OP_SCALES_UPDATE: return run_scales_update(device, call);
    case OP_STEP_BEGIN:
        return ops->step_begin(device, call->args.step.state, &call->args.step.policy);
    case OP_STEP_DECIDE: return ops->step_decide(device, call->args.step.state);
    case OP_ADAMW: return ops->adamw(device, &call->args.adamw);
    }
    return status_set(STATUS_INTERNAL, "no operation %d", (int)call->kind);
}

enum status op_call_run(struct device *device, const struct op_call *call) {
    struct op_call own = *call;
    op_call_own_pointees(&own);
    return run(device, &own);
}

size_t gemm_k(const struct gemm *gemm) {
    return gemm->transpose_a ? gemm->a.rows : gemm->a.columns;
}

bool op_call_is_gemm(const struct op_call *call) {
    return call->kind == OP_GEMM || call->kind == OP_QUANTISED_GEMM;
}

struct tensor op_call_result(const struct op_call *gemm) {
    return gemm->kind == OP_GEMM ? gemm->args.gemm.c : gemm->args.quantised_gemm.c;
}

struct tensor op_call_bias(const struct op_call *gemm) {
    const bool there = gemm->kind == OP_GEMM ? gemm->args.gemm.bias != NULL
                                             : gemm->args.quantised_gemm.bias != NULL;
    return there ? gemm->pointees[0] : (struct tensor){0};
}

bool op_call_adds(const struct op_call *gemm) {
    return gemm->kind == OP_GEMM ? gemm->args.gemm.accumulate
                                 : gemm->args.quantised_gemm.accumulate;
}

static bool same_gemm(const struct gemm *a, const struct gemm *b) {
    return a->c.rows == b->c.rows && a->c.columns == b->c.columns && gemm_k(a) == gemm_k(b) &&
           a->transpose_a == b->transpose_a && a->transpose_b == b->transpose_b &&
           a->accumulate == b->accumulate && a->a.dtype == b->a.dtype && a->b.dtype == b->b.dtype &&
           a->c.dtype == b->c.dtype && (a->bias == NULL) == (b->bias == NULL);
}

static bool same_operand(const struct operand *a, const struct operand *b) {
    return a->rows == b->rows && a->columns == b->columns && a->format == b->format &&
           a->mode == b->mode;
}

static bool same_quantised_gemm(const struct quantised_gemm *a, const struct quantised_gemm *b) {
    return same_operand(&a->a, &b->a) && same_operand(&a->b, &b->b) &&
           a->c.dtype == b->c.dtype && a->accumulate == b->accumulate && a->fast == b->fast &&
           (a->bias == NULL) == (b->bias == NULL);
}

/* Equal names, FLOPs and bytes, read and written, are equal work: a step has one width and one
 * number of tokens. GEMMs can be told apart further. */
bool op_call_same(const struct op_call *a, const struct op_call *b) {
    if (a->kind != b->kind || a->bytes != b->bytes || a->written_bytes != b->written_bytes ||
        a->flops != b->flops) {
        return false;
    }
    if (a->kind == OP_GEMM) return same_gemm(&a->args.gemm, &b->args.gemm);
    return a->kind != OP_QUANTISED_GEMM ||
           same_quantised_gemm(&a->args.quantised_gemm, &b->args.quantised_gemm);
}

size_t op_list_first_same(const struct op_list *list, size_t i) {
    for (size_t first = 0; first < i; first++) {
        if (op_call_same(&list->calls[first], &list->calls[i])) return first;
    }
    return i;
}

static void quantised_text(char text[OP_CALL_TEXT_BYTES], const struct quantised_gemm *g) {
    snprintf(text, OP_CALL_TEXT_BYTES, "gemm %zu x %zu x %zu %s x %s -> %s%s%s%s", g->a.rows,
             g->b.rows, g->a.columns, format_name(g->a.format), format_name(g->b.format),
             dtype_name(g->c.dtype), g->bias != NULL ? ", bias" : "", g->fast ? ", fast" : "",
             g->accumulate ? ", adds" : "");
}

const char *op_call_text(char text[OP_CALL_TEXT_BYTES], const struct op_call *call) {
    const struct gemm *g = &call->args.gemm;
    if (call->kind == OP_QUANTISED_GEMM) {
        quantised_text(text, &call->args.quantised_gemm);
        return text;
    }
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

/* FLOP counting from the tensor table; conventions in train/flops.h. */
#include "train/flops.h"

#include <stdbool.h>
#include <stdio.h>

#include "base/text.h"

/* *sum += a * b; false if it does not fit. */
static bool add_product(uint64_t *sum, uint64_t a, uint64_t b) {
    uint64_t product = 0;
    return !__builtin_mul_overflow(a, b, &product) && !__builtin_add_overflow(*sum, product, sum);
}

static bool count_parameters(const struct param_table *params, struct flops *flops) {
    for (size_t i = 0; i < params->length; i++) {
        const struct param *param = &params->params[i];
        if (param->role == ROLE_LINEAR) {
            if (!add_product(&flops->linear_parameters, param->rows, param->columns)) return false;
        } else if (param->role == ROLE_EMBEDDING) {
            if (!add_product(&flops->head_parameters, param->rows, param->columns)) return false;
        }
    }
    flops->matmul_parameters = flops->linear_parameters;
    return add_product(&flops->matmul_parameters, flops->head_parameters, 1);
}

static bool count_operations(struct flops *flops, size_t layers, size_t width,
                             size_t sequence_length) {
    uint64_t lc = 0, lct = 0;
    flops->linear = flops->head = flops->attention = flops->attention_palm = 0;
    bool fits = add_product(&flops->linear, flops->linear_parameters, 6) &&
                add_product(&flops->head, flops->head_parameters, 6) &&
                add_product(&lc, layers, width) && add_product(&lct, lc, sequence_length) &&
                add_product(&flops->attention, lct, 6) &&
                add_product(&flops->attention_palm, lct, 12);
    flops->total = flops->total_palm = 0;
    fits = fits && add_product(&flops->total, flops->linear, 1) &&
           add_product(&flops->total, flops->head, 1) &&
           add_product(&flops->total_palm, flops->total, 1) &&
           add_product(&flops->total, flops->attention, 1) &&
           add_product(&flops->total_palm, flops->attention_palm, 1);
    flops->forward = flops->total / 3;
    return fits;
}

enum status flops_count(const struct param_table *params, size_t layers, size_t width,
                        size_t sequence_length, struct flops *flops) {
    *flops = (struct flops){0};
    if (!count_parameters(params, flops) ||
        !count_operations(flops, layers, width, sequence_length)) {
        return status_set(STATUS_CONFIG,
                          "the operations of a token do not fit in 64 bits: expected a model that "
                          "can be run, found %zu layers, width %zu, sequence length %zu",
                          layers, width, sequence_length);
    }
    return STATUS_OK;
}

double flops_tera_per_second(uint64_t flops_per_token, double tokens, double seconds) {
    return (double)flops_per_token * tokens / seconds * 1e-12;
}

const char *flops_text(char text[FLOPS_TEXT_BYTES], const struct flops *flops) {
    char parameters[TEXT_BYTES];
    snprintf(text, FLOPS_TEXT_BYTES,
             "%.4g GFLOP a token: linear %.4g + head %.4g + causal attention %.4g "
             "(6 N + 6 L C T, N = %s); %.4g by PaLM's 6 N + 12 L C T",
             (double)flops->total * 1e-9, (double)flops->linear * 1e-9,
             (double)flops->head * 1e-9, (double)flops->attention * 1e-9,
             text_count(parameters, flops->matmul_parameters), (double)flops->total_palm * 1e-9);
    return text;
}

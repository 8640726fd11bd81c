/*
 * Floating point operations of a token, counted from the tensor table so that they cannot drift
 * away from the model. A multiply and an add are two operations.
 *
 * A matrix parameter costs 2 in the forward pass and 4 in the backward pass, for every token: 6 N,
 * where N holds the linear weights and the head once (a tied head is the token embedding's rows
 * without padding); lookups, norms, biases and vocabulary padding are not counted. Causal attention
 * costs 6 L C T (a token looks at T / 2 others on average; two products of C each, times three for
 * forward and backward). The convention of PaLM (Chowdhery et al., 2022, appendix B) counts the
 * whole square: 12 L C T.
 *
 * Called by train, plan and bench.
 */
#ifndef DEEPWELL_TRAIN_FLOPS_H_
#define DEEPWELL_TRAIN_FLOPS_H_

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/param_table.h"

struct flops {
    /* parameters that take part in a matrix product */
    uint64_t linear_parameters;
    uint64_t head_parameters;
    uint64_t matmul_parameters; /* both: N */
    /* operations a token, forward and backward */
    uint64_t linear, head;      /* 6 of each parameter */
    uint64_t attention;         /* 6 L C T */
    uint64_t total;             /* what TFLOPS and MFU are computed from */
    uint64_t attention_palm;    /* 12 L C T */
    uint64_t total_palm;
    uint64_t forward;           /* total / 3: evaluation and sampling without a cache */
};

/* STATUS_CONFIG if a product does not fit in 64 bits. */
enum status flops_count(const struct param_table *params, size_t layers, size_t width,
                        size_t sequence_length, struct flops *flops);

/* TFLOPS of `tokens` done in `seconds` at `flops_per_token`. */
double flops_tera_per_second(uint64_t flops_per_token, double tokens, double seconds);

/* One line with the total and its parts, both conventions. Writes into `text` and returns it. */
enum { FLOPS_TEXT_BYTES = 256 };
const char *flops_text(char text[FLOPS_TEXT_BYTES], const struct flops *flops);

#endif

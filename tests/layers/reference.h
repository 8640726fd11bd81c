/*
 * GPT-2's layers and forward pass in FP64, in plain loops straight from the formulas: the oracle of
 * the tests in this folder. Shares no code with layers/ or kernels/ but the tensor table, by whose
 * names it finds the parameters. Gradients are central differences of it.
 */
#ifndef DEEPWELL_TESTS_LAYERS_REFERENCE_H_
#define DEEPWELL_TESTS_LAYERS_REFERENCE_H_

#include <stddef.h>
#include <stdint.h>

#include "layers/gpt.h"

/* out (N, out) = in (N, in) weight^T + bias; weight (out, in); bias (out) or NULL. */
void reference_linear(double *out, const double *in, const double *weight, const double *bias,
                      size_t tokens, size_t in_width, size_t out_width);

/* Layer norm of every row of x (N, C), eps 1e-5. */
void reference_norm(double *out, const double *x, const double *weight, const double *bias,
                    size_t tokens, size_t width);

/* Causal attention: out (B * T, C) from packed rows qkv (B * T, 3 C). */
void reference_attention(double *out, const double *qkv, size_t batch, size_t length, size_t heads,
                         size_t width);

/* x = gelu(x), tanh form, in place. */
void reference_gelu(double *x, size_t count);

/* x[i] += y[i]. */
void reference_add(double *x, const double *y, size_t count);

/* x (N, C) = token_weight[tokens] + position_weight[n % length]. */
void reference_embedding(double *x, const double *token_weight, const double *position_weight,
                         const int32_t *tokens, size_t count, size_t length, size_t width);

/* losses[n] of logits (N, V); 0 where the target is -1. */
void reference_cross_entropy(double *losses, const double *logits, const int32_t *targets,
                             size_t tokens, size_t vocabulary);

struct reference_batch {
    size_t batch, length;
    const int32_t *inputs, *targets; /* (batch * length) */
};

/* Losses (N) and logits (N, V, without padding) from the flat parameters, laid out by
 * gpt->table. */
void reference_gpt(const struct gpt *gpt, const double *flat, const struct reference_batch *batch,
                   double *losses, double *logits);

/* d f / d *x by central differences. The step is cbrt(2^-52) of a number of order 1, where the
 * error of the formula, h^2 f''' / 6 = 6e-12 f''', and that of rounding, some 2^-52 f / h =
 * 4e-11 f, are alike. */
double reference_slope(double *x, double (*f)(const void *), const void *context);

/* What such a slope may be off by, for f of size `value` and third derivatives up to 100 times
 * that: ten times rounding for the few hundred sums behind f, and the formula's part. */
double reference_slope_error(double value);

#endif

/* Plain loops behind reference.h. */
#include "tests/layers/reference.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

void reference_linear(double *out, const double *in, const double *weight, const double *bias,
                      size_t tokens, size_t in_width, size_t out_width) {
    for (size_t n = 0; n < tokens; n++) {
        for (size_t o = 0; o < out_width; o++) {
            double sum = bias == NULL ? 0.0 : bias[o];
            for (size_t i = 0; i < in_width; i++) {
                sum += in[n * in_width + i] * weight[o * in_width + i];
            }
            out[n * out_width + o] = sum;
        }
    }
}

void reference_norm(double *out, const double *x, const double *weight, const double *bias,
                    size_t tokens, size_t width) {
    for (size_t n = 0; n < tokens; n++, x += width, out += width) {
        double mean = 0.0, variance = 0.0;
        for (size_t i = 0; i < width; i++) mean += x[i] / (double)width;
        for (size_t i = 0; i < width; i++) {
            variance += (x[i] - mean) * (x[i] - mean) / (double)width;
        }
        const double rstd = 1.0 / sqrt(variance + 1e-5);
        for (size_t i = 0; i < width; i++) out[i] = (x[i] - mean) * rstd * weight[i] + bias[i];
    }
}

/* One query of one head against the keys 0 to `query`; q, k and v point at the head's first
 * column. */
static void attend(double *out, const double *q, const double *k, const double *v, size_t query,
                   size_t stride, size_t head_width) {
    double total = 0.0;
    for (size_t i = 0; i < head_width; i++) out[i] = 0.0;
    for (size_t key = 0; key <= query; key++) {
        double score = 0.0;
        for (size_t i = 0; i < head_width; i++) {
            score += q[query * stride + i] * k[key * stride + i];
        }
        const double weight = exp(score / sqrt((double)head_width));
        for (size_t i = 0; i < head_width; i++) out[i] += weight * v[key * stride + i];
        total += weight;
    }
    for (size_t i = 0; i < head_width; i++) out[i] /= total;
}

void reference_attention(double *out, const double *qkv, size_t batch, size_t length, size_t heads,
                         size_t width) {
    const size_t head_width = width / heads, stride = 3 * width;
    for (size_t b = 0; b < batch; b++) {
        for (size_t h = 0; h < heads; h++) {
            const double *q = qkv + b * length * stride + h * head_width;
            for (size_t t = 0; t < length; t++) {
                attend(out + (b * length + t) * width + h * head_width, q, q + width, q + 2 * width,
                       t, stride, head_width);
            }
        }
    }
}

void reference_gelu(double *x, size_t count) {
    const double root_2_over_pi = 0.79788456080286535588;
    for (size_t i = 0; i < count; i++) {
        const double u = x[i];
        x[i] = 0.5 * u * (1.0 + tanh(root_2_over_pi * (u + 0.044715 * u * u * u)));
    }
}

void reference_add(double *x, const double *y, size_t count) {
    for (size_t i = 0; i < count; i++) x[i] += y[i];
}

void reference_embedding(double *x, const double *token_weight, const double *position_weight,
                         const int32_t *tokens, size_t count, size_t length, size_t width) {
    for (size_t n = 0; n < count; n++) {
        for (size_t i = 0; i < width; i++) {
            x[n * width + i] = token_weight[(size_t)tokens[n] * width + i] +
                               position_weight[n % length * width + i];
        }
    }
}

void reference_cross_entropy(double *losses, const double *logits, const int32_t *targets,
                             size_t tokens, size_t vocabulary) {
    for (size_t n = 0; n < tokens; n++, logits += vocabulary) {
        double sum = 0.0;
        for (size_t v = 0; v < vocabulary; v++) sum += exp(logits[v]);
        losses[n] = targets[n] < 0 ? 0.0 : log(sum) - logits[targets[n]];
    }
}

/* The parameter of this name in a block, or outside of them (SIZE_MAX). */
static const double *find(const struct gpt *gpt, const double *flat, const char *name,
                          size_t layer) {
    char full[PARAM_NAME_BYTES];
    if (layer == SIZE_MAX) snprintf(full, sizeof full, "%s", name);
    else snprintf(full, sizeof full, "block.%zu.%s", layer, name);
    const struct param *param = param_table_find(&gpt->table, full);
    if (param == NULL) {
        fprintf(stderr, "no parameter is called %s\n", full);
        abort();
    }
    return flat + param->offset;
}

/* x (N, C) through one block, in place. `work` has room for 10 N C numbers. */
static void block(const struct gpt *gpt, const double *flat, size_t layer,
                  const struct reference_batch *batch, double *x, double *work) {
    const size_t width = gpt->config.width, tokens = batch->batch * batch->length;
    double *normed = work, *branch = normed + tokens * width, *wide = branch + tokens * width;
#define FIND(name) find(gpt, flat, name, layer)
    reference_norm(normed, x, FIND("norm1.weight"), FIND("norm1.bias"), tokens, width);
    reference_linear(wide, normed, FIND("attention.qkv.weight"), FIND("attention.qkv.bias"), tokens,
                     width, 3 * width);
    reference_attention(normed, wide, batch->batch, batch->length, gpt->config.heads, width);
    reference_linear(branch, normed, FIND("attention.projection.weight"),
                     FIND("attention.projection.bias"), tokens, width, width);
    reference_add(x, branch, tokens * width);
    reference_norm(normed, x, FIND("norm2.weight"), FIND("norm2.bias"), tokens, width);
    reference_linear(wide, normed, FIND("mlp.fc.weight"), FIND("mlp.fc.bias"), tokens, width,
                     4 * width);
    reference_gelu(wide, tokens * 4 * width);
    reference_linear(branch, wide, FIND("mlp.projection.weight"), FIND("mlp.projection.bias"),
                     tokens, 4 * width, width);
    reference_add(x, branch, tokens * width);
#undef FIND
}

void reference_gpt(const struct gpt *gpt, const double *flat, const struct reference_batch *batch,
                   double *losses, double *logits) {
    const struct gpt_config *config = &gpt->config;
    const size_t width = config->width, tokens = batch->batch * batch->length;
    const double *head = find(gpt, flat, "token_embedding", SIZE_MAX);
    double *x = malloc(11 * tokens * width * sizeof *x);
    if (x == NULL) abort();
    double *work = x + tokens * width;
    reference_embedding(x, head, find(gpt, flat, "position_embedding", SIZE_MAX), batch->inputs,
                        tokens, batch->length, width);
    for (size_t layer = 0; layer < config->layers; layer++) block(gpt, flat, layer, batch, x, work);
    reference_norm(work, x, find(gpt, flat, "final_norm.weight", SIZE_MAX),
                   find(gpt, flat, "final_norm.bias", SIZE_MAX), tokens, width);
    reference_linear(logits, work, head, NULL, tokens, width, config->vocabulary);
    reference_cross_entropy(losses, logits, batch->targets, tokens, config->vocabulary);
    free(x);
}

static const double slope_step = 6.0554544523933429e-6; /* cbrt(2^-52) */

double reference_slope(double *x, double (*f)(const void *), const void *context) {
    const double kept = *x;
    *x = kept + slope_step;
    const double above = f(context);
    *x = kept - slope_step;
    const double below = f(context);
    *x = kept;
    return (above - below) / (2.0 * slope_step);
}

double reference_slope_error(double value) {
    return (10.0 * 0x1p-52 / slope_step + 100.0 / 6.0 * slope_step * slope_step) * fabs(value);
}

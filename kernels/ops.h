/*
 * The table of operations: all that a device can do. kernels/cpu implements it as the reference
 * (plain C, FP32 or double accumulators, no fast-math, OpenMP); layers call nothing else.
 *
 * Common rules
 * - Shapes: N tokens (rows of activations), C width, T tokens a sequence, B sequences, H heads, V
 *   vocabulary.
 * - Activations and weights may be FP32, BF16 or FP16 (tensor.dtype); numbers are widened to FP32,
 *   computed, and rounded to nearest even when stored. Statistics, losses and gradients of
 *   parameters are FP32.
 * - `accumulate`: add to what the output holds; otherwise overwrite, and the old content is not
 *   read.
 * - Deterministic: on one type of machine the result depends on the arguments alone, and for a CPU
 *   on its number of threads.
 * - Arguments are checked once by the layers that build them; a shape that an operation cannot do
 *   is STATUS_INTERNAL with the shape, never a wrong answer.
 * - <op>_bytes() in kernels/traffic.h says how many bytes each must move.
 */
#ifndef DEEPWELL_KERNELS_OPS_H_
#define DEEPWELL_KERNELS_OPS_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/device.h"
#include "kernels/quantised.h"
#include "kernels/step_control.h"
#include "kernels/tensor.h"

/* c (M, N) = op(a) op(b) [+ c if accumulate] [+ bias (N) on every row]; op(x) = x or its transpose.
 * c is (M, N); op(a) is (M, K), op(b) is (K, N). Accumulation in FP32. */
struct gemm {
    struct tensor c, a, b;
    bool transpose_a, transpose_b;
    bool accumulate;
    const struct tensor *bias; /* NULL: none; any dtype */
};

/* c (M, N) = a b^T [+ c if accumulate] [+ bias (N) on every row] on quantised operands, both
 * contiguous along K; c is BF16 or FP32, accumulation in FP32. a is (M, K), b is (N, K).
 *   pairs          E4M3 with E4M3, E4M3 with E5M2 either way round; never E5M2 with E5M2
 *   scales         both TENSOR; 1X128 with 1X128 or 128X128 either way round; both MX; both NV
 *   fast           the tensor core's own narrower accumulator (Hopper: some 14 bits); a hint
 *                  without meaning on the CPU and in emulation
 * Anything else is STATUS_INTERNAL naming formats and modes: recipes are checked when configured.
 *
 * Exactness where it is emulated. The product of two codes is exact in FP32 in every pair. MX: E4M3
 * times UE8M0 is exactly a BF16 (UE8M0_LEAST), so a BF16 GEMM on dequantised operands multiplies
 * the very same numbers. NV: E2M1 times E4M3 has 6 significant bits, exact in BF16; the product of
 * the two FP32 tensor scales multiplies the sum (alpha). TENSOR: likewise, codes are exact in
 * BF16. The 128 modes: the scale is FP32, so a dequantised operand is rounded to FP32 (2^-24
 * relative), never to BF16. What remains different from native hardware is the order and width of
 * the sum. */
struct quantised_gemm {
    struct tensor c;
    struct operand a, b;
    bool accumulate;
    bool fast;
    const struct tensor *bias; /* NULL: none; any dtype */
};

/* How the scale of a SCALE_TENSOR copy is found. The other modes take theirs from the numbers of
 * the block (NV: and of the tensor) in either. */
enum scaling {
    SCALING_DELAYED, /* state->scale as it stands, from the amaxes of earlier steps; clips */
    SCALING_CURRENT, /* from the amax of this very tensor; of a head's chunks, of those so far */
};

/* Makes the copies of `in` (R, C) that `out` wants. Numbers are widened to FP32, multiplied by the
 * scale and encoded (kernels/formats.h has every formula; `scale` is always a factor, never a
 * divisor, but for nvfp4_scaled).
 *   TENSOR    delayed: state->scale as it stands; state->amax_bits is raised to this tensor's amax.
 *             current: scale_state_current() once amax_bits is complete; unless amax_known, this
 *             operation raises it itself first.
 *   1X128     factor = scale_from_amax(amax of the 128 numbers, 448); stored: 1 / factor
 *   128X128   the same of the 128 x 128 numbers
 *   MX        code = ue8m0_from_amax(amax of the 32); numbers times ue8m0_factor(code)
 *   NV        amax of the whole copy (after the transform) into its state, then
 *             scale_state_current, whatever `scaling`; block scale = nvfp4_block_scale(amax of
 *             the 16 [of the 16 x 16 if `square`], state->scale); numbers by nvfp4_scaled()
 * Copies are independent of one another but for TENSOR's common state; the same `in` always gives
 * the same bytes. bias_gradient (+)= column sums of `in` in FP32, for the linear whose out_gradient
 * `in` is. */
struct quantise {
    struct quantised out;
    struct tensor in;        /* (R, C); BF16, FP16 or FP32 */
    enum scaling scaling;
    bool amax_known;         /* current TENSOR: the producer of `in` raised state->amax_bits */
    bool square;             /* NV: one block scale for 16 x 16: both copies round alike */
    bool hadamard;           /* NV: the transposed copy of blocks of 16 rows of `in` transformed */
    bool stochastic;         /* NV: rounding of the codes; scales are rounded to nearest */
    uint64_t seed;           /* stochastic: with `tensor` and state->draws, kernels/quantised.h */
    uint32_t tensor;
    float *bias_gradient;    /* (C) FP32 or NULL */
    bool accumulate;         /* of bias_gradient */
};

/* out[n] = token_weight[tokens[n]] + position_weight[first_position + n % sequence_length]. */
struct embedding_forward {
    struct tensor out;             /* (N, C) */
    const int32_t *tokens;         /* (N), each in [0, V) */
    struct tensor token_weight;    /* (V, C) */
    struct tensor position_weight; /* (T max, C) */
    size_t sequence_length;        /* T; N is a multiple of it */
    size_t first_position;
};

/* token_gradient[tokens[n]] += out_gradient[n]; position_gradient[t] (+)= sum over sequences.
 * Both FP32. The token gradient always accumulates (with a tied head the head wrote it first);
 * equal tokens are added in the order of n, so the cost does not depend on how often a token
 * repeats. */
struct embedding_backward {
    struct tensor token_gradient;    /* (V, C) FP32 */
    struct tensor position_gradient; /* (T max, C) FP32; rows beyond T: 0 unless accumulating */
    struct tensor out_gradient;      /* (N, C) */
    const int32_t *tokens;
    size_t sequence_length;
    bool accumulate;                 /* of position_gradient */
};

/* What an operation that makes a matrix does for its quantised copies while the numbers are in its
 * hands; all zero: nothing. At most one of the two is set.
 *   copies  SCALE_TENSOR with the scale known (delayed): the row copy always, the transposed one
 *           if it has codes, from state->scale, and state->amax_bits is raised. The numbers are
 *           encoded in FP32, before they are rounded to the dtype that the operation stores.
 *   amax    current scaling: amax_bits is raised to the largest |number as stored|; `quantise` with
 *           amax_known follows.
 * Every other mode is left to `quantise`. */
struct quantise_output {
    const struct quantised *copies; /* NULL: none */
    struct scale_state *amax;       /* device memory, or NULL */
};

/* Fused residual addition and layer norm (Ba et al., 2016), eps 1e-5:
 *   residual = residual_in [+ delta [+ delta_bias]]   (stored, then read back in its dtype)
 *   out = (residual - mean) * rstd * weight + bias
 * delta NULL: residual_in is normalised as it is and `residual` is not written. `residual` may be
 * residual_in. Statistics over a row in double on a CPU, in FP32 on a GPU. */
struct norm_forward {
    struct tensor out;           /* (N, C); data NULL: only `quantise` is wanted */
    struct tensor residual;      /* (N, C) out */
    struct tensor residual_in;   /* (N, C) */
    const struct tensor *delta;      /* (N, C) or NULL */
    const struct tensor *delta_bias; /* (C) or NULL */
    struct tensor weight, bias;  /* (C) */
    float *mean, *rstd;          /* (N) FP32, out */
    struct quantise_output quantise; /* of out */
};

/* residual_gradient += d loss / d residual through the norm; weight_gradient and bias_gradient (+)=
 * column sums; residual_gradient's column sums after the addition are delta_bias's gradient (NULL:
 * not wanted). overwrite_residual_gradient: nothing flowed past the norm (the last one), so write
 * instead of adding. */
struct norm_backward {
    struct tensor residual_gradient; /* (N, C) in and out */
    struct tensor out_gradient;      /* (N, C) */
    struct tensor residual;          /* (N, C) what forward stored */
    struct tensor weight;            /* (C) */
    const float *mean, *rstd;        /* (N) */
    float *weight_gradient, *bias_gradient; /* (C) FP32 */
    float *delta_bias_gradient;      /* (C) FP32 or NULL */
    bool overwrite_residual_gradient;
    bool accumulate;                 /* of the three parameter gradients */
    struct quantise_output quantise; /* of residual_gradient as it leaves: the out_gradient of the
                                      * linear whose branch this norm's forward added */
};

/* Causal self-attention over packed rows [q | k | v], softmax(q k^T / sqrt(C / H)) v, online
 * softmax (Milakov and Gimelshein, 2018; Dao et al., 2022): no T x T matrix is ever stored. Per
 * head and row the log-sum-exp of the scaled scores is kept for the backward pass. */
struct attention_forward {
    struct tensor out;  /* (B * T, C) */
    float *log_sum_exp; /* (B, H, T) FP32, out */
    struct tensor qkv;  /* (B * T, 3 C) */
    size_t batch, sequence_length, heads;
};

struct attention_backward {
    struct tensor qkv_gradient; /* (B * T, 3 C) out */
    struct tensor out_gradient; /* (B * T, C) */
    struct tensor qkv, out;
    const float *log_sum_exp;
    size_t batch, sequence_length, heads;
};

/* Attention while generating: the T new tokens of each sequence stand at positions [past, past +
 * T). Their keys and values are appended to the caches, and each attends to all up to itself. */
struct attention_cached {
    struct tensor out;         /* (B * T, C) */
    struct tensor qkv;         /* (B * T, 3 C) */
    struct tensor keys, values; /* (B * capacity, C) */
    size_t batch, sequence_length, heads;
    size_t past, capacity;     /* past + T <= capacity */
};

/* out = gelu(x + bias), tanh form (Hendrycks and Gimpel, 2016):
 *   0.5 u (1 + tanh(sqrt(2 / pi) (u + 0.044715 u^3))) */
struct gelu_forward {
    struct tensor out, x; /* (N, F); out.data NULL: only the copies are wanted */
    struct tensor bias;   /* (F) */
    struct quantise_output quantise; /* of out */
};

/* x_gradient = out_gradient * gelu'(x + bias); bias_gradient (+)= its column sums. x_gradient may
 * be out_gradient; x_gradient.data NULL: only the copies and the sums are wanted. */
struct gelu_backward {
    struct tensor x_gradient, out_gradient, x; /* (N, F) */
    struct tensor bias;                        /* (F) */
    float *bias_gradient;                      /* (F) FP32 */
    bool accumulate;
    struct quantise_output quantise;           /* of x_gradient */
};

/* bias_gradient (+)= column sums of out_gradient (N, F). */
struct bias_backward {
    float *bias_gradient; /* (F) FP32 */
    struct tensor out_gradient;
    bool accumulate;
};

/* Softmax and cross-entropy of each row over its first `vocabulary` columns, one pass where the
 * logits lie:
 *   losses[n] = log(sum_v exp(logits[n, v])) - logits[n, targets[n]]       (nats)
 *   logits[n, v] = (softmax - onehot) * gradient_scale * *loss_scale       if write_gradient
 * Padding columns get gradient 0. targets[n] = -1: loss 0, gradient 0. */
struct cross_entropy {
    struct tensor logits;    /* (N, padded V) in; gradient out */
    const int32_t *targets;  /* (N) */
    float *losses;           /* (N) FP32, out */
    size_t vocabulary;
    bool write_gradient;
    float gradient_scale;    /* 1 / tokens of the whole step */
    const float *loss_scale; /* device memory; read only with write_gradient */
    struct quantise_output quantise; /* of the gradient; with copies it is written there alone, and
                                      * what the logits then hold means nothing */
};

/* One AdamW step (Loshchilov and Hutter, 2019) over every parameter, t = state.updates:
 *   g = gradient * state.gradient_multiplier
 *   m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
 *   p = p - lr (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon) + weight_decay p)
 * Nothing is written if state.skip. `weights` receives p in its dtype where it is not the master
 * buffer. */
struct adamw_range { /* consecutive rows of the tensor table with the same decay */
    size_t offset, count;
    float weight_decay;
};
struct adamw {
    float *masters, *moments1, *moments2; /* flat, FP32 */
    const float *gradients;               /* flat, FP32 */
    struct tensor weights;                /* flat (1, elements); data NULL: masters are weights */
    const struct adamw_range *ranges;     /* host memory */
    size_t range_count;
    float beta1, beta2, epsilon;
    const struct step_state *state;       /* device memory */
};

/* Moves bytes and does nothing else, in units of 16: what measures how fast memory can be, and
 * stands for a memory-bound operation of which only the bytes matter (train/floor.h).
 *   x[i] = xor of in[j] over j = i, i + n, ... < read_units             for i < n
 *   out[j] = x[j mod n] for j < write_units;   *checksum ^= xor of the 32-bit words of all x
 * n = stream_threads(): where neither count is below an eighth of the other, a thread holds one
 * unit of each of several arrays, as operations with several operands do; else the longer one
 * is walked once. Equal counts make a copy. in and out lie apart; both begin at multiples of 16
 * bytes. */
struct stream {
    void *out;
    const void *in;
    size_t read_units, write_units;
    uint32_t *checksum; /* device memory: no read can be left out */
};
enum { STREAM_UNIT_BYTES = 16 };
static inline size_t stream_threads(const struct stream *op) {
    const size_t less = op->read_units < op->write_units ? op->read_units : op->write_units;
    const size_t more = op->read_units < op->write_units ? op->write_units : op->read_units;
    return less >= more / 8 && less > 0 ? less : more;
}

/* The largest shapes that a model will ask for; decides the scratch memory. */
struct op_limits {
    size_t tokens;          /* N */
    size_t width;           /* largest row but the logits' */
    size_t model_width;     /* of rows of norms and embeddings */
    size_t sequence_length; /* longest, caches counted */
    size_t heads, head_width; /* no heads: no attention */
    enum dtype dtype;       /* of activations */
    unsigned scale_modes;   /* of quantised products: bits 1u << mode; 0: there are none */
    size_t quantised_a, quantised_b; /* numbers of their largest operands */
};

enum { SUMSQ_BLOCK = 1024 };

/* How a device multiplies operands of one scale mode. Emulated: the same quantised numbers, by
 * other hardware, slower than BF16; said wherever a rate is printed. */
enum support { SUPPORT_NONE, SUPPORT_EMULATED, SUPPORT_NATIVE };

struct ops {
    /* STATUS_DEVICE, naming the shape and what to change, if these limits hold one that the device
     * cannot do, or only on a slow path. `backward`: backward passes will be asked for too. */
    enum status (*check)(const struct device *device, const struct op_limits *limits,
                         bool backward);

    enum support (*scale_support)(const struct device *device, enum scale_mode mode);

    /* Bytes of device.scratch that these limits need; without heads, those of all operations but
     * attention. */
    size_t (*scratch_bytes)(const struct device *device, const struct op_limits *limits);

    enum status (*gemm)(struct device *, const struct gemm *);
    enum status (*quantised_gemm)(struct device *, const struct quantised_gemm *);

    /* `count` of them, independent of one another (different states too), so that one launch may do
     * all: the weights of a model, once a step behind AdamW. Usually 1. Host memory, read before
     * the call returns. */
    enum status (*quantise)(struct device *, const struct quantise *ops, size_t count);
    enum status (*embedding_forward)(struct device *, const struct embedding_forward *);
    enum status (*embedding_backward)(struct device *, const struct embedding_backward *);
    enum status (*norm_forward)(struct device *, const struct norm_forward *);
    enum status (*norm_backward)(struct device *, const struct norm_backward *);
    enum status (*attention_forward)(struct device *, const struct attention_forward *);
    enum status (*attention_backward)(struct device *, const struct attention_backward *);
    enum status (*attention_cached)(struct device *, const struct attention_cached *);
    enum status (*gelu_forward)(struct device *, const struct gelu_forward *);
    enum status (*gelu_backward)(struct device *, const struct gelu_backward *);
    enum status (*bias_backward)(struct device *, const struct bias_backward *);
    enum status (*cross_entropy)(struct device *, const struct cross_entropy *);

    /* out = in, rounded to out's dtype; same element counts. */
    enum status (*convert)(struct device *, struct tensor out, struct tensor in);

    /* state->loss_sum += sum of losses[0..count), in double, fixed order. */
    enum status (*loss_sum)(struct device *, struct step_state *state, const float *losses,
                            size_t count);

    /* state->gradient_sumsq = sum of squares in double, fixed order; NaN and infinity carry
     * through. */
    enum status (*gradient_sumsq)(struct device *, struct step_state *state, const float *gradients,
                                  size_t count);

    /* out[i] = [out[i] +] parts[0][i] + parts[1][i] + ..., in FP32, added one after the other in
     * this order; parts (P, N) FP32 or BF16. What ranks have of one gradient, in the order of
     * ranks. */
    enum status (*sum_parts)(struct device *, float *out, struct tensor parts, bool accumulate);

    /* out[b] = sum of squares of x[b SUMSQ_BLOCK ... + SUMSQ_BLOCK), in double and fixed order;
     * `count` is a multiple of SUMSQ_BLOCK. Then state->gradient_sumsq = sum of `count` such sums,
     * added one after the other: the same whichever rank made which, and whatever zeros stand
     * between them. */
    enum status (*block_sumsq)(struct device *, double *out, const float *x, size_t count);
    enum status (*total_sumsq)(struct device *, struct step_state *state, const double *sums,
                               size_t count);

    /* state->policy = *policy (host memory), and the sums of the step are zero. */
    enum status (*step_begin)(struct device *, struct step_state *state,
                              const struct step_policy *policy);

    /* Start of a micro-batch: scale_state_begin() for each of `count` states. */
    enum status (*scales_begin)(struct device *, struct scale_state *states, size_t count,
                                bool clear_amax);

    /* Once a step, between gradient_sumsq and step_decide. If the sums of `state` or one amax is
     * not finite, or state->halted: scale_state_drop() for each, and state->gradient_sumsq becomes
     * NaN, so that step_decide skips: a clipped infinity never passes for a number. Otherwise
     * scale_state_end() for each. */
    enum status (*scales_update)(struct device *, struct step_state *state,
                                 struct scale_state *states, size_t count, bool enter);

    /* step_control_decide() where the state lies. */
    enum status (*step_decide)(struct device *, struct step_state *state);

    enum status (*adamw)(struct device *, const struct adamw *);
    enum status (*stream)(struct device *, const struct stream *);

    /* *index = the first element of in that is NaN or infinite, or SIZE_MAX. Host result; for
     * diagnosis. */
    enum status (*find_nonfinite)(struct device *, struct tensor in, size_t *index);
};

#endif

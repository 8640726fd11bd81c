/*
 * Precision recipes: which number format, scale and rounding each operand of a linear layer's three
 * products takes. One table (recipe.c); CPU emulation, CUDA quantisers and GEMMs follow from it.
 *
 *             input, weight   out_gradient   blocks                    accumulation, else
 *   fp32      FP32            FP32
 *   bf16      BF16            BF16
 *   fp16      FP16            FP16                                     dynamic loss scaling
 *   fp8       E4M3            E5M2 or E4M3   one scale a tensor        fast in fprop only
 *   fp8_block E4M3            E4M3           1x128, weights 128x128
 *   mxfp8     E4M3            E4M3           1x32
 *   nvfp4     E2M1            E2M1           1x16, weights 16x16       Hadamard in wgrad,
 *                                                                      gradients rounded at random
 *
 * In the four narrow recipes everything but the linears computes in BF16, and so do the linears
 * that an override takes out. Master weights, optimizer, statistics, softmax, loss and gradients of
 * parameters are FP32 in all. Validation quantises as training does, but always with current
 * scaling; sampling multiplies the BF16 weights.
 *
 * Sources: Micikevicius et al., "FP8 formats for deep learning" (2022): E4M3 forward, E5M2
 * backward; DeepSeek-V3 (arXiv 2412.19437): fp8_block; arXiv 2506.08027: mxfp8; arXiv 2509.25149:
 * nvfp4.
 */
#ifndef DEEPWELL_LAYERS_RECIPE_H_
#define DEEPWELL_LAYERS_RECIPE_H_

#include "kernels/ops.h"

enum recipe_kind {
    RECIPE_FP32, RECIPE_BF16, RECIPE_FP16, RECIPE_FP8, RECIPE_FP8_BLOCK, RECIPE_MXFP8, RECIPE_NVFP4,
    RECIPE_COUNT,
};

/* What one tensor becomes. */
struct recipe_form {
    enum number_format format;
    enum scale_mode mode;
    bool square, hadamard, stochastic; /* struct quantise, kernels/ops.h */
};

struct recipe {
    const char *name;      /* as precision.recipe has it */
    enum dtype dtype;      /* of activations, and of the weights beside their quantised copies */
    bool narrow;           /* the linears multiply quantised operands; the rest holds only then */
    struct recipe_form input, weight, out_gradient;
    bool fast_fprop;       /* dgrad and wgrad: never fast */
    size_t multiple;       /* widths, and the tokens of a micro-batch, must be a multiple of it */
};

/* What a model is trained in. */
struct precision {
    enum recipe_kind recipe;
    enum recipe_kind lm_head;    /* of the head; not narrow: as the activations */
    size_t first_layers, last_layers;
    enum recipe_kind end_layers; /* of those blocks; not narrow: as the activations */
    enum scaling scaling;        /* fp8 */
    enum number_format gradient_format; /* fp8: E5M2 or E4M3 */
    uint64_t seed;               /* of stochastic rounding */
};

const struct recipe *recipe_row(enum recipe_kind kind);

/* The recipe of a block's linears, and of the head, in this precision: gradient_format applied,
 * overrides taken. Not narrow: the linear multiplies activations as they are. */
struct recipe precision_of_layer(const struct precision *precision, size_t layer, size_t layers);
struct recipe precision_of_head(const struct precision *precision);

/* How this device runs a recipe: the least of what its scale modes get. */
enum support recipe_support(const struct device *device, enum recipe_kind kind);
const char *support_name(enum support support); /* "native", "emulated", "refused" */

/* Some linear multiplies quantised operands. */
bool precision_narrow(const struct precision *precision);

/* The scale modes of the operands that linears multiply, as bits 1u << mode. With SCALE_TENSOR
 * norms quantise, or take the amax of, what they make. */
unsigned precision_scale_modes(const struct precision *precision);

/* Refuses, STATUS_CONFIG naming the recipe and the number: a width or a micro-batch of `tokens`
 * that is no multiple of what a recipe in use needs; a narrow override of fp32 or fp16. */
enum status precision_check(const struct precision *precision, size_t width, size_t tokens);

#endif

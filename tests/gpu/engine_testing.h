/*
 * A small model on the engine, on either device: trained for some steps, from the seed or from a
 * saved state, and looked at. Called by engine_test.c and recipes_test.c.
 */
#ifndef DEEPWELL_TESTS_GPU_ENGINE_TESTING_H_
#define DEEPWELL_TESTS_GPU_ENGINE_TESTING_H_

#include "tests/kernels/testing.h"
#include "train/step.h"

enum { VOCABULARY = 256, LENGTH = 64, ROWS = 8, STEPS = 20 };

/* What a run is configured as; what is zero is the first of its kind. */
struct variant {
    const char *name;
    enum config_device device;
    enum config_recipe recipe, lm_head; /* fp32, not narrow, is like bf16 there */
    enum config_fp8_scaling scaling;
    int64_t layers; /* 0: four */
    enum config_recompute recompute;
    bool eager;
    enum config_attention attention;
    double loss_scale; /* 0: the default */
    bool exchanged;    /* with comm.order = fixed, of one rank, and this: */
    int zero;          /* train.zero */
};

/* How the GPU runs the recipe; where it does not, says so. */
enum support variant_support(const struct variant *v);

void variant_config(struct config *config, const struct variant *v);

/* Asks for a step, both its micro-batches, without the update. */
void variant_gradients(struct engine *engine, const struct config *config, int64_t step);

/* All that a run leaves and another may go on from. Release with saved_free. */
struct saved {
    float *masters, *moments1, *moments2;
    struct scale_state *scales; /* NULL: no narrow recipe */
    struct step_state state;
    size_t elements, scale_count;
};
void saved_free(struct saved *s);

/* Runs [from, to) of the steps, from a saved state or from the seed (NULL); losses (NULL: not
 * wanted) at the steps' places. */
struct saved variant_train(const struct variant *v, int64_t from, int64_t to,
                           const struct saved *start, double *losses);

/* The gradients of a step from a saved state, one micro-batch behind the other, flat, and the scale
 * states behind them. The state may be another recipe's: its scales are left where this one has
 * none. Release with gradients_free. */
struct gradients {
    float *numbers;
    struct scale_state *scales; /* NULL: no narrow recipe */
    size_t count, scale_count;
};
struct gradients variant_gradients_from(const struct variant *v, int64_t step,
                                        const struct saved *start);
void gradients_free(struct gradients *g);

/* Weights, moments, sum of the losses and scale states, bit by bit. */
void expect_bits(const char *recipe, const char *what, const struct saved *a,
                 const struct saved *b);

#endif

/*
 * Where a number that is not finite came from. Called by trainer.c when a step is not finite: the
 * step is a pure function of weights and data, so it is run again with every tensor looked at.
 */
#ifndef DEEPWELL_TRAIN_NONFINITE_H_
#define DEEPWELL_TRAIN_NONFINITE_H_

#include <stdint.h>

#include "data/dataset.h"
#include "data/loader.h"
#include "train/engine.h"

struct nonfinite_request {
    const struct dataset *dataset;
    const struct loader_shape *shape;
    uint64_t step;        /* whose batch to run again */
    float gradient_scale; /* as in the step */
};

enum { NONFINITE_TEXT_BYTES = 256 };

struct nonfinite {
    /* What was found first, in the order weights, activations, loss, gradients: "MLP fc output of
     * block 3 (micro-batch 0, token 17, column 5)". */
    char text[NONFINITE_TEXT_BYTES];
    bool weights; /* it is a weight: the model itself is lost, and not worth saving */
};

/* Overwrites activations and gradients, not weights. */
enum status nonfinite_find(struct engine *engine, const struct nonfinite_request *request,
                           struct nonfinite *result);

#endif

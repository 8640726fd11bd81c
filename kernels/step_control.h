/*
 * What decides about one optimizer step, next to the numbers it decides from. `struct step_state`
 * lives in device memory so that the host need not wait: kernels read learning rate, gradient
 * multiplier and skip from it, and what it carries from step to step is saved in checkpoints.
 * step_control_decide() is plain C that the CPU and a one-thread CUDA kernel both compile.
 *
 * The host asks for the next step before it has seen this one's outcome. A step after which it must
 * not go on by itself (not finite, and no loss scale or train.nonfinite = skip to mend it)
 * therefore halts where it is decided: the steps behind it change nothing, and the host finds the
 * weights as they were.
 *
 * Loss scaling: on overflow the step is skipped, the scale halves; after `interval` good steps it
 * doubles (Micikevicius et al., "Mixed precision training", ICLR 2018, section 3.2). Outliers: a
 * step whose loss or gradient norm lies more than z standard deviations above the mean of the last
 * OUTLIER_WINDOW steps is skipped; the value still enters the window, so a lasting change is
 * accepted in time.
 */
#ifndef DEEPWELL_KERNELS_STEP_CONTROL_H_
#define DEEPWELL_KERNELS_STEP_CONTROL_H_

#include <math.h>
#include <stdint.h>

#include "kernels/host_device.h"

enum { OUTLIER_WINDOW = 128 };

enum step_skip {
    SKIP_NONE = 0,
    SKIP_NONFINITE = 1,    /* a gradient or the loss is not finite */
    SKIP_LOSS_OUTLIER = 2,
    SKIP_NORM_OUTLIER = 3,
    SKIP_HALTED = 4,       /* an earlier step asks for the host's attention: nothing was done */
};

struct outlier_window {
    double values[OUTLIER_WINDOW];
    int64_t seen; /* values ever entered; the newest is at (seen - 1) % OUTLIER_WINDOW */
};

/* Chosen by the configuration; constant over a run but for learning_rate. */
struct step_policy {
    float learning_rate;
    float clip_norm;      /* 0: no clipping */
    int dynamic_scaling;  /* 0: loss_scale stays what it is */
    float growth, backoff, scale_min, scale_max;
    int64_t growth_interval;
    float loss_z_max, norm_z_max; /* 0: off */
    int halt_nonfinite;   /* a step that is not finite halts, unless a smaller scale may mend it */
    int64_t nonfinite_max; /* so many in a row halt in any case; 0: never */
    int leave;            /* a signal asked this rank to leave after this step */
    int64_t tokens;       /* of this step, all micro-batches: loss_sum / tokens is the mean loss */
};

struct step_state {
    struct step_policy policy; /* of this step; written by step_begin */
    /* gathered by this step's kernels, zeroed by step_begin */
    double loss_sum;      /* over the tokens of the step, nats, not scaled */
    double gradient_sumsq; /* of the gradients as stored, that is times loss_scale */
    double leaving;       /* ranks whose policy says leave */
    /* decided */
    float learning_rate;
    float gradient_multiplier; /* clip / loss_scale: what AdamW multiplies every gradient by */
    float loss;           /* mean, nats a token */
    float gradient_norm;  /* true norm, before clipping */
    float loss_z, norm_z; /* 0 until the window is full */
    int32_t halted;       /* not 0: this and all later steps are skipped until the host clears it */
    int32_t skip;         /* enum step_skip */
    /* carried from step to step, saved in checkpoints */
    float loss_scale;
    int64_t good_steps;   /* since the scale last changed */
    int64_t updates;      /* applied: the t of AdamW's bias correction */
    int64_t skipped_nonfinite, skipped_outlier;
    int64_t nonfinite_in_a_row;
    struct outlier_window losses, norms;
};

/* z-score of `value` against the window, 0 while it is not full; then enters it. */
DEEPWELL_HOST_DEVICE static inline double outlier_window_enter(struct outlier_window *window,
                                                              double value) {
    double z = 0.0;
    if (window->seen >= OUTLIER_WINDOW) {
        double mean = 0.0, variance = 0.0;
        for (int i = 0; i < OUTLIER_WINDOW; i++) mean += window->values[i] / OUTLIER_WINDOW;
        for (int i = 0; i < OUTLIER_WINDOW; i++) {
            const double d = window->values[i] - mean;
            variance += d * d / OUTLIER_WINDOW;
        }
        z = variance > 0.0 ? (value - mean) / sqrt(variance) : 0.0;
    }
    window->values[window->seen % OUTLIER_WINDOW] = value;
    window->seen++;
    return z;
}

DEEPWELL_HOST_DEVICE static inline void step_control_scale(struct step_state *s,
                                                          const struct step_policy *p) {
    if (!p->dynamic_scaling) return;
    if (s->skip == SKIP_NONFINITE) {
        s->loss_scale *= p->backoff;
        if (s->loss_scale < p->scale_min) s->loss_scale = p->scale_min;
        s->good_steps = 0;
    } else if (++s->good_steps >= p->growth_interval) {
        s->loss_scale *= p->growth;
        if (s->loss_scale > p->scale_max) s->loss_scale = p->scale_max;
        s->good_steps = 0;
    }
}

/* A step that is not finite: counted, and whether it halts. Overflowing gradients are the scaler's
 * business while the scale can still fall; no scale mends a loss that is not finite. */
DEEPWELL_HOST_DEVICE static inline void step_control_nonfinite(struct step_state *s, double loss) {
    const struct step_policy *p = &s->policy;
    const int mendable = p->dynamic_scaling && s->loss_scale > p->scale_min && isfinite(loss);
    s->skip = SKIP_NONFINITE;
    s->skipped_nonfinite++;
    s->nonfinite_in_a_row++;
    const int too_many = p->nonfinite_max > 0 && s->nonfinite_in_a_row >= p->nonfinite_max;
    s->halted = too_many || (p->halt_nonfinite && !mendable);
}

/* From loss_sum and gradient_sumsq to everything that the update needs. */
DEEPWELL_HOST_DEVICE static inline void step_control_decide(struct step_state *s) {
    const struct step_policy *p = &s->policy;
    if (s->halted) {
        s->skip = SKIP_HALTED;
        return;
    }
    const double norm = sqrt(s->gradient_sumsq) / (double)s->loss_scale;
    const double loss = s->loss_sum / (double)p->tokens;
    s->learning_rate = p->learning_rate;
    s->loss = (float)loss;
    s->gradient_norm = (float)norm;
    s->loss_z = s->norm_z = 0.0f;
    s->skip = SKIP_NONE;
    const double clip = p->clip_norm > 0.0f && norm > (double)p->clip_norm
                            ? (double)p->clip_norm / norm : 1.0;
    s->gradient_multiplier = (float)(clip / (double)s->loss_scale);
    if (!isfinite(norm) || !isfinite(loss)) {
        step_control_nonfinite(s, loss);
    } else {
        s->nonfinite_in_a_row = 0;
        s->loss_z = (float)outlier_window_enter(&s->losses, loss);
        s->norm_z = (float)outlier_window_enter(&s->norms, norm);
        if (p->loss_z_max > 0.0f && s->loss_z > p->loss_z_max) s->skip = SKIP_LOSS_OUTLIER;
        else if (p->norm_z_max > 0.0f && s->norm_z > p->norm_z_max) s->skip = SKIP_NORM_OUTLIER;
        if (s->skip != SKIP_NONE) s->skipped_outlier++;
    }
    step_control_scale(s, p);
    if (s->skip == SKIP_NONE) s->updates++;
}

#endif

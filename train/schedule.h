/*
 * Learning rate as a pure function of the step: nothing to save, nothing to advance.
 * Called by the trainer before each step, and by tests and plots.
 *
 * With peak p, final f = p * final_fraction, S steps, W warm-up steps and step s counted from 0:
 *   s < W     p (s + 1) / W: the first step has p / W, step W - 1 has p
 *   constant  p
 *   linear    p + (f - p) x              x = (s - W) / (S - W)
 *   cosine    f + (p - f) (1 + cos(pi x)) / 2
 *   wsd       p until s = S - D, then p + (f - p) (s - S + D) / D, with D = decay_steps
 *             (warm-up, stable, decay: Hu et al., "MiniCPM", 2024, section 4)
 *   s >= S    f; p for constant
 * So step W has p again, step S would have exactly f, and the last step, S - 1, lies one increment
 * before it: no step is spent on a learning rate of 0. nanoGPT and llm.c count the same way.
 */
#ifndef DEEPWELL_TRAIN_SCHEDULE_H_
#define DEEPWELL_TRAIN_SCHEDULE_H_

#include <stdint.h>

enum schedule_kind { SCHEDULE_CONSTANT, SCHEDULE_LINEAR, SCHEDULE_COSINE, SCHEDULE_WSD };

struct schedule {
    enum schedule_kind kind;
    double peak;           /* learning rate */
    double final_fraction; /* final learning rate / peak */
    int64_t steps;         /* >= 1 */
    int64_t warmup_steps;  /* >= 0; beyond `steps` the peak is never reached */
    int64_t decay_steps;   /* wsd: in [0, steps - warmup_steps] */
};

/* `step` >= 0. */
double schedule_learning_rate(const struct schedule *schedule, int64_t step);

#endif

/* The closed forms of train/schedule.h. */
#include "train/schedule.h"

#include <math.h>

/* The part of the way from `start` to `end` that lies behind `step`, in [0, 1]. */
static double progress_between(int64_t step, int64_t start, int64_t end) {
    if (step <= start) return 0.0;
    if (step >= end) return 1.0;
    return (double)(step - start) / (double)(end - start);
}

double schedule_learning_rate(const struct schedule *schedule, int64_t step) {
    const double peak = schedule->peak, final = peak * schedule->final_fraction;
    if (step < schedule->warmup_steps) {
        return peak * (double)(step + 1) / (double)schedule->warmup_steps;
    }
    const double x = progress_between(step, schedule->warmup_steps, schedule->steps);
    switch (schedule->kind) {
    case SCHEDULE_CONSTANT:
        return peak;
    case SCHEDULE_LINEAR:
        return x < 1.0 ? peak + (final - peak) * x : final;
    case SCHEDULE_COSINE:
        return x < 1.0 ? final + (peak - final) * 0.5 * (1.0 + cos(acos(-1.0) * x)) : final;
    case SCHEDULE_WSD: {
        const int64_t start = schedule->steps - schedule->decay_steps;
        const double decayed = progress_between(step, start, schedule->steps);
        return decayed < 1.0 ? peak + (final - peak) * decayed : final;
    }
    }
    return NAN; /* no such kind: an optimizer step with it is refused as not finite */
}

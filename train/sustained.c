/* The repetition behind train/sustained.h. */
#include "train/sustained.h"

#include "base/clock.h"
#include "train/signals.h"

/* A batch of runs between two marks: long against the host's part in it, short enough for a few
 * looks at power a second. */
static const double batch_seconds = 0.1;
static const uint64_t batch_runs_max = 100000;

static enum status run_batch(struct device *device, enum status (*run)(struct device *, void *),
                             void *context, uint64_t runs) {
    if (signals_received() != NULL) {
        return status_set(STATUS_INTERRUPTED, "stopped by %s", signals_received());
    }
    for (uint64_t i = 0; i < runs; i++) TRY(run(device, context));
    return STATUS_OK;
}

/* Enqueues a batch, and only then waits for the one before it. */
static enum status run_batches(struct device *device, enum status (*run)(struct device *, void *),
                               void *context, double seconds, uint64_t batch,
                               struct gpu_power *power, struct sustained *out) {
    const double begun = clock_seconds();
    size_t mark = 0;
    *out = (struct sustained){0};
    TRY(device_mark(device, 0));
    do {
        double waited = 0.0;
        TRY(run_batch(device, run, context, batch));
        TRY(device_mark(device, ++mark));
        out->runs += batch;
        if (mark >= 2) TRY(device_seconds_between(device, mark - 2, mark - 1, &waited));
        if (power != NULL) gpu_power_look(power);
    } while (clock_seconds() - begun < seconds && mark + 1 < DEVICE_MARKS);
    TRY(device_seconds_between(device, 0, mark, &out->seconds));
    out->run_seconds = out->seconds / (double)out->runs;
    return STATUS_OK;
}

enum status sustained_run(struct device *device, enum status (*run)(struct device *, void *),
                          void *context, double seconds, struct gpu_power *power,
                          struct sustained *out) {
    double one = 0.0;
    TRY(run_batch(device, run, context, 1)); /* chooses algorithms where they are not yet */
    TRY(device_mark(device, 0));
    TRY(run_batch(device, run, context, 1));
    TRY(device_mark(device, 1));
    TRY(device_seconds_between(device, 0, 1, &one));
    const double wanted = (seconds < batch_seconds ? seconds : batch_seconds) / (one + 1e-7);
    const uint64_t batch = wanted < 1.0                      ? 1
                           : wanted > (double)batch_runs_max ? batch_runs_max : (uint64_t)wanted;
    if (power != NULL) gpu_power_start(power);
    const enum status status = run_batches(device, run, context, seconds, batch, power, out);
    if (power != NULL) gpu_power_stop(power);
    return status;
}

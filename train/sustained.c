/* The repetition behind train/sustained.h. */
#include "train/sustained.h"

#include <stdlib.h>

#include "base/clock.h"
#include "train/signals.h"

/* A batch of runs between two marks: long against the host's part in it, short enough for a few
 * looks at power a second. */
static const double batch_seconds = 0.1;
static const uint64_t batch_runs_max = 100000;

/* Marks go round: the ends of the batch that was enqueued, of the one before it, and the beginning
 * of that. */
enum { BATCH_MARKS = 3 };

static enum status run_batch(struct device *device, enum status (*run)(struct device *, void *),
                             void *context, uint64_t runs) {
    if (signals_received() != NULL) {
        return status_set(STATUS_INTERRUPTED, "stopped by %s", signals_received());
    }
    for (uint64_t i = 0; i < runs; i++) TRY(run(device, context));
    return STATUS_OK;
}

/* The times of one run in each batch, so far. */
struct batch_times {
    double *seconds;
    size_t count, room;
};

static enum status add_time(struct batch_times *times, double seconds) {
    if (times->count == times->room) {
        const size_t room = times->room == 0 ? 64 : 2 * times->room;
        double *more = realloc(times->seconds, room * sizeof *more);
        if (more == NULL) return status_set(STATUS_MEMORY, "out of memory for %zu times", room);
        times->seconds = more;
        times->room = room;
    }
    times->seconds[times->count++] = seconds;
    return STATUS_OK;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(struct batch_times *times) {
    qsort(times->seconds, times->count, sizeof *times->seconds, by_value);
    const size_t half = times->count / 2;
    return times->count % 2 == 1 ? times->seconds[half]
                                 : 0.5 * (times->seconds[half - 1] + times->seconds[half]);
}

/* Waits for the end of batch `number`, counted from 0, and takes its time. */
static enum status end_batch(struct device *device, size_t number, uint64_t batch,
                             struct batch_times *times, struct sustained *out) {
    double seconds = 0.0;
    TRY(device_seconds_between(device, number % BATCH_MARKS, (number + 1) % BATCH_MARKS, &seconds));
    out->runs += batch;
    out->seconds += seconds;
    return add_time(times, seconds / (double)batch);
}

/* Enqueues a batch, and only then waits for the one before it. */
static enum status run_batches(struct device *device, enum status (*run)(struct device *, void *),
                               void *context, double seconds, uint64_t batch,
                               struct gpu_power *power, struct batch_times *times,
                               struct sustained *out) {
    const double begun = clock_seconds();
    size_t enqueued = 0;
    TRY(device_mark(device, 0));
    do {
        TRY(run_batch(device, run, context, batch));
        TRY(device_mark(device, ++enqueued % BATCH_MARKS));
        if (enqueued >= 2) TRY(end_batch(device, enqueued - 2, batch, times, out));
        if (power != NULL) gpu_power_look(power);
    } while (clock_seconds() - begun < seconds);
    return end_batch(device, enqueued - 1, batch, times, out);
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
    struct batch_times times = {0};
    *out = (struct sustained){0};
    const enum status status = run_batches(device, run, context, seconds, batch, power, &times,
                                           out);
    if (power != NULL) gpu_power_stop(power);
    if (status == STATUS_OK) {
        out->run_seconds = out->seconds / (double)out->runs;
        out->median_seconds = median(&times);
    }
    free(times.seconds);
    return status;
}

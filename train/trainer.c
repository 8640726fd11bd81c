/* The training loop. Opening and closing: trainer_open.c. */
#include "train/trainer.h"

#include <math.h>
#include <stdio.h>

#include "base/clock.h"
#include "train/nonfinite.h"
#include "train/signals.h"
#include "train/step.h"
#include "train/trainer_parts.h"

static enum status next_micro_batch(struct trainer *t) {
    struct device *device = &t->engine.device;
    const struct gpt_training *training = &t->engine.training;
    const size_t tokens = training->shape.batch * training->shape.sequence_length;
    struct batch batch;
    TRY(loader_next(t->loader, &batch));
    TRY(device_upload(device, training->inputs, batch.inputs, tokens * sizeof(int32_t)));
    return device_upload(device, training->targets, batch.targets, tokens * sizeof(int32_t));
}

static enum status train_step(struct trainer *t) {
    struct engine *engine = &t->engine;
    const struct step_policy policy = step_policy(t->config, t->state.step);
    t->before = t->state;
    TRY(step_begin(engine));
    for (size_t micro = 0; micro < t->shape.micro_batches; micro++) {
        TRY(next_micro_batch(t));
        TRY(step_micro_batch(engine, &policy, micro == 0));
    }
    TRY(step_update(engine, t->config, &policy));
    TRY(device_download(&engine->device, &t->state.control, engine->state,
                        sizeof t->state.control));
    t->state.step++;
    return STATUS_OK;
}

static struct step_record step_record(const struct trainer *t, double seconds,
                                      double waited_seconds) {
    const struct step_state *state = &t->state.control;
    const int64_t tokens = step_tokens(t->config);
    const double tflops = flops_tera_per_second(t->flops.total, (double)tokens, seconds);
    struct mfu mfu = mfu_compute(tflops, t->peak_tflops, trainer_peak_type(t));
    mfu.emulated = engine_support(&t->engine) == SUPPORT_EMULATED;
    return (struct step_record){
        .step = t->state.step,
        .loss = (double)state->loss,
        .learning_rate = (double)state->learning_rate,
        .gradient_norm = (double)state->gradient_norm,
        .loss_scale = (double)state->loss_scale,
        .loss_z = (double)state->loss_z,
        .norm_z = (double)state->norm_z,
        .skip = (enum step_skip)state->skip,
        .tokens = tokens,
        .step_ms = seconds * 1e3,
        .data_wait_ms = waited_seconds * 1e3,
        .tokens_per_s = (double)tokens / seconds,
        .tflops = tflops,
        .mfu = mfu,
    };
}

/* The step was not finite and not applied: goes on or stops, as train.nonfinite says. With dynamic
 * loss scaling an overflow of gradients above the smallest scale is the scaler's business; no scale
 * mends a loss that is not finite. */
static enum status handle_nonfinite(struct trainer *t) {
    const struct step_state control = t->state.control;
    const struct config *c = t->config;
    struct nonfinite found;
    t->nonfinite_in_a_row++;
    const bool too_many = t->nonfinite_in_a_row >= c->train.nonfinite_max;
    const bool scalable = config_loss_scaling(c) &&
                          t->before.control.loss_scale > LOSS_SCALE_MIN;
    if (!too_many && scalable && isfinite(control.loss)) return STATUS_OK;
    if (!too_many && c->train.nonfinite == CONFIG_NONFINITE_SKIP) return STATUS_OK;

    const struct nonfinite_request request = {
        .dataset = &t->train_data,
        .shape = &t->shape,
        .step = (uint64_t)(t->state.step - 1),
        .gradient_scale = 1.0f / (float)step_tokens(c),
    };
    /* The same step again: with the loss scale that it had. */
    TRY(device_upload(&t->engine.device, t->engine.state, &t->before.control,
                      sizeof t->before.control));
    TRY(nonfinite_find(&t->engine, &request, &found));
    const int64_t step = t->state.step;
    t->state = t->before; /* the weights are those before the step: save them as that */
    if (!found.weights) TRY(trainer_save(t));
    char what[EVENT_BYTES];
    snprintf(what, sizeof what, "the step after this is not finite: found first in %s", found.text);
    TRY(trainer_event(t, what));
    return status_set(
        STATUS_NUMERICS,
        "step %lld on rank 0 is not finite (loss %g, gradient norm %g%s): "
        "found first in %s. %s Lower optimizer.learning_rate or optimizer.clip_norm, or set "
        "train.nonfinite = skip",
        (long long)step, (double)control.loss, (double)control.gradient_norm,
        too_many ? ", too many in a row (train.nonfinite_max)" : "", found.text,
        found.weights ? "The run can go on from its newest checkpoint only."
                      : "It was not applied, and the run is saved as it was before.");
}

/* Says and records that a step was not applied. */
static enum status report_skip(struct trainer *t, const struct step_record *record) {
    char what[EVENT_BYTES];
    if (record->skip == SKIP_NONFINITE) {
        snprintf(what, sizeof what, "step skipped: not finite (loss scale now %g)",
                 record->loss_scale);
    } else {
        const bool loss = record->skip == SKIP_LOSS_OUTLIER;
        snprintf(what, sizeof what,
                 "step skipped: its %s lies %.1f standard deviations above the last %d",
                 loss ? "loss" : "gradient norm", loss ? record->loss_z : record->norm_z,
                 OUTLIER_WINDOW);
    }
    return trainer_event(t, what);
}

static enum status log_step(struct trainer *t, double waited_before) {
    const double now = clock_seconds();
    const double seconds = now - t->finished_seconds;
    const struct step_record record =
        step_record(t, seconds, loader_waited_seconds(t->loader) - waited_before);
    t->finished_seconds = now;
    progress_step(&t->progress, &record);
    TRY(metrics_step(t->metrics, &record));
    if (record.skip != SKIP_NONFINITE) t->nonfinite_in_a_row = 0;
    return record.skip == SKIP_NONE ? STATUS_OK : report_skip(t, &record);
}

static bool due(int64_t step, int64_t every) { return every > 0 && step % every == 0; }

/* What belongs between two steps; not counted in the steps' time. */
static enum status after_step(struct trainer *t) {
    const struct config *c = t->config;
    const int64_t step = t->state.step;
    const bool last = step == c->train.steps;
    if (due(step, c->validation.every) || last) TRY(trainer_validate(t));
    if (due(step, c->sample.every)) TRY(trainer_sample(t));
    if (due(step, c->checkpoint.every) || last) TRY(trainer_save(t));
    t->finished_seconds = clock_seconds();
    return STATUS_OK;
}

static enum status save_and_leave(struct trainer *t) {
    char what[EVENT_BYTES];
    TRY(trainer_save(t));
    snprintf(what, sizeof what, "stopped by %s", signals_received());
    TRY(trainer_event(t, what));
    return status_set(STATUS_INTERRUPTED,
                      "stopped by %s after step %lld; saved in %s. With train.resume = auto, the "
                      "default, the same command continues from there",
                      signals_received(), (long long)t->state.step, t->config->train.out);
}

/* The steps; whatever ends them, the caller closes the progress line. */
static enum status run_steps(struct trainer *t) {
    t->finished_seconds = clock_seconds();
    if (t->state.step == 0 && t->config->validation.every > 0) TRY(trainer_validate(t));
    t->finished_seconds = clock_seconds();
    while (t->state.step < t->config->train.steps) {
        if (signals_received() != NULL) return save_and_leave(t);
        const double waited = loader_waited_seconds(t->loader);
        TRY(train_step(t));
        TRY(log_step(t, waited));
        if (t->state.control.skip == SKIP_NONFINITE) TRY(handle_nonfinite(t));
        TRY(after_step(t));
    }
    return STATUS_OK;
}

enum status trainer_run(struct trainer *t) {
    const enum status status = run_steps(t);
    progress_close(&t->progress);
    return status;
}

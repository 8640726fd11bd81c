/* The training loop. Opening and closing: trainer_open.c. */
#include "train/trainer.h"

#include <math.h>
#include <stdio.h>

#include "train/comm_watched.h"
#include "train/nonfinite.h"
#include "train/ranks_start.h"
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

static size_t slot_of(int64_t step) { return (size_t)(step % DEVICE_READS); }

/* The device's mark between step `step` and the one before it. Of the steps under way, and of the
 * newest seen one, the ends are kept. */
enum { STEP_MARKS = DEVICE_READS + 1 };
static size_t mark_before(int64_t step) { return (size_t)(step % STEP_MARKS); }
_Static_assert((int)STEP_MARKS <= (int)COMM_NOTES, "each mark has its note of waits");

static enum status mark_step(struct trainer *t, int64_t step) {
    TRY(comm_note_waits(&t->comm, mark_before(step)));
    return device_mark(&t->engine.device, mark_before(step));
}

/* Asks the device for the next step; waits for nothing but data. */
static enum status ask_step(struct trainer *t) {
    struct engine *engine = &t->engine;
    struct step_policy policy = step_policy(t->config, t->asked);
    struct trainer_pending *pending = &t->pending[slot_of(t->asked)];
    const double waited_before = loader_waited_seconds(t->loader);
    if (t->paused) TRY(mark_step(t, t->asked));
    t->paused = false;
    policy.leave = signals_received() != NULL;
    TRY(step_begin(engine, &policy));
    for (size_t micro = 0; micro < t->shape.micro_batches; micro++) {
        TRY(next_micro_batch(t));
        TRY(step_micro_batch(engine, &policy, micro == 0));
    }
    TRY(step_update(engine, t->config));
    TRY(mark_step(t, t->asked + 1));
    pending->waited_seconds = loader_waited_seconds(t->loader) - waited_before;
    TRY(device_read_begin(&engine->device, slot_of(t->asked), &pending->control, engine->state,
                          sizeof pending->control));
    t->asked++;
    return STATUS_OK;
}

static struct step_record step_record(const struct trainer *t, double seconds,
                                      double waited_seconds, double exposed_seconds) {
    const struct step_state *state = &t->state.control;
    const int64_t tokens = step_tokens(t->config);
    /* A rank's: what its device's peak is held against. */
    const double tflops = flops_tera_per_second(t->flops.total,
                                                (double)tokens / (double)t->ranks.world, seconds);
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
        .ranks = t->ranks.world,
        .comm_exposed_ms = exposed_seconds * 1e3,
        .tokens_per_s = (double)tokens / seconds,
        .tflops = tflops,
        .mfu = mfu_against(tflops, &t->speed_limit),
        .gpu_power_w = (double)t->gpu_watts,
        .gpu_clock_mhz = (double)t->gpu_mhz,
    };
}

/* The step was not finite, was not applied, and halted (step_control.h): neither it nor what was
 * asked for behind it changed anything. */
static enum status stop_nonfinite(struct trainer *t) {
    const struct step_state control = t->state.control;
    const struct config *c = t->config;
    const bool too_many = control.nonfinite_in_a_row >= c->train.nonfinite_max;
    struct nonfinite found;
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
    if (!found.weights) {
        TRY(trainer_save(t));
        TRY(trainer_save_finish(t));
    }
    char what[EVENT_BYTES];
    snprintf(what, sizeof what, "the step after this is not finite: found first in %s", found.text);
    TRY(trainer_event(t, what));
    return status_set(
        STATUS_NUMERICS,
        "step %lld%s is not finite (loss %g, gradient norm %g%s): "
        "found first in %s. %s Lower optimizer.learning_rate or optimizer.clip_norm, or set "
        "train.nonfinite = skip",
        (long long)step, t->ranks.world > 1 ? "" : " on rank 0", (double)control.loss,
        (double)control.gradient_norm,
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

/* Of the newest seen step. Its time is the device's, from mark to mark: the host may see two steps
 * at once. */
static enum status log_step(struct trainer *t, double waited_seconds) {
    const size_t before = mark_before(t->state.step - 1), behind = mark_before(t->state.step);
    double seconds = 0.0;
    TRY(device_seconds_between(&t->engine.device, before, behind, &seconds)); /* waits for it */
    const double exposed_seconds = comm_waited_seconds(&t->comm, before, behind);
    t->stepped_seconds += seconds;
    t->exposed_seconds += exposed_seconds;
    trainer_look_at_power(t);
    const struct step_record record = step_record(t, seconds, waited_seconds, exposed_seconds);
    progress_step(&t->progress, &record);
    TRY(metrics_step(t->metrics, &record));
    return record.skip == SKIP_NONE ? STATUS_OK : report_skip(t, &record);
}

/* Waits for the outcome of the oldest step that was not seen. */
static enum status see_step(struct trainer *t) {
    const struct trainer_pending *pending = &t->pending[slot_of(t->state.step)];
    TRY(device_read_end(&t->engine.device, slot_of(t->state.step)));
    TRY(comm_at_step(&t->comm, t->asked)); /* broken off, its numbers mean nothing */
    t->before = t->state;
    t->state.control = pending->control;
    t->state.step++;
    t->leaving = t->leaving || t->state.control.leaving > 0.0;
    TRY(log_step(t, pending->waited_seconds));
    return t->state.control.halted ? stop_nonfinite(t) : STATUS_OK;
}

/* Sees every step but the newest `unseen`, and those too where they are ready; not with several
 * ranks, which must all see a step at the same place, for what follows from it. */
static enum status see_steps(struct trainer *t, int64_t unseen) {
    while (t->state.step < t->asked - unseen ||
           (t->ranks.world == 1 && t->state.step < t->asked &&
            device_read_ready(&t->engine.device, slot_of(t->state.step)))) {
        TRY(see_step(t));
    }
    return STATUS_OK;
}

static bool due(int64_t step, int64_t every) { return every > 0 && step % every == 0; }

/* Whether something that needs the weights follows step `step`. */
static bool pause_after(const struct config *c, int64_t step) {
    return due(step, c->validation.every) || due(step, c->eval.every) ||
           due(step, c->sample.every) || due(step, c->checkpoint.every) || step == c->train.steps;
}

/* What belongs between two steps; not counted in the steps' time. Every step was seen. The save
 * comes first: nothing behind it changes the state, and what fails or is interrupted there costs no
 * step. */
static enum status after_step(struct trainer *t) {
    const struct config *c = t->config;
    const int64_t step = t->state.step;
    const bool last = step == c->train.steps;
    if (due(step, c->checkpoint.every) || last) TRY(trainer_save(t));
    if (due(step, c->validation.every) || last) TRY(trainer_validate(t));
    if (due(step, c->eval.every) || last) TRY(trainer_score_choices(t));
    if (due(step, c->sample.every)) TRY(trainer_sample(t));
    t->paused = true;
    return STATUS_OK;
}

static enum status save_and_leave(struct trainer *t) {
    char what[EVENT_BYTES];
    TRY(see_steps(t, 0));
    TRY(trainer_save(t));
    TRY(trainer_save_finish(t));
    const char *signal = signals_received() != NULL ? signals_received() : "a signal";
    snprintf(what, sizeof what, "stopped by %s", signal);
    TRY(trainer_event(t, what));
    return status_set(STATUS_INTERRUPTED,
                      "stopped by %s after step %lld; saved in %s. With train.resume = auto, the "
                      "default, the same command continues from there",
                      signal, (long long)t->state.step, t->config->train.out);
}

/* The steps; whatever ends them, the caller closes the progress line. */
static enum status run_steps(struct trainer *t) {
    t->paused = true;
    if (t->state.step == 0 && t->config->validation.every > 0) TRY(trainer_validate(t));
    while (t->state.step < t->config->train.steps) {
        if (t->ranks.world == 1 ? signals_received() != NULL : t->leaving) return save_and_leave(t);
        TRY(comm_at_step(&t->comm, t->asked));
        TRY(ask_step(t));
        const bool pause = pause_after(t->config, t->asked);
        TRY(see_steps(t, pause ? 0 : DEVICE_READS - 1));
        TRY(trainer_save_poll(t));
        if (pause) TRY(after_step(t));
    }
    return STATUS_OK;
}

enum status trainer_run(struct trainer *t) {
    t->powered_step = t->state.step;
    gpu_power_start(&t->power);
    enum status status = trainer_save_end(t, run_steps(t));
    progress_close(&t->progress);
    if (status != STATUS_OK && status != STATUS_INTERRUPTED) return status;
    ranks_print_exposed(&t->ranks, t->exposed_seconds, t->stepped_seconds,
                        t->state.step - t->powered_step);
    const enum status reported = trainer_report_energy(t);
    return status != STATUS_OK ? status : reported;
}

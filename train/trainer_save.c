/*
 * Checkpoints of a run: between two steps, or in the background from a copy (checkpoints/saver.h).
 *
 * In the background the loop stands still for the copy alone. A save that is due while the last one
 * is still being written waits for it: every checkpoint that was asked for is made, and a line says
 * how long the run stood still. A save that fails ends the run at the next step with its message;
 * what was saved before is untouched. Signals and the end of a run wait for the save under way.
 */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "kernels/host.h"
#include "train/comm_watched.h"
#include "train/scale_json.h"
#include "train/trainer_parts.h"

static const double long_wait_seconds = 1.0; /* for the last save: worth a line */

static bool fits(const struct trainer *t) {
    size_t wanted = 0;
    if (!saver_bytes(&t->engine.gpt.table, &wanted)) return false;
    if (t->engine.device.kind != DEVICE_CPU) return wanted <= host_memory_free_bytes();
    /* The arenas were counted against the same memory, and are not touched yet. */
    size_t taken = 0;
    for (size_t i = 0; i < ENGINE_ARENAS; i++) taken += t->engine.arenas[i].capacity_bytes;
    return taken <= t->engine.device.memory_bytes &&
           wanted <= t->engine.device.memory_bytes - taken;
}

/* Together, between two steps, and not in the background; one rank with an exchange does so too. */
static bool saves_with_others(const struct trainer *t) {
    return t->ranks.world > 1 || engine_shares_out(&t->engine);
}

enum status trainer_save_check(const struct trainer *t) {
    if (t->config->checkpoint.background != CONFIG_BACKGROUND_ON || !saves_with_others(t)) {
        return STATUS_OK;
    }
    return status_set(STATUS_CONFIG, "checkpoint.background = on: ranks write a checkpoint "
                      "together, between two steps; set it to auto");
}

enum status trainer_save_open(struct trainer *t) {
    const int background = t->config->checkpoint.background;
    if (saves_with_others(t)) return STATUS_OK;
    if (background == CONFIG_BACKGROUND_OFF) return STATUS_OK;
    if (background == CONFIG_BACKGROUND_AUTO && !fits(t)) {
        printf("checkpoints between steps: host memory has no room for a copy of the state\n");
        return STATUS_OK;
    }
    TRY(saver_open(&t->saver, t->config->train.out, &t->engine.gpt.table));
    size_t bytes = 0;
    char text[TEXT_BYTES];
    if (saver_bytes(&t->engine.gpt.table, &bytes)) {
        printf("checkpoints in the background, from a copy of %s in host memory\n",
               text_bytes(text, bytes));
    }
    return STATUS_OK;
}

static struct checkpoint_retention retention(const struct trainer *t) {
    return (struct checkpoint_retention){
        .keep = t->config->checkpoint.keep,
        .keep_every = t->config->checkpoint.keep_every,
    };
}

static struct checkpoint_content content(const struct trainer *t) {
    return (struct checkpoint_content){
        .step = t->state.step,
        .params = &t->engine.gpt.table,
        .model = engine_hf_config(t->config),
        .tokenizer = &t->tokenizer,
    };
}

/* state.json of the present step. */
static enum status make_state(struct trainer *t, cJSON **state) {
    t->state.sequences = (int64_t)(t->shape.shift +
                                   (uint64_t)t->state.step * (uint64_t)t->config->train.batch);
    *state = run_state_to_json(&t->state, t->config);
    if (*state == NULL) return status_set(STATUS_MEMORY, "out of memory for state.json");
    const enum status status = scales_to_json(&t->engine, *state);
    if (status == STATUS_OK) return STATUS_OK;
    cJSON_Delete(*state);
    *state = NULL;
    return status;
}

static enum status report(struct trainer *t, int64_t step, double seconds) {
    char path[PATH_BYTES], took[TEXT_BYTES], stalled[TEXT_BYTES];
    snprintf(path, sizeof path, "%s/step_%08lld", t->config->train.out, (long long)step);
    progress_message(&t->progress, "step %lld  saved %s (%s, training waited %s)", (long long)step,
                     path, text_duration(took, seconds),
                     text_duration(stalled, t->save_stall_seconds));
    return metrics_checkpoint(t->metrics, step, path, seconds * 1e3, t->save_stall_seconds * 1e3);
}

static enum status report_result(struct trainer *t, const struct saver_result *result) {
    if (result->status != STATUS_OK) return status_set(result->status, "%s", result->message);
    return report(t, result->step, result->seconds);
}

enum status trainer_save_poll(struct trainer *t) {
    struct saver_result result;
    if (t->saver == NULL || !saver_poll(t->saver, &result)) return STATUS_OK;
    return report_result(t, &result);
}

enum status trainer_save_finish(struct trainer *t) {
    struct saver_result result;
    if (t->saver == NULL || !saver_take(t->saver, &result)) return STATUS_OK;
    return report_result(t, &result);
}

enum status trainer_save_end(struct trainer *t, enum status status) {
    char first[SAVER_MESSAGE_BYTES];
    snprintf(first, sizeof first, "%s", status_message());
    const enum status saved = trainer_save_finish(t);
    if (status == STATUS_OK) return saved;
    if (saved == STATUS_OK) return status_set(status, "%s", first);
    return status_context(status, "%s; and the save under way failed", first);
}

static enum status save_in_background(struct trainer *t) {
    const size_t bytes = t->engine.gpt.table.elements * sizeof(float);
    const float *const from[SAVER_BUFFERS] = {t->engine.masters, t->engine.moments1,
                                              t->engine.moments2};
    const double begun = clock_seconds();
    cJSON *state = NULL;
    TRY(trainer_save_finish(t));
    const double waited = clock_seconds() - begun;
    if (waited > long_wait_seconds) {
        char text[TEXT_BYTES];
        progress_message(&t->progress,
                         "step %lld  waited %s for the save before this one: checkpoint.every is "
                         "short for this disk",
                         (long long)t->state.step, text_duration(text, waited));
    }
    float *const *buffers = saver_buffers(t->saver);
    for (size_t i = 0; i < SAVER_BUFFERS; i++) {
        TRY(device_download(&t->engine.device, buffers[i], from[i], bytes));
    }
    TRY(make_state(t, &state));
    const struct checkpoint_content saved = content(t);
    const struct checkpoint_retention kept = retention(t);
    saver_start(t->saver, &saved, state, &kept);
    t->save_stall_seconds = clock_seconds() - begun;
    return STATUS_OK;
}

static enum status save_mapped(struct trainer *t, float *const host[SAVER_BUFFERS]) {
    struct checkpoint_content saved = content(t);
    const struct checkpoint_retention kept = retention(t);
    cJSON *state = NULL;
    TRY(make_state(t, &state));
    saved.masters = host[0];
    saved.moments1 = host[1];
    saved.moments2 = host[2];
    saved.state = state;
    const enum status status = checkpoint_save(t->config->train.out, &saved, &kept);
    cJSON_Delete(state);
    return status;
}

static enum status save_between_steps(struct trainer *t) {
    struct engine *engine = &t->engine;
    const size_t bytes = engine->gpt.table.elements * sizeof(float);
    float *const buffers[SAVER_BUFFERS] = {engine->masters, engine->moments1, engine->moments2};
    float *host[SAVER_BUFFERS] = {NULL, NULL, NULL};
    const double begun = clock_seconds();
    enum status status = STATUS_OK;
    for (size_t i = 0; i < SAVER_BUFFERS && status == STATUS_OK; i++) {
        void *mapped = NULL;
        status = device_map(&engine->device, buffers[i], bytes, &mapped);
        host[i] = mapped;
    }
    if (status == STATUS_OK) status = save_mapped(t, host);
    for (size_t i = 0; i < SAVER_BUFFERS; i++) {
        if (host[i] == NULL) continue;
        const enum status unmapped = device_unmap(&engine->device, buffers[i], host[i], bytes,
                                                  false);
        if (status == STATUS_OK) status = unmapped;
    }
    TRY(status);
    t->save_stall_seconds = clock_seconds() - begun;
    return report(t, t->state.step, t->save_stall_seconds);
}

/* state.json is the first rank's. */
static enum status save_together(struct trainer *t) {
    struct checkpoint_content saved = content(t);
    const struct checkpoint_retention kept = retention(t);
    const double begun = clock_seconds();
    cJSON *state = NULL;
    enum status status = make_state(t, &state);
    saved.state = state;
    status = ranks_agree(&t->comm, status);
    if (status == STATUS_OK) status = trainer_save_shards(t, &saved, &kept);
    cJSON_Delete(state);
    TRY(status);
    t->save_stall_seconds = clock_seconds() - begun;
    return report(t, t->state.step, t->save_stall_seconds);
}

/* While the first rank writes, the others wait: longer than for anything else. */
static enum status save_with_others(struct trainer *t) {
    enum status status = STATUS_OK;
    comm_allow(&t->comm, (double)t->config->comm.save_timeout);
    if (engine_shares_out(&t->engine)) {
        status = save_together(t);
    } else {
        status = t->ranks.rank == 0 ? save_between_steps(t) : STATUS_OK;
        status = ranks_agree(&t->comm, status);
    }
    comm_allow(&t->comm, (double)t->config->comm.timeout);
    return status;
}

enum status trainer_save(struct trainer *t) {
    if (t->saved_step == t->state.step) return STATUS_OK;
    if (saves_with_others(t)) {
        TRY(save_with_others(t));
    } else {
        TRY(t->saver != NULL ? save_in_background(t) : save_between_steps(t));
    }
    t->saved_step = t->state.step;
    return STATUS_OK;
}

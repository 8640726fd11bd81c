/* Opening a training run: folder, data, engine, the checkpoint it continues from. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "checkpoints/model_source.h"
#include "train/choices_eval.h"
#include "train/comm_self_test.h"
#include "train/ranks_start.h"
#include "train/run_folder.h"
#include "train/scale_json.h"
#include "train/trainer_parts.h"

static void print_warning(const char *message) { printf("warning: %s\n", message); }

static enum status open_data(struct trainer *t) {
    const struct config *c = t->config;
    const size_t length = (size_t)config_sequence_length(c),
                 vocabulary = (size_t)c->model.vocabulary;
    if (c->data.train[0] == '\0') {
        return status_set(
            STATUS_CONFIG,
            "data.train is not set: expected token shards, for example "
            "--data.train 'data/train*.bin' (`deepwell data prepare` makes them from text)");
    }
    TRY(dataset_open(&t->train_data, c->data.train, length, vocabulary, ORDER_SHUFFLED,
                     (uint64_t)c->train.seed));
    if (c->data.tokenizer[0] != '\0') {
        TRY(tokenizer_files_require(&t->tokenizer, c->data.tokenizer));
    }
    if (c->eval.file[0] != '\0') {
        TRY(choices_open(&t->choices, c->eval.file, vocabulary));
    }
    if (c->data.validation[0] == '\0') return STATUS_OK;
    return dataset_open(&t->validation_data, c->data.validation, length, vocabulary,
                        ORDER_SEQUENTIAL, (uint64_t)c->train.seed);
}

/* The scale states of the one serve the other. */
static bool same_precision(const struct config *a, const struct config *b) {
    const struct config_precision *p = &a->precision, *q = &b->precision;
    return p->recipe == q->recipe && p->scaling == q->scaling && p->lm_head == q->lm_head &&
           p->gradient_format == q->gradient_format && p->first_layers == q->first_layers &&
           p->last_layers == q->last_layers && p->end_layers == q->end_layers;
}

/* The state and the weights of a checkpoint, after comparing its configuration with this run's. */
static enum status continue_from(struct trainer *t, const struct checkpoint *checkpoint) {
    struct config saved;
    char changes[RUN_CHANGES_BYTES];
    TRY(run_state_config(checkpoint->state, &saved));
    TRY(run_state_compare(&saved, t->config, changes));
    TRY(run_state_from_json(checkpoint->state, &t->state));
    if (strcmp(t->state.fingerprint, t->train_data.fingerprint) != 0) {
        return status_set(
            STATUS_CHECKPOINT,
            "data.train (%s) is not what the checkpoint was trained on: "
            "expected shards with fingerprint %s, found %s; give the same shards, or start "
            "a new run with another train.out",
            t->config->data.train, t->state.fingerprint, t->train_data.fingerprint);
    }
    TRY(engine_load(&t->engine, checkpoint));
    /* Wraps where the batch grew: the loader adds it modulo 2^64. */
    t->shape.shift = (uint64_t)t->state.sequences -
                     (uint64_t)t->state.step * (uint64_t)t->config->train.batch;
    if (same_precision(&saved, t->config)) TRY(scales_from_json(&t->engine, checkpoint->state));
    struct step_state control = t->state.control;
    /* The scaler goes on where it was, unless the recipe that it served changed. */
    const bool scaling = config_loss_scaling(t->config);
    if (!scaling) control.loss_scale = 1.0f;
    else if (!config_loss_scaling(&saved))
        control.loss_scale = (float)t->config->precision.loss_scale;
    t->state.control = control;
    TRY(device_upload(&t->engine.device, t->engine.state, &control, sizeof control));
    snprintf(t->continued, sizeof t->continued, "continuing %s%s%s", checkpoint->path,
             changes[0] != '\0' ? ", with changes: " : "", changes);
    return STATUS_OK;
}

static enum status resume_from(struct trainer *t, const char *path) {
    struct checkpoint checkpoint;
    TRY(checkpoint_open(&checkpoint, path));
    const enum status status = continue_from(t, &checkpoint);
    snprintf(t->begun_from, sizeof t->begun_from, "%s", path);
    checkpoint_close(&checkpoint);
    return status == STATUS_OK ? STATUS_OK : status_context(status, "%s", path);
}

/* A checkpoint given by name continues in train.out, which must hold nothing newer: its own
 * checkpoints would be mixed with those of another history. */
static enum status check_history(const struct trainer *t, const char *newest, bool found) {
    int64_t step = -1;
    const char *name = found ? strrchr(newest, '/') : NULL;
    if (name != NULL && sscanf(name, "/step_%ld", &step) == 1 && step > t->state.step) {
        return status_set(
            STATUS_CHECKPOINT,
            "train.resume is a checkpoint of step %lld, but %s is newer: "
            "continue that one with --train.resume auto, choose another train.out, or "
            "remove what is newer",
            (long long)t->state.step, newest);
    }
    return STATUS_OK;
}

/* True if the checkpoint lies, or would lie, in the run's own folder. */
static bool is_own(const char *checkpoint, const char *run_folder) {
    char parent[PATH_BYTES], real_parent[PATH_MAX], own[PATH_MAX];
    snprintf(parent, sizeof parent, "%s", checkpoint);
    size_t length = strlen(parent);
    while (length > 1 && parent[length - 1] == '/') parent[--length] = '\0';
    char *slash = strrchr(parent, '/');
    if (slash == NULL) snprintf(parent, sizeof parent, ".");
    else slash[slash == parent] = '\0';
    return realpath(parent, real_parent) != NULL && realpath(run_folder, own) != NULL &&
           strcmp(real_parent, own) == 0;
}

/* Random weights, or those of train.init. */
static enum status start_anew(struct trainer *t) {
    const struct config *c = t->config;
    snprintf(t->state.fingerprint, sizeof t->state.fingerprint, "%s", t->train_data.fingerprint);
    if (c->train.init[0] == '\0') {
        TRY(engine_initialise(&t->engine, c));
    } else {
        struct model_source source;
        enum status status = model_source_open(&source, c->train.init, print_warning);
        if (status == STATUS_OK) {
            status = engine_import(&t->engine, c, &source);
            snprintf(t->begun_from, sizeof t->begun_from, "%s", source.path);
            snprintf(t->continued, sizeof t->continued,
                     "weights from %s; optimizer, data and steps start anew", source.path);
            model_source_close(&source);
        }
        if (status != STATUS_OK) return status_context(status, "train.init");
    }
    return device_download(&t->engine.device, &t->state.control, t->engine.state,
                           sizeof t->state.control);
}

static enum status start_or_resume(struct trainer *t) {
    const struct config *c = t->config;
    char newest[PATH_BYTES] = "";
    bool found = false;
    TRY(checkpoint_newest(c->train.out, newest, &found, print_warning));
    if (strcmp(c->train.resume, "auto") == 0 && found) {
        TRY(resume_from(t, newest));
        t->saved_step = t->state.step;
        return STATUS_OK;
    }
    if (strcmp(c->train.resume, "never") == 0 && found) {
        return status_set(STATUS_CHECKPOINT,
                          "train.resume is never, but %s holds checkpoints (%s): choose "
                          "another train.out, or continue with --train.resume auto",
                          c->train.out, newest);
    }
    if (strcmp(c->train.resume, "auto") == 0 || strcmp(c->train.resume, "never") == 0) {
        return start_anew(t);
    }
    char named[PATH_BYTES] = "";
    const enum status located = run_folder_locate(c->train.resume, named);
    if (located != STATUS_OK) {
        return status_context(located, "train.resume (auto, never, or a checkpoint or run folder)");
    }
    if (found && !is_own(named, c->train.out)) {
        return status_set(STATUS_CHECKPOINT,
                          "train.resume is a checkpoint of another run, but %s holds checkpoints "
                          "of its own (%s): choose a new train.out, so that neither history is "
                          "lost",
                          c->train.out, newest);
    }
    TRY(resume_from(t, named));
    return check_history(t, newest, found);
}

static enum status open_metrics(struct trainer *t) {
    char path[PATH_BYTES];
    TRY(path_join(path, t->config->train.out, "metrics.jsonl"));
    return metrics_open(&t->metrics, path, t->state.step);
}

static enum status record_start(struct trainer *t) {
    TRY(checkpoint_check_space(t->config->train.out, &t->engine.gpt.table));
    return trainer_record_run(t);
}

/* The first rank made the folder: it must be there for the others too, which lay their part of each
 * checkpoint into it. */
static enum status check_shared(const char *folder) {
    if (path_is_folder(folder)) return STATUS_OK;
    return status_set(STATUS_IO, "train.out (%s) is not the folder that rank 0 made: it must lie "
                      "where all ranks see it", folder);
}

static enum status open_all(struct trainer *t) {
    const struct config *c = t->config;
    const bool first = t->ranks.rank == 0;
    struct comm *comm = &t->comm;
    const bool evaluates = c->data.validation[0] != '\0' || c->eval.file[0] != '\0';
    const unsigned validation = evaluates ? ENGINE_EVALUATE : 0;
    const unsigned generation = c->sample.every > 0 ? ENGINE_GENERATE : 0;
    TRY(ranks_agree(comm, open_data(t))); /* a rank without its data says that first */
    TRY(ranks_check_alike(comm, c));
    TRY(trainer_check_data(t));
    TRY(ranks_agree(comm, engine_open_rank(&t->engine, c, ENGINE_TRAIN | validation | generation,
                                           &t->ranks, comm)));
    TRY(ranks_agree(comm, choices_prepare(&t->choices, &t->engine.vocabulary)));
    if (t->ranks.world > 1) TRY(ranks_agree(comm, comm_self_test(comm)));
    TRY(trainer_save_check(t));
    /* Makes the folder: after what may refuse. */
    TRY(ranks_agree(comm, first ? run_lock_acquire(&t->lock, c->train.out) : STATUS_OK));
    TRY(ranks_agree(comm, check_shared(c->train.out)));
    TRY(flops_count(&t->engine.gpt.table, t->engine.gpt.config.layers, t->engine.gpt.config.width,
                    t->engine.training.shape.sequence_length, &t->flops));
    TRY(ranks_agree(comm, start_or_resume(t)));
    TRY(trainer_check_resumed(t));
    gpu_power_open(&t->power, t->engine.device.bus_id);
    t->speed_limit = engine_speed_limit(&t->engine, c, &t->flops);
    TRY(ranks_agree(comm, first ? open_metrics(t) : STATUS_OK));
    t->asked = t->state.step;
    trainer_print_header(t);
    if (t->state.step >= c->train.steps) return STATUS_OK; /* complete: nothing to record */
    TRY(ranks_agree(comm, first ? record_start(t) : STATUS_OK));
    TRY(trainer_save_open(t));
    t->progress = progress_open(stdout, c->train.steps, c->train.log_every, config_loss_scaling(c));
    /* mpirun and srun may give the first rank a terminal of their own, and relay it by lines */
    if (t->ranks.world > 1) t->progress.terminal = false;
    if (t->continued[0] != '\0') TRY(trainer_event(t, t->continued));
    return loader_open(&t->loader, &t->train_data, &t->shape, (uint64_t)t->state.step);
}

enum status trainer_open(struct trainer *t, const struct config *config) {
    *t = (struct trainer){
        .config = config,
        .lock = RUN_LOCK_NONE,
        .saved_step = -1,
        .validated_step = -1,
        .scored_step = -1,
    };
    TRY(ranks_start(&t->ranks, &t->comm, config));
    t->shape = (struct loader_shape){
        .rows = (size_t)config_micro_batch(config),
        .micro_batches = (size_t)config_micro_batches(config, t->ranks.world),
        .rank = (size_t)t->ranks.rank,
        .ranks = (size_t)t->ranks.world,
    };
    return open_all(t);
}

enum status trainer_close(struct trainer *t) {
    loader_close(t->loader);
    saver_close(t->saver); /* a save under way is completed, whatever ended the run */
    gpu_power_close(&t->power);
    const enum status status = metrics_close(t->metrics);
    engine_close(&t->engine);
    dataset_close(&t->validation_data);
    dataset_close(&t->train_data);
    choices_close(&t->choices);
    tokenizer_files_free(&t->tokenizer);
    run_lock_release(&t->lock);
    comm_close(&t->comm);
    *t = (struct trainer){.lock = RUN_LOCK_NONE};
    return status;
}

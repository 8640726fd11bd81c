/* The operations of an optimizer step, in order. */
#include "train/step.h"

#include "train/recording.h"
#include "train/schedule.h"

int64_t step_tokens(const struct config *config) {
    return config->train.batch * config_sequence_length(config);
}

struct step_policy step_policy(const struct config *config, int64_t step) {
    const struct schedule schedule = config_schedule(config);
    return (struct step_policy){
        .learning_rate = (float)schedule_learning_rate(&schedule, step),
        .clip_norm = (float)config->optimizer.clip_norm,
        .dynamic_scaling = config_loss_scaling(config),
        .growth = (float)config->precision.loss_scale_growth,
        .backoff = (float)config->precision.loss_scale_backoff,
        .scale_min = LOSS_SCALE_MIN,
        .scale_max = LOSS_SCALE_MAX,
        .growth_interval = config->precision.loss_scale_interval,
        .loss_z_max = (float)config->optimizer.loss_z_max,
        .norm_z_max = (float)config->optimizer.norm_z_max,
        .halt_nonfinite = config->train.nonfinite == CONFIG_NONFINITE_STOP,
        .nonfinite_max = config->train.nonfinite_max,
        .tokens = step_tokens(config),
    };
}

enum status step_begin(struct engine *engine, const struct step_policy *policy) {
    return engine->device.ops->step_begin(&engine->device, engine->state, policy);
}

/* What a recording is made of. */
struct recorded {
    struct engine *engine;
    enum status (*ask)(void *recorded);
    const struct config *config;      /* of an update */
    const struct step_policy *policy; /* of a micro-batch */
    bool first;
};

/* The first run chooses algorithms and so cannot be recorded; after it, nothing that a recording
 * holds changes but what lies in device memory. */
static enum status run_recorded(struct recorded *what, struct engine_recording *r) {
    struct device *device = &what->engine->device;
    const bool observed = what->engine->training.observer != NULL;
    if (!device_records(device) || what->engine->eager || observed || r->runs++ == 0) {
        return what->ask(what);
    }
    if (r->recording == NULL) TRY(recording_make(device, what->ask, what, &r->recording));
    return device_replay(device, r->recording);
}

static enum status ask_micro_batch(void *recorded) {
    const struct recorded *what = recorded;
    struct engine *engine = what->engine;
    struct gpt_training *training = &engine->training;
    struct exchange *exchange = &engine->exchange;
    const size_t tokens = training->shape.batch * training->shape.sequence_length;
    struct gpt_gradient_request request = {
        .gradient_scale = 1.0f / (float)what->policy->tokens,
        .loss_scale = &engine->state->loss_scale,
        .accumulate = !what->first,
    };
    if (exchange->active) exchange_begin(exchange, what->first, &request.accumulate);
    TRY(gpt_forward_backward(training, &request));
    if (exchange->active) return exchange_end(exchange, training->losses, tokens);
    return engine->device.ops->loss_sum(&engine->device, engine->state, training->losses, tokens);
}

enum status step_micro_batch(struct engine *engine, const struct step_policy *policy, bool first) {
    struct recorded what = {engine, .ask = ask_micro_batch, .policy = policy, .first = first};
    struct exchange *exchange = &engine->exchange;
    if (!exchange->active) return run_recorded(&what, &engine->micro_batches[first ? 0 : 1]);
    exchange_count(exchange, first);
    return run_recorded(&what, &engine->micro_batches[exchange_kind(exchange)]);
}

/* What the update reads and writes: everything, or what this rank owns. */
static struct adamw adamw_of(const struct engine *engine,
                             const struct config_optimizer *optimizer) {
    const struct exchange *exchange = &engine->exchange;
    const bool shares = engine_shares_out(engine);
    const struct tensor weights = shares ? exchange->source : engine->weights;
    return (struct adamw){
        .masters = engine->masters,
        .moments1 = engine->moments1,
        .moments2 = engine->moments2,
        .gradients = shares ? exchange->summed : engine->gradients,
        .weights = weights.data == engine->masters ? (struct tensor){0} : weights,
        .ranges = engine->ranges,
        .range_count = engine->range_count,
        .beta1 = (float)optimizer->beta1,
        .beta2 = (float)optimizer->beta2,
        .epsilon = (float)optimizer->epsilon,
        .state = engine->state,
    };
}

static enum status ask_update(void *recorded) {
    const struct recorded *what = recorded;
    struct engine *engine = what->engine;
    struct device *device = &engine->device;
    struct exchange *exchange = &engine->exchange;
    const struct adamw update = adamw_of(engine, &what->config->optimizer);
    if (exchange->active) {
        TRY(exchange_sums(exchange));
    } else {
        TRY(device->ops->gradient_sumsq(device, engine->state, engine->gradients,
                                        engine->gpt.table.elements));
    }
    if (engine->scales != NULL) {
        TRY(device->ops->scales_update(device, engine->state, engine->scales,
                                       gpt_scale_count(&engine->gpt),
                                       engine->gpt.precision.scaling == SCALING_DELAYED));
    }
    TRY(device->ops->step_decide(device, engine->state));
    if (exchange->active) TRY(exchange_gradients(exchange));
    TRY(device->ops->adamw(device, &update));
    if (exchange->active) TRY(exchange_update_weights(exchange));
    return engine_narrow_weights(engine);
}

enum status step_update(struct engine *engine, const struct config *config) {
    struct recorded what = {engine, .ask = ask_update, .config = config};
    TRY(run_recorded(&what, &engine->update));
    if (engine->exchange.active) exchange_updated(&engine->exchange);
    return STATUS_OK;
}

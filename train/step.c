/* The operations of an optimizer step, in order. */
#include "train/step.h"

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
        .tokens = step_tokens(config),
    };
}

enum status step_begin(struct engine *engine) {
    return engine->device.ops->step_begin(&engine->device, engine->state);
}

static enum status run_micro_batch(struct engine *engine, const struct step_policy *policy, bool first) {
    struct gpt_training *training = &engine->training;
    const struct gpt_gradient_request request = {
        .gradient_scale = 1.0f / (float)policy->tokens,
        .loss_scale = &engine->state->loss_scale,
        .accumulate = !first,
    };
    TRY(gpt_forward_backward(training, &request));
    return engine->device.ops->loss_sum(&engine->device, engine->state, training->losses,
                                        training->shape.batch * training->shape.sequence_length);
}

/* The first run chooses algorithms and so cannot be recorded; after it, nothing that a recording holds
 * changes but what lies in device memory. */
enum status step_micro_batch(struct engine *engine, const struct step_policy *policy, bool first) {
    struct engine_recording *r = &engine->micro_batches[first ? 0 : 1];
    struct device *device = &engine->device;
    const bool observed = engine->training.observer != NULL;
    if (!device_records(device) || engine->eager || observed || r->runs++ == 0) {
        return run_micro_batch(engine, policy, first);
    }
    if (r->recording == NULL) {
        TRY(device_record_begin(device));
        const enum status status = run_micro_batch(engine, policy, first);
        const enum status ended = device_record_end(device, &r->recording);
        TRY(status);
        TRY(ended);
    }
    return device_replay(device, r->recording);
}

enum status step_update(struct engine *engine, const struct config *config,
                        const struct step_policy *policy) {
    struct device *device = &engine->device;
    const struct adamw update = {
        .masters = engine->masters,
        .moments1 = engine->moments1,
        .moments2 = engine->moments2,
        .gradients = engine->gradients,
        .weights = engine->weights.data == engine->masters ? (struct tensor){0} : engine->weights,
        .ranges = engine->ranges,
        .range_count = engine->range_count,
        .beta1 = (float)config->optimizer.beta1,
        .beta2 = (float)config->optimizer.beta2,
        .epsilon = (float)config->optimizer.epsilon,
        .state = engine->state,
    };
    TRY(device->ops->gradient_sumsq(device, engine->state, engine->gradients,
                                    engine->gpt.table.elements));
    if (engine->scales != NULL) {
        TRY(device->ops->scales_update(device, engine->state, engine->scales,
                                       gpt_scale_count(&engine->gpt),
                                       engine->gpt.precision.scaling == SCALING_DELAYED));
    }
    TRY(device->ops->step_decide(device, engine->state, policy));
    TRY(device->ops->adamw(device, &update));
    return engine_narrow_weights(engine);
}

/* What no single key can tell, and the values that 0 stands for. See train/config.h. */
#include <inttypes.h>

#include "train/config.h"

int64_t config_sequence_length(const struct config *config) {
    return config->train.sequence_length > 0 ? config->train.sequence_length
                                             : config->model.context;
}

int64_t config_micro_batch(const struct config *config) {
    return config->train.micro_batch > 0 ? config->train.micro_batch : config->train.batch;
}

int64_t config_micro_batches(const struct config *config, int64_t ranks) {
    return config->train.batch / config_micro_batch(config) / ranks;
}

int64_t config_validation_micro_batch(const struct config *config) {
    return config->validation.micro_batch > 0 ? config->validation.micro_batch
                                              : config_micro_batch(config);
}

bool config_loss_scaling(const struct config *config) {
    if (config->precision.loss_scaling == CONFIG_SCALING_AUTO) {
        return config->precision.recipe == CONFIG_RECIPE_FP16;
    }
    return config->precision.loss_scaling == CONFIG_SCALING_ON;
}

struct schedule config_schedule(const struct config *config) {
    const int64_t steps = config->train.steps, warmup = config->optimizer.warmup_steps;
    int64_t decay = config->optimizer.decay_steps;
    if (decay == 0) { /* a fifth, at least one step, and never into the warm-up */
        decay = steps / 5 > 0 ? steps / 5 : 1;
        if (decay > steps - warmup) decay = steps > warmup ? steps - warmup : 1;
    }
    return (struct schedule){
        .kind = (enum schedule_kind)config->optimizer.schedule,
        .peak = config->optimizer.learning_rate,
        .final_fraction = config->optimizer.final_fraction,
        .steps = steps,
        .warmup_steps = warmup,
        .decay_steps = decay,
    };
}

static enum status check_model(const struct config *config) {
    const struct config_model *model = &config->model;
    if (model->width % model->heads != 0) {
        return status_set(STATUS_CONFIG,
                          "model.width = %" PRId64 " is no multiple of model.heads = %" PRId64
                          ": change one", model->width, model->heads);
    }
    if (config->train.sequence_length > model->context) {
        return status_set(STATUS_CONFIG, "train.sequence_length = %" PRId64 " is longer than "
                          "model.context = %" PRId64 ": shorten it or widen the context",
                          config->train.sequence_length, model->context);
    }
    return STATUS_OK;
}

static enum status check_batch(const struct config *config) {
    const int64_t batch = config->train.batch, micro_batch = config_micro_batch(config);
    if (batch % micro_batch != 0) {
        return status_set(STATUS_CONFIG, "train.batch = %" PRId64 " is no multiple of "
                          "train.micro_batch = %" PRId64 ": change one", batch, micro_batch);
    }
    return STATUS_OK;
}

static enum status check_schedule(const struct config *config) {
    const struct config_optimizer *optimizer = &config->optimizer;
    const int64_t steps = config->train.steps;
    if (optimizer->schedule != SCHEDULE_WSD && optimizer->decay_steps > 0) {
        return status_set(STATUS_CONFIG, "optimizer.decay_steps = %" PRId64 " belongs to "
                          "optimizer.schedule = wsd, found another schedule: set it to 0",
                          optimizer->decay_steps);
    }
    if (optimizer->decay_steps > 0 && optimizer->warmup_steps + optimizer->decay_steps > steps) {
        return status_set(STATUS_CONFIG,
                          "optimizer.warmup_steps = %" PRId64 " and optimizer.decay_steps = %"
                          PRId64 " together are more than train.steps = %" PRId64,
                          optimizer->warmup_steps, optimizer->decay_steps, steps);
    }
    return STATUS_OK;
}

/* The optimizer computes in FP32: what a bound promises must hold there too. */
static enum status check_narrowed(const struct config *config) {
    const struct config_optimizer *o = &config->optimizer;
    const struct {
        const char *key;
        double value;
        bool fits;
    } reals[] = {
        {"optimizer.beta1", o->beta1, (float)o->beta1 < 1.0f},
        {"optimizer.beta2", o->beta2, (float)o->beta2 < 1.0f},
        {"optimizer.epsilon", o->epsilon, (float)o->epsilon > 0.0f},
        {"optimizer.clip_norm", o->clip_norm, o->clip_norm == 0.0 || (float)o->clip_norm > 0.0f},
        {"optimizer.loss_z_max", o->loss_z_max,
         o->loss_z_max == 0.0 || (float)o->loss_z_max > 0.0f},
        {"optimizer.norm_z_max", o->norm_z_max,
         o->norm_z_max == 0.0 || (float)o->norm_z_max > 0.0f},
    };
    for (size_t i = 0; i < sizeof reals / sizeof reals[0]; i++) {
        if (!reals[i].fits) {
            return status_set(STATUS_CONFIG,
                              "%s = %.17g is no different from its bound in FP32, in "
                              "which the step computes: choose a number further from it",
                              reals[i].key, reals[i].value);
        }
    }
    return STATUS_OK;
}

static enum status check_texts(const struct config *config) {
    const struct { const char *key, *value; } needed[] = {
        {"train.out", config->train.out},
        {"train.resume", config->train.resume},
    };
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++) {
        if (needed[i].value[0] == '\0') {
            return status_set(STATUS_CONFIG, "%s is empty: expected a value", needed[i].key);
        }
    }
    return STATUS_OK;
}

enum status config_check_ranks(const struct config *config, int64_t ranks) {
    const int64_t batch = config->train.batch, micro = config_micro_batch(config);
    const int64_t share = batch / ranks;
    char or_micro[64] = "";
    if (batch % ranks == 0 && share % micro == 0) return STATUS_OK;
    if (batch % ranks == 0) {
        int64_t divisor = micro < share ? micro : share;
        while (share % divisor != 0) divisor--;
        snprintf(or_micro, sizeof or_micro, ", or set train.micro_batch = %" PRId64, divisor);
    }
    return status_set(STATUS_CONFIG,
                      "train.batch = %" PRId64 " cannot be shared out among %" PRId64
                      " ranks in micro-batches of %" PRId64 ": make it a multiple of %" PRId64 "%s",
                      batch, ranks, micro, ranks * micro, or_micro);
}

enum status config_check(const struct config *config) {
    TRY(check_model(config));
    TRY(check_batch(config));
    TRY(check_schedule(config));
    TRY(check_narrowed(config));
    return check_texts(config);
}

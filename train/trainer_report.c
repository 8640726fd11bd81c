/* What a run shows and leaves behind: header, validation, samples, checkpoints. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"
#include "train/choices_eval.h"
#include "train/ranks_start.h"
#include "train/sampler.h"
#include "train/token_text.h"
#include "train/trainer_parts.h"
#include "train/validation.h"
#include "train/version.h"

enum status trainer_event(struct trainer *t, const char *what) {
    progress_message(&t->progress, "step %lld  %s", (long long)t->state.step, what);
    return metrics_event(t->metrics, t->state.step, what);
}

enum status trainer_validate(struct trainer *t) {
    struct validation result;
    if (t->validation_data.shards == NULL || t->validated_step == t->state.step) return STATUS_OK;
    TRY(validation_run(&t->engine, &t->validation_data, (size_t)t->config->validation.sequences,
                       false, &result));
    t->validated_step = t->state.step;
    char bits[TEXT_BYTES] = "";
    if (isfinite(result.bits_per_byte)) {
        snprintf(bits, sizeof bits, ", %.4f bits a byte", result.bits_per_byte);
    }
    progress_message(&t->progress, "step %lld  validation loss %.4f nats%s",
                     (long long)t->state.step, result.loss, bits);
    return metrics_validation(t->metrics, t->state.step, result.loss, result.bits_per_byte,
                              (int64_t)result.tokens);
}

enum status trainer_score_choices(struct trainer *t) {
    struct choices_score score;
    char count[TEXT_BYTES];
    if (t->choices.count == 0 || t->scored_step == t->state.step) return STATUS_OK;
    TRY(choices_evaluate(&t->engine, &t->choices, (size_t)t->config->eval.examples, false, &score));
    t->scored_step = t->state.step;
    progress_message(&t->progress, "step %lld  choices: %.2f %% right, %.2f %% by mean loss, of %s",
                     (long long)t->state.step, 100.0 * score.accuracy, 100.0 * score.accuracy_norm,
                     text_count(count, score.examples));
    return metrics_choices(t->metrics, t->state.step, t->choices.path, (int64_t)score.examples,
                           score.accuracy, score.accuracy_norm);
}

/* A text that grows by tokens. */
struct sample_text {
    struct token_printer printer;
    FILE *out; /* into memory */
};

static bool append_token(void *context, int32_t token) {
    struct sample_text *sample = context;
    token_printer_add(&sample->printer, token, sample->out);
    return true;
}

enum status trainer_sample(struct trainer *t) {
    const struct config_sample *c = &t->config->sample;
    const struct vocabulary *vocabulary = &t->engine.vocabulary;
    char *text = NULL;
    size_t text_bytes = 0;
    struct sample_text sample = {.printer = {.vocabulary = vocabulary}};
    struct generation_request request = {
        .tokens = (size_t)c->tokens,
        .stop = vocabulary->end_of_text,
        .sampling = sampling_from_config(t->config),
        .emit = append_token,
        .context = &sample,
    };
    int32_t *prompt = NULL;
    TRY(exchange_refresh(&t->engine.exchange));
    TRY(prompt_tokens(vocabulary, c->prompt, &prompt, &request.prompt_count));
    request.prompt = prompt;
    sample.out = open_memstream(&text, &text_bytes);
    enum status status = sample.out == NULL
                             ? status_set(STATUS_MEMORY, "out of memory for a sample")
                             : sampler_generate(&t->engine, &request);
    if (sample.out != NULL) {
        token_printer_end(&sample.printer, sample.out);
        if (fclose(sample.out) != 0 && status == STATUS_OK) {
            status = status_set(STATUS_MEMORY, "out of memory for a sample");
        }
    }
    if (status == STATUS_OK) {
        progress_message(&t->progress, "step %lld  sample: %s%s", (long long)t->state.step,
                         c->prompt, text);
        status = metrics_sample(t->metrics, t->state.step, c->prompt, text);
    }
    free(text);
    free(prompt);
    return status;
}

/* RUN/configuration.conf, as a file that starts the run again. */
static enum status save_configuration(const struct trainer *t) {
    char path[PATH_BYTES], *text = NULL;
    size_t bytes = 0;
    TRY(path_join(path, t->config->train.out, CONFIG_SAVED_NAME));
    FILE *memory = open_memstream(&text, &bytes);
    if (memory == NULL) return status_set(STATUS_MEMORY, "out of memory for %s", path);
    config_print(t->config, memory);
    const bool whole = fclose(memory) == 0;
    const enum status status = whole ? file_write_durable(path, text, bytes)
                                     : status_set(STATUS_MEMORY, "out of memory for %s", path);
    free(text);
    return status;
}

enum status trainer_record_run(const struct trainer *t) {
    TRY(save_configuration(t));
    cJSON *details = cJSON_CreateObject();
    cJSON *configuration = config_to_json(t->config);
    enum status status = STATUS_OK;
    if (details == NULL || configuration == NULL ||
        cJSON_AddStringToObject(details, "deepwell_version", DEEPWELL_VERSION) == NULL ||
        cJSON_AddStringToObject(details, "device", t->engine.device.name) == NULL ||
        cJSON_AddNumberToObject(details, "flops_per_token", (double)t->flops.total) == NULL ||
        cJSON_AddStringToObject(details, "data_fingerprint", t->train_data.fingerprint) == NULL) {
        cJSON_Delete(configuration);
        status = status_set(STATUS_MEMORY, "out of memory for metrics.jsonl");
    } else {
        cJSON_AddItemToObject(details, "configuration", configuration);
        status = metrics_run(t->metrics, t->state.step, details);
    }
    cJSON_Delete(details);
    return status;
}

void trainer_print_header(const struct trainer *t) {
    const struct config *c = t->config;
    const struct gpt_config *model = &t->engine.gpt.config;
    const struct gpt_training_shape *shape = &t->engine.training.shape;
    char count[TEXT_BYTES], tokens[TEXT_BYTES], bytes[TEXT_BYTES], flops[FLOPS_TEXT_BYTES];
    char precision[PRECISION_TEXT_BYTES], ranks[RANKS_DESCRIBED_BYTES];
    size_t memory = 0;
    for (size_t i = 0; i < ENGINE_ARENAS; i++) memory += t->engine.arenas[i].capacity_bytes;
    const size_t step_tokens = t->shape.ranks * t->shape.micro_batches * shape->batch *
                               shape->sequence_length;
    printf("deepwell %s\n", DEEPWELL_VERSION);
    printf("device      %s\n", t->engine.device.name);
    if (t->engine.device.note[0] != '\0') printf("            %s\n", t->engine.device.note);
    printf(
        "model       GPT-2, %zu layers, %zu heads, width %zu, context %zu, vocabulary %zu: "
        "%s parameters\n",
        model->layers, model->heads, model->width, model->context, model->vocabulary,
        text_count(count, param_table_count(&t->engine.gpt.table)));
    printf("precision   %s\n", engine_precision_text(precision, &t->engine));
    printf("train data  %s: %s tokens, %s sequences of %zu\n", c->data.train,
           text_count(tokens, t->train_data.tokens), text_count(count, t->train_data.sequences),
           t->train_data.sequence_length);
    if (t->validation_data.shards != NULL) {
        printf("validation  %s: %s tokens\n", c->data.validation,
               text_count(tokens, t->validation_data.tokens));
    }
    if (t->ranks.world > 1) {
        printf("ranks       %s\n", ranks_described(ranks, &t->engine));
    }
    printf("step        %lld sequences in %zu micro-batch%s of %zu%s: %s tokens; %lld steps\n",
           (long long)c->train.batch, t->shape.micro_batches,
           t->shape.micro_batches == 1 ? "" : "es", shape->batch,
           t->ranks.world > 1 ? " on each rank" : "", text_count(tokens, step_tokens),
           (long long)c->train.steps);
    printf("work        %s\n", flops_text(flops, &t->flops));
    printf("memory      %s%s (`deepwell plan` shows the parts)\n", text_bytes(bytes, memory),
           t->ranks.world > 1 ? " a rank" : "");
    printf("run         %s, from step %lld\n", c->train.out, (long long)t->state.step);
    fflush(stdout);
}

void trainer_look_at_power(struct trainer *t) {
    static const double pause_seconds = 0.25;
    const double now = clock_seconds();
    if (now - t->looked_seconds < pause_seconds) return;
    t->looked_seconds = now;
    if (!gpu_power_now(&t->power, &t->gpu_watts, &t->gpu_mhz)) t->gpu_watts = t->gpu_mhz = 0;
}

enum status trainer_report_energy(struct trainer *t) {
    const int64_t steps = t->state.step - t->powered_step;
    gpu_power_stop(&t->power);
    if (steps <= 0 || t->engine.device.kind == DEVICE_CPU) return STATUS_OK;
    if (t->power.joules < 0.0 || t->power.seconds <= 0.0) {
        printf("energy      n/a: %s\n",
               t->power.library == NULL ? t->power.absent : "this GPU counts none");
        return STATUS_OK;
    }
    const struct run_energy energy = {
        .joules = t->power.joules, .seconds = t->power.seconds,
        .tokens = steps * (int64_t)(t->shape.micro_batches * t->engine.training.shape.batch *
                                    t->engine.training.shape.sequence_length),
    };
    printf(
        "energy      %.2f kJ over %lld steps and all between them: mean %.0f W, %.2f kJ a million "
        "tokens\n",
        energy.joules * 1e-3, (long long)steps, energy.joules / energy.seconds,
        energy.joules / (double)energy.tokens * 1e3);
    return metrics_energy(t->metrics, t->state.step, &energy);
}

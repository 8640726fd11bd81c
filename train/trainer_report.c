/* What a run shows and leaves behind: header, validation, samples, checkpoints. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"
#include "train/sampler.h"
#include "train/scale_json.h"
#include "train/token_text.h"
#include "train/trainer_parts.h"
#include "train/validation.h"
#include "train/version.h"

enum peak_type trainer_peak_type(const struct trainer *t) {
    switch (t->engine.dtype) {
        case DTYPE_F32: return PEAK_FP32;
        case DTYPE_BF16: return PEAK_BF16;
        case DTYPE_F16: return PEAK_FP16;
    }
    return PEAK_FP32;
}

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

/* A text that grows by tokens. */
struct sample_text {
    struct token_printer printer;
    char *text;
    size_t used;
};

static bool append_token(void *context, int32_t token) {
    struct sample_text *sample = context;
    char piece[TOKEN_TEXT_BYTES];
    token_printer_add(&sample->printer, token, piece);
    const size_t bytes = strlen(piece);
    memcpy(sample->text + sample->used, piece, bytes + 1);
    sample->used += bytes;
    return true;
}

enum status trainer_sample(struct trainer *t) {
    const struct config_sample *c = &t->config->sample;
    const size_t vocabulary = t->engine.gpt.config.vocabulary, tokens = (size_t)c->tokens;
    struct sample_text sample = {.printer = {.vocabulary = vocabulary}};
    struct generation_request request = {
        .tokens = tokens,
        .stop = end_of_text_token(vocabulary),
        .sampling = sampling_from_config(t->config),
        .emit = append_token,
        .context = &sample,
    };
    int32_t *prompt = NULL;
    char rest[TOKEN_TEXT_BYTES];
    TRY(prompt_tokens(c->prompt, vocabulary, &prompt, &request.prompt_count));
    request.prompt = prompt;
    sample.text = calloc(tokens + 1, TOKEN_TEXT_BYTES);
    enum status status = sample.text == NULL
                             ? status_set(STATUS_MEMORY, "out of memory for a sample")
                             : sampler_generate(&t->engine, &request);
    if (status == STATUS_OK) {
        memcpy(sample.text + sample.used, token_printer_end(&sample.printer, rest),
               strlen(rest) + 1);
        progress_message(&t->progress, "step %lld  sample: %s%s", (long long)t->state.step,
                         c->prompt, sample.text);
        status = metrics_sample(t->metrics, t->state.step, c->prompt, sample.text);
    }
    free(sample.text);
    free(prompt);
    return status;
}

static enum status save_mapped(struct trainer *t, float *const host[3]) {
    const struct checkpoint_retention retention = {
        .keep = t->config->checkpoint.keep, .keep_every = t->config->checkpoint.keep_every,
    };
    cJSON *state = run_state_to_json(&t->state, t->config);
    if (state == NULL) return status_set(STATUS_MEMORY, "out of memory for state.json");
    const struct checkpoint_content content = {
        .step = t->state.step,
        .params = &t->engine.gpt.table,
        .masters = host[0],
        .moments1 = host[1],
        .moments2 = host[2],
        .model = engine_hf_config(t->config),
        .state = state,
    };
    enum status status = scales_to_json(&t->engine, state);
    if (status == STATUS_OK) {
        status = checkpoint_save(t->config->train.out, &content, &retention);
    }
    cJSON_Delete(state);
    return status;
}

enum status trainer_save(struct trainer *t) {
    struct engine *engine = &t->engine;
    const size_t bytes = engine->gpt.table.elements * sizeof(float);
    float *const buffers[3] = {engine->masters, engine->moments1, engine->moments2};
    float *host[3] = {NULL, NULL, NULL};
    const double begun = clock_seconds();
    enum status status = STATUS_OK;
    if (t->saved_step == t->state.step) return STATUS_OK;
    for (size_t i = 0; i < 3 && status == STATUS_OK; i++) {
        void *mapped = NULL;
        status = device_map(&engine->device, buffers[i], bytes, &mapped);
        host[i] = mapped;
    }
    if (status == STATUS_OK) status = save_mapped(t, host);
    for (size_t i = 0; i < 3; i++) {
        if (host[i] == NULL) continue;
        const enum status unmapped = device_unmap(&engine->device, buffers[i], host[i], bytes,
                                                  false);
        if (status == STATUS_OK) status = unmapped;
    }
    TRY(status);
    t->saved_step = t->state.step;
    const double ms = (clock_seconds() - begun) * 1e3;
    char path[PATH_BYTES], took[TEXT_BYTES];
    snprintf(path, sizeof path, "%s/step_%08lld", t->config->train.out, (long long)t->state.step);
    progress_message(&t->progress, "step %lld  saved %s (%s)", (long long)t->state.step, path,
                     text_duration(took, ms / 1e3));
    return metrics_checkpoint(t->metrics, t->state.step, path, ms);
}

/* RUN/configuration.conf: what this run was last started with, as a file that starts it again. */
static enum status save_configuration(const struct trainer *t) {
    char path[PATH_BYTES], *text = NULL;
    size_t bytes = 0;
    TRY(path_join(path, t->config->train.out, "configuration.conf"));
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
    char precision[PRECISION_TEXT_BYTES];
    size_t memory = 0;
    for (size_t i = 0; i < ENGINE_ARENAS; i++) memory += t->engine.arenas[i].capacity_bytes;
    const size_t step_tokens = t->shape.micro_batches * shape->batch * shape->sequence_length;
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
    printf("step        %lld sequences in %zu micro-batch%s of %zu: %s tokens; %lld steps\n",
           (long long)c->train.batch, t->shape.micro_batches,
           t->shape.micro_batches == 1 ? "" : "es", shape->batch, text_count(tokens, step_tokens),
           (long long)c->train.steps);
    printf("work        %s\n", flops_text(flops, &t->flops));
    printf("memory      %s (`deepwell plan` shows the parts)\n", text_bytes(bytes, memory));
    printf("run         %s, from step %lld\n", c->train.out, (long long)t->state.step);
    fflush(stdout);
}

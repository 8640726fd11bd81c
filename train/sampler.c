/* Sampling from logits and the generation loop. */
#include "train/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/random.h"

struct sampling sampling_from_config(const struct config *config) {
    return (struct sampling){
        .temperature = config->sample.temperature,
        .top_k = (size_t)config->sample.top_k,
        .top_p = config->sample.top_p,
        .seed = (uint64_t)config->sample.seed,
    };
}

static int by_logit(const void *a, const void *b) {
    const struct candidate *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->token < y->token ? -1 : 1;
}

/* Unnormalised probability of a candidate relative to the best one. */
static double weight_of(const struct candidate *candidate, float best, double temperature) {
    return exp(((double)candidate->logit - (double)best) / temperature);
}

int32_t sampler_pick(const struct sampling *sampling, const float *logits, size_t vocabulary,
                     uint64_t index, struct candidate *candidates) {
    for (size_t i = 0; i < vocabulary; i++) {
        candidates[i] = (struct candidate){logits[i], (int32_t)i};
    }
    qsort(candidates, vocabulary, sizeof *candidates, by_logit);
    if (sampling->temperature == 0.0) return candidates[0].token;

    const float best = candidates[0].logit;
    size_t kept = sampling->top_k == 0 ? vocabulary : size_min(sampling->top_k, vocabulary);
    double total = 0.0;
    for (size_t i = 0; i < kept; i++)
        total += weight_of(&candidates[i], best, sampling->temperature);
    if (sampling->top_p < 1.0) {
        double reached = 0.0;
        size_t nucleus = 0;
        while (nucleus < kept && (nucleus == 0 || reached < sampling->top_p * total)) {
            reached += weight_of(&candidates[nucleus++], best, sampling->temperature);
        }
        kept = nucleus;
        total = reached;
    }
    double left = (double)random_uniform(sampling->seed, RANDOM_SAMPLE, index) * total;
    for (size_t i = 0; i + 1 < kept; i++) {
        left -= weight_of(&candidates[i], best, sampling->temperature);
        if (left < 0.0) return candidates[i].token;
    }
    return candidates[kept - 1].token;
}

/* The loop's memory: the text so far, the logits on the host, the sorted candidates. */
struct work {
    int32_t *history;
    size_t length;
    float *logits;
    struct candidate *candidates;
};

static enum status work_open(struct work *work, const struct generation_request *request,
                             size_t vocabulary) {
    size_t length = 0;
    *work = (struct work){0};
    if (!size_add(request->prompt_count, request->tokens, &length)) {
        return status_set(STATUS_CONFIG, "expected fewer tokens than 2^64");
    }
    work->history = calloc(length, sizeof *work->history);
    work->logits = calloc(vocabulary, sizeof *work->logits);
    work->candidates = calloc(vocabulary, sizeof *work->candidates);
    if (work->history == NULL || work->logits == NULL || work->candidates == NULL) {
        return status_set(STATUS_MEMORY, "out of memory for a text of %zu tokens", length);
    }
    memcpy(work->history, request->prompt, request->prompt_count * sizeof *work->history);
    work->length = request->prompt_count;
    return STATUS_OK;
}

static void work_close(struct work *work) {
    free(work->history);
    free(work->logits);
    free(work->candidates);
}

/* Brings the caches up to the last token but one, from the start if the context is full. */
static enum status catch_up(struct gpt_generation *generation, const struct work *work,
                            size_t *fed) {
    const size_t context = generation->gpt->config.context;
    if (generation->past == context || *fed == 0) {
        const size_t keep = work->length <= context ? work->length : size_max(1, context / 2);
        gpt_generation_reset(generation);
        *fed = work->length - keep;
    }
    while (*fed + 1 < work->length) {
        const size_t count = size_min(generation->chunk, work->length - 1 - *fed);
        TRY(gpt_generation_feed(generation, work->history + *fed, count));
        *fed += count;
    }
    return STATUS_OK;
}

/* The logits of the next token, in host memory. */
static enum status next_logits(struct engine *engine, const struct work *work, size_t fed) {
    const size_t vocabulary = engine->gpt.config.vocabulary;
    struct tensor logits;
    TRY(gpt_generation_step(&engine->generation, &work->history[fed], &logits));
    TRY(device_download(&engine->device, work->logits, logits.data, vocabulary * sizeof(float)));
    for (size_t i = 0; i < vocabulary; i++) {
        if (!isfinite(work->logits[i])) {
            return status_set(STATUS_NUMERICS,
                              "the logit of token %zu is %g: the weights are no usable "
                              "model; use an earlier checkpoint",
                              i, (double)work->logits[i]);
        }
    }
    return STATUS_OK;
}

enum status sampler_generate(struct engine *engine, const struct generation_request *request) {
    struct gpt_generation *generation = &engine->generation;
    const size_t vocabulary = engine->gpt.config.vocabulary;
    enum status status = STATUS_OK;
    struct work work;
    size_t fed = 0; /* tokens of the history that are in the caches or have left them */
    TRY_GOTO(work_open(&work, request, vocabulary), cleanup);
    gpt_generation_reset(generation);
    for (size_t i = 0; i < request->tokens; i++) {
        TRY_GOTO(catch_up(generation, &work, &fed), cleanup);
        TRY_GOTO(next_logits(engine, &work, fed), cleanup);
        fed++;
        const int32_t token = sampler_pick(&request->sampling, work.logits, vocabulary, i,
                                           work.candidates);
        if (token == request->stop) break;
        work.history[work.length++] = token;
        if (!request->emit(request->context, token)) break;
    }
cleanup:
    work_close(&work);
    return status;
}

/* Behind train/choices_eval.h: completions as rows of evaluation batches, as many as fit. */
#include "train/choices_eval.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "train/signals.h"

/* One row of the batch under way. */
struct row {
    size_t example, completion;
    size_t first, count; /* places of the completion's losses in the row */
};

struct scorer {
    struct engine *engine;
    const struct choices *choices;
    int32_t *inputs, *targets; /* (batch, T) */
    float *losses;
    struct row *rows; /* (batch) */
    size_t used;
    double sums[CHOICES_COMPLETIONS_MAX], means[CHOICES_COMPLETIONS_MAX]; /* of one example */
    size_t right, right_norm;
};

enum status choices_prepare(struct choices *choices, const struct vocabulary *vocabulary) {
    if (choices->lines == NULL) return STATUS_OK;
    if (!vocabulary_is_text(vocabulary)) {
        return status_set(STATUS_CONFIG, "%s: expected data.tokenizer, which makes tokens of "
                          "questions that are text, found none: name a tokenizer.json, or give the "
                          "questions as tokens in llm.c's form", choices->path);
    }
    return choices_tokenise(choices, vocabulary->tokenizer);
}

static size_t least(const double *losses, size_t count) {
    size_t best = 0;
    for (size_t i = 1; i < count; i++) {
        if (losses[i] < losses[best]) best = i;
    }
    return best;
}

/* The row's loss; with an example's last completion its answer is known. */
static enum status count_row(struct scorer *s, const struct row *row, const float *losses) {
    const struct choice_example example = choices_get(s->choices, row->example);
    double sum = 0.0;
    for (size_t i = 0; i < row->count; i++) sum += (double)losses[row->first + i];
    s->sums[row->completion] = sum;
    s->means[row->completion] = sum / (double)row->count;
    if (!isfinite(sum)) {
        char place[CHOICES_PLACE_BYTES];
        return status_set(STATUS_NUMERICS,
                          "%s: the loss of completion %zu is %g: the weights are no usable model; "
                          "use an earlier checkpoint",
                          choices_place(s->choices, row->example, place), row->completion, sum);
    }
    if (row->completion + 1 < example.completion_count) return STATUS_OK;
    s->right += least(s->sums, example.completion_count) == example.label;
    s->right_norm += least(s->means, example.completion_count) == example.label;
    return STATUS_OK;
}

static enum status flush(struct scorer *s) {
    struct gpt_training *evaluation = &s->engine->evaluation;
    struct device *device = &s->engine->device;
    const size_t length = evaluation->shape.sequence_length;
    const size_t tokens = evaluation->shape.batch * length;
    if (s->used == 0) return STATUS_OK;
    TRY(device_upload(device, evaluation->inputs, s->inputs, tokens * sizeof(int32_t)));
    TRY(device_upload(device, evaluation->targets, s->targets, tokens * sizeof(int32_t)));
    TRY(gpt_evaluate(evaluation));
    TRY(device_download(device, s->losses, evaluation->losses, s->used * length * sizeof(float)));
    for (size_t r = 0; r < s->used; r++) TRY(count_row(s, &s->rows[r], s->losses + r * length));
    s->used = 0;
    for (size_t i = 0; i < tokens; i++) {
        s->inputs[i] = 0;
        s->targets[i] = -1;
    }
    return STATUS_OK;
}

/* Token i of context and completion together. */
static int32_t token_at(const struct choice_example *example, size_t completion, size_t i) {
    return i < example->context_tokens
               ? (int32_t)example->context[i]
               : (int32_t)example->completions[completion][i - example->context_tokens];
}

static enum status add_row(struct scorer *s, const struct choice_example *example, size_t index,
                           size_t completion) {
    const size_t length = s->engine->evaluation.shape.sequence_length;
    const size_t count = example->completion_tokens[completion];
    const size_t all = example->context_tokens + count;
    const size_t inputs = size_min(all - 1, length), skipped = all - 1 - inputs;
    if (count > length) {
        char place[CHOICES_PLACE_BYTES];
        return status_set(STATUS_DATA,
                          "%s: completion %zu has %zu tokens, more than the sequences of %zu that "
                          "the model is run on: take it out of the file",
                          choices_place(s->choices, index, place), completion, count, length);
    }
    struct row *row = &s->rows[s->used];
    *row = (struct row){.example = index,
                        .completion = completion,
                        .first = inputs - count,
                        .count = count};
    int32_t *in = s->inputs + s->used * length, *target = s->targets + s->used * length;
    for (size_t i = 0; i < inputs; i++) {
        in[i] = token_at(example, completion, skipped + i);
        target[i] = i < row->first ? -1 : token_at(example, completion, skipped + i + 1);
    }
    s->used++;
    return s->used == s->engine->evaluation.shape.batch ? flush(s) : STATUS_OK;
}

static enum status score_all(struct scorer *s, size_t examples, bool until_signal) {
    for (size_t i = 0; i < examples; i++) {
        const struct choice_example example = choices_get(s->choices, i);
        if (until_signal && signals_received() != NULL) {
            return status_set(STATUS_INTERRUPTED, "scoring stopped by %s", signals_received());
        }
        for (size_t c = 0; c < example.completion_count; c++) TRY(add_row(s, &example, i, c));
    }
    return flush(s);
}

enum status choices_evaluate(struct engine *engine, struct choices *choices, size_t examples,
                             bool until_signal, struct choices_score *score) {
    const size_t batch = engine->evaluation.shape.batch;
    const size_t tokens = batch * engine->evaluation.shape.sequence_length;
    const size_t wanted = examples == 0 ? choices->count : size_min(examples, choices->count);
    enum status status = STATUS_OK;
    struct scorer s = {
        .engine = engine,
        .choices = choices,
        .inputs = calloc(tokens, sizeof(int32_t)),
        .targets = malloc(tokens * sizeof(int32_t)),
        .losses = calloc(tokens, sizeof(float)),
        .rows = calloc(batch, sizeof(struct row)),
    };
    if (s.inputs == NULL || s.targets == NULL || s.losses == NULL || s.rows == NULL) {
        status = status_set(STATUS_MEMORY, "out of memory for a batch of %zu completions", batch);
        goto cleanup;
    }
    for (size_t i = 0; i < tokens; i++) s.targets[i] = -1;
    TRY_GOTO(score_all(&s, wanted, until_signal), cleanup);
    *score = (struct choices_score){
        .examples = wanted,
        .accuracy = (double)s.right / (double)wanted,
        .accuracy_norm = (double)s.right_norm / (double)wanted,
    };
cleanup:
    free(s.inputs);
    free(s.targets);
    free(s.losses);
    free(s.rows);
    return status;
}

/* deepwell eval */
#include <math.h>
#include <stdio.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"
#include "train/choices_eval.h"
#include "train/cli.h"
#include "train/commands.h"
#include "train/logits.h"
#include "train/run_folder.h"
#include "train/signals.h"
#include "train/validation.h"

static const char usage[] =
    "usage: deepwell eval MODEL [options]\n"
    "\n"
    "The mean loss of a trained model over a validation set: the one that it was trained with, or\n"
    "another. MODEL is a run (its newest checkpoint), a checkpoint, or a GPT-2 of Hugging Face or\n"
    "llm.c.\n"
    "\n"
    "  --data PATTERN       token shards (default: data.validation of the run)\n"
    "  --tokenizer FILE     tokenizer.json for bits a byte (default: the checkpoint's, the run's)\n"
    "  --sequences N        only the first N sequences (default: all)\n"
    "  --choices FILE       instead: multiple-choice questions, as llm.c writes them\n"
    "                       (hellaswag_val.bin), or FILE.jsonl, an object a line with HellaSwag's\n"
    "                       ctx, endings and label; --sequences limits their number\n"
    "  --logits FILE        also writes the logits of the first sequence, as safetensors\n"
    "\n"
    "  deepwell eval runs/quickstart --data other/validation.bin --train.sequence_length 64\n"
    "  deepwell eval runs/mine --choices hellaswag_val.bin\n"
    "  deepwell eval runs/mine --choices hellaswag_val.jsonl\n";

static void print_result(const struct config *config, const struct run_model *model,
                         const struct validation *result, double seconds) {
    char tokens[TEXT_BYTES], duration[TEXT_BYTES];
    if (model->trained_here) {
        printf("checkpoint  %s (step %lld)\n", model->path, (long long)model->checkpoint.step);
    } else {
        printf("model       %s\n", model->path);
    }
    printf("data        %s: %s tokens, sequences of %lld\n", config->data.validation,
           text_count(tokens, result->tokens), (long long)config_sequence_length(config));
    printf("loss        %.7f nats a token\n", result->loss);
    printf("perplexity  %.4f\n", exp(result->loss));
    if (isfinite(result->bits_per_byte)) printf("bits a byte %.5f\n", result->bits_per_byte);
    printf("took        %s\n", text_duration(duration, seconds));
}

static enum status evaluate(const struct run_model *model, const struct config *config,
                            const char *logits_path) {
    struct dataset dataset = {0};
    struct engine engine = {0};
    struct validation result;
    const unsigned generate = logits_path != NULL ? ENGINE_GENERATE : 0;
    enum status status = STATUS_OK;
    TRY(config_check(config));
    if (config->data.validation[0] == '\0') {
        return status_set(STATUS_CONFIG,
                          "the run has no validation data: name token shards with --data");
    }
    status = dataset_open(&dataset, config->data.validation, (size_t)config_sequence_length(config),
                          (size_t)config->model.vocabulary, ORDER_SEQUENTIAL, 0);
    if (status != STATUS_OK) {
        return status_context(status,
                              "validation data, by the run's path or --data, from this folder");
    }
    TRY_GOTO(engine_open(&engine, config, ENGINE_EVALUATE | generate, ENGINE_REAL), close_dataset);
    TRY_GOTO(run_model_load(model, &engine, config), close_engine);
    const double begun = clock_seconds();
    TRY_GOTO(validation_run(&engine, &dataset, (size_t)config->validation.sequences, true, &result),
             close_engine);
    print_result(config, model, &result, clock_seconds() - begun);
    if (logits_path != NULL) {
        TRY_GOTO(logits_write(&engine, &dataset, 1, logits_path), close_engine);
        printf("logits      %s\n", logits_path);
    }
close_engine:
    engine_close(&engine);
close_dataset:
    dataset_close(&dataset);
    return status;
}

static void print_score(const struct run_model *model, const struct choices *choices,
                        const struct choices_score *score, double seconds) {
    char count[TEXT_BYTES], duration[TEXT_BYTES];
    printf("model       %s\n", model->path);
    printf("choices     %s: %s questions\n", choices->path, text_count(count, score->examples));
    printf("right       %.4f by the sum of a completion's losses\n", score->accuracy);
    printf("            %.4f by their mean (acc_norm)\n", score->accuracy_norm);
    printf("took        %s\n", text_duration(duration, seconds));
}

/* The questions as tokens of the model's vocabulary. */
static enum status open_choices(struct choices *choices, const char *path,
                                const struct config *config) {
    struct vocabulary vocabulary;
    enum status status = STATUS_OK;
    TRY(vocabulary_open(&vocabulary, config));
    TRY_GOTO(choices_open(choices, path, vocabulary.size), close_vocabulary);
    status = choices_prepare(choices, &vocabulary);
    if (status != STATUS_OK) choices_close(choices);
close_vocabulary:
    vocabulary_close(&vocabulary);
    return status;
}

/* Sequences no longer than the questions need. */
static enum status score_choices(const struct run_model *model, struct config *config,
                                 const char *path) {
    struct choices choices = {0};
    struct engine engine = {0};
    struct choices_score score;
    enum status status = STATUS_OK;
    TRY(open_choices(&choices, path, config));
    if (choices.longest_tokens - 1 < (size_t)config_sequence_length(config)) {
        config->train.sequence_length = (int64_t)choices.longest_tokens - 1;
    }
    TRY_GOTO(config_check(config), close_choices);
    TRY_GOTO(engine_open(&engine, config, ENGINE_EVALUATE, ENGINE_REAL), close_choices);
    TRY_GOTO(run_model_load(model, &engine, config), close_engine);
    const double begun = clock_seconds();
    TRY_GOTO(
        choices_evaluate(&engine, &choices, (size_t)config->validation.sequences, true, &score),
        close_engine);
    print_score(model, &choices, &score, clock_seconds() - begun);
close_engine:
    engine_close(&engine);
close_choices:
    choices_close(&choices);
    return status;
}

enum status command_eval(int argc, char **argv) {
    const char *logits_path = NULL, *choices_path = NULL;
    const struct cli_option options[] = {
        {.name = "--data", .config_key = "data.validation"},
        {.name = "--tokenizer", .config_key = "data.tokenizer"},
        {.name = "--sequences", .config_key = "validation.sequences"},
        {.name = "--logits", .text = &logits_path},
        {.name = "--choices", .text = &choices_path},
    };
    const struct cli cli = {
        .command = "eval",
        .usage = usage,
        .names = "MODEL, a run's folder or another model",
        .options = options,
        .option_count = sizeof options / sizeof options[0],
        .takes_config = true,
    };
    struct cli_names names;
    struct config config;
    struct run_model model;
    TRY(cli_positionals(&cli, argc, argv, 1, 1, &names));
    if (names.help) return STATUS_OK;
    TRY(signals_install(false));
    TRY(run_model_open(&model, names.names[0], &config));
    config.validation.sequences = 0; /* all, however many the run looked at */
    enum status status = vocabulary_prefer_checkpoint(&config, model.path);
    if (status == STATUS_OK) status = cli_options(&cli, argc, argv, &config);
    if (status == STATUS_OK && logits_path != NULL) status = file_check_output(logits_path);
    if (status == STATUS_OK) {
        status = choices_path != NULL ? score_choices(&model, &config, choices_path)
                                      : evaluate(&model, &config, logits_path);
    }
    run_model_close(&model);
    return status;
}

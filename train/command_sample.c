/* deepwell sample */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/cli.h"
#include "train/commands.h"
#include "train/run_folder.h"
#include "train/sampler.h"
#include "train/signals.h"
#include "train/token_text.h"

static const char usage[] =
    "usage: deepwell sample MODEL [options]\n"
    "\n"
    "Continues a prompt with a trained model: a run's newest checkpoint, the one named, or a\n"
    "GPT-2 of Hugging Face or llm.c.\n"
    "\n"
    "  --prompt TEXT        what to continue (default: the start of a new document); token\n"
    "                       numbers separated by spaces where tokens are not bytes and there is\n"
    "                       no tokenizer\n"
    "  --tokenizer FILE     tokenizer.json (default: the checkpoint's, or data.tokenizer)\n"
    "  --tokens N           new tokens at most\n"
    "  --temperature T      0: always the most likely token; 1: the model's own distribution\n"
    "  --top_k K            only the K most likely tokens (0: all)\n"
    "  --top_p P            only the most likely tokens that together reach P (1: all)\n"
    "  --seed S             the same seed gives the same text\n"
    "  --count N            so many texts, with seeds S, S+1, ... (default 1)\n"
    "\n"
    "  deepwell sample runs/quickstart --prompt 'enum status ' --temperature 0.8 --tokens 200\n";

static bool print_token(void *context, int32_t token) {
    token_printer_add(context, token, stdout);
    fflush(stdout);
    return signals_received() == NULL;
}

/* The sampler keeps what fits: all of a prompt up to the context, otherwise half a context. */
static void warn_of_long_prompt(size_t tokens, size_t context) {
    if (tokens <= context) return;
    fprintf(stderr,
            "note: the prompt has %zu tokens, the model's context is %zu: only the last %zu "
            "are used\n",
            tokens, context, context > 1 ? context / 2 : 1);
}

static enum status sample(struct engine *engine, const struct config *config, const char *text,
                          int64_t count) {
    const struct vocabulary *vocabulary = &engine->vocabulary;
    int32_t *prompt = NULL;
    size_t prompt_count = 0;
    enum status status = STATUS_OK;
    TRY(prompt_tokens(vocabulary, text, &prompt, &prompt_count));
    warn_of_long_prompt(prompt_count, engine->gpt.config.context);
    for (int64_t i = 0; i < count && signals_received() == NULL; i++) {
        struct token_printer printer = {.vocabulary = vocabulary};
        struct generation_request request = {
            .prompt = prompt,
            .prompt_count = prompt_count,
            .tokens = (size_t)config->sample.tokens,
            .stop = vocabulary->end_of_text,
            .sampling = sampling_from_config(config),
            .emit = print_token,
            .context = &printer,
        };
        request.sampling.seed += (uint64_t)i;
        if (count > 1) printf("--- seed %llu\n", (unsigned long long)request.sampling.seed);
        fputs(text, stdout);
        TRY_GOTO(sampler_generate(engine, &request), cleanup);
        token_printer_end(&printer, stdout);
        putchar('\n');
    }
cleanup:
    free(prompt);
    return status;
}

static enum status load_and_sample(const struct run_model *model, const struct config *config,
                                   const char *prompt, int64_t count) {
    struct engine engine;
    TRY(config_check(config));
    TRY(engine_open(&engine, config, ENGINE_GENERATE, ENGINE_REAL));
    enum status status = run_model_load(model, &engine, config);
    if (status == STATUS_OK) {
        status = sample(&engine, config, prompt != NULL ? prompt : config->sample.prompt, count);
    }
    engine_close(&engine);
    return status;
}

enum status command_sample(int argc, char **argv) {
    int64_t count = 1;
    const char *prompt = NULL; /* of any length, unlike the configuration's */
    const struct cli_option options[] = {
        {.name = "--prompt", .text = &prompt},
        {.name = "--tokenizer", .config_key = "data.tokenizer"},
        {.name = "--tokens", .config_key = "sample.tokens"},
        {.name = "--temperature", .config_key = "sample.temperature"},
        {.name = "--top_k", .config_key = "sample.top_k"},
        {.name = "--top_p", .config_key = "sample.top_p"},
        {.name = "--seed", .config_key = "sample.seed"},
        {.name = "--count", .whole = &count, .least = 1, .most = 1000000},
    };
    const struct cli cli = {
        .command = "sample", .usage = usage, .options = options,
        .option_count = sizeof options / sizeof options[0], .takes_config = true,
    };
    struct cli_names names;
    struct config config;
    struct run_model model;
    TRY(cli_positionals(&cli, argc, argv, 1, 1, &names));
    if (names.help) return STATUS_OK;
    TRY(signals_install());
    TRY(run_model_open(&model, names.names[0], &config));
    enum status status = vocabulary_prefer_checkpoint(&config, model.path);
    if (status == STATUS_OK) status = cli_options(&cli, argc, argv, &config);
    if (status == STATUS_OK) status = load_and_sample(&model, &config, prompt, count);
    run_model_close(&model);
    return status;
}

/* deepwell sample */
#include <stdio.h>

#include "train/cli.h"
#include "train/commands.h"
#include "train/prompts.h"
#include "train/run_folder.h"
#include "train/sampler.h"
#include "train/signals.h"
#include "train/token_text.h"

static const char usage[] =
    "usage: deepwell sample MODEL [options]\n"
    "\n"
    "Continues prompts with a trained model: a run's newest checkpoint, the one named, or a GPT-2\n"
    "of Hugging Face or llm.c.\n"
    "\n"
    "  --prompt TEXT        what to continue (default: the start of a new document); token\n"
    "                       numbers separated by spaces where tokens are not bytes and there is\n"
    "                       no tokenizer\n"
    "  --prompts FILE       instead: a prompt a line, one after the other; each text is the one\n"
    "                       that --prompt gives\n"
    "  --stop TEXT          ends a text before TEXT (token numbers where tokens are not text);\n"
    "                       may be given 16 times\n"
    "  --tokenizer FILE     tokenizer.json (default: the checkpoint's, or the run's\n"
    "                       data.tokenizer)\n"
    "  --tokens N           new tokens at most\n"
    "  --temperature T      0: always the most likely token; 1: the model's own distribution\n"
    "  --top_k K            only the K most likely tokens (0: all)\n"
    "  --top_p P            only the most likely tokens that together reach P (1: all)\n"
    "  --seed S             the same seed gives the same text\n"
    "  --count N            so many texts, with seeds S, S+1, ... (default 1)\n"
    "\n"
    "  deepwell sample runs/quickstart --prompt 'enum status ' --temperature 0.8 --tokens 200\n"
    "  deepwell sample gpt2 --prompts questions.txt --stop Q: --temperature 0\n";

/* What a call asks for, beside the configuration. */
struct order {
    const char *prompt;  /* of any length, unlike the configuration's; NULL: that one */
    const char *prompts; /* a file; NULL: none */
    struct cli_texts stops;
    int64_t count;
};

/* A text that is being printed. */
struct text {
    struct token_printer printer;
    size_t tokens; /* so far */
};

static bool print_token(void *context, int32_t token) {
    struct text *text = context;
    const bool more = token_printer_add(&text->printer, token, stdout);
    text->tokens++;
    fflush(stdout);
    return more && signals_received() == NULL;
}

/* The sampler keeps what fits: all of a prompt up to the context, otherwise half a context. */
static void warn_of_long_prompt(size_t tokens, size_t context) {
    if (tokens <= context) return;
    fprintf(stderr,
            "note: the prompt has %zu tokens, the model's context is %zu: only the last %zu "
            "are used\n",
            tokens, context, context > 1 ? context / 2 : 1);
}

/* An end-of-text token cannot be seen in what is printed; a stop was asked for. */
static void note_of_end(const struct text *text, size_t wished) {
    const bool stopped = text->printer.stops->stopped || signals_received() != NULL;
    if (text->tokens == wished || stopped) return;
    fprintf(stderr, "note: the text ended by itself after %zu of %zu tokens\n", text->tokens,
            wished);
}

/* Which of several texts follows. */
static void print_heading(const struct prompt *prompt, const struct order *order, uint64_t seed) {
    if (prompt->line > 0) printf("--- prompt %zu", prompt->line);
    if (order->count > 1) {
        printf("%s seed %llu", prompt->line > 0 ? "," : "---", (unsigned long long)seed);
    }
    if (prompt->line > 0 || order->count > 1) putchar('\n');
}

static enum status continue_prompt(struct engine *engine, const struct config *config,
                                   const struct prompt *prompt, const struct stop_list *stops,
                                   const struct order *order) {
    const struct vocabulary *vocabulary = &engine->vocabulary;
    warn_of_long_prompt(prompt->token_count, engine->gpt.config.context);
    for (int64_t i = 0; i < order->count; i++) {
        struct stop_filter filter = {.list = stops};
        struct text text = {.printer = {.vocabulary = vocabulary, .stops = &filter}};
        struct generation_request request = {
            .prompt = prompt->tokens,
            .prompt_count = prompt->token_count,
            .tokens = (size_t)config->sample.tokens,
            .stop = vocabulary->end_of_text,
            .sampling = sampling_from_config(config),
            .emit = print_token,
            .context = &text,
        };
        request.sampling.seed += (uint64_t)i;
        print_heading(prompt, order, request.sampling.seed);
        fputs(prompt->text, stdout);
        if (!vocabulary_is_text(vocabulary) && prompt->text[0] != '\0') putchar(' ');
        TRY(sampler_generate(engine, &request));
        token_printer_end(&text.printer, stdout);
        putchar('\n');
        fflush(stdout); /* before the note where both go to one place */
        note_of_end(&text, request.tokens);
        if (signals_received() != NULL) {
            return status_set(STATUS_INTERRUPTED, "sampling stopped by %s", signals_received());
        }
    }
    return STATUS_OK;
}

/* One after the other: beside others in a batch a text would be summed in another order, and its
 * bits would depend on its neighbours. */
static enum status sample(struct engine *engine, const struct config *config,
                          const struct order *order) {
    const struct vocabulary *vocabulary = &engine->vocabulary;
    struct prompt_list prompts = {.items = NULL};
    struct stop_list stops = {.count = 0};
    enum status status = STATUS_OK;
    for (size_t i = 0; i < order->stops.count; i++) {
        TRY_GOTO(stop_list_add(&stops, vocabulary, order->stops.items[i]), cleanup);
    }
    if (order->prompts != NULL) {
        status = prompt_list_read(&prompts, vocabulary, order->prompts);
    } else {
        const char *prompt = order->prompt != NULL ? order->prompt : config->sample.prompt;
        status = prompt_list_add(&prompts, vocabulary, prompt);
    }
    if (status != STATUS_OK) goto cleanup;
    for (size_t i = 0; i < prompts.count; i++) {
        TRY_GOTO(continue_prompt(engine, config, &prompts.items[i], &stops, order), cleanup);
    }
cleanup:
    stop_list_free(&stops);
    prompt_list_free(&prompts);
    return status;
}

static enum status load_and_sample(const struct run_model *model, const struct config *config,
                                   const struct order *order) {
    struct engine engine;
    if (order->prompt != NULL && order->prompts != NULL) {
        return status_set(STATUS_CONFIG, "expected --prompt or --prompts, found both");
    }
    TRY(config_check(config));
    TRY(engine_open(&engine, config, ENGINE_GENERATE, ENGINE_REAL));
    enum status status = run_model_load(model, &engine, config);
    if (status == STATUS_OK) status = sample(&engine, config, order);
    engine_close(&engine);
    return status;
}

enum status command_sample(int argc, char **argv) {
    struct order order = {.count = 1};
    const struct cli_option options[] = {
        {.name = "--prompt", .text = &order.prompt},
        {.name = "--prompts", .text = &order.prompts},
        {.name = "--stop", .texts = &order.stops},
        {.name = "--tokenizer", .config_key = "data.tokenizer"},
        {.name = "--tokens", .config_key = "sample.tokens"},
        {.name = "--temperature", .config_key = "sample.temperature"},
        {.name = "--top_k", .config_key = "sample.top_k"},
        {.name = "--top_p", .config_key = "sample.top_p"},
        {.name = "--seed", .config_key = "sample.seed"},
        {.name = "--count", .whole = &order.count, .least = 1, .most = 1000000},
    };
    const struct cli cli = {
        .command = "sample",
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
    enum status status = vocabulary_prefer_checkpoint(&config, model.path);
    if (status == STATUS_OK) status = cli_options(&cli, argc, argv, &config);
    if (status == STATUS_OK) status = load_and_sample(&model, &config, &order);
    run_model_close(&model);
    return status;
}

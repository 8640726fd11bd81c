/* deepwell convert */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "checkpoints/model_export.h"
#include "checkpoints/model_source.h"
#include "data/tokenizer.h"
#include "layers/gpt.h"
#include "train/cli.h"
#include "train/commands.h"
#include "train/engine.h"

static const char usage[] =
    "usage: deepwell convert MODEL FOLDER [options]\n"
    "\n"
    "Writes a model as a new folder that Hugging Face's from_pretrained loads. MODEL is such a\n"
    "folder (GPT-2, safetensors in one file or several), a run or a checkpoint of this program,\n"
    "or a model file of llm.c (version 3 or 5).\n"
    "\n"
    "  --to TYPE            fp32 (default), bf16 or fp16\n"
    "  --vocabulary N       leave out rows of the token embedding that are padding\n"
    "  --tokenizer PATH     a tokenizer.json, or the folder of one, to lie beside the weights\n"
    "                       (default: what lies beside MODEL's)\n"
    "\n"
    "  deepwell convert runs/mine exported --to bf16\n"
    "  deepwell convert gpt2_124M_bf16.bin gpt2 && deepwell train --train.init gpt2\n";

enum { TYPES = 3 };
static const char *const type_names[TYPES] = {"fp32", "bf16", "fp16"};
static const enum safetensors_dtype types[TYPES] = {SAFETENSORS_F32, SAFETENSORS_BF16,
                                                    SAFETENSORS_F16};

struct convert_options {
    struct cli_choice to; /* of the types */
    const char *tokenizer;
    int64_t vocabulary; /* 0: the model's */
};

/* The shape that is written: the model's, without padding where the option says so. */
static enum status choose_shape(const struct model_source *source,
                                const struct convert_options *options, struct hf_config *model) {
    *model = source->model;
    if (options->vocabulary == 0) return STATUS_OK;
    const size_t wanted = (size_t)options->vocabulary, found = source->model.vocab_size;
    if (wanted > found || found - wanted > VOCABULARY_PADDING_ROWS_MAX) {
        return status_set(
            STATUS_CONFIG,
            "--vocabulary: expected a number from %zu to %zu, since %s has %zu tokens "
            "and at most %d of them can be padding; found %zu",
            found > VOCABULARY_PADDING_ROWS_MAX ? found - VOCABULARY_PADDING_ROWS_MAX : 1, found,
            source->path, found, VOCABULARY_PADDING_ROWS_MAX, wanted);
    }
    model->vocab_size = wanted;
    if (model->bos_token_id >= (int)wanted) model->bos_token_id = -1;
    if (model->eos_token_id >= (int)wanted) model->eos_token_id = -1;
    return STATUS_OK;
}

static enum status find_tokenizer(const struct model_source *source,
                                  const struct convert_options *options,
                                  struct tokenizer_files *files) {
    if (options->tokenizer != NULL) return tokenizer_files_require(files, options->tokenizer);
    if (source->kind == MODEL_HUGGING_FACE) return tokenizer_files_read(files, source->path);
    *files = (struct tokenizer_files){0};
    return STATUS_OK;
}

/* A tokenizer with tokens that the model has no rows for is another model's. One that the built-in
 * tokenizer cannot read may be transformers' all the same. */
static enum status check_tokenizer(const struct tokenizer_files *files,
                                   const struct hf_config *model) {
    static const char *const name = "tokenizer.json";
    struct tokenizer *tokenizer = NULL;
    const struct tokenizer_file *file = tokenizer_files_find(files, name);
    if (file == NULL) return STATUS_OK;
    const enum status status = tokenizer_parse(&tokenizer, name, file->text, file->bytes);
    if (status == STATUS_MEMORY) return status;
    if (status != STATUS_OK) {
        fprintf(stderr, "note: not compared with the model's vocabulary: %s\n", status_message());
        return STATUS_OK;
    }
    const size_t tokens = tokenizer_vocabulary(tokenizer);
    tokenizer_close(tokenizer);
    if (tokens > model->vocab_size) {
        return status_set(STATUS_CONFIG,
                          "expected a tokenizer of at most %zu tokens, which the model has, found "
                          "%zu in its %s: it is another model's",
                          model->vocab_size, tokens, name);
    }
    if (tokens < model->vocab_size) {
        fprintf(stderr, "note: the tokenizer has %zu tokens, the model %zu: the others stand for "
                        "nothing%s\n", tokens, model->vocab_size,
                model->vocab_size - tokens <= VOCABULARY_PADDING_ROWS_MAX
                    ? " (--vocabulary leaves out padding)" : "");
    }
    return STATUS_OK;
}

static void print_result(const struct model_source *source, const struct model_export *model,
                         const char *folder, const char *type) {
    char count[TEXT_BYTES];
    printf("from        %s (%s)\n", source->path,
           source->kind == MODEL_LLMC ? "llm.c" : "Hugging Face's layout");
    printf("model       GPT-2, %zu layers, %zu heads, width %zu, context %zu, vocabulary %zu: %s "
           "parameters, output layer tied to the token embedding\n",
           model->model.n_layer, model->model.n_head, model->model.n_embd, model->model.n_positions,
           model->model.vocab_size, text_count(count, param_table_count(model->params)));
    printf("to          %s, %s%s\n", folder, type,
           model->tokenizer->count > 0 ? ", with its tokenizer" : ", without a tokenizer");
}

static enum status convert(const struct model_source *source, const char *folder,
                           const struct convert_options *options) {
    struct model_export model = {.dtype = types[options->to.chosen]};
    struct tokenizer_files tokenizer = {0};
    struct gpt gpt = {0};
    float *masters = NULL;
    enum status status = STATUS_OK;
    TRY(choose_shape(source, options, &model.model));
    const struct gpt_config shape = engine_gpt_config(&model.model);
    TRY(find_tokenizer(source, options, &tokenizer));
    TRY_GOTO(check_tokenizer(&tokenizer, &model.model), done);
    TRY_GOTO(gpt_open(&gpt, &shape, 0), done);
    masters = calloc(gpt.table.elements, sizeof *masters);
    if (masters == NULL) {
        status = status_set(STATUS_MEMORY, "out of memory for %zu weights", gpt.table.elements);
        goto done;
    }
    TRY_GOTO(model_source_load(source, &gpt.table, masters), done);
    model.params = &gpt.table;
    model.masters = masters;
    model.tokenizer = &tokenizer;
    TRY_GOTO(model_export_write(folder, &model), done);
    print_result(source, &model, folder, type_names[options->to.chosen]);

done:
    free(masters);
    gpt_close(&gpt);
    tokenizer_files_free(&tokenizer);
    return status;
}

static void print_warning(const char *message) { fprintf(stderr, "warning: %s\n", message); }

enum status command_convert(int argc, char **argv) {
    struct convert_options options = {.to = {type_names, TYPES, 0}};
    const struct cli_option table[] = {
        {.name = "--to", .choices = &options.to},
        {.name = "--vocabulary", .whole = &options.vocabulary, .least = 1, .most = INT32_MAX},
        {.name = "--tokenizer", .text = &options.tokenizer},
    };
    const struct cli cli = {
        .command = "convert",
        .usage = usage,
        .names = "MODEL, what to convert, and FOLDER, where it goes",
        .options = table,
        .option_count = sizeof table / sizeof table[0],
    };
    struct cli_names names;
    struct model_source source;
    TRY(cli_positionals(&cli, argc, argv, 2, 2, &names));
    if (names.help) return STATUS_OK;
    TRY(cli_options(&cli, argc, argv, NULL));
    TRY(model_export_check(names.names[1]));
    TRY(model_source_open(&source, names.names[0], print_warning));
    const enum status status = convert(&source, names.names[1], &options);
    model_source_close(&source);
    return status;
}

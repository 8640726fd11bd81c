/* Every configuration key: name, type, place, default, bounds, help. See train/config_table.h. */
#include "train/config_table.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "base/text.h"

static const char *const device_choices[] = {"auto", "cpu", "cuda", NULL};
static const char *const reduction_choices[] = {"fp32", "bf16", NULL};
static const char *const order_choices[] = {"fast", "fixed", NULL};
static const char *const recompute_choices[] = {"none", "gelu", "block", NULL};
static const char *const nonfinite_choices[] = {"stop", "skip", NULL};
static const char *const schedule_choices[] = {"constant", "linear", "cosine", "wsd", NULL};
static const char *const recipe_choices[] = {"fp32", "bf16", "fp16", "fp8", "fp8_block", "mxfp8",
                                             "nvfp4", NULL};
static const char *const fp8_scaling_choices[] = {"delayed", "current", NULL};
static const char *const gradient_choices[] = {"e5m2", "e4m3", NULL};
static const char *const scaling_choices[] = {"auto", "on", "off", NULL};
static const char *const search_choices[] = {"full", "fast", "off", NULL};
static const char *const attention_choices[] = {"deterministic", "fast", NULL};
static const char *const background_choices[] = {"auto", "on", "off", NULL};
/* in the order of enum param_role */
static const char *const role_choices[] = {"embedding", "position", "linear", "bias", "norm", NULL};

#define AT(member) .offset = offsetof(struct config, member)
#define INTEGER(member, text, least, most, words)                                               \
    {.name = #member, .type = CONFIG_INTEGER, AT(member), .default_text = text,                 \
     .minimum = least, .maximum = most, .help = words}
#define REAL(member, text, least, most, open_low, open_high, words)                             \
    {.name = #member, .type = CONFIG_REAL, AT(member), .default_text = text, .low = least,      \
     .high = most, .low_open = open_low, .high_open = open_high, .help = words}
#define CHOICE(member, text, list, words)                                                       \
    {.name = #member, .type = CONFIG_CHOICE, AT(member), .default_text = text, .choices = list, \
     .help = words}
#define SET(member, text, list, words)                                                          \
    {.name = #member, .type = CONFIG_SET, AT(member), .default_text = text, .choices = list,    \
     .help = words}
#define TEXT(member, text, words)                                                               \
    {.name = #member, .type = CONFIG_TEXT, AT(member), .default_text = text, .help = words}

/* Bounds keep products of sizes far from 2^63; what a machine can hold is decided later. */
enum { COUNT_MAX = 1 << 20, TOKENS_MAX = 1 << 30, VOCABULARY_MAX = 1 << 30 };
enum { SECONDS_MAX = 1000000 };
#define STEPS_MAX 1000000000000

const struct config_key config_keys[] = {
    CHOICE(device, "auto", device_choices,
           "where to run; auto: CUDA if there is one, else the CPU"),
    INTEGER(threads, "0", 0, 4096,
            "CPU threads; 0: all that the process may use, which CPU ranks of one host divide"),

    INTEGER(model.layers, "12", 1, 1000, "transformer blocks"),
    INTEGER(model.heads, "12", 1, 1024, "attention heads; must divide model.width"),
    INTEGER(model.width, "768", 1, 65536, "channels of the residual stream"),
    INTEGER(model.context, "1024", 1, COUNT_MAX, "positions: the longest sequence"),
    INTEGER(model.vocabulary, "50257", 2, VOCABULARY_MAX,
            "tokens; padded to a multiple of 128 in memory only"),

    TEXT(data.train, "data/train.bin",
         "token shards to train on: a file or a glob; empty: none (bench)"),
    TEXT(data.validation, "data/validation.bin",
         "token shards to validate on: a file or a glob; empty: no validation"),
    TEXT(data.tokenizer, "",
         "tokenizer.json, or its folder, for prompts and samples, laid into every checkpoint; "
         "empty: the one beside the training shards, if any"),
    INTEGER(data.end_of_text, "-1", -1, TOKENS_MAX,
            "token that ends a document; -1: as dataset.json beside the training shards or the "
            "tokenizer says"),

    TEXT(train.out, "runs/gpt2_124m", "the run's folder: checkpoints, metrics.jsonl"),
    INTEGER(train.steps, "18865", 1, STEPS_MAX, "optimizer steps of the whole run"),
    INTEGER(train.batch, "512", 1, COUNT_MAX, "sequences a step, over all ranks"),
    INTEGER(train.micro_batch, "16", 0, COUNT_MAX,
            "sequences at a time on a rank; gradients are accumulated; 0: train.batch"),
    INTEGER(train.zero, "1", 0, 3,
            "stage of ZeRO, what ranks share out: 0 nothing, 1 the optimizer, 2 gradients too, 3 "
            "parameters too"),
    INTEGER(train.sequence_length, "0", 0, COUNT_MAX,
            "tokens of a training sequence; 0: model.context"),
    INTEGER(train.seed, "1", 0, INT64_MAX, "of the initial weights and the order of the data"),
    TEXT(train.resume, "auto",
         "auto: continue from the newest checkpoint in train.out, if any; never; or a checkpoint's "
         "folder"),
    TEXT(train.init, "",
         "a model whose weights a new run starts from: a folder of Hugging Face's, a run or "
         "checkpoint, a model file of llm.c; empty: random"),
    CHOICE(train.recompute, "none", recompute_choices,
           "activations computed again in the backward pass instead of kept"),
    INTEGER(train.logits_chunk, "0", 0, TOKENS_MAX,
            "tokens whose logits are in memory at once; 0: automatic"),
    CHOICE(train.nonfinite, "stop", nonfinite_choices,
           "what to do at a loss or gradient that is not finite"),
    INTEGER(train.nonfinite_max, "100", 1, STEPS_MAX,
            "skipped steps in a row after which the run stops all the same"),
    INTEGER(train.log_every, "10", 1, STEPS_MAX,
            "steps between lines where the output is no terminal"),

    REAL(optimizer.learning_rate, "6e-4", 0, 10, false, false, "the peak learning rate"),
    REAL(optimizer.final_fraction, "0", 0, 1, false, false, "final learning rate / peak"),
    CHOICE(optimizer.schedule, "cosine", schedule_choices,
           "learning rate after the warm-up; wsd: constant, then linear over "
           "optimizer.decay_steps"),
    INTEGER(optimizer.warmup_steps, "700", 0, STEPS_MAX, "steps of linear warm-up"),
    INTEGER(optimizer.decay_steps, "0", 0, STEPS_MAX,
            "length of the final decay of wsd; 0: a fifth of train.steps"),
    REAL(optimizer.beta1, "0.9", 0, 1, false, true, "AdamW: decay of the first moment"),
    REAL(optimizer.beta2, "0.95", 0, 1, false, true, "AdamW: decay of the second moment"),
    REAL(optimizer.epsilon, "1e-8", 0, 1, true, false,
         "AdamW: added to the root of the second moment"),
    REAL(optimizer.weight_decay, "0.1", 0, 10, false, false, "AdamW: decoupled weight decay"),
    SET(optimizer.decay_roles, "embedding,position,linear", role_choices,
        "parameters that weight decay applies to"),
    REAL(optimizer.clip_norm, "1", 0, 1e9, false, false,
         "largest global gradient norm; 0: no clipping"),
    REAL(optimizer.loss_z_max, "0", 0, 1e9, false, false,
         "skip a step whose loss lies more standard deviations above the recent mean; 0: off"),
    REAL(optimizer.norm_z_max, "0", 0, 1e9, false, false, "the same for the gradient norm; 0: off"),

    CHOICE(precision.recipe, "bf16", recipe_choices,
           "compute type; master weights and optimizer state are FP32 in all; fp8 and after: of "
           "the linears' operands, the rest in bf16"),
    CHOICE(precision.scaling, "delayed", fp8_scaling_choices,
           "fp8: a tensor's scale from the largest numbers of the last 16 steps, or from its own"),
    CHOICE(precision.gradient_format, "e5m2", gradient_choices,
           "fp8: of gradients of activations; the other narrow recipes have one of their own"),
    CHOICE(precision.lm_head, "bf16", recipe_choices,
           "recipe of the head; one that is not narrow: as precision.recipe computes elsewhere"),
    INTEGER(precision.first_layers, "0", 0, 1000, "first blocks whose linears take "
            "precision.end_layers"),
    INTEGER(precision.last_layers, "0", 0, 1000, "last blocks whose linears take "
            "precision.end_layers"),
    CHOICE(precision.end_layers, "bf16", recipe_choices,
           "recipe of the first and last layers; one that is not narrow: as precision.recipe "
           "computes elsewhere"),
    CHOICE(precision.loss_scaling, "auto", scaling_choices,
           "dynamic loss scaling; auto: on for fp16; off: gradients are not scaled"),
    REAL(precision.loss_scale, "65536", 1, 0x1p40, false, false, "initial loss scale"),
    REAL(precision.loss_scale_growth, "2", 1, 16, true, false, "factor after a good interval"),
    REAL(precision.loss_scale_backoff, "0.5", 0, 1, true, true, "factor after an overflow"),
    INTEGER(precision.loss_scale_interval, "2000", 1, STEPS_MAX,
            "steps without overflow before the scale grows"),

    INTEGER(checkpoint.every, "1000", 0, STEPS_MAX,
            "steps between checkpoints; 0: at the end only"),
    INTEGER(checkpoint.keep, "3", 1, COUNT_MAX, "newest checkpoints that are kept"),
    INTEGER(checkpoint.keep_every, "0", 0, STEPS_MAX,
            "checkpoints of multiples of this step are kept for ever; 0: none"),
    CHOICE(checkpoint.background, "auto", background_choices,
           "write checkpoints on a thread, from a copy in host memory, while training goes on; "
           "auto: where there is memory for the copy"),

    INTEGER(validation.every, "250", 0, STEPS_MAX, "steps between validations; 0: at the end only"),
    INTEGER(validation.sequences, "0", 0, STEPS_MAX, "sequences validated on, at most; 0: all"),
    INTEGER(validation.micro_batch, "0", 0, COUNT_MAX, "sequences at a time; 0: as in training"),

    TEXT(eval.file, "",
         "multiple-choice questions as llm.c writes them (hellaswag_val.bin), or as text "
         "(FILE.jsonl, docs/formats.md), scored during the run; empty: none"),
    INTEGER(eval.every, "0", 0, STEPS_MAX, "steps between scorings; 0: at the end only"),
    INTEGER(eval.examples, "0", 0, STEPS_MAX, "questions, at most; 0: all"),

    INTEGER(sample.every, "0", 0, STEPS_MAX, "steps between samples; 0: none during the run"),
    INTEGER(sample.tokens, "256", 1, TOKENS_MAX, "tokens to generate"),
    TEXT(sample.prompt, "", "text to continue; empty: the start of a document"),
    REAL(sample.temperature, "0.8", 0, 100, false, false, "0: always the most likely token"),
    INTEGER(sample.top_k, "0", 0, VOCABULARY_MAX, "sample among the k most likely tokens; 0: off"),
    REAL(sample.top_p, "1", 0, 1, true, false,
         "sample among the most likely tokens that have this probability together; 1: off"),
    INTEGER(sample.seed, "1", 0, INT64_MAX, "of the random choices"),

    CHOICE(gemm.search, "full", search_choices,
           "how a GPU's GEMM algorithms are chosen: timed under load, in short bursts, or the "
           "library's first answer; each is checked; no meaning on a CPU"),
    CHOICE(attention.backward, "deterministic", attention_choices,
           "fast: on a GPU in bf16 and fp16 sums in any order, so that runs no longer repeat bit "
           "by bit; no meaning on a CPU"),

    CHOICE(comm.reduction, "fp32", reduction_choices,
           "type in which gradients travel between ranks and are summed"),
    CHOICE(comm.order, "fast", order_choices,
           "order in which gradients are summed over ranks; fixed: that of one rank, so that any "
           "number of ranks gives the same bits; slower"),
    TEXT(comm.rendezvous, "",
         "where the ranks of a run meet: HOST:PORT of rank 0, or file:PATH on storage that all "
         "share; empty: as the launcher says (docs/many_ranks.md)"),
    INTEGER(comm.start_timeout, "300", 1, SECONDS_MAX,
            "seconds for all ranks to come; who is missing is named"),
    INTEGER(comm.timeout, "600", 1, SECONDS_MAX,
            "seconds for a collective; then the run ends, naming the ranks that did not arrive; a "
            "host that falls silent is given 10 more"),
    INTEGER(comm.save_timeout, "7200", 1, SECONDS_MAX,
            "the same while a checkpoint is written, which all ranks wait for"),
    INTEGER(comm.max_ctas, "0", 0, 64,
            "blocks of a GPU that communication may take; 0: NCCL's choice"),

    REAL(mfu.peak, "0", 0, 1e9, false, false,
         "dense TFLOPS of the compute type that MFU is a share of, or of a narrow recipe's mixture "
         "of types; 0: from the table of devices, n/a for others"),
};
const size_t config_key_count = sizeof config_keys / sizeof config_keys[0];
_Static_assert(sizeof config_keys / sizeof config_keys[0] <= CONFIG_KEYS_MAX,
               "raise CONFIG_KEYS_MAX");

const char *const config_sections[] = {"model", "data", "train", "optimizer", "precision",
                                       "checkpoint", "validation", "eval", "sample", "gemm",
                                       "attention", "comm", "mfu"};
const size_t config_section_count = sizeof config_sections / sizeof config_sections[0];

const struct config_key *config_key_find(const char *name) {
    for (size_t i = 0; i < config_key_count; i++) {
        if (strcmp(config_keys[i].name, name) == 0) return &config_keys[i];
    }
    return NULL;
}

size_t config_section_length(const char *name) {
    const char *dot = strchr(name, '.');
    return dot == NULL ? 0 : (size_t)(dot - name);
}

/* The key by its last word ("steps" for "train.steps"), which edit distance would not find. */
static const char *find_last_word(const char *name) {
    const char *dot = strrchr(name, '.'), *word = dot == NULL ? name : dot + 1;
    for (size_t i = 0; i < config_key_count; i++) {
        const char *candidate = config_keys[i].name;
        const size_t section = config_section_length(candidate);
        if (section > 0 && strcmp(candidate + section + 1, word) == 0) return candidate;
    }
    return NULL;
}

const char *config_hint(char text[TEXT_HINT_BYTES], const char *name) {
    const char *names[sizeof config_keys / sizeof config_keys[0]];
    for (size_t i = 0; i < config_key_count; i++) names[i] = config_keys[i].name;
    text_hint(text, name, names, config_key_count);
    const char *found = text[0] == '\0' ? find_last_word(name) : NULL;
    if (found != NULL) snprintf(text, TEXT_HINT_BYTES, " (did you mean %s?)", found);
    return text[0] != '\0' ? text : " (--help lists all keys)";
}

const char *config_printable(char text[CONFIG_FOUND_BYTES], const char *value) {
    size_t i = 0;
    for (; value[i] != '\0' && i < CONFIG_FOUND_BYTES - 4; i++) {
        text[i] = isprint((unsigned char)value[i]) ? value[i] : '?';
    }
    snprintf(text + i, CONFIG_FOUND_BYTES - i, "%s", value[i] == '\0' ? "" : "...");
    return text;
}

size_t config_choice_count(const struct config_key *key) {
    size_t count = 0;
    while (key->choices != NULL && key->choices[count] != NULL) count++;
    return count;
}

const char *config_range(char text[CONFIG_RANGE_BYTES], const struct config_key *key) {
    char choices[CONFIG_RANGE_BYTES - 32] = "";
    switch (key->type) {
    case CONFIG_INTEGER:
        if (key->maximum == INT64_MAX) {
            snprintf(text, CONFIG_RANGE_BYTES, "whole number, %lld or more",
                     (long long)key->minimum);
        } else {
            snprintf(text, CONFIG_RANGE_BYTES, "whole number, %lld to %lld",
                     (long long)key->minimum, (long long)key->maximum);
        }
        break;
    case CONFIG_REAL:
        snprintf(text, CONFIG_RANGE_BYTES, "number, %s %g and %s %g",
                 key->low_open ? "above" : "at least", key->low,
                 key->high_open ? "below" : "at most", key->high);
        break;
    case CONFIG_CHOICE:
        text_list(text, CONFIG_RANGE_BYTES, key->choices, config_choice_count(key), " or ");
        break;
    case CONFIG_SET:
        text_list(choices, sizeof choices, key->choices, config_choice_count(key), ", ");
        snprintf(text, CONFIG_RANGE_BYTES, "list of %s; or none", choices);
        break;
    case CONFIG_TEXT:
        snprintf(text, CONFIG_RANGE_BYTES, "text");
        break;
    }
    return text;
}

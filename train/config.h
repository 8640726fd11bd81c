/*
 * The configuration of a run: every key, its default and its bounds come from one table
 * (config_table.c). A run is a file, and every key of the file is an option too: `train.steps` is
 * `steps` under `[train]` and `--train.steps 100` (or `--train.steps=100`) on the command line.
 * Defaults come first, then the file, then the options; later wins. Help, the printed
 * configuration, the copy in a checkpoint and docs/configuration.md are made from the same table.
 *
 * Owned by the command that runs; plain values, nothing to release. All failures are STATUS_CONFIG
 * with the key (and file:line), what was found and what is allowed. Not for use on several threads
 * at once.
 */
#ifndef DEEPWELL_TRAIN_CONFIG_H_
#define DEEPWELL_TRAIN_CONFIG_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cjson/cJSON.h>

#include "base/status.h"
#include "train/schedule.h"

enum { CONFIG_TEXT_BYTES = 1024 }; /* room for a text value and its NUL */

enum config_device { CONFIG_DEVICE_AUTO, CONFIG_DEVICE_CPU, CONFIG_DEVICE_CUDA };
/* In the order of enum recipe_kind (layers/recipe.h). */
enum config_recipe {
    CONFIG_RECIPE_FP32, CONFIG_RECIPE_BF16, CONFIG_RECIPE_FP16, CONFIG_RECIPE_FP8,
    CONFIG_RECIPE_FP8_BLOCK, CONFIG_RECIPE_MXFP8, CONFIG_RECIPE_NVFP4,
};
enum config_fp8_scaling { CONFIG_FP8_DELAYED, CONFIG_FP8_CURRENT };
enum config_gradient_format { CONFIG_GRADIENT_E5M2, CONFIG_GRADIENT_E4M3 };
enum config_recompute { CONFIG_RECOMPUTE_NONE, CONFIG_RECOMPUTE_GELU, CONFIG_RECOMPUTE_BLOCK };
enum config_nonfinite { CONFIG_NONFINITE_STOP, CONFIG_NONFINITE_SKIP };
enum config_search { CONFIG_SEARCH_FULL, CONFIG_SEARCH_FAST, CONFIG_SEARCH_OFF };
enum config_attention { CONFIG_ATTENTION_DETERMINISTIC, CONFIG_ATTENTION_FAST };
enum config_background { CONFIG_BACKGROUND_AUTO, CONFIG_BACKGROUND_ON, CONFIG_BACKGROUND_OFF };
enum config_reduction { CONFIG_REDUCTION_FP32, CONFIG_REDUCTION_BF16 };
enum config_order { CONFIG_ORDER_FAST, CONFIG_ORDER_FIXED };
enum config_scaling { CONFIG_SCALING_AUTO, CONFIG_SCALING_ON, CONFIG_SCALING_OFF };

struct config_model {
    int64_t layers, heads, width, context, vocabulary;
};

struct config_data {
    char train[CONFIG_TEXT_BYTES], validation[CONFIG_TEXT_BYTES]; /* a file or a glob */
    char tokenizer[CONFIG_TEXT_BYTES]; /* tokenizer.json; empty: to be found, or none */
    int64_t end_of_text;               /* -1: to be found, or none */
};

struct config_train {
    char out[CONFIG_TEXT_BYTES];    /* the run's folder */
    int64_t steps;
    int64_t batch;                  /* sequences a step, all ranks together */
    int64_t micro_batch;            /* sequences at a time on a rank; 0: batch */
    int64_t zero;                   /* stage of ZeRO */
    int64_t sequence_length;        /* 0: model.context */
    int64_t seed;
    char resume[CONFIG_TEXT_BYTES]; /* "auto", "never" or a checkpoint folder */
    char init[CONFIG_TEXT_BYTES];   /* a model to take the first weights from; "": random */
    int recompute;                  /* enum config_recompute */
    int64_t logits_chunk;           /* tokens; 0: automatic */
    int nonfinite;                  /* enum config_nonfinite */
    int64_t nonfinite_max;          /* skipped steps in a row that stop a run all the same */
    int64_t log_every;
};

struct config_optimizer {
    double learning_rate;  /* the peak */
    double final_fraction; /* final learning rate / peak */
    int schedule;          /* enum schedule_kind */
    int64_t warmup_steps;
    int64_t decay_steps;   /* wsd; 0: a fifth of the steps */
    double beta1, beta2, epsilon, weight_decay;
    int decay_roles;       /* bit r: weight decay applies to enum param_role r */
    double clip_norm;      /* 0: off */
    double loss_z_max, norm_z_max; /* 0: off */
};

struct config_precision {
    int recipe;       /* enum config_recipe */
    int scaling;      /* enum config_fp8_scaling */
    int gradient_format; /* enum config_gradient_format */
    int lm_head;      /* enum config_recipe: of the head */
    int64_t first_layers, last_layers;
    int end_layers;   /* enum config_recipe: of those blocks */
    int loss_scaling; /* enum config_scaling */
    double loss_scale, loss_scale_growth, loss_scale_backoff;
    int64_t loss_scale_interval;
};

struct config_checkpoint {
    int64_t every; /* steps; 0: at the end only */
    int64_t keep, keep_every;
    int background;      /* enum config_background */
};

struct config_validation {
    int64_t every;       /* steps; 0: at the end only */
    int64_t sequences;   /* at most; 0: all */
    int64_t micro_batch; /* 0: train's */
};

struct config_eval {
    char file[CONFIG_TEXT_BYTES]; /* "": none */
    int64_t every;                /* steps; 0: at the end only */
    int64_t examples;             /* at most; 0: all */
};

struct config_sample {
    int64_t every; /* steps; 0: never during a run */
    int64_t tokens;
    char prompt[CONFIG_TEXT_BYTES];
    double temperature;
    int64_t top_k; /* 0: off */
    double top_p;  /* 1: off */
    int64_t seed;
};

struct config_gemm {
    int search; /* enum config_search */
};

struct config_attention_choice {
    int backward; /* enum config_attention */
};

struct config_comm {
    int reduction; /* enum config_reduction */
    int order;     /* enum config_order */
    char rendezvous[CONFIG_TEXT_BYTES]; /* "HOST:PORT", "file:PATH"; "": as the launcher says */
    int64_t start_timeout, timeout, save_timeout; /* seconds */
    int64_t max_ctas;                   /* 0: NCCL's choice */
};

struct config_mfu {
    double peak; /* TFLOPS, dense, of the compute type; 0: from the table, or n/a */
};

struct config {
    int device;      /* enum config_device */
    int64_t threads; /* 0: all */
    struct config_model model;
    struct config_data data;
    struct config_train train;
    struct config_optimizer optimizer;
    struct config_precision precision;
    struct config_checkpoint checkpoint;
    struct config_validation validation;
    struct config_eval eval;
    struct config_sample sample;
    struct config_gemm gemm;
    struct config_attention_choice attention;
    struct config_comm comm;
    struct config_mfu mfu;
};

void config_defaults(struct config *config);

/* What a run saves in its folder: the configuration that it was last started with. */
#define CONFIG_SAVED_NAME "configuration.conf"

/* Sets the keys that the file names; the others stay. A key twice in one file is an error. */
enum status config_load(struct config *config, const char *path);

/* The same from memory; `label` stands for the file in messages. */
enum status config_load_text(struct config *config, const char *label, const char *text,
                             size_t bytes);

/* Sets one key ("train.steps") from text as it stands on a command line. */
enum status config_set(struct config *config, const char *key, const char *value);

/* Takes the option at argv[*index], "--key value" or "--key=value", and moves *index past it.
 * Commands look at their own options first and give the rest to this. */
enum status config_option(struct config *config, int argc, char *const *argv, int *index);

/* What no single key can tell: divisibility, lengths, orders. Names both keys and their values. */
enum status config_check(const struct config *config);

/* That so many ranks can share out train.batch in their micro-batches; names what would do. */
enum status config_check_ranks(const struct config *config, int64_t ranks);

/* The effective configuration as a file that config_load reads back to the same values. */
void config_print(const struct config *config, FILE *out);

void config_print_help(FILE *out);     /* grouped by section: type, default, bounds, help */
void config_print_markdown(FILE *out); /* docs/configuration.md */

/* One object, key to value as text; release with cJSON_Delete. NULL when out of memory. */
cJSON *config_to_json(const struct config *config);
/* Sets the keys that the object names; the others stay. */
enum status config_from_json(struct config *config, const cJSON *object);

/* Values whose 0 (or auto) stands for something else, resolved. */
int64_t config_sequence_length(const struct config *config);
int64_t config_micro_batch(const struct config *config);
/* A step's, on each of so many ranks. */
int64_t config_micro_batches(const struct config *config, int64_t ranks);
int64_t config_validation_micro_batch(const struct config *config);
bool config_loss_scaling(const struct config *config); /* dynamic loss scaling is on */
struct schedule config_schedule(const struct config *config);

#endif

/*
 * Everything a command needs to run a model on a device: the device, the model, and the arenas by
 * lifetime.
 *
 *   parameters   master weights (FP32) and, for recipes below FP32, the weights in the compute
 * type;
 *                for narrow recipes the copies of linears' weights, and the scale states
 *   gradients    FP32
 *   optimizer    both moments, FP32, and the step state
 *   activations  of training, validation or generation: they take turns in the same memory
 *   scratch      working memory of single operations
 *
 * Opened once, sized from the tensor table before the first operation; nothing is allocated
 * afterwards. Owned by the commands (command_*.c); trainer.c, validation.c and sampler.c work on
 * it.
 */
#ifndef DEEPWELL_TRAIN_ENGINE_H_
#define DEEPWELL_TRAIN_ENGINE_H_

#include "checkpoints/checkpoint.h"
#include "kernels/arena.h"
#include "kernels/device.h"
#include "kernels/ops.h"
#include "layers/gpt.h"
#include "layers/gpt_generate.h"
#include "layers/gpt_train.h"
#include "train/comm.h"
#include "train/config.h"
#include "train/exchange.h"
#include "train/flops.h"
#include "train/peak.h"
#include "train/ranks.h"
#include "train/vocabulary.h"

enum engine_part {
    ENGINE_TRAIN = 1,    /* gradients, optimizer, training activations */
    ENGINE_EVALUATE = 2, /* forward-only activations */
    ENGINE_GENERATE = 4, /* key-value caches */
};

enum engine_memory {
    ENGINE_REAL,    /* allocated on the device */
    ENGINE_RESERVED /* address space only: for plan, which records a step without running it */
};

enum { ENGINE_ARENAS = 5, GENERATION_CHUNK = 64 };

/* Operations that every step repeats: run twice (the second time to be recorded), then replayed
 * (step.c). */
struct engine_recording {
    struct device_recording *recording; /* NULL: none yet */
    uint64_t runs;
};

struct engine {
    struct device device;
    struct gpt gpt;
    struct vocabulary vocabulary;
    enum dtype dtype;           /* of weights and activations */
    struct precision precision; /* as configured */
    unsigned parts;
    enum engine_memory memory;
    struct arena arenas[ENGINE_ARENAS]; /* in the order above */
    struct ranks ranks;
    struct comm one_rank;       /* where there is no other */
    struct comm *comm;
    struct exchange exchange;   /* between ranks */
    size_t owned;               /* numbers of masters and moments here: gpt.table.elements, or this
                                 * rank's (exchange.h) */
    float *masters;             /* flat */
    struct tensor weights;      /* flat, all; the masters themselves in fp32 unless they are shared
                                 * out; data NULL with train.zero = 3 */
    struct scale_state *scales; /* device memory, gpt_scale_count(): weights and training; NULL
                                 * without narrow recipe */
    struct scale_state *evaluation_scales;
    float *gradients;           /* flat, all; NULL with train.zero = 2 and 3 */
    float *moments1, *moments2; /* as the masters */
    struct step_state *state;   /* device memory */
    struct adamw_range *ranges; /* host memory */
    size_t range_count;
    struct gpt_training training;
    struct gpt_training evaluation;
    struct gpt_generation generation;
    bool eager;                 /* record nothing: every operation is asked for anew */
    struct engine_recording micro_batches[EXCHANGE_KINDS]; /* the first of a step, those that add
                                                            * to it, and what leaves at the end */
    struct engine_recording update;
};

/* Bytes of each arena for this configuration; nothing is allocated. `device` gives the operations
 * whose scratch is counted. */
struct engine_memory_plan {
    const char *names[ENGINE_ARENAS];
    size_t bytes[ENGINE_ARENAS];
    size_t total_bytes;
    size_t scratch_bytes; /* of the last arena: what single operations work in */
    size_t logits_offset; /* there; attention alone works behind it, never while there are logits */
};
enum status engine_plan(const struct config *config, unsigned parts, const struct device *device,
                        struct engine_memory_plan *plan);
/* The same for one of several ranks: each needs as much. */
enum status engine_plan_rank(const struct config *config, unsigned parts,
                             const struct device *device, const struct ranks *ranks,
                             struct engine_memory_plan *plan);

/* Opens the device and lays everything out; weights, moments and state are zero. STATUS_MEMORY with
 * the plan's numbers if the device has less memory. */
enum status engine_open(struct engine *engine, const struct config *config, unsigned parts,
                        enum engine_memory memory);
/* The same for one of several ranks, which talk through `comm`; it outlives the engine, whose
 * device becomes its own. */
enum status engine_open_rank(struct engine *engine, const struct config *config, unsigned parts,
                             const struct ranks *ranks, struct comm *comm);
void engine_close(struct engine *engine);

/* New weights from the seed, and the starting step state. */
enum status engine_initialise(struct engine *engine, const struct config *config);

/* Weights of a trained model of the same shape, and the starting step state. STATUS_CHECKPOINT with
 * the keys to set if the shapes differ. */
struct model_source;
enum status engine_import(struct engine *engine, const struct config *config,
                          const struct model_source *source);

/* Weights from a checkpoint (STATUS_CHECKPOINT if it is of another model); with ENGINE_TRAIN the
 * moments too. The step state is the trainer's (run_state.h). */
enum status engine_load(struct engine *engine, const struct checkpoint *checkpoint);

/* Masters and moments are shared out among the ranks. */
static inline bool engine_shares_out(const struct engine *engine) {
    return engine->exchange.active && engine->exchange.zero > 0;
}

/* Which of the flat buffers' numbers masters and moments are: at most gpt_bucket_count() ranges, in
 * order. Returns how many. */
size_t engine_ranges(const struct engine *engine, struct flat_range *ranges);

/* The device that the configuration asks for. `auto` is the CPU only where there is no GPU to speak
 * of (no CUDA in this build, no driver, no device), and device.note says which; a GPU that is there
 * and fails is an error. */
enum status engine_open_device(struct device *device, const struct config *config);
/* The same for one of several ranks: its own. */
enum status engine_open_rank_device(struct device *device, const struct config *config,
                                    const struct ranks *ranks);

/* The device's row in the table of peaks; NULL: none, as of CPUs. And the column of a type. */
const struct peak *engine_peak(const struct device *device);
enum peak_type engine_peak_type(enum dtype dtype);

/* What this run's TFLOPS are held against: the peak of the compute type, or with narrow linears the
 * speed of light of their products and the rest (attention, a wide head and wide end layers, in the
 * activations' type). mfu.peak, where it is set, stands for either. */
struct speed_limit engine_speed_limit(const struct engine *engine, const struct config *config,
                                      const struct flops *flops);

struct gpt_config engine_model(const struct config *config);
struct gpt_config engine_gpt_config(const struct hf_config *model);
enum dtype engine_dtype(const struct config *config);
struct precision engine_precision(const struct config *config);

/* Refuses a recipe whose blocks do not divide the model, and one that the device cannot run either
 * way, before any memory is taken. */
enum status engine_check_precision(const struct engine *engine, const struct config *config);

/* How this engine's device runs the configured recipes: the least of them. */
enum support engine_support(const struct engine *engine);

/* "fp8 (delayed scaling, gradients e5m2; head bf16), emulated on the CPU": for headers. */
enum { PRECISION_TEXT_BYTES = 256 };
const char *engine_precision_text(char text[PRECISION_TEXT_BYTES], const struct engine *engine);

/* Quantises the weights for narrow linears: whenever they changed. */
enum status engine_narrow_weights(struct engine *engine);

/* All scale states, gpt_scale_count(), to and from host memory. Those that come from a checkpoint
 * let delayed scaling go on where it was. */
enum status engine_read_scales(struct engine *engine, struct scale_state *states);
enum status engine_write_scales(struct engine *engine, const struct scale_state *states);

/* A model's shape in a configuration, from a checkpoint: eval and sample need no configuration
 * file. */
void engine_model_from_checkpoint(struct config *config, const struct hf_config *model);
struct hf_config engine_hf_config(const struct config *config);

#endif

/*
 * A checkpoint is a folder RUN/step_00001000/ that Hugging Face's from_pretrained loads as it is:
 *   model.safetensors      master weights, FP32, Hugging Face names and layout
 *   config.json            the model's shape
 *   optimizer-00001-of-00001.safetensors   both moments by tensor name and flat range; one file a
 *                          rank that had a part of them
 *   state.json             the trainer's: step, sampling position, step state, configuration
 *   tokenizer.json, ...    the tokenizer's files as they were given, if any (tokenizer_files.h)
 *   manifest.json          name, size and XXH3-128 of every other file; written last
 *
 * The invariants, and the functions that keep them, stand at the top of checkpoint.c.
 */
#ifndef DEEPWELL_CHECKPOINTS_CHECKPOINT_H_
#define DEEPWELL_CHECKPOINTS_CHECKPOINT_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cjson/cJSON.h>

#include "base/file.h"
#include "base/status.h"
#include "checkpoints/digest.h"
#include "checkpoints/hf_config.h"
#include "checkpoints/manifest.h"
#include "checkpoints/safetensors.h"
#include "checkpoints/tokenizer_files.h"
#include "checkpoints/weights.h"
#include "kernels/param_table.h"

/* What is saved. Flat buffers are laid out by the table (param.offset), in host memory. */
struct checkpoint_content {
    int64_t step; /* optimizer steps done */
    const struct param_table *params;
    const float *masters, *moments1, *moments2;
    const struct weights_source *weights; /* instead of masters: weights.h */
    struct hf_config model;
    const cJSON *state; /* the trainer's, for state.json; an object with "step" in it */
    const struct tokenizer_files *tokenizer; /* to lie beside the weights; NULL: none */
};

/* Keeps the newest `keep` checkpoints and every one whose step is a multiple of keep_every (0: of
 * nothing). */
struct checkpoint_retention {
    int64_t keep; /* at least 1 */
    int64_t keep_every;
};

/* Writes RUN/step_NNNNNNNN, complete and durable or not at all, reads it back to verify it, and
 * only then prunes. An existing checkpoint of that step is left alone if it verifies, replaced if
 * it does not. The caller holds the run's lock (run_lock.h). STATUS_IO when the disk is full or the
 * folder not writable: then nothing has changed. STATUS_NUMERICS for a state.json with NaN or
 * infinity; weights and moments are written as they are (the trainer skips steps that are not
 * finite). */
enum status checkpoint_save(const char *run_folder, const struct checkpoint_content *content,
                            const struct checkpoint_retention *retention);

/*
 * The same by several ranks together, which share the run folder; checkpoint_save() is these steps
 * one after the other. The first rank begins, writes what is there once, and ends; every rank, the
 * first too, writes its shard in between. Whoever fails tells the first, which then fails the save:
 * nothing has changed. Calls on other ranks need no struct checkpoint_writing, only the folder.
 */
struct checkpoint_writing {
    const char *run_folder;
    const struct checkpoint_content *content; /* moments are not looked at */
    const struct checkpoint_retention *retention;
    char folder[PATH_BYTES]; /* where the files go until all are whole */
    bool whole;              /* a checkpoint of this step is there: write nothing, end at once */
    bool replaces;           /* something that is none has its name */
    struct manifest_file *files;
    size_t count, capacity;
};

/* `shards` files of moments will be written. */
enum status checkpoint_begin(struct checkpoint_writing *writing, const char *run_folder,
                             const struct checkpoint_content *content,
                             const struct checkpoint_retention *retention, size_t shards);
enum status checkpoint_write_model(struct checkpoint_writing *writing);

/* Shard `index` (from 0) of `shards`. */
enum status checkpoint_write_shard(const char *folder, const struct param_table *params,
                                   struct flat_ranges ranges, const float *moments1,
                                   const float *moments2, size_t index, size_t shards,
                                   struct file_digest *digest);
enum status checkpoint_end(struct checkpoint_writing *writing, const struct file_digest *shards,
                           size_t count);
/* Instead of the end. Returns `status`, with its message. */
enum status checkpoint_fail(struct checkpoint_writing *writing, enum status status);

/* STATUS_IO with both numbers if the disk has no room for one more checkpoint: asked before a run
 * begins and before each save. */
enum status checkpoint_check_space(const char *run_folder, const struct param_table *params);

/* An opened, fully verified checkpoint. */
struct checkpoint {
    char path[PATH_BYTES];
    int64_t step;
    struct hf_config model;
    cJSON *state;
    struct safetensors weights;
    struct safetensors *optimizer; /* the optimizer files, mapped */
    size_t optimizer_count;
};

/* Verifies manifest, sizes, checksums and headers. STATUS_CHECKPOINT with the reason; where a newer
 * or older good checkpoint lies beside it, the message offers it. */
enum status checkpoint_open(struct checkpoint *checkpoint, const char *path);
void checkpoint_close(struct checkpoint *checkpoint);

/* The newest checkpoint of the run that verifies. *found is false if the run has none at all; if
 * there are some and none verifies, STATUS_CHECKPOINT. Broken ones that were passed over are named
 * through `warn` (may be NULL). Temporary folders of interrupted saves are never taken for
 * checkpoints. */
enum status checkpoint_newest(const char *run_folder, char path[PATH_BYTES], bool *found,
                              void (*warn)(const char *message));

/* Copies weights (transposed and padded back) into a flat buffer laid out by `params`, or moments
 * into buffers that hold these ranges of it.
 * Every tensor must be there with the expected shape; an unknown one is an error too. */
enum status checkpoint_load_weights(const struct checkpoint *checkpoint,
                                    const struct param_table *params, float *masters);
/* One parameter's weights, after checkpoint_check_weights(): `count` numbers, padding zero. */
enum status checkpoint_check_weights(const struct checkpoint *checkpoint,
                                     const struct param_table *params);
void checkpoint_load_weight(const struct checkpoint *checkpoint, const struct param *param,
                            float *values);
enum status checkpoint_load_moments(const struct checkpoint *checkpoint,
                                    const struct param_table *params, struct flat_ranges ranges,
                                    float *moments1, float *moments2);

/* Removes what retention does not keep and the leftovers of interrupted saves. Never removes the
 * newest one that verifies, nor what is newer than that. The caller holds the run's lock. */
enum status checkpoint_prune(const char *run_folder, const struct checkpoint_retention *retention);

#endif

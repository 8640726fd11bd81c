/*
 * A checkpoint is a folder RUN/step_00001000/ that Hugging Face's from_pretrained loads as it is:
 *   model.safetensors      master weights, FP32, Hugging Face names and layout
 *   config.json            the model's shape
 *   optimizer-00001-of-00001.safetensors   both moments by tensor name and flat range
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
#include "checkpoints/hf_config.h"
#include "checkpoints/safetensors.h"
#include "checkpoints/tokenizer_files.h"
#include "kernels/param_table.h"

/* What is saved. Flat buffers are laid out by the table (param.offset), in host memory. */
struct checkpoint_content {
    int64_t step; /* optimizer steps done */
    const struct param_table *params;
    const float *masters, *moments1, *moments2;
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
 * folder not writable: then nothing has changed. STATUS_NUMERICS for weights or a state.json with
 * NaN or infinity: then nothing has changed either; moments are written as they are. */
enum status checkpoint_save(const char *run_folder, const struct checkpoint_content *content,
                            const struct checkpoint_retention *retention);

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
 * through `warn` (may be NULL), and then the one that is taken instead. Temporary folders of
 * interrupted saves are never taken for checkpoints. */
enum status checkpoint_newest(const char *run_folder, char path[PATH_BYTES], bool *found,
                              void (*warn)(const char *message));

/* Copies weights (transposed and padded back) or moments into flat buffers laid out by `params`.
 * Every tensor must be there with the expected shape; an unknown one is an error too. */
enum status checkpoint_load_weights(const struct checkpoint *checkpoint,
                                    const struct param_table *params, float *masters);
enum status checkpoint_load_moments(const struct checkpoint *checkpoint,
                                    const struct param_table *params, float *moments1,
                                    float *moments2);

/* Removes what retention does not keep and the leftovers of interrupted saves. Only checkpoints
 * that verify count as kept, so up to `keep` and the damaged ones are read. Never removes the
 * newest one that verifies, nor what is newer than that. The caller holds the run's lock. */
enum status checkpoint_prune(const char *run_folder, const struct checkpoint_retention *retention);

#endif

/*
 * The names in a run folder and how folders get them. One place knows:
 *   step_00001000                  a checkpoint: complete, durable, verified once
 *   step_00001000.tmp-PID-N        being written, or left by a save that died
 *   step_00001000.damaged-PID-N    did not verify; moved aside for a new save of the same step
 *   step_00001000.deleting-PID-N   being removed, or left by a prune that died
 * Everything else in the folder belongs to others and is left alone.
 * Used by checkpoint.c, open.c and prune.c.
 */
#ifndef DEEPWELL_CHECKPOINTS_LAYOUT_H_
#define DEEPWELL_CHECKPOINTS_LAYOUT_H_

#include <stddef.h>
#include <stdint.h>

#include "base/file.h"
#include "base/status.h"

#define LAYOUT_STEP_MAX ((int64_t)999999999999999) /* 15 digits: JSON numbers hold them exactly */

#define LAYOUT_WEIGHTS "model.safetensors"
#define LAYOUT_CONFIG "config.json"
#define LAYOUT_STATE "state.json"

enum layout_kind { LAYOUT_OTHER, LAYOUT_STEP, LAYOUT_TEMPORARY, LAYOUT_DAMAGED, LAYOUT_DELETING };

/* What a name in a run folder stands for; *step is set unless it is LAYOUT_OTHER. */
enum layout_kind layout_kind(const char *name, int64_t *step);

/* RUN/step_NNNNNNNN */
enum status layout_step_path(char out[PATH_BYTES], const char *run_folder, int64_t step);

/* A path of the given kind that nothing has yet. Only the run's owner makes names, so it stays
 * free. */
enum status layout_free_path(char out[PATH_BYTES], const char *run_folder, int64_t step,
                             enum layout_kind kind);

/* Steps of all LAYOUT_STEP names, newest first; release with free(). A missing run folder has
 * none. */
enum status layout_steps(const char *run_folder, int64_t **steps, size_t *count);

/* "optimizer-00001-of-00001.safetensors"; index counts from 1. */
enum { LAYOUT_SHARD_NAME_BYTES = 48 };
void layout_shard_name(char out[LAYOUT_SHARD_NAME_BYTES], size_t index, size_t count);

/* Splits "a/b/c", "a/b/c/" into "a/b" and "c"; "c" into "." and "c". */
enum status layout_split(const char *path, char folder[PATH_BYTES], char name[PATH_BYTES]);

/* Creates the folder and its missing parents, each durable in the one above. */
enum status layout_create_durable(const char *path);

#endif

/*
 * A run that is small enough for tests: two blocks of width 24, vocabulary 37, four sequences of 7
 * tokens a step in micro-batches of two; and looks at what it leaves in memory.
 */
#ifndef DEEPWELL_TESTS_TRAIN_SMALL_RUN_H_
#define DEEPWELL_TESTS_TRAIN_SMALL_RUN_H_

#include "tests/kernels/testing.h"
#include "train/engine.h"
#include "train/step.h"

enum { LENGTH = 7, BATCH = 4, MICRO_BATCH = 2, VOCABULARY = 37 };

struct small_run {
    struct config config;
    struct engine engine;
};

/* Tokens below VOCABULARY, drawn by `key`. */
void small_tokens(int32_t *tokens, size_t count, uint64_t key);

/* Writes the tokens as one shard into a new folder below $TEST_TMPDIR, which the caller removes. */
void small_shard(char folder[PATH_BYTES], char shard[PATH_BYTES], const int32_t *tokens,
                 size_t count);

void small_config(struct config *config, enum config_recipe recipe);

/* Opens the engine for run->config and gives it its first weights. */
void small_run_open(struct small_run *run, unsigned parts);
void small_run_close(struct small_run *run);

/* Forward and backward of every micro-batch of a step, with the same tokens in every step. */
void small_run_gradients(struct small_run *run, const struct step_policy *policy);

/* A whole step. */
struct step_state small_run_step(struct small_run *run, const struct step_policy *policy);

/* What an optimizer step may change, bit by bit. Release with free. */
struct snapshot {
    void *memory;
    size_t bytes;
};
struct snapshot snapshot_of(const struct small_run *run);
bool snapshot_equal(struct snapshot a, struct snapshot b);

/* Every weight is the master weight rounded to the weights' type. */
void assert_weights_follow_masters(const struct engine *engine);

#endif

/*
 * The fixture of make_fixture.py, and an engine that starts from its weights and reads its tokens.
 * Owns the opened fixture; called by gpt2_parity_test.c.
 */
#ifndef DEEPWELL_TESTS_PARITY_PARITY_RUN_H_
#define DEEPWELL_TESTS_PARITY_PARITY_RUN_H_

#include "tests/kernels/testing.h"
#include "train/step.h"

/* Before and after all tests: 0, or not after saying why. */
int fixture_open(void **state);
int fixture_close(void **state);

/* The fixture's tensor GROUP:NAME; a test that asks for what is not there fails. */
struct numbers {
    const float *values;
    size_t count;
};
struct numbers fixture_numbers(const char *group, const char *name);
double fixture_number(const char *group, const char *name, size_t index);

enum shape_index { BATCHES, ROWS, TOKENS, STEPS };
size_t fixture_shape(enum shape_index index);

/* The group's tensors in the engine's layout: flat, [out, in], padding zero. Release with free. */
float *fixture_flat(const struct param_table *table, const char *group);

struct variant {
    enum config_recipe recipe;
    enum config_recompute recompute;
    int64_t batch, micro_batch, logits_chunk;
};

struct run {
    struct config config;
    struct engine engine;
};

/* DEEPWELL_TEST_DEVICE=cuda: the same tests on a GPU. */
enum config_device test_device(void);

/* An engine with the fixture's initial weights. */
void run_open(struct run *run, const struct variant *variant);
void run_close(struct run *run);

/* Copies on the host; release with free. */
float *download(struct run *run, const void *memory, size_t count);
float *gradients_of(struct run *run); /* (elements) */

struct step_state state_of(struct run *run);

/* Uploads sequences [first, first + rows) of the fixture's stream, which begins anew at its end. */
void upload_sequences(struct run *run, struct gpt_training *training, size_t first);

/* Forward and backward of all micro-batches of one step that starts at sequence `first`. */
void run_gradients(struct run *run, const struct step_policy *policy, size_t first);

/* Runs the first batch's gradients; the mean loss. */
double run_first_batch(struct run *run);

#endif

/*
 * Validation. Oracle: a mean taken here, sequence by sequence, over losses of the evaluation
 * itself.
 *
 * Tolerance: the batch decides how many rows a GEMM has, for which the BLAS may add products in
 * another order. As derived in tests/layers/gpt_gradient_test.c a logit errs by 1.2 sqrt(s K) 2^-23
 * of the largest, s = 19, K = 96: a loss by at most twice that, on each side. Logits are below 1
 * for initial weights.
 */
#include <signal.h>
#include <stdio.h>

#include "data/tokenizer.h"
#include "tests/train/small_run.h"
#include "train/signals.h"
#include "train/validation.h"

enum { SEQUENCES = 10 };

static double tolerance(void) { return 4.0 * 1.2 * sqrt(19.0 * 96.0) * 0x1p-23; }

static char folder[PATH_BYTES], shard[PATH_BYTES];

static int make_shard(void **state) {
    (void)state;
    enum { TOKENS = SEQUENCES * LENGTH + 3 }; /* the last two are no whole sequence */
    int32_t tokens[TOKENS];
    small_tokens(tokens, TOKENS, 8);
    small_shard(folder, shard, tokens, TOKENS);
    return 0;
}

static int remove_shard(void **state) {
    (void)state;
    return folder_remove(folder) == STATUS_OK ? 0 : -1;
}

static void open_run(struct small_run *run, struct dataset *dataset, int64_t batch,
                     int64_t vocabulary) {
    small_config(&run->config, CONFIG_RECIPE_FP32);
    run->config.model.vocabulary = vocabulary;
    run->config.validation.micro_batch = batch;
    small_run_open(run, ENGINE_EVALUATE);
    EXPECT_OK(dataset_open(dataset, shard, LENGTH, (size_t)vocabulary, ORDER_SEQUENTIAL, 0));
    assert_int_equal(dataset->sequences, SEQUENCES);
}

static void close_run(struct small_run *run, struct dataset *dataset) {
    dataset_close(dataset);
    small_run_close(run);
}

/* The mean over the first sequences, one at a time, tokens read from the shard itself. */
static double direct_mean(struct small_run *run, const struct dataset *dataset, size_t sequences) {
    struct gpt_training *evaluation = &run->engine.evaluation;
    double sum = 0.0;
    assert_int_equal(evaluation->shape.batch, 1);
    for (size_t s = 0; s < sequences; s++) {
        shard_read(&dataset->shards[0], s * LENGTH, LENGTH, evaluation->inputs);
        shard_read(&dataset->shards[0], s * LENGTH + 1, LENGTH, evaluation->targets);
        EXPECT_OK(gpt_evaluate(evaluation));
        double row = 0.0; /* as the ranks of a run sum what they tell each other */
        for (size_t t = 0; t < LENGTH; t++) row += (double)evaluation->losses[t];
        sum += row;
    }
    return sum / (double)(sequences * LENGTH);
}

static void batches_do_not_change_the_mean(void **state) {
    (void)state;
    static const int64_t batches[] = {1, 3, 8, 10, 16};
    static const size_t wanted[] = {0, 1, 7, SEQUENCES, 1000};
    double expected[sizeof wanted / sizeof wanted[0]];
    for (size_t b = 0; b < sizeof batches / sizeof batches[0]; b++) {
        struct small_run run;
        struct dataset dataset;
        open_run(&run, &dataset, batches[b], VOCABULARY);
        for (size_t w = 0; w < sizeof wanted / sizeof wanted[0]; w++) {
            struct validation result, again;
            const size_t sequences = w == 0 || wanted[w] > SEQUENCES ? SEQUENCES : wanted[w];
            if (b == 0) expected[w] = direct_mean(&run, &dataset, sequences);
            EXPECT_OK(validation_run(&run.engine, &dataset, wanted[w], true, &result));
            assert_int_equal(result.tokens, sequences * LENGTH);
            assert_true(isnan(result.bits_per_byte)); /* these tokens are no bytes */
            if (b == 0) assert_true(result.loss == expected[w]); /* the same sum */
            assert_true(fabs(result.loss - expected[w]) <= tolerance());
            EXPECT_OK(validation_run(&run.engine, &dataset, wanted[w], true, &again));
            assert_memory_equal(&again.loss, &result.loss, sizeof result.loss);
        }
        close_run(&run, &dataset);
    }
    /* other tokens, another mean */
    assert_true(fabs(expected[1] - expected[2]) > 10.0 * tolerance());
}

/* Untrained, the model knows nothing: about log2(256) bits a byte. */
static void bits_per_byte(void **state) {
    (void)state;
    struct small_run run;
    struct dataset dataset;
    struct validation result;
    open_run(&run, &dataset, 4, BYTE_VOCABULARY);
    EXPECT_OK(validation_run(&run.engine, &dataset, 0, true, &result));
    assert_true(fabs(result.bits_per_byte - result.loss / log(2.0)) < 1e-12);
    assert_true(fabs(result.bits_per_byte - 8.0) < 0.5);
    close_run(&run, &dataset);
}

/* The last test: the signal cannot be unsaid. */
static void a_signal_ends_it(void **state) {
    (void)state;
    struct small_run run;
    struct dataset dataset;
    struct validation result;
    open_run(&run, &dataset, 1, VOCABULARY);
    EXPECT_OK(signals_install(false));
    EXPECT_OK(validation_run(&run.engine, &dataset, 0, true, &result));
    assert_null(signals_received());
    assert_int_equal(raise(SIGTERM), 0);
    expect_status(STATUS_INTERRUPTED, validation_run(&run.engine, &dataset, 0, true, &result));
    assert_non_null(strstr(status_message(), "SIGTERM"));
    close_run(&run, &dataset);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(batches_do_not_change_the_mean),
        cmocka_unit_test(bits_per_byte),
        cmocka_unit_test(a_signal_ends_it),
    };
    return cmocka_run_group_tests(tests, make_shard, remove_shard);
}

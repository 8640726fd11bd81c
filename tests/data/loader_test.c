/*
 * Batches. Oracles: the formula of loader.h over dataset_sample (bit equality), counting how often
 * each sequence is seen, and equality of the sets that different layouts of one step see.
 */
#include "tests/data/data_test.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "data/loader.h"

enum { LENGTH = 5, SEQUENCES = 23, FIRST_SHARD = 13, SECOND_SHARD = SEQUENCES - FIRST_SHARD };

/* Two shards whose tokens count on: sequence j begins with token LENGTH * j, and 1 more from the
 * second shard on, because the last token of the first only serves as a target. */
static void open_dataset(void **state, struct dataset *dataset) {
    write_counting_shard(in_folder(state, "a.bin"), 2, 0, FIRST_SHARD * LENGTH + 1);
    write_counting_shard(in_folder(state, "b.bin"), 4, FIRST_SHARD * LENGTH + 1,
                         SECOND_SHARD * LENGTH + 3);
    assert_int_equal(dataset_open(dataset, in_folder(state, "?.bin"), LENGTH, 1000, ORDER_SHUFFLED,
                                  42), STATUS_OK);
    assert_int_equal(dataset->sequences, SEQUENCES);
}

static size_t sequence_of(const int32_t *inputs) { return (size_t)inputs[0] / LENGTH; }

static void open_loader(struct loader **loader, const struct dataset *dataset,
                        const struct loader_shape *shape, uint64_t first_step) {
    assert_int_equal(loader_open(loader, dataset, shape, first_step), STATUS_OK);
}

/* The batch is exactly what the formula says. */
static void assert_formula(const struct dataset *dataset, const struct loader_shape *shape,
                           uint64_t step, size_t micro, const struct batch *batch) {
    for (size_t b = 0; b < shape->rows; b++) {
        int32_t inputs[LENGTH], targets[LENGTH];
        const uint64_t g = step * (shape->micro_batches * shape->ranks * shape->rows) +
                           (micro * shape->ranks + shape->rank) * shape->rows + b;
        dataset_sample(dataset, g, inputs, targets);
        assert_memory_equal(batch->inputs + b * LENGTH, inputs, sizeof inputs);
        assert_memory_equal(batch->targets + b * LENGTH, targets, sizeof targets);
        for (size_t t = 0; t + 1 < LENGTH; t++) assert_int_equal(targets[t], inputs[t + 1]);
    }
}

static const struct loader_shape shapes[] = {
    {.rows = 1, .micro_batches = 1, .rank = 0, .ranks = 1},
    {.rows = 4, .micro_batches = 1, .rank = 0, .ranks = 1},
    {.rows = 3, .micro_batches = 2, .rank = 0, .ranks = 1},
    {.rows = 1, .micro_batches = 3, .rank = 0, .ranks = 2},
    {.rows = 2, .micro_batches = 2, .rank = 0, .ranks = 3},
    {.rows = 5, .micro_batches = 1, .rank = 0, .ranks = 5}, /* a step is longer than an epoch */
    {.rows = 23, .micro_batches = 1, .rank = 0, .ranks = 1},
    {.rows = 30, .micro_batches = 2, .rank = 0, .ranks = 2},
};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

/* All ranks together, over steps that do not divide the epoch: after n samples each sequence was
 * seen floor(n / count) or one time more, and at no moment of an epoch twice. */
static void every_sequence_once_an_epoch(void **state) {
    struct dataset dataset;
    open_dataset(state, &dataset);
    for (size_t s = 0; s < SHAPES; s++) {
        const struct loader_shape *shape = &shapes[s];
        const size_t step_rows = shape->rows * shape->micro_batches * shape->ranks;
        const size_t steps = ceil_div(3 * SEQUENCES + 1, step_rows);
        size_t seen[SEQUENCES] = {0}, samples = 0;
        struct loader **loaders = calloc(shape->ranks, sizeof *loaders);
        assert_non_null(loaders);
        for (size_t rank = 0; rank < shape->ranks; rank++) {
            struct loader_shape own = *shape;
            own.rank = rank;
            open_loader(&loaders[rank], &dataset, &own, 0);
        }
        for (size_t i = 0; i < steps * shape->micro_batches; i++) {
            for (size_t rank = 0; rank < shape->ranks; rank++) {
                struct batch batch;
                assert_int_equal(loader_next(loaders[rank], &batch), STATUS_OK);
                for (size_t b = 0; b < shape->rows; b++) {
                    const size_t sequence = sequence_of(batch.inputs + b * LENGTH);
                    assert_int_equal(seen[sequence]++, samples++ / SEQUENCES);
                }
            }
        }
        assert_int_equal(samples, steps * step_rows);
        for (size_t rank = 0; rank < shape->ranks; rank++) loader_close(loaders[rank]);
        free(loaders);
    }
    dataset_close(&dataset);
}

static void batches_follow_the_formula(void **state) {
    struct dataset dataset;
    open_dataset(state, &dataset);
    for (size_t s = 0; s < SHAPES; s++) {
        for (size_t rank = 0; rank < shapes[s].ranks; rank++) {
            struct loader_shape shape = shapes[s];
            struct loader *loader = NULL;
            shape.rank = rank;
            open_loader(&loader, &dataset, &shape, 2);
            for (uint64_t i = 0; i < 9; i++) {
                struct batch batch;
                assert_int_equal(loader_next(loader, &batch), STATUS_OK);
                assert_formula(&dataset, &shape, 2 + i / shape.micro_batches,
                               i % shape.micro_batches, &batch);
            }
            loader_close(loader);
        }
    }
    dataset_close(&dataset);
}

/* A loader opened at step s gives what one from step 0 gives when it gets there. */
static void restart_equals_continuing(void **state) {
    enum { RESTART = 11, BATCHES = 8 };
    const struct loader_shape shape = {.rows = 3, .micro_batches = 2, .rank = 1, .ranks = 2};
    struct dataset dataset;
    struct loader *whole = NULL, *restarted = NULL;
    struct batch expected, found;
    open_dataset(state, &dataset);
    open_loader(&whole, &dataset, &shape, 0);
    open_loader(&restarted, &dataset, &shape, RESTART);
    for (size_t i = 0; i < RESTART * shape.micro_batches; i++) {
        assert_int_equal(loader_next(whole, &expected), STATUS_OK);
    }
    for (size_t i = 0; i < BATCHES; i++) {
        assert_int_equal(loader_next(whole, &expected), STATUS_OK);
        assert_int_equal(loader_next(restarted, &found), STATUS_OK);
        assert_memory_equal(expected.inputs, found.inputs, 3 * LENGTH * sizeof(int32_t));
        assert_memory_equal(expected.targets, found.targets, 3 * LENGTH * sizeof(int32_t));
    }
    loader_close(restarted);
    loader_close(whole);
    dataset_close(&dataset);
}

/* How often each sequence is in one step, all ranks and micro-batches together. */
static void count_step(const struct dataset *dataset, struct loader_shape shape, uint64_t step,
                       size_t seen[SEQUENCES]) {
    memset(seen, 0, SEQUENCES * sizeof *seen);
    for (shape.rank = 0; shape.rank < shape.ranks; shape.rank++) {
        struct loader *loader = NULL;
        open_loader(&loader, dataset, &shape, step);
        for (size_t micro = 0; micro < shape.micro_batches; micro++) {
            struct batch batch;
            assert_int_equal(loader_next(loader, &batch), STATUS_OK);
            for (size_t b = 0; b < shape.rows; b++) seen[sequence_of(batch.inputs + b * LENGTH)]++;
        }
        loader_close(loader);
    }
}

static void layouts_of_a_step_see_the_same(void **state) {
    static const struct loader_shape layouts[] = {
        {.rows = 2, .micro_batches = 4, .ranks = 1}, {.rows = 2, .micro_batches = 2, .ranks = 2},
        {.rows = 2, .micro_batches = 1, .ranks = 4}, {.rows = 8, .micro_batches = 1, .ranks = 1},
        {.rows = 1, .micro_batches = 4, .ranks = 2}, {.rows = 1, .micro_batches = 1, .ranks = 8},
    };
    struct dataset dataset;
    open_dataset(state, &dataset);
    for (uint64_t step = 0; step < 7; step++) { /* steps 2 and 5 cross the border of an epoch */
        size_t expected[SEQUENCES], found[SEQUENCES];
        count_step(&dataset, layouts[0], step, expected);
        for (size_t i = 1; i < sizeof layouts / sizeof layouts[0]; i++) {
            count_step(&dataset, layouts[i], step, found);
            assert_memory_equal(expected, found, sizeof expected);
        }
    }
    dataset_close(&dataset);
}

/* The thread has time to run as far ahead as it can; the batch in hand must not change. */
static void a_batch_stays_until_the_next(void **state) {
    const struct loader_shape shape = {.rows = 4, .micro_batches = 2, .rank = 0, .ranks = 1};
    struct dataset dataset;
    struct loader *loader = NULL;
    open_dataset(state, &dataset);
    open_loader(&loader, &dataset, &shape, 0);
    for (uint64_t i = 0; i < 12; i++) {
        struct batch batch;
        assert_int_equal(loader_next(loader, &batch), STATUS_OK);
        usleep(5000);
        assert_formula(&dataset, &shape, i / 2, i % 2, &batch);
    }
    assert_true(loader_waited_seconds(loader) >= 0.0);
    assert_true(loader_waited_seconds(loader) < 60.0);
    loader_close(loader);
    dataset_close(&dataset);
}

/* At any moment of the thread's life; leaks and races show under the sanitizers. */
static void closing_at_any_time(void **state) {
    const struct loader_shape shape = {.rows = 4, .micro_batches = 2, .rank = 0, .ranks = 1};
    struct dataset dataset;
    open_dataset(state, &dataset);
    for (size_t taken = 0; taken < 40; taken++) {
        struct loader *loader = NULL;
        open_loader(&loader, &dataset, &shape, taken);
        for (size_t i = 0; i < taken % 10; i++) {
            struct batch batch;
            assert_int_equal(loader_next(loader, &batch), STATUS_OK);
        }
        loader_close(loader);
    }
    loader_close(NULL);
    dataset_close(&dataset);
}

static void refuses_impossible_shapes(void **state) {
    static const struct {
        struct loader_shape shape;
        uint64_t first_step;
        enum status status;
        const char *words;
    } bad[] = {
        {{.rows = 0, .micro_batches = 1, .ranks = 1}, 0, STATUS_CONFIG, "found 0 rows"},
        {{.rows = 1, .micro_batches = 0, .ranks = 1}, 0, STATUS_CONFIG, "0 micro-batches"},
        {{.rows = 1, .micro_batches = 1, .ranks = 0}, 0, STATUS_CONFIG, "rank 0 of 0"},
        {{.rows = 1, .micro_batches = 1, .rank = 2, .ranks = 2}, 0, STATUS_CONFIG, "rank 2 of 2"},
        {{.rows = SIZE_MAX / 2, .micro_batches = 3, .ranks = 1}, 0, STATUS_CONFIG, "2^64"},
        {{.rows = 2, .micro_batches = 1, .ranks = 1}, UINT64_MAX, STATUS_CONFIG, "2^64"},
        {{.rows = SIZE_MAX / 64, .micro_batches = 1, .ranks = 1}, 0, STATUS_MEMORY, "fewer rows"},
    };
    struct dataset dataset;
    open_dataset(state, &dataset);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct loader *loader = NULL;
        assert_int_equal(loader_open(&loader, &dataset, &bad[i].shape, bad[i].first_step),
                         bad[i].status);
        assert_message(bad[i].words);
        assert_null(loader);
    }
    dataset_close(&dataset);
}

/* Steps of another number of sequences go on with the next sample; where they became larger, the
 * shift wraps. */
static void another_batch_goes_on_behind_the_last_sample(void **state) {
    enum { STEPS = 10, ROWS_BEFORE = 4 };
    static const size_t rows[] = {6, 3, 4};
    struct dataset dataset;
    open_dataset(state, &dataset);
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        const struct loader_shape shape = {
            .rows = rows[r], .micro_batches = 1, .ranks = 1,
            .shift = (uint64_t)(STEPS * ROWS_BEFORE) - (uint64_t)(STEPS * rows[r]),
        };
        struct loader *loader = NULL;
        uint64_t sample = STEPS * ROWS_BEFORE;
        open_loader(&loader, &dataset, &shape, STEPS);
        for (size_t i = 0; i < 20; i++) {
            struct batch batch;
            assert_int_equal(loader_next(loader, &batch), STATUS_OK);
            for (size_t b = 0; b < rows[r]; b++) {
                int32_t inputs[LENGTH], targets[LENGTH];
                dataset_sample(&dataset, sample++, inputs, targets);
                assert_memory_equal(batch.inputs + b * LENGTH, inputs, sizeof inputs);
            }
        }
        loader_close(loader);
    }
    dataset_close(&dataset);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, folder_setup, folder_teardown)
    const struct CMUnitTest tests[] = {
        TEST(every_sequence_once_an_epoch),
        TEST(batches_follow_the_formula),
        TEST(restart_equals_continuing),
        TEST(layouts_of_a_step_see_the_same),
        TEST(a_batch_stays_until_the_next),
        TEST(closing_at_any_time),
        TEST(another_batch_goes_on_behind_the_last_sample),
        TEST(refuses_impossible_shapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

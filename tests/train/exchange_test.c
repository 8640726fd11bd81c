/*
 * What a rank asks of others, seen by a communicator that only looks. Oracles: the rules of
 * train/comm.h for recordings: within each micro-batch and update collectives come behind
 * comm_after_compute(), every wait for collectives has one before it in the same recording, and
 * none is left that nothing waits for; counts of collectives by hand; what moves, by the numbers
 * that a rank of two owns; what is under way while a block is at work, by the list in
 * docs/many_ranks.md that scaling on paper counts on. Results of many ranks: tests/ranks.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/train/small_run.h"

enum { LAYERS = 5, BUCKETS = LAYERS + 2 };

/* Of two ranks that have the same numbers. */
struct looking {
    bool forked;      /* the device's work so far comes before the collectives asked for now */
    bool outstanding; /* collectives that the device does not wait for yet */
    size_t gathers, reductions, exchanges, sums;
    size_t gathered_bytes, reduced; /* bytes of this rank's part; numbers of this rank's part */
    /* asked for behind the last wait: under way beside what the device does next */
    const void *reducing, *gathering; /* the last of each; NULL: none */
    size_t under_way;
};

static struct looking *looking_of(struct comm *comm) { return comm->backend; }

static void collective(struct comm *comm) {
    assert_true(looking_of(comm)->forked);
    looking_of(comm)->outstanding = true;
    looking_of(comm)->under_way++;
}

static enum status all_reduce(struct comm *comm, void *data, size_t count, enum comm_type type,
                              enum comm_sum sum) {
    collective(comm);
    looking_of(comm)->sums++;
    assert_true((type == COMM_F64 && sum == COMM_SUM) || (type == COMM_U32 && sum == COMM_MAX));
    for (size_t i = 0; sum == COMM_SUM && i < count; i++) ((double *)data)[i] *= 2.0;
    return STATUS_OK;
}

static enum status reduce_scatter(struct comm *comm, void *out, const void *in, size_t count,
                                  enum comm_type type) {
    collective(comm);
    looking_of(comm)->reductions++;
    looking_of(comm)->reducing = in;
    looking_of(comm)->reduced += count;
    memcpy(out, in, count * comm_type_bytes(type)); /* the mean, to keep sizes */
    return STATUS_OK;
}

static enum status all_gather(struct comm *comm, void *out, const void *in, size_t bytes) {
    collective(comm);
    looking_of(comm)->gathers++;
    looking_of(comm)->gathering = out;
    looking_of(comm)->gathered_bytes += bytes;
    for (size_t part = 0; part < 2; part++) memmove((char *)out + part * bytes, in, bytes);
    return STATUS_OK;
}

static enum status exchange_parts(struct comm *comm, void *out, const void *in, size_t bytes) {
    collective(comm);
    looking_of(comm)->exchanges++;
    for (size_t part = 0; part < 2; part++) memcpy((char *)out + part * bytes, in, bytes);
    return STATUS_OK;
}

static enum status after_compute(struct comm *comm) {
    looking_of(comm)->forked = true;
    return STATUS_OK;
}

static enum status compute_after(struct comm *comm) {
    assert_true(looking_of(comm)->forked); /* else it would wait for what is not in the recording */
    looking_of(comm)->outstanding = false;
    looking_of(comm)->under_way = 0;
    looking_of(comm)->reducing = looking_of(comm)->gathering = NULL;
    return STATUS_OK;
}

static enum status gather_host(struct comm *comm, void *out, const void *in, size_t bytes) {
    for (size_t part = 0; part < (size_t)comm->world; part++) {
        memcpy((char *)out + part * bytes, in, bytes);
    }
    return STATUS_OK;
}

static void stop(struct comm *comm, int code) { (void)comm, (void)code; }
static void close_looking(struct comm *comm) { (void)comm; }

static const struct comm_calls looking_calls = {
    .all_reduce = all_reduce, .reduce_scatter = reduce_scatter, .all_gather = all_gather,
    .exchange = exchange_parts, .after_compute = after_compute, .compute_after = compute_after,
    .gather_host = gather_host, .abort = stop, .close = close_looking,
};

/* A run as rank 1 of 2, with so many micro-batches a step. */
struct scene {
    struct small_run run;
    struct looking looking;
    struct comm comm;
};

static void scene_open(struct scene *s, int zero, bool fixed, bool bf16, size_t micro_batches) {
    const struct ranks ranks = {.rank = 1, .world = 2, .local_rank = 1};
    struct config *config = &s->run.config;
    memset(s, 0, sizeof *s);
    small_config(config, CONFIG_RECIPE_BF16);
    config->model.layers = LAYERS;
    config->train.micro_batch = 1;
    config->train.batch = (int64_t)(2 * micro_batches);
    config->train.zero = zero;
    config->comm.order = fixed ? CONFIG_ORDER_FIXED : CONFIG_ORDER_FAST;
    config->comm.reduction = bf16 ? CONFIG_REDUCTION_BF16 : CONFIG_REDUCTION_FP32;
    s->comm = (struct comm){.calls = &looking_calls, .backend = &s->looking, .rank = 1, .world = 2};
    EXPECT_OK(engine_open_rank(&s->run.engine, config, ENGINE_TRAIN, &ranks, &s->comm));
    s->looking.forked = true; /* at the start all may be waited for */
    EXPECT_OK(engine_initialise(&s->run.engine, config));
    s->looking = (struct looking){0};
}

/* What a recording must hold at its end; the next one begins. */
static void end_recording(struct scene *s) {
    assert_false(s->looking.outstanding);
    s->looking.forked = false;
}

static void run_step(struct scene *s, size_t micro_batches) {
    struct engine *engine = &s->run.engine;
    const struct step_policy policy = step_policy(&s->run.config, 0);
    for (size_t i = 0; i < LENGTH; i++) {
        engine->training.inputs[i] = (int32_t)i;
        engine->training.targets[i] = (int32_t)(i + 1);
    }
    EXPECT_OK(step_begin(engine, &policy));
    for (size_t micro = 0; micro < micro_batches; micro++) {
        EXPECT_OK(step_micro_batch(engine, &policy, micro == 0));
        end_recording(s);
    }
    EXPECT_OK(step_update(engine, &s->run.config));
    end_recording(s);
    assert_int_equal(engine->state->skip, SKIP_NONE);
}

static void check(int zero, bool fixed, bool bf16, size_t micro_batches) {
    static struct scene s;
    scene_open(&s, zero, fixed, bf16, micro_batches);
    const struct exchange *x = &s.run.engine.exchange;
    const struct looking *seen = &s.looking;
    run_step(&s, micro_batches);
    s.looking = (struct looking){0};
    run_step(&s, micro_batches);
    /* Gradients leave once a step where they are kept, else with every micro-batch. */
    const bool always = fixed || zero >= 2;
    const size_t times = always ? micro_batches : 1;
    assert_int_equal(fixed ? seen->exchanges : seen->reductions, times * BUCKETS);
    assert_int_equal(fixed ? seen->reductions : seen->exchanges, 0);
    if (!fixed) assert_int_equal(seen->reduced, times * x->owned);
    assert_int_equal(seen->sums, 1);
    /* Weights: all, once a step; with stage 3 each block twice a micro-batch, but the last three of
     * forward are there for backward. Stage 0 gathers gradients instead. */
    const size_t blocks = zero == 3 ? micro_batches * (2 * LAYERS - EXCHANGE_SLOTS) : LAYERS;
    const size_t sums = fixed ? BUCKETS + micro_batches : 0; /* squares, and losses */
    assert_int_equal(seen->gathers, blocks + 2 + sums);
    if (!fixed && zero < 3) {
        assert_int_equal(seen->gathered_bytes, x->owned * (zero == 0 ? 4 : 2));
    }
    engine_close(&s.run.engine);
}

static void collectives_follow_the_rules_of_recordings(void **state) {
    (void)state;
    for (int zero = 0; zero <= 3; zero++) {
        for (int order = 0; order <= 1; order++) {
            for (int type = 0; type <= 1; type++) {
                for (size_t micro = 1; micro <= 3; micro++)
                    check(zero, order == 1, type == 1, micro);
            }
        }
    }
}

static size_t blocks_seen; /* of backward */

/* In place of the model's call: what is under way when the block of backward begins its work. By
 * hand: the gradients of the bucket before it in this pass, and nothing that it waits for; the
 * weights of the block behind it, unless they are the last three of forward, which are still
 * there. */
static enum status watched_weights(struct gpt_exchange *self, size_t bucket, bool backward) {
    const struct exchange *x = (const struct exchange *)self;
    TRY(exchange_calls.need_weights(self, bucket, backward));
    if (!backward) return STATUS_OK;
    const struct looking *seen = looking_of(x->engine->comm);
    const size_t layer = bucket - gpt_block_bucket(0);
    const bool gathers = layer > 0 && layer - 1 < LAYERS - EXCHANGE_SLOTS;
    blocks_seen++;
    assert_ptr_equal(seen->reducing, x->gradients[bucket + 1]);
    assert_ptr_equal(seen->gathering, gathers ? x->weights[bucket - 1] : NULL);
    assert_int_equal(seen->under_way, gathers ? 2 : 1);
    return STATUS_OK;
}

static void gradients_travel_while_the_next_block_is_at_work(void **state) {
    (void)state;
    enum { MICRO_BATCHES = 2 };
    static struct scene s;
    scene_open(&s, 3, false, false, MICRO_BATCHES);
    s.run.engine.exchange.calls.need_weights = watched_weights;
    blocks_seen = 0;
    run_step(&s, MICRO_BATCHES);
    assert_int_equal(blocks_seen, MICRO_BATCHES * LAYERS);
    engine_close(&s.run.engine);
}

/* Every number of the model belongs to exactly one rank; parts are equal and in order. */
static void every_number_has_one_owner(void **state) {
    (void)state;
    static struct scene s;
    scene_open(&s, 1, false, false, 1);
    struct engine *engine = &s.run.engine;
    unsigned char *owners = calloc(engine->gpt.table.elements, 1);
    assert_non_null(owners);
    for (int rank = 0; rank < 2; rank++) {
        size_t at = 0;
        engine->ranks.rank = rank;
        for (size_t i = 0; i < BUCKETS; i++) {
            const struct flat_range part = exchange_part(&engine->exchange, i);
            assert_int_equal(part.at, at);
            assert_int_equal(part.count % SUMSQ_BLOCK, 0);
            at += part.count;
            for (size_t n = 0; n < part.count; n++) owners[part.offset + n]++;
        }
        assert_int_equal(at, engine->owned);
    }
    for (size_t n = 0; n < engine->gpt.table.elements; n++) assert_int_equal(owners[n], 1);
    free(owners);
    engine_close(engine);
}

static void what_does_not_go_together_is_refused(void **state) {
    (void)state;
    const struct ranks ranks = {.rank = 0, .world = 3, .local_rank = 0};
    struct exchange x;
    struct config config;
    small_config(&config, CONFIG_RECIPE_BF16);
    expect_status(STATUS_CONFIG, exchange_plan(&x, &config, &ranks)); /* 4 sequences on 3 ranks */
    config.train.batch = 6;
    EXPECT_OK(exchange_plan(&x, &config, &ranks));
    config.train.zero = 3;
    EXPECT_OK(exchange_plan(&x, &config, &ranks));
    config.sample.every = 10;
    expect_status(STATUS_CONFIG, exchange_plan(&x, &config, &ranks));
    config.sample.every = 0;
    config.precision.recipe = CONFIG_RECIPE_FP8;
    expect_status(STATUS_CONFIG, exchange_plan(&x, &config, &ranks));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(collectives_follow_the_rules_of_recordings),
        cmocka_unit_test(gradients_travel_while_the_next_block_is_at_work),
        cmocka_unit_test(every_number_has_one_owner),
        cmocka_unit_test(what_does_not_go_together_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

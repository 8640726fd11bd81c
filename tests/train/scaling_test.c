/*
 * Scaling on paper. Oracles: closed forms of the limits (one rank, an infinitely fast link, a link
 * so slow that it is all that counts, very many ranks), a queue stepped through block by block, and
 * one case computed by hand with numbers chosen to be round.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <math.h>

#include "train/scaling.h"

/* 10 blocks of 8 million numbers, 20 million at the ends: 100 million. Forward 100 ms, backward
 * 200 ms of one micro-batch; a block's are 10 and 20 ms. */
static struct scaling_work round_work(void) {
    return (struct scaling_work){
        .compute_seconds = 0.3, .update_seconds = 0.01, .micro_batches = 1, .layers = 10,
        .layer_elements = 8000000, .end_elements = 20000000, .weight_bytes_each = 2,
        .reduce_bytes_each = 4, .gather_ahead = true,
    };
}

/* 1e9 bytes/s without latency: between 2 ranks half of all bytes go each way, so a block's
 * gradients (32e6 bytes) take 16 ms, its weights 8 ms; the ends' 40 ms and 20 ms. */
static const struct scaling_link round_link = {.bytes_per_second = 1e9};

static void close_to(double found, double expected) {
    /* sums of some twenty terms in FP64 */
    if (fabs(found - expected) > 1e-12 * fabs(expected) + 1e-18) {
        fail_msg("%.17g, expected %.17g", found, expected);
    }
}

static void collectives(void **state) {
    (void)state;
    const struct scaling_link link = {.bytes_per_second = 2e9, .latency_seconds = 1e-3};
    close_to(scaling_collective_seconds(&link, 1, 1e9), 0.0);
    close_to(scaling_collective_seconds(&link, 2, 1e9), 0.25 + 1e-3);
    close_to(scaling_collective_seconds(&link, 4, 1e9), 0.375 + 3e-3); /* a ring: 3 hops */
    close_to(scaling_collective_seconds(&link, 4096, 1e9), 0.5 * 4095.0 / 4096.0 + 4095e-3);
    close_to(scaling_collective_seconds(&link, 4096, 0.0), 0.0);
    /* reduce-scatter and all-gather are an all-reduce: 2 (N - 1) / N */
    close_to(2.0 * scaling_collective_bytes(8, 100.0), 2.0 * 7.0 / 8.0 * 100.0);
}

static void one_rank_talks_to_nobody(void **state) {
    (void)state;
    const struct scaling_work w = round_work();
    for (int stage = 0; stage < SCALING_STAGES; stage++) {
        const struct scaling_point p = scaling_predict(&w, &round_link, 1, stage);
        close_to(p.step_seconds, 0.31);
        close_to(p.communication_seconds + p.sent_bytes + p.exposed_reduce_seconds, 0.0);
        close_to(p.efficiency, 1.0);
    }
}

/* All by hand, in milliseconds. */
static void two_ranks_by_hand(void **state) {
    (void)state;
    const struct scaling_work w = round_work();
    const struct {
        double reduce, gather, sent, update, communication;
    } expected[SCALING_STAGES] = {
        /* 9 blocks' 16 each behind the next block's 20; the last one's 16 and the ends' 40 behind
         * nothing. Then 200 for the sums. */
        {16 + 40 + 200, 0, 400e6, 10, 160 + 40 + 200},
        /* the ends' weights 20 and the first block's 8; the others' 8 hide behind 10 of forward */
        {16 + 40, 28, 300e6, 5, 200 + 100},
        {16 + 40, 28, 300e6, 5, 200 + 100}, /* one micro-batch: as stage 1 */
        /* ends 20 and the first block 8; 8 < 10 of a forward block. Backward: 7 blocks again, 8 +
         * 16 against 20: 4 over; the last gradients 16 and 40. Sent: half of (10 + 7) * 16e6 + 40e6
         * + 400e6. */
        {16 + 40 + 7 * 4, 28, 0.5 * (17 * 16e6 + 40e6 + 400e6), 5, 200 + 20 + 17 * 8},
    };
    for (int stage = 0; stage < SCALING_STAGES; stage++) {
        const struct scaling_point p = scaling_predict(&w, &round_link, 2, stage);
        close_to(p.exposed_reduce_seconds, 1e-3 * expected[stage].reduce);
        close_to(p.exposed_gather_seconds, 1e-3 * expected[stage].gather);
        close_to(p.sent_bytes, expected[stage].sent);
        close_to(p.communication_seconds, 1e-3 * expected[stage].communication);
        close_to(p.step_seconds, 1e-3 * (300 + expected[stage].update + expected[stage].reduce +
                                         expected[stage].gather));
        close_to(p.efficiency, 0.31 / p.step_seconds);
    }
}

/* Micro-batches: stages 0 and 1 reduce behind the last, 2 and 3 behind each. */
static void micro_batches(void **state) {
    (void)state;
    struct scaling_work w = round_work();
    w.micro_batches = 4;
    w.compute_seconds = 4 * 0.3;
    for (int stage = 0; stage < 2; stage++) {
        close_to(scaling_predict(&w, &round_link, 2, stage).sent_bytes, stage == 0 ? 400e6 : 300e6);
        close_to(scaling_predict(&w, &round_link, 2, stage).exposed_reduce_seconds,
                 stage == 0 ? 0.256 : 0.056);
    }
    const struct scaling_point second = scaling_predict(&w, &round_link, 2, 2),
                               third = scaling_predict(&w, &round_link, 2, 3);
    close_to(second.sent_bytes, 4 * 200e6 + 100e6);
    close_to(second.exposed_reduce_seconds, 4 * 0.056);
    close_to(third.exposed_reduce_seconds, 4 * 0.084);
    close_to(third.exposed_gather_seconds, 0.02 + 4 * 0.008); /* the ends' weights once */
}

/* comm.order = fixed. By hand: a micro-batch's 56 ms of exposed gradients each time in all stages
 * but 3, which sends them anyway; 2 ranks' losses of 1e6 tokens, 8e6 bytes, 4 ms each; squares 8
 * bytes for 1024 of 100 million numbers, 781,250 bytes, 0.390625 ms. */
static void sums_in_fixed_order(void **state) {
    (void)state;
    struct scaling_work w = round_work();
    w.micro_batches = 4;
    w.compute_seconds = 4 * 0.3;
    w.micro_batch_tokens = 1000000;
    struct scaling_point fast[SCALING_STAGES], fixed[SCALING_STAGES];
    for (int s = 0; s < SCALING_STAGES; s++) fast[s] = scaling_predict(&w, &round_link, 2, s);
    w.fixed = true;
    for (int s = 0; s < SCALING_STAGES; s++) fixed[s] = scaling_predict(&w, &round_link, 2, s);
    const double more = 4 * 4e-3 + 0.390625e-3, more_bytes = 4 * 4e6 + 390625;
    for (int s = 0; s < SCALING_STAGES; s++) {
        const double again = s < 2 ? 3.0 : 0.0; /* micro-batches that fast sums do not send */
        close_to(fixed[s].exposed_reduce_seconds,
                 fast[s].exposed_reduce_seconds + again * 0.056 + more);
        close_to(fixed[s].sent_bytes, fast[s].sent_bytes + again * 200e6 + more_bytes);
        close_to(fixed[s].communication_seconds,
                 fast[s].communication_seconds + again * 0.2 + more);
        close_to(fixed[s].exposed_gather_seconds, fast[s].exposed_gather_seconds);
    }
    close_to(scaling_predict(&w, &round_link, 1, 1).communication_seconds, 0.0);
}

/* Seconds behind the end of backward at which the last block's gradients are there, one after the
 * other through a link that takes y for each, the k-th of them ready at k b. */
static double by_queue(double layers, double y, double b) {
    double there = 0.0;
    for (double k = 1.0; k <= layers; k += 1.0) there = (there > k * b ? there : k * b) + y;
    return there - layers * b;
}

/* The formula against the queue itself, link by link: a block's gradients take 160 ms down to 1.6,
 * b is 20; also with one block. At 16 ms the last block's 16 stay, though 10 times 16 are less than
 * the 180 that backward goes on for. */
static void exposed_gradients_are_those_of_a_queue(void **state) {
    (void)state;
    close_to(by_queue(10, 16, 20), 16);
    static const double rates[] = {0.1e9, 0.5e9, 0.79e9, 0.8e9, 0.81e9, 1e9, 10e9};
    for (size_t i = 0; i < sizeof rates / sizeof rates[0]; i++) {
        const struct scaling_link link = {.bytes_per_second = rates[i]};
        struct scaling_work w = round_work();
        const double y = 16e6 / rates[i], ends = 40e6 / rates[i];
        close_to(scaling_predict(&w, &link, 2, 1).exposed_reduce_seconds,
                 by_queue(10, y, 0.02) + ends);
        w.layers = 1;
        close_to(scaling_predict(&w, &link, 2, 1).exposed_reduce_seconds, y + ends);
    }
}

/* 90 ms more, of the head: a longer step, and nothing more is hidden in any stage. */
static void the_head_hides_nothing(void **state) {
    (void)state;
    const struct scaling_link link = {.bytes_per_second = 0.5e9};
    for (int stage = 0; stage < SCALING_STAGES; stage++) {
        struct scaling_work w = round_work();
        const struct scaling_point without = scaling_predict(&w, &link, 2, stage);
        w.compute_seconds += 0.09;
        w.head_seconds = 0.09;
        const struct scaling_point with = scaling_predict(&w, &link, 2, stage);
        close_to(with.exposed_reduce_seconds, without.exposed_reduce_seconds);
        close_to(with.exposed_gather_seconds, without.exposed_gather_seconds);
        close_to(with.step_seconds, without.step_seconds + 0.09);
    }
}

/* Half the rate: 10 blocks of 32 ms against the 180 that backward leaves, and 80 for the ends; the
 * first block's weights 16, nine others 16 against 10 each, the ends' 40. */
static void a_link_that_is_too_slow(void **state) {
    (void)state;
    const struct scaling_work w = round_work();
    const struct scaling_link link = {.bytes_per_second = 0.5e9};
    close_to(scaling_predict(&w, &link, 2, 1).exposed_reduce_seconds, 0.320 - 0.180 + 0.080);
    close_to(scaling_predict(&w, &link, 2, 1).exposed_gather_seconds, 0.040 + 0.016 + 9 * 0.006);
}

static void weights_that_come_at_once(void **state) {
    (void)state;
    struct scaling_work w = round_work();
    w.gather_ahead = false;
    close_to(scaling_predict(&w, &round_link, 2, 1).exposed_gather_seconds, 0.1);
}

static void limits(void **state) {
    (void)state;
    const struct scaling_work w = round_work();
    const struct scaling_link fast = {.bytes_per_second = 1e30},
                              slow = {.bytes_per_second = 1.0};
    for (int stage = 0; stage < SCALING_STAGES; stage++) {
        const struct scaling_point quick = scaling_predict(&w, &fast, 1024, stage);
        close_to(quick.step_seconds, 0.3 + (stage == 0 ? 0.01 : 0.01 / 1024));
        const struct scaling_point late = scaling_predict(&w, &slow, 1024, stage);
        /* all is exposed but at most what computing hides */
        assert_true(late.communication_seconds - late.step_seconds < 0.0);
        assert_true(late.exposed_reduce_seconds + late.exposed_gather_seconds <=
                    late.communication_seconds * (1.0 + 1e-12));
        assert_true(late.exposed_reduce_seconds + late.exposed_gather_seconds + 0.3 >=
                    late.communication_seconds);
    }
    /* any number of ranks sends at most all bytes once a collective */
    close_to(scaling_predict(&w, &round_link, 1u << 30, 1).sent_bytes * (1.0 / (1.0 - 0x1p-30)),
             600e6);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(collectives),
        cmocka_unit_test(one_rank_talks_to_nobody),
        cmocka_unit_test(two_ranks_by_hand),
        cmocka_unit_test(micro_batches),
        cmocka_unit_test(sums_in_fixed_order),
        cmocka_unit_test(exposed_gradients_are_those_of_a_queue),
        cmocka_unit_test(the_head_hides_nothing),
        cmocka_unit_test(a_link_that_is_too_slow),
        cmocka_unit_test(weights_that_come_at_once),
        cmocka_unit_test(limits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/*
 * What is measured of communication, by the real program under mpirun. Times are noise; oracles:
 * what holds of them whatever they are (exposed communication lies within its step; a rank that
 * stood still for so long was waited for at least so long), nccl-tests' definitions of rates
 * written out by hand, and exit codes.
 */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/ranks/mpirun.h"

static const char config[] =
    "device = cpu\nthreads = 1\n"
    "[model]\nlayers = 2\nheads = 2\nwidth = 16\ncontext = 16\nvocabulary = 256\n"
    "[data]\ntrain = ../data/train.bin\nvalidation =\n"
    "[train]\nout = run\nsteps = 8\nbatch = 12\nmicro_batch = 1\nlog_every = 1\n"
    "[precision]\nrecipe = fp32\n";

static const struct outcome *train(int ranks, const char *options) {
    e2e_write("config", config, strlen(config));
    const struct process process = e2e_start(&mpirun, MPI "-n %d @ train config %s", ranks,
                                             options);
    const struct outcome *outcome = e2e_wait(&process);
    if (outcome->code != 0) fail_msg("%d ranks: %d: %s", ranks, outcome->code, outcome->err);
    return outcome;
}

/* What each step of a run says of exposed communication, as it must lie: within the step. Returns
 * the most. */
static double most_exposed_ms(const char *run) {
    cJSON *metrics = e2e_metrics(run);
    double most = 0.0;
    const cJSON *step;
    for (size_t i = 0; (step = e2e_record(metrics, "step", i)) != NULL; i++) {
        const double exposed = e2e_number(step, "comm_exposed_ms");
        if (!(exposed > 0.0 && exposed <= e2e_number(step, "step_ms"))) {
            fail_msg("step %zu: %g ms exposed of %g", i + 1, exposed, e2e_number(step, "step_ms"));
        }
        most = fmax(most, exposed);
    }
    cJSON_Delete(metrics);
    return most;
}

static void exposed_communication_is_measured(void **state) {
    (void)state;
    const struct outcome *outcome = train(2, "--comm.order fixed --train.zero 3");
    e2e_assert_words("summary", outcome->out,
                     "  exposed |exposed     | ms of communication in a "
                     "step of |the mean over 8 steps on rank 0");
    assert_true(most_exposed_ms("run") > 0.0);
    outcome = train(1, "--comm.order fixed --train.out one"); /* nobody to wait for */
    assert_null(strstr(outcome->out, "exposed"));
    cJSON *metrics = e2e_metrics("one");
    assert_null(
        cJSON_GetObjectItemCaseSensitive(e2e_record(metrics, "step", 0), "comm_exposed_ms"));
    cJSON_Delete(metrics);
}

/* Rank 1 stands still for half a second: the first rank waits for it, and says so. */
static void waiting_for_a_slow_rank_is_exposed(void **state) {
    (void)state;
    e2e_write("config", config, strlen(config));
    const struct process process = mpirun_start_endless(2);
    mpirun_signal_rank_1(SIGSTOP);
    e2e_sleep(0.5);
    mpirun_signal_rank_1(SIGCONT);
    e2e_sleep(0.1);
    mpirun_signal_rank_1(SIGTERM);
    assert_int_equal(e2e_wait(&process)->code, STATUS_INTERRUPTED);
    assert_true(most_exposed_ms("run") > 400.0);
}

/* The step that training takes, timed on its ranks. */
static void bench_times_a_step_of_many_ranks(void **state) {
    (void)state;
    e2e_write("config", config, strlen(config));
    static const char *const lines[] = {"--steps 3", "--steps 3 --train.zero 3 --data.train="};
    for (size_t i = 0; i < 2; i++) {
        const struct process process = e2e_start(&mpirun, MPI "-n 2 @ bench step config %s",
                                                 lines[i]);
        const struct outcome *outcome = e2e_wait(&process);
        assert_int_equal(outcome->code, 0);
        e2e_assert_words("bench step", outcome->out,
                         "ranks       2 through Open MPI|"
                         "exposed     | ms of communication in a step of | TFLOPS a rank");
        assert_int_equal(e2e_count(outcome->out, "step        median"), 1);
    }
    const struct process process = e2e_start(&mpirun, MPI "-n 2 @ bench step config --floor");
    const struct outcome *outcome = e2e_wait(&process);
    assert_int_equal(outcome->code, 2);
    e2e_assert_words("floor", outcome->err, "deepwell: rank 0: --ops and --floor");
    assert_int_equal(e2e_count(outcome->err, "deepwell: "), 1);
}

/* A signal to any one rank of a bench: all leave at the same step, none is left waiting. */
static void a_signal_to_one_rank_ends_a_bench(void **state) {
    (void)state;
    char line[128];
    static const char *const lines[] = {"", "--comm.order fixed --train.zero 3"};
    for (size_t i = 0; i < 2; i++) {
        unlink("pid");
        e2e_write("config", config, strlen(config));
        snprintf(line, sizeof line, "bench step config --warmup 1000000 --data.train= %s",
                 lines[i]);
        const struct process process = mpirun_start_told(3, line);
        e2e_await("pid", "");
        e2e_sleep(2.0); /* in the midst of its steps, or before them: it makes no difference */
        mpirun_signal_rank_1(SIGTERM);
        const struct outcome *outcome = e2e_wait(&process);
        if (outcome->code != STATUS_INTERRUPTED) fail_msg("%d: %s", outcome->code, outcome->err);
        e2e_assert_words("signal", outcome->err, "deepwell: stopped by a signal");
        assert_null(strstr(outcome->err, "lost"));
        assert_true(outcome->seconds < 30.0);
    }
}

/* The threads that the device line names. */
static long threads_of(const char *out) {
    const char *end = strstr(out, " thread");
    assert_non_null(end);
    while (end > out && end[-1] != ' ') end--;
    return strtol(end, NULL, 10);
}

/* With threads = 0 two ranks on the same processors take half each, and one at least. */
static void ranks_of_a_host_divide_its_processors(void **state) {
    (void)state;
    static const char line[] = "bench step config --threads 0 --steps 1";
    e2e_write("config", config, strlen(config));
    unsetenv("OMP_NUM_THREADS"); /* which e2e_open() sets, and which speaks for one process */
    const long all = threads_of(e2e_expect(0, "", "%s", line)->out);
    const struct process process = e2e_start(&mpirun, MPI "-n 2 @ %s", line);
    const struct outcome *outcome = e2e_wait(&process);
    assert_int_equal(outcome->code, 0);
    e2e_assert_words("threads", outcome->out, "the ranks of this host divide its processors");
    assert_int_equal(threads_of(outcome->out), all / 2 > 1 ? all / 2 : 1);
}

/* Rates follow from bytes and time as nccl-tests defines them (its PERFORMANCE.md): the factor from
 * the algorithm's to the bus's is 2 (N-1)/N, (N-1)/N, (N-1)/N and 1. Printed to a hundredth of a
 * microsecond and a thousandth of a GB/s. */
static void bench_times_collectives(void **state) {
    (void)state;
    enum { RANKS = 3, ROWS = 4 * (3 + 2) }; /* three sizes and two buckets */
    static const struct {
        const char *name;
        double factor;
    } rows[] = {{"all_reduce", 4.0 / 3},
                {"reduce_scatter", 2.0 / 3},
                {"all_gather", 2.0 / 3},
                {"broadcast", 1.0}};
    e2e_write("config", config, strlen(config));
    const struct process process =
        e2e_start(&mpirun,
                  MPI "-n %d @ bench comm config --model.vocabulary 4096 --from 3072 --to "
                      "49152 --seconds 0.005",
                  RANKS);
    const struct outcome *outcome = e2e_wait(&process);
    assert_int_equal(outcome->code, 0);
    e2e_assert_words("bench comm", outcome->out,
                     "ranks       3 through Open MPI|sums in fp32|"
                     "  gradients of a block\n|  gradients of the embeddings\n|--link-GBps ");
    int found = 0;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char start[32];
        snprintf(start, sizeof start, "\n  %s ", rows[i].name);
        for (const char *at = outcome->out; (at = strstr(at, start)) != NULL; at++, found++) {
            double bytes = 0, us = 0, algorithm = 0, bus = 0;
            assert_int_equal(sscanf(at + strlen(start), "%lf %*f %*s %lf %lf %lf", &bytes, &us,
                                    &algorithm, &bus),
                             4);
            assert_true(bytes > 0 && us > 0);
            const double expected = bytes / us * 1e-3, slack = 0.0006 + expected * 0.006 / us;
            if (fabs(algorithm - expected) > slack ||
                fabs(bus - expected * rows[i].factor) > slack * 4 / 3) {
                fail_msg("%s: %g bytes in %g us: %g and %g GB/s", rows[i].name, bytes, us,
                         algorithm, bus);
            }
        }
    }
    assert_int_equal(found, ROWS);
}

static void what_bench_comm_cannot_do_is_refused(void **state) {
    (void)state;
    e2e_write("config", config, strlen(config));
    e2e_expect(2, "one rank has nobody to talk to|mpirun -np 2|--gpus 2", "bench comm config");
    e2e_expect(2, "--from 4096 is more than --to 1024", "bench comm config --from 4096 --to 1024");
    e2e_expect(2, "--gpus 2 with device = cpu", "bench comm config --gpus 2");
    const char *const lists[] = {"4,x", "4,,8", "65", ""};
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) {
        e2e_expect(2, "--max-ctas|comm.max_ctas", "bench comm config --max-ctas=%s", lists[i]);
    }
    const struct process process = e2e_start(&mpirun, MPI "-n 2 @ bench comm config --max-ctas 4");
    const struct outcome *outcome = e2e_wait(&process);
    assert_int_equal(outcome->code, 2);
    e2e_assert_words("CTAs", outcome->err, "deepwell: rank 0: --max-ctas is of NCCL");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        E2E_TEST(exposed_communication_is_measured),
        E2E_TEST(waiting_for_a_slow_rank_is_exposed),
        E2E_TEST(bench_times_a_step_of_many_ranks),
        E2E_TEST(a_signal_to_one_rank_ends_a_bench),
        E2E_TEST(ranks_of_a_host_divide_its_processors),
        E2E_TEST(bench_times_collectives),
        E2E_TEST(what_bench_comm_cannot_do_is_refused),
    };
    if (!e2e_open(argc, argv)) return 1;
    if (mpi_missing()) return e2e_close(0);
    return e2e_close(cmocka_run_group_tests(tests, NULL, NULL));
}

/*
 * What a run of several ranks says when one of them stands still, dies, or is not what it says.
 * Oracle: this test decides which rank it is, and the program's message and exit code must say so
 * within seconds (docs/many_ranks.md, "When things fail").
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/ranks/mpirun.h"

static const char config[] =
    "device = cpu\nthreads = 1\n"
    "[model]\nlayers = 1\nheads = 2\nwidth = 16\ncontext = 16\nvocabulary = 256\n"
    "[data]\ntrain = ../data/train.bin\nvalidation =\n"
    "[train]\nout = run\nsteps = 1000000\nbatch = 6\nmicro_batch = 1\nlog_every = 1000000\n"
    "[precision]\nrecipe = fp32\n[checkpoint]\nevery = 2\n[comm]\ntimeout = 2\n"
    "save_timeout = 2\n";

static const struct unusual env = {.program = "env"};

/* Rank 1 of the ranks in the midst of their steps is sent the signal. */
static const struct outcome *signal_rank_1(const struct process *process, int number) {
    e2e_await("run/step_00000004", "");
    mpirun_signal_rank_1(number);
    const struct outcome *outcome = e2e_wait(process);
    assert_true(outcome->seconds < 30.0);
    return outcome;
}

static void a_rank_that_stands_still_is_named(void **state) {
    (void)state;
    e2e_write("config", config, strlen(config));
    const struct process process = mpirun_start_told(3, "train config");
    const struct outcome *outcome = signal_rank_1(&process, SIGSTOP);
    assert_int_equal(outcome->code, STATUS_RANKS);
    e2e_assert_words("stopped", outcome->err,
                     "(step |did not finish within 2 seconds: rank 1 did not arrive|silent for");
}

/* By the others themselves, for mpirun is asked to leave them alone; the run goes on from what it
 * had saved. */
static void a_rank_that_dies_is_named(void **state) {
    (void)state;
    static const char script[] =
        "if [ \"$OMPI_COMM_WORLD_RANK\" = 1 ]; then echo $$ >pid.new && mv pid.new pid\n"
        "exec \"$@\"; fi\n\"$@\"\necho $? >code-$OMPI_COMM_WORLD_RANK\n";
    static const char *const codes[] = {"code-0", "code-2"};
    e2e_write("config", config, strlen(config));
    e2e_write("noting", script, strlen(script));
    const struct process process = e2e_start(&mpirun,
                                             MPI "--enable-recovery -n 3 sh noting @ train config");
    const struct outcome *outcome = signal_rank_1(&process, SIGKILL);
    e2e_assert_words("killed", outcome->err, "deepwell: rank 1 on | was lost: its process or its");
    assert_null(strstr(outcome->err, "leaving after this step"));
    for (size_t i = 0; i < 2; i++) {
        size_t bytes = 0;
        char *code = e2e_read(codes[i], &bytes);
        assert_int_equal(atol(code), STATUS_RANKS);
        free(code);
    }
    const struct process again = e2e_start(&mpirun, MPI "-n 3 @ train config --train.steps 12");
    assert_int_equal(e2e_wait(&again)->code, 0);
}

/* The program with a byte behind its end, which does the same, is another program. */
static void a_rank_of_another_build_is_refused(void **state) {
    (void)state;
    e2e_write("config", config, strlen(config));
    const struct process process = mpirun_start_behind(
        "cat \"$1\" >other && echo >>other && chmod +x other && shift && set -- ./other \"$@\"", 3,
        "train config --comm.start_timeout 20");
    const struct outcome *outcome = e2e_wait(&process);
    if (outcome->code != STATUS_CONFIG) fail_msg("%d: %s", outcome->code, outcome->err);
    e2e_assert_words("build", outcome->err, "deepwell: |rank 1 on |runs another build|than rank 0");
    assert_true(outcome->seconds < 15.0);
    assert_int_not_equal(access("run", F_OK), 0);
}

static void wrong_environments_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *variables, *words;
    } cases[] = {
        {"RANK=0 WORLD_SIZE=0", "WORLD_SIZE|from 1"},
        {"RANK=2 WORLD_SIZE=2 LOCAL_RANK=0", "RANK is 2 and WORLD_SIZE is 2"},
        {"RANK=0", "RANK is 0, but WORLD_SIZE is not set"},
        {"SLURM_PROCID=0 SLURM_NTASKS=4 SLURM_LOCALID=0", "SLURM_NTASKS is 4|srun"},
        {"RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500",
         "mpirun"}, /* on CPUs nobody but MPI can start them */
    };
    e2e_write("config", config, strlen(config));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct process process = e2e_start(&env, "%s @ train config", cases[i].variables);
        const struct outcome *outcome = e2e_wait(&process);
        if (outcome->code != STATUS_CONFIG) {
            fail_msg("%s: %d: %s", cases[i].variables, outcome->code, outcome->err);
        }
        e2e_assert_words(cases[i].variables, outcome->err, cases[i].words);
        assert_int_not_equal(access("run", F_OK), 0);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        E2E_TEST(a_rank_that_stands_still_is_named),
        E2E_TEST(a_rank_that_dies_is_named),
        E2E_TEST(a_rank_of_another_build_is_refused),
        E2E_TEST(wrong_environments_are_refused),
    };
    if (!e2e_open(argc, argv)) return 1;
    if (mpi_missing()) return e2e_close(0);
    return e2e_close(cmocka_run_group_tests(tests, NULL, NULL));
}

/*
 * Several CPU ranks, each a process of the real program under mpirun. Oracles: one rank. With
 * comm.order = fixed files must be equal byte for byte and losses and norms bit for bit; with fast
 * sums losses lie within a derived bound. Failures: every rank ends within the deadline of e2e.h,
 * with one message that names the rank.
 */
#include <glob.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/ranks/mpirun.h"

enum { STEPS = 8, RANKS_MAX = 4 };

/* Twelve micro-batches of one sequence, which 1 to 4 ranks divide. Four blocks: one more than the
 * slots of train.zero = 3 hold. One thread, for sums depend on their number. */
static const char config[] =
    "device = cpu\nthreads = 1\n"
    "[model]\nlayers = 4\nheads = 2\nwidth = 16\ncontext = 16\nvocabulary = 256\n"
    "[data]\ntrain = ../data/train.bin\nvalidation = ../data/validation.bin\n"
    "[train]\nout = run\nsteps = 8\nbatch = 12\nmicro_batch = 1\nlog_every = 1\n"
    "[optimizer]\nlearning_rate = 3e-3\nwarmup_steps = 2\nschedule = constant\nclip_norm = 0.5\n"
    "[precision]\nrecipe = fp32\n"
    "[checkpoint]\nevery = 4\n"
    "[validation]\nevery = 4\nsequences = 13\nmicro_batch = 2\n";

/* `deepwell train` on so many ranks must end with this code. */
static const struct outcome *train(int code, int ranks, const char *options) {
    e2e_write("config", config, strlen(config));
    const struct process process = e2e_start(&mpirun, MPI "-n %d @ train config %s", ranks,
                                             options);
    const struct outcome *outcome = e2e_wait(&process);
    if (outcome->code != code) {
        fail_msg("%d ranks, %s: expected the exit code %d, found %d: %s", ranks, options, code,
                 outcome->code, outcome->err);
    }
    return outcome;
}

/* Losses, norms and validations of both runs, bit for bit (both are printed to the last digit). */
static void assert_same_curve(const char *a, const char *b) {
    static const struct {
        const char *kind, *number;
    } wanted[] = {{"step", "loss"},
                  {"step", "gradient_norm"},
                  {"step", "loss_scale"},
                  {"validation", "loss"}};
    cJSON *left = e2e_metrics(a), *right = e2e_metrics(b);
    for (size_t w = 0; w < sizeof wanted / sizeof wanted[0]; w++) {
        size_t i = 0;
        for (;; i++) {
            const cJSON *l = e2e_record(left, wanted[w].kind, i);
            const cJSON *r = e2e_record(right, wanted[w].kind, i);
            assert_int_equal(l == NULL, r == NULL);
            if (l == NULL) break;
            const cJSON *x = cJSON_GetObjectItemCaseSensitive(l, wanted[w].number);
            const cJSON *y = cJSON_GetObjectItemCaseSensitive(r, wanted[w].number);
            if (cJSON_IsNull(x) && cJSON_IsNull(y)) continue; /* not finite in both */
            if (x->valuedouble != y->valuedouble) {
                fail_msg("%s and %s: %s %zu: %.17g and %.17g", a, b, wanted[w].number, i,
                         x->valuedouble, y->valuedouble);
            }
        }
        assert_true(i > 0);
    }
    cJSON_Delete(left);
    cJSON_Delete(right);
}

/* Every stage on every number of ranks (`diagonal`: on one of them) against one rank of the plain
 * kind (train.zero = 0). */
static void check_fixed(const char *options, bool diagonal) {
    char line[E2E_LINE_BYTES];
    snprintf(line, sizeof line, "--comm.order fixed --train.zero 0 --train.out one %s", options);
    train(0, 1, line);
    for (int zero = 0; zero <= 3; zero++) {
        for (int ranks = 2; ranks <= RANKS_MAX; ranks++) {
            if (diagonal && ranks != 2 + zero % 3) continue;
            snprintf(line, sizeof line,
                     "--comm.order fixed --train.zero %d --train.out many-%d-%d %s", zero, zero,
                     ranks, options);
            train(0, ranks, line);
            snprintf(line, sizeof line, "many-%d-%d", zero, ranks);
            assert_same_curve("one", line);
            strcat(line, "/step_00000008/model.safetensors");
            e2e_assert_same_file("one/step_00000008/model.safetensors", line);
        }
    }
}

/* Accumulation (12 micro-batches on one rank, 3 on four) and clipping at work throughout. */
static void fixed_order_gives_the_bits_of_one_rank(void **state) {
    (void)state;
    check_fixed("", E2E_SANITIZED);
}

/* The first steps overflow at this scale: skipped on all ranks alike. */
static void loss_scaling_gives_the_bits_of_one_rank(void **state) {
    (void)state;
    check_fixed("--precision.recipe fp16 --precision.loss_scale 1e9", true);
    cJSON *metrics = e2e_metrics("one");
    assert_true(e2e_number(e2e_record(metrics, "step", STEPS - 1), "loss_scale") < 1e9);
    cJSON_Delete(metrics);
}

static void bf16_sums_give_the_bits_of_one_rank(void **state) {
    (void)state;
    check_fixed("--precision.recipe bf16 --comm.reduction bf16", true);
}

/* Scales are of a micro-batch's own numbers, or the largest of all ranks; quantised copies are made
 * from gathered weights. */
static void narrow_recipes_give_the_bits_of_one_rank(void **state) {
    (void)state;
    static const char *const recipes[] = {"fp8 --precision.scaling current", "mxfp8"};
    char line[E2E_LINE_BYTES];
    for (int i = 0; i < 2; i++) {
        const char *wide = "--comm.order fixed --model.width 64 --train.micro_batch 2";
        snprintf(line, sizeof line, "%s --precision.recipe %s --train.out one-%d", wide, recipes[i],
                 i);
        train(0, 1, line);
        snprintf(line, sizeof line, "%s --precision.recipe %s --train.zero %d --train.out many-%d",
                 wide, recipes[i], 1 + i, i);
        train(0, 2 + i, line);
        char one[64], many[64];
        snprintf(one, sizeof one, "one-%d", i);
        snprintf(many, sizeof many, "many-%d", i);
        assert_same_curve(one, many);
    }
    train(2, 2, "--train.zero 3 --model.width 64 --train.micro_batch 2 --precision.recipe mxfp8");
}

/* Fast sums differ from one rank's in rounding alone. With epsilon = 1 an update is a Lipschitz
 * function of the gradient, |dw| <= lr |dg|: a gradient summed from 12 parts in another order is
 * off by 12 2^-24 of the sum of its parts' sizes, say 10 times its own; its norm is clipped to 0.5,
 * lr is 0.3, the gradient of the loss at most 2, 8 steps:  8 * 2 * 0.3 * 0.5 * 120 * 2^-24 =
 * 1.7e-5. The forward pass rounds anew from the changed weights: some 64 operations in a row of
 * 2^-24 of a loss of 5.6: 2.1e-5. */
static void fast_sums_give_the_curve_of_one_rank(void **state) {
    (void)state;
    static const char same[] = "--optimizer.epsilon 1 --optimizer.learning_rate 0.3";
    const double bound = 4e-5;
    char line[E2E_LINE_BYTES];
    snprintf(line, sizeof line, "%s --train.out one", same);
    train(0, 1, line);
    cJSON *one = e2e_metrics("one");
    for (int zero = 0; zero <= 3; zero++) {
        snprintf(line, sizeof line, "%s --train.zero %d --train.out many-%d", same, zero, zero);
        train(0, 2 + zero % 3, line);
        snprintf(line, sizeof line, "many-%d", zero);
        cJSON *many = e2e_metrics(line);
        for (size_t i = 0; i < STEPS; i++) {
            const double a = e2e_number(e2e_record(one, "step", i), "loss");
            const double b = e2e_number(e2e_record(many, "step", i), "loss");
            if (!(fabs(a - b) <= bound)) fail_msg("zero %d, step %zu: %.9g, %.9g", zero, i, a, b);
        }
        cJSON_Delete(many);
    }
    const double first = e2e_number(e2e_record(one, "step", 0), "loss");
    const double last = e2e_number(e2e_record(one, "step", STEPS - 1), "loss");
    assert_true(first - last > 100 * bound); /* it did learn */
    cJSON_Delete(one);
}

/* A checkpoint of any number of ranks and stage goes on with any other, at the same data. */
static void a_run_goes_on_with_other_ranks(void **state) {
    (void)state;
    train(0, 1, "--comm.order fixed --train.out one --train.steps 8");
    train(0, 4, "--comm.order fixed --train.steps 2 --train.zero 1");
    train(0, 2, "--comm.order fixed --train.steps 4 --train.zero 3");
    train(0, 3, "--comm.order fixed --train.steps 6 --train.zero 2");
    train(0, 1, "--comm.order fixed --train.steps 8 --train.zero 0");
    e2e_assert_steps("run", STEPS);
    e2e_assert_same_file("one/step_00000008/model.safetensors",
                         "run/step_00000008/model.safetensors");
}

/* The same number of ranks goes on to the same bits, sums in any order. */
static void the_same_ranks_go_on_bit_for_bit(void **state) {
    (void)state;
    train(0, 3, "--train.out through");
    train(0, 3, "--train.steps 4");
    train(0, 3, "");
    e2e_assert_same_file("through/step_00000008/model.safetensors",
                         "run/step_00000008/model.safetensors");
    e2e_assert_same_file("through/step_00000008/optimizer-00003-of-00003.safetensors",
                         "run/step_00000008/optimizer-00003-of-00003.safetensors");
    const struct outcome *outcome = e2e_run("checkpoint verify run");
    assert_int_equal(outcome->code, 0);
}

/* Weights of another run, of another number of ranks. */
static void a_trained_model_starts_many_ranks(void **state) {
    (void)state;
    static const char init[] = "--comm.order fixed --train.init first --train.steps 4";
    char line[E2E_LINE_BYTES];
    train(0, 2, "--train.out first --train.steps 4");
    snprintf(line, sizeof line, "%s --train.out one", init);
    train(0, 1, line);
    snprintf(line, sizeof line, "%s --train.out many --train.zero 3", init);
    train(0, 3, line);
    e2e_assert_same_file("one/step_00000004/model.safetensors",
                         "many/step_00000004/model.safetensors");
}

static void only_the_first_rank_speaks(void **state) {
    (void)state;
    const struct outcome *outcome = train(0, 3, "");
    assert_int_equal(e2e_count(outcome->out, "device "), 1);
    assert_int_equal(e2e_count(outcome->out, "ranks       3 through Open MPI"), 1);
    e2e_assert_steps("run", STEPS);
}

static void a_rank_with_another_configuration_is_refused(void **state) {
    (void)state;
    e2e_write("config", config, strlen(config));
    const struct process process =
        e2e_start(&mpirun, MPI "-n 2 @ train config : -n 1 @ train config --optimizer.beta2 0.9");
    const struct outcome *outcome = e2e_wait(&process);
    assert_int_equal(outcome->code, 2);
    e2e_assert_words("mismatch", outcome->err,
                     "deepwell: optimizer.beta2 of rank 2 is not that of rank 0");
    assert_int_equal(e2e_count(outcome->err, "deepwell: "), 1);
    assert_int_not_equal(access("run", F_OK), 0);
}

static void ranks_that_do_not_divide_the_batch_are_refused(void **state) {
    (void)state;
    const struct outcome *outcome = train(2, 3, "--train.batch 8");
    e2e_assert_words("batch", outcome->err, "train.batch = 8|3 ranks|multiple of 3");
}

static void write_limited(void) {
    static const char script[] =
        "[ \"$OMPI_COMM_WORLD_RANK\" = 1 ] && ulimit -f 8 && trap '' XFSZ\nexec \"$@\"\n";
    e2e_write("limited", script, strlen(script));
}

/* The second save, of the same size, has no room on rank 1. */
static void a_full_disk_of_one_rank_fails_the_save_of_all(void **state) {
    (void)state;
    train(0, 3, "--train.steps 4");
    char *before = e2e_tree("run/step_00000004");
    write_limited();
    /* No shared memory files, which the limit would meet first. */
    const struct process process = e2e_start(&mpirun, MPI
                                             "--mca btl self,tcp -n 3 sh limited @ train config");
    const struct outcome *outcome = e2e_wait(&process);
    assert_int_equal(outcome->code, 5);
    e2e_assert_words("full disk", outcome->err, "deepwell: rank 1: cannot write|File too large");
    assert_int_equal(e2e_count(outcome->err, "deepwell: "), 1);
    e2e_assert_same_tree("run/step_00000004", before);
    assert_int_not_equal(access("run/step_00000008", F_OK), 0);
    glob_t left; /* nothing unfinished stays */
    assert_int_equal(glob("run/*.tmp-*", 0, NULL, &left), GLOB_NOMATCH);
    free(before);
    train(0, 3, "");
    e2e_assert_steps("run", STEPS);
}

/* A signal to any one of them: all finish the same step, save it and leave. */
static void a_signal_to_one_rank_stops_all(void **state) {
    (void)state;
    e2e_write("config", config, strlen(config));
    const struct process process = mpirun_start_endless(3);
    mpirun_signal_rank_1(SIGTERM);
    const struct outcome *outcome = e2e_wait(&process);
    assert_int_equal(outcome->code, STATUS_INTERRUPTED);
    e2e_assert_words("signal", outcome->err, "deepwell: stopped by|saved in run");
    const struct outcome *verified = e2e_run("checkpoint verify run");
    assert_int_equal(verified->code, 0);
    assert_non_null(strstr(verified->out, "step_"));
}

/* A rank that comes late is waited for. */
static void a_late_rank_is_waited_for(void **state) {
    (void)state;
    e2e_write("config", config, strlen(config));
    const struct process process = mpirun_start_behind("sleep 1", 2, "train config");
    assert_int_equal(e2e_wait(&process)->code, 0);
    e2e_assert_steps("run", STEPS);
}

/* Longer than MPI itself, which would wait for ever. */
static void a_rank_that_never_comes_is_not_waited_for(void **state) {
    (void)state;
    e2e_write("config", config, strlen(config));
    const struct process process = mpirun_start_behind("sleep 30", 2,
                                                       "train config --comm.start_timeout 1");
    const struct outcome *outcome = e2e_wait(&process);
    assert_int_equal(outcome->code, STATUS_RANKS);
    e2e_assert_words("never", outcome->err, "deepwell: rank 0 of 2: not all ranks came to MPI");
}

/* Rank 1 runs elsewhere: without the data; with it, and with other weights by the same name; with
 * the same ones, and no run's folder. */
static void what_a_rank_reads_by_itself_is_compared(void **state) {
    (void)state;
    static const char *const words[] = {
        "rank 1: |data/train.bin", "the weights to begin with|of rank 1 is not that of rank 0",
        "rank 1: train.out (new) is not the folder that rank 0 made"};
    static const char *const places[] = {"cd elsewhere", "cd other", "cd elsewhere"};
    const int codes[] = {STATUS_DATA, STATUS_CONFIG, STATUS_IO};
    e2e_write("config", config, strlen(config));
    e2e_expect(0, "", "train config --train.out model");
    assert_int_equal(mkdir("elsewhere", 0777), 0);
    assert_int_equal(mkdir("other", 0777), 0);
    assert_int_equal(symlink("../config", "elsewhere/config"), 0);
    assert_int_equal(symlink("../config", "other/config"), 0);
    e2e_expect(0, "", "train config --train.out other/model --train.seed 2");
    assert_int_equal(symlink("../model", "elsewhere/model"), 0);
    assert_int_equal(symlink("../new", "other/new"), 0);
    for (size_t i = 0; i < 3; i++) {
        const struct process process = mpirun_start_behind(
            places[i], 2, "train config --train.init model --train.out new");
        const struct outcome *outcome = e2e_wait(&process);
        assert_int_equal(outcome->code, codes[i]);
        e2e_assert_words("compared", outcome->err, words[i]);
        if (i == 0) assert_int_equal(symlink("../data", "data"), 0);
    }
}

/* Not finite: found, named and stopped on all ranks alike; the weights are saved as they were. */
static void a_step_that_is_not_finite_stops_all(void **state) {
    (void)state;
    for (int zero = 0; zero <= 3; zero += 3) {
        char line[E2E_LINE_BYTES];
        snprintf(line, sizeof line,
                 "--optimizer.learning_rate 10 --optimizer.clip_norm 0 "
                 "--optimizer.epsilon 1e-30 --optimizer.weight_decay 10 --train.steps 400 "
                 "--train.zero %d --train.out run-%d",
                 zero, zero);
        const struct outcome *outcome = train(6, 2, line);
        e2e_assert_words("not finite", outcome->err, "is not finite|found first in| on rank ");
        assert_int_equal(e2e_count(outcome->err, "deepwell: "), 1);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        E2E_TEST(fixed_order_gives_the_bits_of_one_rank),
        E2E_TEST(loss_scaling_gives_the_bits_of_one_rank),
        E2E_TEST(bf16_sums_give_the_bits_of_one_rank),
        E2E_TEST(narrow_recipes_give_the_bits_of_one_rank),
        E2E_TEST(fast_sums_give_the_curve_of_one_rank),
        E2E_TEST(a_run_goes_on_with_other_ranks),
        E2E_TEST(the_same_ranks_go_on_bit_for_bit),
        E2E_TEST(a_trained_model_starts_many_ranks),
        E2E_TEST(only_the_first_rank_speaks),
        E2E_TEST(a_rank_with_another_configuration_is_refused),
        E2E_TEST(ranks_that_do_not_divide_the_batch_are_refused),
        E2E_TEST(a_full_disk_of_one_rank_fails_the_save_of_all),
        E2E_TEST(a_signal_to_one_rank_stops_all),
        E2E_TEST(a_late_rank_is_waited_for),
        E2E_TEST(a_rank_that_never_comes_is_not_waited_for),
        E2E_TEST(what_a_rank_reads_by_itself_is_compared),
        E2E_TEST(a_step_that_is_not_finite_stops_all),
    };
    if (!e2e_open(argc, argv)) return 1;
    if (mpi_missing()) return e2e_close(0);
    return e2e_close(cmocka_run_group_tests(tests, NULL, NULL));
}

/*
 * A run that is stopped or killed and started again ends where an undisturbed one ends.
 *
 * Oracle: bit equality of the last checkpoint (weights, moments, state.json, manifest) with that of
 * a run that nothing disturbed; and metrics.jsonl, which has to hold every step exactly once, in
 * order. The disturbances are signals from outside at any moment, in the midst of saves too: the
 * run saves after every step.
 *
 * A recipe: FP32; BF16; FP16 with a loss scale so large and an interval so short that the scaler
 * backs off, grows and skips steps while the run is disturbed; FP8 with delayed scaling, whose
 * scales come from the steps before.
 */
#include "tests/e2e/e2e.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/random.h"

enum { KILLS = E2E_SANITIZED ? 3 : 12, LONG_STEPS = 60 };

static const char *const recipes[] = {
    "--precision.recipe fp32",
    "--precision.recipe bf16",
    "--precision.recipe fp8",
    "--precision.recipe fp16 --precision.loss_scale 4e6 --precision.loss_scale_interval 3",
};
enum { RECIPES = sizeof recipes / sizeof recipes[0] };

static const char every_step[] = "--checkpoint.every 1 --checkpoint.keep 2 --validation.every 0";

/* The last checkpoint of the undisturbed run, which is moved away so that the others can have its
 * name. */
static char *undisturbed(const char *options, int64_t steps, double *seconds) {
    char last[64];
    assert_int_equal(folder_remove("run"), STATUS_OK);
    *seconds = e2e_expect(0, "", "train ../tiny.conf --train.steps %lld %s", (long long)steps,
                          options)
                   ->seconds;
    e2e_assert_steps("run", steps);
    snprintf(last, sizeof last, "run/step_%08lld", (long long)steps);
    char *tree = e2e_tree(last);
    assert_non_null(strstr(tree, "optimizer-00001-of-00001.safetensors"));
    assert_int_equal(folder_remove("run"), STATUS_OK);
    return tree;
}

static struct stalled stalled_run(const char *options) {
    return e2e_stall(" left  loss", "train ../tiny.conf --train.steps %d %s", LONG_STEPS, options);
}

/* The same command once more, to the end, which must be the undisturbed run's. */
static void continue_to_the_end(const char *options, const char *expected) {
    const struct outcome *rest = e2e_expect(0, "", "train ../tiny.conf --train.steps %d %s",
                                            LONG_STEPS, options);
    e2e_assert_words("the continued run", rest->out, "continuing run/step_");
    e2e_assert_steps("run", LONG_STEPS);
    e2e_assert_same_tree("run/step_00000060", expected);
}

static void stopped_and_continued(const char *options, int number) {
    double seconds = 0.0;
    char *expected = undisturbed(options, LONG_STEPS, &seconds);
    const struct stalled run = stalled_run(options);
    assert_int_equal(kill(run.process.pid, number), 0);
    const struct outcome *stopped = e2e_release(&run);
    if (stopped->code != STATUS_INTERRUPTED) fail_msg("code %d: %s", stopped->code, stopped->err);
    e2e_assert_words("a stopped run", stopped->err, "stopped by SIG|saved in run");
    const long step = strtol(e2e_value(stopped->err, "after step"), NULL, 10);
    assert_in_range(step, 1, LONG_STEPS - 1);
    e2e_assert_steps("run", step);
    continue_to_the_end(options, expected);
    free(expected);
}

/* A signal is noticed between two steps, and within a validation. */
static void a_stopped_run_continues(void **state) {
    (void)state;
    for (size_t i = 0; i < RECIPES; i++) {
        char options[256];
        snprintf(options, sizeof options, "%s --checkpoint.every 20 --validation.every 0",
                 recipes[i]);
        stopped_and_continued(options, SIGTERM);
        snprintf(options, sizeof options, "%s --checkpoint.every 20 --validation.every 1",
                 recipes[i]);
        stopped_and_continued(options, SIGINT);
    }
}

/* Both signals wait for the main thread while the process is stopped, so that it gets them together
 * when it goes on, however busy the machine is. Which of the two comes second is the kernel's
 * choice. */
static void a_second_signal_ends_it_at_once(void **state) {
    (void)state;
    static const char options[] = "--checkpoint.every 5 --validation.every 0";
    double seconds = 0.0;
    int stopped = 0;
    char *expected = undisturbed(options, LONG_STEPS, &seconds);
    const struct stalled run = e2e_stall("saved run/step_00000005",
                                         "train ../tiny.conf "
                                         "--train.steps %d %s",
                                         LONG_STEPS, options);
    const pid_t pid = run.process.pid;
    assert_int_equal(kill(pid, SIGSTOP), 0);
    assert_int_equal(waitpid(pid, &stopped, WUNTRACED), pid);
    assert_true(WIFSTOPPED(stopped));
    assert_int_equal(syscall(SYS_tgkill, pid, pid, SIGTERM), 0);
    assert_int_equal(syscall(SYS_tgkill, pid, pid, SIGINT), 0);
    assert_int_equal(kill(pid, SIGCONT), 0);
    const int code = e2e_release(&run)->code;
    if (code != 128 + SIGTERM && code != 128 + SIGINT) fail_msg("exit code %d", code);
    continue_to_the_end(options, expected);
    free(expected);
}

/* Starts the run and kills it at a random moment; false when it was done before. */
static bool killed(const char *options, double seconds_max, uint64_t draw) {
    const struct unusual usual = {0};
    const struct process process = e2e_start(&usual, "train ../tiny.conf %s", options);
    e2e_sleep(seconds_max * (double)random_uniform(1, RANDOM_TEST, draw));
    kill(process.pid, SIGKILL);
    const struct outcome *outcome = e2e_wait(&process);
    if (outcome->code != 0 && outcome->code != 128 + SIGKILL) {
        fail_msg("a run after a SIGKILL ended with %d: %s", outcome->code, outcome->err);
    }
    return outcome->code != 0;
}

/* Runs that are killed again and again until they are done, as many as KILLS need. */
static void killed_and_continued(const char *options, uint64_t first_draw) {
    double seconds = 0.0;
    char *expected = undisturbed(options, E2E_STEPS, &seconds);
    int kills = 0, runs = 0;
    for (uint64_t draw = first_draw; kills < KILLS; runs++) {
        assert_int_equal(folder_remove("run"), STATUS_OK);
        /* Moments follow the speed of the machine: about two starts in three are killed. */
        while (kills < KILLS && killed(options, seconds, draw++)) {
            kills++;
            seconds *= 1.1;
        }
        seconds *= 0.8;
        assert_true(runs < 10 * KILLS);
        e2e_expect(0, "", "train ../tiny.conf %s", options);
        e2e_assert_steps("run", E2E_STEPS);
        e2e_assert_same_tree("run/step_00000016", expected);
    }
    print_message("  %d kills in %d runs: %s\n", kills, runs, options);
    free(expected);
}

static void a_killed_run_continues(void **state) {
    (void)state;
    for (size_t i = 0; i < RECIPES; i++) {
        char options[256];
        snprintf(options, sizeof options, "%s %s", recipes[i], every_step);
        killed_and_continued(options, 1000 * i);
    }
}

/* The FP16 runs above are worth something only if the scaler is busy in them. */
static void the_scaler_is_busy(void **state) {
    (void)state;
    size_t skipped = 0, grown = 0;
    double scale = 4e6;
    e2e_expect(0, "", "train ../tiny.conf %s", recipes[RECIPES - 1]);
    cJSON *metrics = e2e_metrics("run");
    for (size_t i = 0; i < E2E_STEPS; i++) {
        const cJSON *record = e2e_record(metrics, "step", i);
        const double now = e2e_number(record, "loss_scale");
        skipped += now < scale;
        grown += now > scale;
        scale = now;
    }
    cJSON_Delete(metrics);
    print_message("  %zu steps skipped, %zu times grown\n", skipped, grown);
    assert_true(skipped >= 2 && grown >= 2);
}

/* A reader of its output that goes away ends the run as a signal does: saved, and continued by the
 * same command. */
static void a_closed_output_is_no_catastrophe(void **state) {
    (void)state;
    static const char options[] = "--checkpoint.every 0";
    double seconds = 0.0;
    char *expected = undisturbed(options, E2E_STEPS, &seconds);
    int ends[2];
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    close(ends[0]);
    const struct unusual unusual = {.out_file = ends[1]};
    const struct process process = e2e_start(&unusual, "train ../tiny.conf %s", options);
    close(ends[1]);
    const struct outcome *outcome = e2e_wait(&process);
    assert_int_equal(outcome->code, STATUS_INTERRUPTED);
    e2e_assert_words("a closed output", outcome->err, "stopped by SIGPIPE|saved in run");
    e2e_expect(0, "", "train ../tiny.conf %s", options);
    e2e_assert_same_tree("run/step_00000016", expected);
    free(expected);
}

static void a_finished_run_is_left_alone(void **state) {
    (void)state;
    double seconds = 0.0;
    char *expected = undisturbed("--optimizer.schedule constant", E2E_STEPS + 4, &seconds);
    e2e_expect(0, "", "train ../tiny.conf --optimizer.schedule constant");
    char *finished = e2e_tree("run");
    const struct outcome *again = e2e_expect(0, "",
                                             "train ../tiny.conf --optimizer.schedule constant");
    e2e_assert_words("a finished run", again->out,
                     "the run is complete|16 steps are done|train.steps is 16");
    e2e_assert_same_tree("run", finished);
    free(finished);
    /* With a constant learning rate the longer run's first steps are the shorter run's. */
    const struct outcome *longer = e2e_expect(0, "",
                                              "train ../tiny.conf --optimizer.schedule constant "
                                              "--train.steps %d",
                                              E2E_STEPS + 4);
    e2e_assert_words("a longer run", longer->out,
                     "continuing run/step_00000016, with changes: train.steps 16 -> 20");
    e2e_assert_steps("run", E2E_STEPS + 4);
    e2e_assert_same_tree("run/step_00000020", expected);
    free(expected);
}

static void a_changed_learning_rate_is_named(void **state) {
    (void)state;
    e2e_expect(0, "", "train ../tiny.conf --train.steps 8 --optimizer.schedule constant");
    const struct outcome *changed = e2e_expect(0, "",
                                               "train ../tiny.conf --optimizer.schedule constant "
                                               "--optimizer.learning_rate 1e-3");
    e2e_assert_words("a changed run", changed->out,
                     "train.steps 8 -> 16|"
                     "optimizer.learning_rate 0.003 -> 0.001");
    cJSON *metrics = e2e_metrics("run");
    assert_true(e2e_number(e2e_record(metrics, "step", 7), "learning_rate") == (double)3e-3f);
    assert_true(e2e_number(e2e_record(metrics, "step", 8), "learning_rate") == (double)1e-3f);
    cJSON_Delete(metrics);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        E2E_TEST(a_stopped_run_continues),
        E2E_TEST(a_second_signal_ends_it_at_once),
        E2E_TEST(a_killed_run_continues),
        E2E_TEST(the_scaler_is_busy),
        E2E_TEST(a_closed_output_is_no_catastrophe),
        E2E_TEST(a_finished_run_is_left_alone),
        E2E_TEST(a_changed_learning_rate_is_named),
    };
    return E2E_MAIN(argc, argv, tests);
}

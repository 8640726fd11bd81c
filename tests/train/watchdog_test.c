/*
 * The watch over collectives, with forked ranks on the loopback address that enter and leave but
 * compute nothing. Oracle: this test decides which rank does not come, dies or fails, and each
 * other rank's message and exit code must say just that, in time.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "train/watchdog.h"
#include "train/wire.h"

enum { WORLD = 4 };
static const double timeout_seconds = 1.0, beat_seconds = 0.05;

struct answer {
    pid_t pid;
    int code; /* as the shell counts */
    double seconds;
    int aborts;
    char message[1024];
};


static struct answer *answers; /* shared (WORLD) */
static char place[64];

static void count_abort(void *context) { ++*(int *)context; }

static void sleep_seconds(double seconds) { usleep((useconds_t)(seconds * 1e6)); }

/* In the collective for at most so long, as a polling wait. */
static enum status collective(struct watchdog *w, const char *what, double seconds) {
    const double until = clock_seconds() + seconds;
    watchdog_enter(w, what);
    while (clock_seconds() < until) {
        TRY(watchdog_check(w));
        sleep_seconds(0.01);
    }
    watchdog_leave(w);
    return STATUS_OK;
}

static void play(int rank, int world, enum status (*run)(struct watchdog *w, int rank),
                 double grace_seconds) {
    struct rendezvous meeting;
    struct watchdog *w = NULL;
    const struct rendezvous_options options = {.rank = rank, .world = world, .place = place,
                                               .timeout_seconds = 5.0, .device = ""};
    char nothing = 0;
    struct answer *a = &answers[rank];
    a->pid = getpid();
    if (rendezvous_open(&meeting, &options, &nothing, 1) != STATUS_OK) _exit(99);
    const struct watchdog_options watched = {
        .meeting = &meeting, .timeout_seconds = timeout_seconds, .grace_seconds = grace_seconds,
        .beat_seconds = beat_seconds, .abort = count_abort, .context = &a->aborts,
    };
    if (watchdog_open(&w, &watched) != STATUS_OK) _exit(98);
    const double begun = clock_seconds();
    const enum status status = run(w, rank);
    a->seconds = clock_seconds() - begun;
    snprintf(a->message, sizeof a->message, "%s", status == STATUS_OK ? "" : status_message());
    watchdog_close(w, status);
    rendezvous_close(&meeting);
    _exit((int)status);
}

static void run_ranks(int world, enum status (*run)(struct watchdog *w, int rank),
                      double grace_seconds) {
    pid_t pids[WORLD];
    int port = 0;
    const int listener = wire_listen("127.0.0.1", &port);
    assert_true(listener >= 0);
    close(listener);
    snprintf(place, sizeof place, "127.0.0.1:%d", port);
    memset(answers, 0, WORLD * sizeof *answers);
    for (int r = 0; r < world; r++) {
        pids[r] = fork();
        if (pids[r] == 0) play(r, world, run, grace_seconds);
    }
    for (int r = 0; r < world; r++) {
        int how = 0;
        assert_int_equal(waitpid(pids[r], &how, 0), pids[r]);
        answers[r].code = WIFSIGNALED(how) ? 128 + WTERMSIG(how) : WEXITSTATUS(how);
    }
}

static void ended(int rank, int code, double seconds_most, const char *words) {
    const struct answer *a = &answers[rank];
    char copy[256], *next = NULL;
    if (a->code != code) fail_msg("rank %d: code %d: %s", rank, a->code, a->message);
    if (a->seconds > seconds_most) fail_msg("rank %d: %.2f seconds", rank, a->seconds);
    snprintf(copy, sizeof copy, "%s", words);
    for (char *word = strtok_r(copy, "|", &next); word != NULL; word = strtok_r(NULL, "|", &next)) {
        if (strstr(a->message, word) != NULL) continue;
        fail_msg("rank %d: no %s: %s", rank, word, a->message);
    }
}

/* Slow ranks are no lost ranks: each wait is just within the limit. */
static enum status in_time(struct watchdog *w, int rank) {
    for (int64_t step = 0; step < 3; step++) {
        watchdog_at_step(w, step);
        TRY(collective(w, "all_reduce", 0.1 + 0.15 * rank));
    }
    return collective(w, "barrier", 0.7 * timeout_seconds);
}

static void nothing_happens_in_time(void **state) {
    (void)state;
    run_ranks(WORLD, in_time, 1.0);
    for (int r = 0; r < WORLD; r++) {
        ended(r, 0, 5.0, "");
        assert_int_equal(answers[r].aborts, 0);
    }
}

static enum status two_stay_away(struct watchdog *w, int rank) {
    watchdog_at_step(w, 6);
    TRY(collective(w, "reduce_scatter of gradients", 0.05));
    watchdog_at_step(w, 7);
    if (rank < 2) return collective(w, "all_gather of weights", 30.0);
    for (;;) { /* they are stuck elsewhere, but hear it */
        TRY(watchdog_check(w));
        sleep_seconds(0.01);
    }
}

static void who_does_not_arrive_is_named(void **state) {
    (void)state;
    run_ranks(WORLD, two_stay_away, 1.0);
    for (int r = 0; r < WORLD; r++) {
        ended(r, STATUS_RANKS, timeout_seconds + 1.5,
              "all_gather of weights (step 7) did not finish within 1 seconds|"
              "ranks 2 and 3 did not arrive|rank 2 on|step 7, reduce_scatter of gradients");
        assert_int_equal(answers[r].aborts, 1);
    }
}

static enum status first_stays_away(struct watchdog *w, int rank) {
    if (rank > 0) return collective(w, "barrier", 30.0);
    for (;;) {
        TRY(watchdog_check(w));
        sleep_seconds(0.01);
    }
}

static void rank_0_may_be_the_one(void **state) {
    (void)state;
    run_ranks(2, first_stays_away, 1.0);
    for (int r = 0; r < 2; r++) {
        ended(r, STATUS_RANKS, timeout_seconds + 1.5,
              "barrier (before the first step)|rank 0 did not arrive|it has come to none yet");
    }
}

static enum status all_hang(struct watchdog *w, int rank) {
    (void)rank;
    return collective(w, "broadcast", 30.0);
}

static void all_arrived(void **state) {
    (void)state;
    run_ranks(3, all_hang, 1.0);
    for (int r = 0; r < 3; r++) ended(r, STATUS_RANKS, timeout_seconds + 1.5, "all ranks arrived");
    run_ranks(1, all_hang, 1.0); /* one rank has a device that may hang, too */
    ended(0, STATUS_RANKS, timeout_seconds + 1.5, "broadcast|all ranks arrived");
}

static enum status one_is_killed(struct watchdog *w, int rank) {
    if (rank == 2) {
        sleep_seconds(0.2);
        raise(SIGKILL);
    }
    return collective(w, "all_reduce", 30.0);
}

/* Long before any timeout. */
static void a_killed_rank_is_noticed_at_once(void **state) {
    (void)state;
    run_ranks(WORLD, one_is_killed, 1.0);
    for (int r = 0; r < WORLD; r++) {
        if (r == 2) ended(r, 128 + SIGKILL, 1.0, "");
        if (r != 2) ended(r, STATUS_RANKS, 0.8, "rank 2 on|was lost");
    }
}

static enum status first_is_killed(struct watchdog *w, int rank) {
    if (rank == 0) {
        sleep_seconds(0.2);
        raise(SIGKILL);
    }
    return collective(w, "all_reduce", 30.0);
}

static void a_killed_rank_0_too(void **state) {
    (void)state;
    run_ranks(3, first_is_killed, 1.0);
    ended(1, STATUS_RANKS, 0.8, "rank 0 on|was lost");
    ended(2, STATUS_RANKS, 0.8, "rank 0 on|was lost");
}

static enum status one_fails(struct watchdog *w, int rank) {
    if (rank == 1) {
        sleep_seconds(0.2);
        return status_set(STATUS_IO, "the disk is full");
    }
    return collective(w, "all_reduce", 30.0);
}

static enum status first_fails(struct watchdog *w, int rank) {
    return one_fails(w, rank == 0 ? 1 : 2);
}

static void a_failure_is_passed_on(void **state) {
    (void)state;
    run_ranks(3, one_fails, 1.0);
    ended(1, STATUS_IO, 1.0, "the disk is full");
    ended(0, STATUS_RANKS, 0.8, "rank 1 on|failed: the disk is full");
    ended(2, STATUS_RANKS, 0.8, "rank 1 on|failed: the disk is full");
    run_ranks(3, first_fails, 1.0);
    ended(0, STATUS_IO, 1.0, "the disk is full");
    ended(2, STATUS_RANKS, 0.8, "rank 0 failed: the disk is full");
}

/* One that is done, or interrupted, leaves in peace; the others go on. */
static enum status some_leave_early(struct watchdog *w, int rank) {
    if (rank == 0) return STATUS_OK;
    if (rank == 1) return status_set(STATUS_INTERRUPTED, "stopped by SIGTERM");
    return collective(w, "none of theirs", 0.5 * timeout_seconds);
}

static void leaving_disturbs_nobody(void **state) {
    (void)state;
    run_ranks(WORLD, some_leave_early, 1.0);
    ended(0, 0, 1.0, "");
    ended(1, STATUS_INTERRUPTED, 1.0, "");
    ended(2, 0, 1.0, "");
    ended(3, 0, 1.0, "");
}

/* Rank 1 cannot be reached by any message: it is ended from within its process. */
static enum status one_is_deaf(struct watchdog *w, int rank) {
    if (rank == 0) return collective(w, "all_reduce", 30.0);
    for (;;) sleep_seconds(1.0);
}

static void the_deaf_are_ended(void **state) {
    (void)state;
    run_ranks(2, one_is_deaf, 0.3);
    ended(0, STATUS_RANKS, 2.5, "rank 1 did not arrive");
    ended(1, STATUS_RANKS, 0.0, "");
}

/* Rank 1 comes later than the timeout, to what may take longer. */
static enum status a_long_save(struct watchdog *w, int rank) {
    watchdog_allow(w, 10.0 * timeout_seconds);
    if (rank == 1) sleep_seconds(1.8 * timeout_seconds);
    TRY(collective(w, "save", rank == 1 ? 0.05 : 1.9 * timeout_seconds));
    watchdog_allow(w, timeout_seconds);
    return collective(w, "barrier", 0.05);
}

static void a_longer_wait_may_be_allowed(void **state) {
    (void)state;
    run_ranks(3, a_long_save, 0.2);
    for (int r = 0; r < 3; r++) ended(r, STATUS_OK, 10.0, "");
}

/* A process that stands still as a whole says nothing any more; the others wait for it. */
static enum status one_is_stopped(struct watchdog *w, int rank) {
    TRY(collective(w, "barrier", 8.0 * beat_seconds)); /* so that a beat tells of it */
    if (rank == 1) raise(SIGSTOP);
    return collective(w, "all_gather", 30.0);
}

static void a_stopped_rank_is_named(void **state) {
    (void)state;
    const pid_t waker = fork(); /* after all is over, so that waiting for it ends */
    if (waker == 0) {
        sleep_seconds(timeout_seconds + 2.0);
        _exit(kill(answers[1].pid, SIGCONT) == 0 ? 0 : 1);
    }
    run_ranks(3, one_is_stopped, 0.2);
    int how = 0;
    assert_int_equal(waitpid(waker, &how, 0), waker);
    assert_int_equal(how, 0);
    for (int r = 0; r < 3; r += 2) {
        ended(r, STATUS_RANKS, timeout_seconds + 2.0,
              "all_gather|rank 1 did not arrive|silent for 1 seconds, last seen|barrier");
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_happens_in_time),
        cmocka_unit_test(who_does_not_arrive_is_named),
        cmocka_unit_test(rank_0_may_be_the_one),
        cmocka_unit_test(all_arrived),
        cmocka_unit_test(a_killed_rank_is_noticed_at_once),
        cmocka_unit_test(a_killed_rank_0_too),
        cmocka_unit_test(a_failure_is_passed_on),
        cmocka_unit_test(leaving_disturbs_nobody),
        cmocka_unit_test(the_deaf_are_ended),
        cmocka_unit_test(a_longer_wait_may_be_allowed),
        cmocka_unit_test(a_stopped_rank_is_named),
    };
    answers = mmap(NULL, WORLD * sizeof *answers, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return answers == MAP_FAILED ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
}

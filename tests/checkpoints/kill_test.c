/*
 * A run that saves and prunes without end and is killed at a random moment, again and again.
 * Oracle: SIGKILL by a second process; after each, the newest checkpoint verifies, holds the
 * contents of its step bit for bit, and is not older than what the run had reported as saved.
 *
 * 200 kills, every other one of a run that saves in the background (saver.h); fewer where the
 * machine is so slow that they would take longer than KILL_SECONDS_MAX.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/random.h"
#include "checkpoints/run_lock.h"
#include "checkpoints/saver.h"
#include "tests/checkpoints/fixture.h"

enum { KILLS = 200, KILLS_MIN = 10, KILL_SECONDS_MAX = 15, DELAY_MICROSECONDS_MAX = 60000 };

static const struct checkpoint_retention retention = {.keep = 2, .keep_every = 50};

/* The child: saves step after step from the one after `step` on, as a resumed run does. */
static void save_for_ever(struct fixture *fixture, int64_t step, volatile int64_t *reported) {
    struct run_lock lock = RUN_LOCK_NONE;
    if (run_lock_acquire(&lock, fixture->run) != STATUS_OK) _exit(2);
    for (;;) {
        step++;
        fixture_fill(fixture, step);
        if (checkpoint_save(fixture->run, &fixture->content, &retention) != STATUS_OK) _exit(3);
        *reported = step;
    }
}

/* The same in the background: the next step's state is made while the last one is written. */
static void save_for_ever_in_background(struct fixture *fixture, int64_t step,
                                        volatile int64_t *reported) {
    const size_t bytes = fixture->params.elements * sizeof(float);
    struct run_lock lock = RUN_LOCK_NONE;
    struct saver *saver = NULL;
    struct saver_result result;
    if (run_lock_acquire(&lock, fixture->run) != STATUS_OK) _exit(2);
    if (saver_open(&saver, fixture->run, &fixture->params) != STATUS_OK) _exit(4);
    for (;;) {
        step++;
        fixture_fill(fixture, step);
        if (saver_take(saver, &result)) {
            if (result.status != STATUS_OK) _exit(3);
            *reported = result.step;
        }
        float *const *buffers = saver_buffers(saver);
        memcpy(buffers[0], fixture->masters, bytes);
        memcpy(buffers[1], fixture->moments1, bytes);
        memcpy(buffers[2], fixture->moments2, bytes);
        saver_start(saver, &fixture->content, cJSON_Duplicate(fixture->state, 1), &retention);
    }
}

static void sleep_microseconds(long microseconds) {
    const struct timespec delay = {.tv_sec = 0, .tv_nsec = microseconds * 1000};
    nanosleep(&delay, NULL);
}

static void newest_survives_sigkill(void **unused) {
    (void)unused;
    struct fixture fixture;
    volatile int64_t *reported =
        mmap(NULL, sizeof *reported, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(reported, MAP_FAILED);
    fixture_open(&fixture);
    fixture_save(&fixture, 1);
    *reported = 1;
    const double start = clock_seconds();
    int kills = 0;
    for (; kills < KILLS; kills++) {
        if (kills >= KILLS_MIN && clock_seconds() - start > KILL_SECONDS_MAX) break;
        const int64_t before = fixture_expect_newest(&fixture);
        const pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0 && kills % 2 == 0) save_for_ever(&fixture, before, reported);
        if (child == 0) save_for_ever_in_background(&fixture, before, reported);
        uint32_t words[4];
        random_words(1, RANDOM_TEST, (uint64_t)kills, words);
        sleep_microseconds((long)(words[0] % DELAY_MICROSECONDS_MAX));
        assert_int_equal(kill(child, SIGKILL), 0);
        int end = 0;
        assert_int_equal(waitpid(child, &end, 0), child);
        assert_true(WIFSIGNALED(end)); /* it had not given up with an error */
        const int64_t newest = fixture_expect_newest(&fixture);
        assert_true(newest >= *reported);
        assert_true(newest >= before);
    }
    const int64_t last = fixture_expect_newest(&fixture);
    print_message("  %d kills, newest step %lld\n", kills, (long long)last);
    assert_true(last > 1); /* it did save something meanwhile */
    fixture_fill(&fixture, last + 1);
    assert_int_equal(checkpoint_save(fixture.run, &fixture.content, &retention), STATUS_OK);
    /* The two newest, the multiples of 50, the lock, and nothing else. */
    const size_t landmarks = (size_t)((last - 1) / 50);
    assert_int_equal(fixture_count(&fixture, ""), 2 + landmarks + 1);
    fixture_close(&fixture);
    munmap((void *)(uintptr_t)reported, sizeof *reported);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(newest_survives_sigkill)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

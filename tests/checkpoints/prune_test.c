/*
 * Which checkpoints retention keeps, and the lock of a run.
 * Oracle: hand-written tables of what must stay; for the lock, processes that hold it and die.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "checkpoints/run_lock.h"
#include "tests/checkpoints/fixture.h"

enum { STEPS_MAX = 8 };

struct prune_case {
    const char *why;
    int64_t steps[STEPS_MAX];   /* ended by 0; all are saved */
    int64_t damaged[STEPS_MAX]; /* and then these are damaged */
    struct checkpoint_retention retention;
    int64_t kept[STEPS_MAX];
};

static const struct prune_case cases[] = {
    {"fewer than are kept", {1, 2}, {0}, {3, 0}, {1, 2}},
    {"as many as are kept", {1, 2, 3}, {0}, {3, 0}, {1, 2, 3}},
    {"the oldest go", {1, 2, 3, 4, 5}, {0}, {2, 0}, {4, 5}},
    {"order is by number, not by name", {5, 40, 300000000}, {0}, {1, 0}, {300000000}},
    {"multiples stay", {10, 15, 20, 25, 30}, {0}, {1, 10}, {10, 20, 30}},
    {"everything is a multiple of 1", {1, 2, 3}, {0}, {1, 1}, {1, 2, 3}},
    {"the newest that verifies stays", {1, 2, 3, 4, 5}, {4, 5}, {1, 0}, {3, 4, 5}},
    {"what is newer than that stays too", {1, 2, 3, 4}, {2, 3, 4}, {1, 0}, {1, 2, 3, 4}},
    {"none verifies: none goes", {1, 2, 3}, {1, 2, 3}, {1, 0}, {1, 2, 3}},
    {"a damaged one takes no other's place", {1, 2, 3, 4, 5}, {4}, {2, 0}, {3, 4, 5}},
    {"too few that verify: none goes", {1, 2, 3, 4}, {2, 3}, {3, 0}, {1, 2, 3, 4}},
    {"a damaged landmark is no other's loss", {10, 15, 20}, {20}, {1, 10}, {10, 15, 20}},
    {"damaged old ones go like others", {1, 2, 3, 4}, {1, 2}, {2, 0}, {3, 4}},
};

static void damage(const struct fixture *fixture, int64_t step) {
    char path[PATH_BYTES];
    fixture_path(fixture, step, "optimizer-00001-of-00001.safetensors", path);
    assert_int_equal(truncate(path, 999), 0);
}

static void table_of_cases(void **unused) {
    (void)unused;
    struct fixture fixture;
    char path[PATH_BYTES];
    fixture_open(&fixture);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct prune_case *c = &cases[i];
        assert_int_equal(folder_remove(fixture.run), STATUS_OK);
        for (size_t s = 0; c->steps[s] != 0; s++) fixture_save(&fixture, c->steps[s]);
        for (size_t s = 0; c->damaged[s] != 0; s++) damage(&fixture, c->damaged[s]);
        assert_int_equal(checkpoint_prune(fixture.run, &c->retention), STATUS_OK);
        size_t kept = 0;
        for (; c->kept[kept] != 0; kept++) {
            fixture_path(&fixture, c->kept[kept], "manifest.json", path);
            if (!path_is_file(path)) fail_msg("%s: %s is gone", c->why, path);
        }
        if (fixture_count(&fixture, "") != kept) fail_msg("%s: too many stay", c->why);
    }
    fixture_close(&fixture);
}

/* A file in the run folder, or a folder with a file in it. */
static void touch(const struct fixture *fixture, const char *name, bool folder) {
    char path[PATH_BYTES], inside[PATH_BYTES];
    assert_int_equal(path_join(path, fixture->run, name), STATUS_OK);
    assert_int_equal(path_join(inside, path, "file"), STATUS_OK);
    if (folder) assert_int_equal(mkdir(path, 0777), 0);
    test_write_file(folder ? inside : path, "x", 1);
}

static void leftovers_go_and_nothing_else(void **unused) {
    (void)unused;
    struct fixture fixture;
    const struct checkpoint_retention one = {.keep = 1, .keep_every = 0};
    fixture_open(&fixture);
    fixture_save(&fixture, 5);
    touch(&fixture, "step_00000003.tmp-12-0", true);
    touch(&fixture, "step_00000009.tmp-1-7", true);
    touch(&fixture, "step_00000004.deleting-99-0", true);
    touch(&fixture, "step_00000005.damaged-99-0", true); /* 5 is whole again */
    /* 6 is not, so this may be all there is of it; the others are not ours. */
    touch(&fixture, "step_00000006.damaged-99-0", true);
    touch(&fixture, "step_00000003.tmp", true);
    touch(&fixture, "step_3", true);
    touch(&fixture, "metrics.jsonl", false);
    touch(&fixture, "notes.tmp-1-0", false);
    assert_int_equal(checkpoint_prune(fixture.run, &one), STATUS_OK);
    assert_int_equal(fixture_count(&fixture, ""), 6);
    assert_int_equal(fixture_count(&fixture, "step_00000006.damaged-99-0"), 1);
    assert_int_equal(fixture_count(&fixture, "-12-0") + fixture_count(&fixture, "deleting"), 0);
    assert_int_equal(fixture_expect_newest(&fixture), 5);
    fixture_close(&fixture);
}

/* A run that went back to step 2: its new checkpoint stays although newer ones are there. */
static void what_was_just_saved_stays(void **unused) {
    (void)unused;
    struct fixture fixture;
    const struct checkpoint_retention one = {.keep = 1, .keep_every = 0};
    fixture_open(&fixture);
    fixture_save(&fixture, 1);
    fixture_save(&fixture, 9);
    fixture_fill(&fixture, 3);
    assert_int_equal(checkpoint_save(fixture.run, &fixture.content, &one), STATUS_OK);
    assert_int_equal(fixture_count(&fixture, ""), 2);
    assert_int_equal(fixture_count(&fixture, "step_00000003"), 1);
    assert_int_equal(fixture_count(&fixture, "step_00000009"), 1);
    fixture_close(&fixture);
}

static void one_process_a_run(void **unused) {
    (void)unused;
    struct fixture fixture;
    struct run_lock first = RUN_LOCK_NONE, second = RUN_LOCK_NONE;
    char holder[64];
    int ready[2];
    fixture_open(&fixture);
    assert_int_equal(run_lock_acquire(&first, fixture.run), STATUS_OK);
    snprintf(holder, sizeof holder, "in use by process %ld:", (long)getpid());
    expect_refused(run_lock_acquire(&second, fixture.run), STATUS_IO, holder);
    run_lock_release(&second); /* not held: nothing happens */
    run_lock_release(&first);

    assert_int_equal(pipe(ready), 0);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (run_lock_acquire(&first, fixture.run) != STATUS_OK || write(ready[1], "x", 1) != 1)
            _exit(1);
        for (;;) pause();
    }
    char byte;
    assert_int_equal(read(ready[0], &byte, 1), 1);
    snprintf(holder, sizeof holder, "in use by process %ld:", (long)child);
    expect_refused(run_lock_acquire(&second, fixture.run), STATUS_IO, holder);
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, NULL, 0), child);
    assert_int_equal(run_lock_acquire(&second, fixture.run), STATUS_OK); /* no stale lock */
    run_lock_release(&second);
    close(ready[0]);
    close(ready[1]);
    fixture_close(&fixture);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(table_of_cases),
        cmocka_unit_test(leftovers_go_and_nothing_else),
        cmocka_unit_test(what_was_just_saved_stays),
        cmocka_unit_test(one_process_a_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

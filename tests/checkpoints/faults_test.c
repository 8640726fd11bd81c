/*
 * Saves in which a system call fails, writes less than it was asked to, or is the last one before
 * SIGKILL. Oracle: fault injection at every call of a save, through the linker's --wrap. After
 * each: the status is right, the newest checkpoint is whole (bit equality with its step) and none
 * that was complete is lost, temporary folders are gone, and the next save works.
 *
 * fsync does nothing here but count: durability against power cuts cannot be seen from a test.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "checkpoints/saver.h"
#include "tests/checkpoints/fixture.h"

enum call {
    CALL_WRITE,
    CALL_FSYNC,
    CALL_RENAME,
    CALL_OPEN,
    CALL_MKDIR,
    CALL_CLOSE,
    CALL_READ,
    CALL_UNLINK,
    CALL_RMDIR,
    CALL_STATVFS,
    CALLS,
    CALL_ANY
};
static const char *const call_names[CALLS] = {"write", "fsync", "rename", "open",  "mkdir",
                                              "close", "read",  "unlink", "rmdir", "statvfs"};

enum effect { EFFECT_FAIL_ONCE, EFFECT_FAIL_FROM_THEN_ON, EFFECT_SHORT_WRITE, EFFECT_KILL };

/* What happens at the `at`-th call (from 0) of the kind; at < 0: nothing, calls are only
 * counted. */
static struct {
    enum call call;
    enum effect effect;
    int error;
    long at;
    atomic_long seen; /* several threads read what is verified */
} plan = {.call = CALLS, .at = -1};

static void arm(enum call call, enum effect effect, int error, long at) {
    plan.call = call;
    plan.effect = effect;
    plan.error = error;
    plan.at = at;
    atomic_store(&plan.seen, 0);
}

static void disarm(void) { arm(CALLS, EFFECT_FAIL_ONCE, 0, -1); }

/* Counts the call; true if it is the one that the plan is for. */
static bool is_due(enum call call) {
    if (plan.call != call && plan.call != CALL_ANY) return false;
    const long number = atomic_fetch_add(&plan.seen, 1);
    if (plan.at < 0) return false;
    const bool due =
        plan.effect == EFFECT_FAIL_FROM_THEN_ON ? number >= plan.at : number == plan.at;
    if (due && plan.effect == EFFECT_KILL) kill(getpid(), SIGKILL);
    if (due) errno = plan.error;
    return due;
}

ssize_t __real_write(int file, const void *data, size_t bytes);
ssize_t __wrap_write(int file, const void *data, size_t bytes) {
    if (is_due(CALL_WRITE)) {
        if (plan.effect != EFFECT_SHORT_WRITE) return -1;
        bytes = bytes / 2 + 1; /* of at least 1 */
    }
    return __real_write(file, data, bytes);
}

int __real_fsync(int file);
int __wrap_fsync(int file) {
    (void)file;
    return is_due(CALL_FSYNC) ? -1 : 0;
}

int __real_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to) {
    return is_due(CALL_RENAME) ? -1 : __real_rename(from, to);
}

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...) {
    return is_due(CALL_OPEN) ? -1 : __real_open(path, flags, 0666);
}

int __real_mkdir(const char *path, mode_t mode);
int __wrap_mkdir(const char *path, mode_t mode) {
    return is_due(CALL_MKDIR) ? -1 : __real_mkdir(path, mode);
}

/* A close that fails has closed the file all the same: close(2). */
int __real_close(int file);
int __wrap_close(int file) {
    const bool due = is_due(CALL_CLOSE);
    const int error = errno;
    const int result = __real_close(file);
    if (due) errno = error;
    return due ? -1 : result;
}

ssize_t __real_read(int file, void *data, size_t bytes);
ssize_t __wrap_read(int file, void *data, size_t bytes) {
    return is_due(CALL_READ) ? -1 : __real_read(file, data, bytes);
}

int __real_unlink(const char *path);
int __wrap_unlink(const char *path) { return is_due(CALL_UNLINK) ? -1 : __real_unlink(path); }

int __real_rmdir(const char *path);
int __wrap_rmdir(const char *path) { return is_due(CALL_RMDIR) ? -1 : __real_rmdir(path); }

/* Together with real writes to a device this would make up most of the test's time. */
int __wrap_posix_fadvise(int file, off_t offset, off_t bytes, int advice);
int __wrap_posix_fadvise(int file, off_t offset, off_t bytes, int advice) {
    (void)file, (void)offset, (void)bytes, (void)advice;
    return 0;
}

static size_t free_blocks = SIZE_MAX; /* what statvfs says; SIZE_MAX: the truth */
int __real_statvfs(const char *path, struct statvfs *disk);
int __wrap_statvfs(const char *path, struct statvfs *disk) {
    if (is_due(CALL_STATVFS)) return -1;
    const int result = __real_statvfs(path, disk);
    if (free_blocks != SIZE_MAX) disk->f_bavail = free_blocks;
    return result;
}

static const struct checkpoint_retention keep_two = {.keep = 2, .keep_every = 0};

/* Checkpoints 1 and 2 and, where `damaged`, a 3 that does not verify. */
static void make_run(struct fixture *fixture, bool damaged) {
    char path[PATH_BYTES];
    disarm();
    assert_int_equal(folder_remove(fixture->run), STATUS_OK);
    fixture_save(fixture, 1);
    fixture_save(fixture, 2);
    if (!damaged) return;
    fixture_save(fixture, 3);
    fixture_path(fixture, 3, "state.json", path);
    assert_int_equal(truncate(path, 5), 0);
}

/* What must hold after a save of step 3 that met trouble, and that the next one mends it all. */
static void expect_sound(struct fixture *fixture, enum status found, bool damaged) {
    char path[PATH_BYTES];
    const int64_t newest = fixture_expect_newest(fixture);
    assert_true(newest == 2 || newest == 3);
    if (found == STATUS_OK) assert_int_equal(newest, 3);
    fixture_path(fixture, 2, NULL, path);
    assert_int_equal(fixture_expect_whole(fixture, path), 2);
    if (newest == 2) { /* 1 is pruned after 3 was verified, not earlier */
        fixture_path(fixture, 1, NULL, path);
        assert_int_equal(fixture_expect_whole(fixture, path), 1);
        if (damaged) { /* under its own name or moved aside, never gone */
            fixture_path(fixture, 3, NULL, path);
            assert_true(path_is_folder(path) || fixture_count(fixture, ".damaged-") == 1);
        }
    }
    fixture_path(fixture, 1, NULL, path); /* going or gone, it is never half a checkpoint */
    if (path_is_folder(path)) assert_int_equal(fixture_expect_whole(fixture, path), 1);
    fixture_fill(fixture, 3);
    if (checkpoint_save(fixture->run, &fixture->content, &keep_two) != STATUS_OK) {
        fail_msg("%s", status_message());
    }
    assert_int_equal(fixture_expect_newest(fixture), 3);
    assert_int_equal(fixture_count(fixture, ""), 2); /* 2 and 3, no leftovers */
}

/* The same through the saver's thread. */
static enum status save_in_background(struct fixture *fixture, struct saver *saver) {
    const size_t bytes = fixture->params.elements * sizeof(float);
    struct saver_result result;
    float *const *buffers = saver_buffers(saver);
    memcpy(buffers[0], fixture->masters, bytes);
    memcpy(buffers[1], fixture->moments1, bytes);
    memcpy(buffers[2], fixture->moments2, bytes);
    saver_start(saver, &fixture->content, cJSON_Duplicate(fixture->state, 1), &keep_two);
    assert_true(saver_take(saver, &result));
    return result.status == STATUS_OK ? STATUS_OK : status_set(result.status, "%s", result.message);
}

/* One save of step 3 with the armed fault, by the saver if there is one; returns whether the fault
 * came to act. A save that met it must not report success, but for close(): of a file that was read
 * it loses nothing. */
static bool save_with_fault(struct fixture *fixture, struct saver *saver, bool damaged) {
    /* A file that cannot be removed keeps its folder; the next save's prune removes both. */
    const bool may_leave_temporary = plan.call == CALL_UNLINK || plan.call == CALL_RMDIR;
    const bool may_succeed = plan.call == CALL_CLOSE;
    fixture_fill(fixture, 3);
    const enum status status =
        saver != NULL ? save_in_background(fixture, saver)
                      : checkpoint_save(fixture->run, &fixture->content, &keep_two);
    const bool acted = plan.seen > plan.at;
    disarm();
    if (acted && !may_succeed) assert_int_not_equal(status, STATUS_OK);
    if (status != STATUS_OK && status != STATUS_IO) {
        fail_msg("status %d: %s", (int)status, status_message());
    }
    if (!may_leave_temporary) assert_int_equal(fixture_count(fixture, ".tmp-"), 0);
    expect_sound(fixture, status, damaged);
    return acted;
}

static void fail_everywhere(enum effect effect, bool damaged) {
    struct fixture fixture;
    fixture_open(&fixture);
    for (enum call call = 0; call < CALLS; call++) {
        long at = 0;
        for (bool acted = true; acted; at++) {
            make_run(&fixture, damaged);
            arm(call, effect, call == CALL_WRITE ? ENOSPC : EIO, at);
            acted = save_with_fault(&fixture, NULL, damaged);
        }
        print_message("  %s: %ld places\n", call_names[call], at - 1);
        assert_true(at > 1); /* the call is made at all */
    }
    fixture_close(&fixture);
}

static void any_call_fails_once(void **unused) {
    (void)unused;
    fail_everywhere(EFFECT_FAIL_ONCE, false);
}

static void any_call_fails_from_then_on(void **unused) {
    (void)unused;
    fail_everywhere(EFFECT_FAIL_FROM_THEN_ON, false);
}

static void any_call_fails_while_replacing(void **unused) {
    (void)unused;
    fail_everywhere(EFFECT_FAIL_ONCE, true);
}

/* A file system that turns read-only, or a disk that fills, at any moment of a save in the
 * background. */
static void any_call_fails_in_the_background(void **unused) {
    (void)unused;
    struct fixture fixture;
    struct saver *saver = NULL;
    fixture_open(&fixture);
    assert_int_equal(saver_open(&saver, fixture.run, &fixture.params), STATUS_OK);
    struct saver_result none;
    assert_false(saver_take(saver, &none));
    for (enum call call = 0; call < CALLS; call++) {
        long at = 0;
        for (bool acted = true; acted; at++) {
            make_run(&fixture, false);
            fixture_fill(&fixture, 3);
            arm(call, EFFECT_FAIL_FROM_THEN_ON, call == CALL_WRITE ? ENOSPC : EROFS, at);
            acted = save_with_fault(&fixture, saver, false);
        }
        assert_true(at > 1);
    }
    saver_close(saver);
    fixture_close(&fixture);
}

/* With the reason that the user can do something about. */
static void a_full_disk_is_reported(void **unused) {
    (void)unused;
    struct fixture fixture;
    fixture_open(&fixture);
    make_run(&fixture, false);
    for (long at = 0;; at++) {
        fixture_fill(&fixture, 3);
        arm(CALL_WRITE, EFFECT_FAIL_FROM_THEN_ON, ENOSPC, at);
        const enum status status = checkpoint_save(fixture.run, &fixture.content, &keep_all);
        const bool acted = plan.seen > at;
        disarm();
        if (!acted) break;
        expect_refused(status, STATUS_IO, "No space left on device");
        assert_int_equal(fixture_count(&fixture, ""), 2);
    }
    fixture_close(&fixture);
}

static void short_writes_are_completed(void **unused) {
    (void)unused;
    struct fixture fixture;
    fixture_open(&fixture);
    for (long at = 0;; at++) {
        make_run(&fixture, false);
        fixture_fill(&fixture, 3);
        arm(CALL_WRITE, EFFECT_SHORT_WRITE, 0, at);
        assert_int_equal(checkpoint_save(fixture.run, &fixture.content, &keep_two), STATUS_OK);
        const bool acted = plan.seen > at;
        disarm();
        assert_int_equal(fixture_expect_newest(&fixture), 3);
        if (!acted) break;
    }
    fixture_close(&fixture);
}

/* In a child: a save of step 3 that is killed just before its `at`-th call. True if it got that
 * far. */
static bool kill_before(struct fixture *fixture, long at) {
    fixture_fill(fixture, 3);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        arm(CALL_ANY, EFFECT_KILL, 0, at);
        _exit(checkpoint_save(fixture->run, &fixture->content, &keep_two) == STATUS_OK ? 0 : 1);
    }
    int end = 0;
    assert_int_equal(waitpid(child, &end, 0), child);
    if (WIFSIGNALED(end)) {
        assert_int_equal(WTERMSIG(end), SIGKILL);
        return true;
    }
    assert_int_equal(WEXITSTATUS(end), 0);
    return false;
}

static void killed_before_every_call(void **unused) {
    (void)unused;
    struct fixture fixture;
    fixture_open(&fixture);
    for (int damaged = 0; damaged < 2; damaged++) {
        long at = 0;
        for (bool killed = true; killed; at++) {
            make_run(&fixture, damaged);
            killed = kill_before(&fixture, at);
            expect_sound(&fixture, killed ? STATUS_IO : STATUS_OK, damaged);
        }
        print_message("  killed before each of %ld calls\n", at - 1);
        assert_true(at > 50);
    }
    fixture_close(&fixture);
}

/* The kernel's own refusal: no file may become as long as the one that is to be written. */
static void file_size_limit(void **unused) {
    (void)unused;
    static const char *const names[] = {"config.json", "state.json", "model.safetensors",
                                        "optimizer-00001-of-00001.safetensors"};
    struct fixture fixture;
    struct rlimit limit, before;
    fixture_open(&fixture);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[PATH_BYTES];
        struct stat info;
        make_run(&fixture, false);
        fixture_save(&fixture, 3); /* to learn how long its files are */
        fixture_path(&fixture, 3, names[i], path);
        assert_int_equal(stat(path, &info), 0);
        fixture_path(&fixture, 3, NULL, path);
        assert_int_equal(folder_remove(path), STATUS_OK);
        limit = before;
        limit.rlim_cur = (rlim_t)info.st_size - 1;
        fixture_fill(&fixture, 3);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
        const enum status status = checkpoint_save(fixture.run, &fixture.content, &keep_all);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        expect_refused(status, STATUS_IO, names[i]); /* files grow in the order of the names */
        assert_int_equal(fixture_count(&fixture, ""), 2);
        assert_int_equal(fixture_expect_newest(&fixture), 2);
    }
    fixture_close(&fixture);
}

static void too_little_space_is_refused_with_numbers(void **unused) {
    (void)unused;
    struct fixture fixture;
    fixture_open(&fixture);
    make_run(&fixture, false);
    fixture_fill(&fixture, 3);
    free_blocks = 1;
    const enum status status = checkpoint_save(fixture.run, &fixture.content, &keep_all);
    free_blocks = SIZE_MAX;
    expect_refused(status, STATUS_IO, "free: make room");
    assert_int_equal(fixture_count(&fixture, ""), 2);
    fixture_close(&fixture);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_call_fails_once),
        cmocka_unit_test(any_call_fails_from_then_on),
        cmocka_unit_test(any_call_fails_while_replacing),
        cmocka_unit_test(any_call_fails_in_the_background),
        cmocka_unit_test(a_full_disk_is_reported),
        cmocka_unit_test(short_writes_are_completed),
        cmocka_unit_test(killed_before_every_call),
        cmocka_unit_test(file_size_limit),
        cmocka_unit_test(too_little_space_is_refused_with_numbers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

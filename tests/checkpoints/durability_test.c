/*
 * What a power cut can undo: the order of writes, fsyncs, renames and removals of a save.
 * Oracle: a model of the disk that forgets everything not fsynced. The system calls pass through
 * the linker's --wrap, which keeps the list of what is not yet durable and checks it at the moments
 * that count: a folder takes the name of a checkpoint only when all in it is durable, nothing is
 * removed while a rename is not, and a save returns only when its own rename is.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/checkpoints/fixture.h"

enum { FILES_MAX = 1024 };

static struct {
    bool watching;
    bool dirty[FILES_MAX]; /* by descriptor: written, not fsynced */
    bool forgotten;        /* a dirty file was closed: it can never become durable */
    bool names_dirty;      /* names made in the temporary folder since its fsync */
    bool renames_dirty;    /* renames in the run folder since its fsync */
    bool new_one_dirty;    /* the one that gave the new checkpoint its name is among them */
    int manifests, creations_after_manifest;
    int renames, removals, fsyncs;
} disk;

static bool anything_dirty(void) {
    bool dirty = disk.forgotten || disk.names_dirty;
    for (size_t i = 0; i < FILES_MAX; i++) dirty = dirty || disk.dirty[i];
    return dirty;
}

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...) {
    const int file = __real_open(path, flags, 0666);
    if (!disk.watching || (flags & O_CREAT) == 0) return file;
    assert_true(file >= 0 && file < FILES_MAX);
    if (disk.manifests > 0) disk.creations_after_manifest++;
    if (strstr(path, "manifest.json") != NULL) {
        assert_false(disk.forgotten);
        for (size_t i = 0; i < FILES_MAX; i++)
            assert_false(disk.dirty[i]); /* it vouches for them */
        disk.manifests++;
    }
    disk.dirty[file] = true;
    disk.names_dirty = true;
    return file;
}

ssize_t __real_write(int file, const void *data, size_t bytes);
ssize_t __wrap_write(int file, const void *data, size_t bytes) {
    if (disk.watching && file < FILES_MAX) disk.dirty[file] = true;
    return __real_write(file, data, bytes);
}

int __real_close(int file);
int __wrap_close(int file) {
    if (disk.watching && file < FILES_MAX && disk.dirty[file]) disk.forgotten = true;
    return __real_close(file);
}

int __wrap_fsync(int file);
int __wrap_fsync(int file) {
    struct stat info;
    char link[64], path[PATH_BYTES] = "";
    if (!disk.watching) return 0;
    disk.fsyncs++;
    assert_int_equal(fstat(file, &info), 0);
    if (!S_ISDIR(info.st_mode)) {
        disk.dirty[file] = false;
        return 0;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    assert_true(readlink(link, path, sizeof path - 1) > 0);
    if (strstr(path, ".tmp-") != NULL) {
        disk.names_dirty = false;
    } else {
        disk.renames_dirty = disk.new_one_dirty = false;
    }
    return 0;
}

int __real_rename(const char *from, const char *to);
int __wrap_rename(const char *from, const char *to) {
    if (disk.watching) {
        if (strstr(from, ".tmp-") != NULL) {
            assert_false(anything_dirty());
            disk.new_one_dirty = true;
        }
        if (strstr(to, ".deleting-") != NULL) assert_false(disk.new_one_dirty);
        disk.renames++;
        disk.renames_dirty = true;
    }
    return __real_rename(from, to);
}

int __real_unlink(const char *path);
int __wrap_unlink(const char *path) {
    if (disk.watching) {
        assert_false(disk.renames_dirty);
        disk.removals++;
    }
    return __real_unlink(path);
}

static const struct checkpoint_retention keep_two = {.keep = 2, .keep_every = 0};

static void save_watched(struct fixture *fixture, int64_t step) {
    fixture_fill(fixture, step);
    memset(&disk, 0, sizeof disk);
    disk.watching = true;
    const enum status status = checkpoint_save(fixture->run, &fixture->content, &keep_two);
    disk.watching = false;
    if (status != STATUS_OK) fail_msg("%s", status_message());
    assert_false(disk.renames_dirty);
    assert_false(anything_dirty());
    assert_int_equal(disk.creations_after_manifest, 0); /* the manifest is the last */
}

static void everything_durable_before_it_counts(void **unused) {
    (void)unused;
    struct fixture fixture;
    char path[PATH_BYTES];
    fixture_open(&fixture);
    save_watched(&fixture, 1);
    save_watched(&fixture, 2);
    assert_int_equal(disk.manifests, 1);
    assert_int_equal(disk.renames, 1);
    assert_int_equal(disk.removals, 0);
    save_watched(&fixture, 3); /* 1 goes */
    assert_int_equal(disk.renames, 2);
    assert_int_equal(disk.removals, 5);
    fixture_path(&fixture, 3, "config.json", path);
    assert_int_equal(truncate(path, 3), 0);
    save_watched(&fixture, 3); /* the damaged one is moved aside, then goes */
    assert_int_equal(disk.renames, 2);
    assert_int_equal(disk.removals, 5);
    save_watched(&fixture, 3); /* left alone, but its name made durable once more */
    assert_int_equal(disk.manifests, 0);
    assert_true(disk.fsyncs > 0);
    fixture_close(&fixture);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(everything_durable_before_it_counts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

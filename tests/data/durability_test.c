/*
 * What a crash would leave, told from the order of system calls. Every call of fsync and rename
 * goes through this file (linked with --wrap). Oracle: a name is given only to a file that was
 * complete when it was made durable, the folder is made durable afterwards, and an fsync that fails
 * leaves nothing.
 */
#include "tests/data/data_test.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "data/prepare.h"
#include "data/shard.h"

enum { EVENTS_MAX = 64 };

struct event {
    bool is_rename;
    ino_t inode; /* of what was made durable, or of what got a name */
    off_t bytes; /* its size at that time */
    uint64_t head; /* its first bytes at that time: a shard's magic and version */
    char to[PATH_BYTES];
};

static struct event events[EVENTS_MAX];
static size_t event_count;
static int failing_fsync; /* the number of the fsync that fails, from 1; 0: none */

/* `path` is the file as it is now, without what a process still has in a buffer. */
static void record(bool is_rename, const char *path, const char *to) {
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    assert_true(event_count < EVENTS_MAX);
    struct event *event = &events[event_count++];
    *event = (struct event){.is_rename = is_rename, .inode = info.st_ino, .bytes = info.st_size};
    snprintf(event->to, sizeof event->to, "%s", to);
    if (S_ISREG(info.st_mode)) {
        FILE *file = fopen(path, "rb");
        assert_non_null(file);
        assert_int_equal(fread(&event->head, sizeof event->head, 1, file), 1);
        assert_int_equal(fclose(file), 0);
    }
}

int __real_fsync(int file);
int __real_rename(const char *from, const char *to);
int __wrap_fsync(int file);
int __wrap_rename(const char *from, const char *to);

int __wrap_fsync(int file) {
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    record(false, path, "");
    if (failing_fsync > 0 && --failing_fsync == 0) {
        errno = EIO;
        return -1;
    }
    return __real_fsync(file);
}

int __wrap_rename(const char *from, const char *to) {
    record(true, from, to);
    return __real_rename(from, to);
}

static int start(void **state) {
    event_count = 0;
    failing_fsync = 0;
    return folder_setup(state);
}

static ino_t inode_of(const char *path) {
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    return info.st_ino;
}

/* The file that event i names was made durable before, with the size and the header that it has. */
static void assert_durable_before(size_t i) {
    for (size_t j = 0; j < i; j++) {
        if (!events[j].is_rename && events[j].inode == events[i].inode &&
            events[j].bytes == events[i].bytes && events[j].head == events[i].head) {
            return;
        }
    }
    fail_msg("%s got its name before it was durable", events[i].to);
}

static void assert_last_is_folder(const char *folder) {
    assert_true(event_count > 0);
    assert_false(events[event_count - 1].is_rename);
    assert_true(events[event_count - 1].inode == inode_of(folder));
}

static enum status write_shard(const char *path) {
    static const int32_t tokens[20000];
    struct shard_writer *writer = NULL;
    TRY(shard_writer_open(&writer, path, 2));
    assert_int_equal(shard_writer_append(writer, tokens, 20000), STATUS_OK);
    assert_int_equal(shard_writer_append(writer, tokens, 3), STATUS_OK); /* stays in a buffer */
    return shard_writer_finish(writer);
}

static void a_shard_is_durable_before_its_name(void **state) {
    const char *path = in_folder(state, "a.bin");
    assert_int_equal(write_shard(path), STATUS_OK);
    assert_int_equal(event_count, 3);
    assert_true(events[1].is_rename);
    assert_string_equal(events[1].to, path);
    assert_int_equal(events[1].bytes, 1024 + 2 * 20003);
    assert_durable_before(1);
    assert_last_is_folder(*state);
}

static void a_shard_that_cannot_be_durable_is_none(void **state) {
    failing_fsync = 1;
    assert_int_equal(write_shard(in_folder(state, "a.bin")), STATUS_IO);
    assert_message("a.bin|Input/output error");
    assert_int_equal(names_in(*state), 0);
}

static enum status prepare(void **state, bool overwrite) {
    const char *const inputs[] = {in_folder(state, "text")};
    const struct prepare_options options = {
        .inputs = inputs, .input_count = 1, .out_folder = in_folder(state, "out"),
        .validation_fraction = 0.5, .overwrite = overwrite,
    };
    struct prepare_report report;
    return prepare_text(&options, &report);
}

/* OUT gets its name when everything in it is durable, and the name is made durable afterwards. */
static void prepared_files_get_their_names_together(void **state) {
    write_text(in_folder(state, "text"), "some text for both sides\n");
    assert_int_equal(prepare(state, false), STATUS_OK);
    assert_last_is_folder(*state);
    assert_true(event_count > 4);
    assert_true(events[event_count - 2].is_rename);
    assert_string_equal(events[event_count - 2].to, in_folder(state, "out"));
    for (size_t i = 0; i < event_count; i++) {
        if (events[i].is_rename) assert_durable_before(i);
    }
}

/* Whichever fsync fails, the files of the first run stay, or all of the second have come. */
static void a_failing_fsync_leaves_the_earlier_files(void **state) {
    static const char *const names[] = {"out/train.bin", "out/validation.bin", "out/dataset.json"};
    ino_t before[3];
    write_text(in_folder(state, "text"), "some text for both sides\n");
    assert_int_equal(prepare(state, false), STATUS_OK);
    for (int number = 1;; number++) {
        for (size_t i = 0; i < 3; i++) before[i] = inode_of(in_folder(state, names[i]));
        event_count = 0;
        failing_fsync = number;
        const enum status status = prepare(state, true);
        if (failing_fsync > 0) { /* there were not that many */
            assert_int_equal(status, STATUS_OK);
            assert_true(number >= 4);
            break;
        }
        assert_int_equal(status, STATUS_IO);
        assert_message("Input/output error");
        size_t replaced = 0;
        for (size_t i = 0; i < 3; i++) {
            replaced += before[i] != inode_of(in_folder(state, names[i]));
        }
        assert_true(replaced == 0 || replaced == 3);
        assert_int_equal(names_in(in_folder(state, "out")), 3);
    }
    failing_fsync = 0;
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, start, folder_teardown)
    const struct CMUnitTest tests[] = {
        TEST(a_shard_is_durable_before_its_name),
        TEST(a_shard_that_cannot_be_durable_is_none),
        TEST(prepared_files_get_their_names_together),
        TEST(a_failing_fsync_leaves_the_earlier_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

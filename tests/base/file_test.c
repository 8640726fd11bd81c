/*
 * Files and folders. Oracle: what was written is read back byte for byte; every refusal leaves the
 * file system as it was. Works in a fresh folder under TEST_TMPDIR.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/status.h"

static char root[PATH_BYTES];

static int set_up(void **state) {
    const char *place = getenv("TEST_TMPDIR");
    (void)state;
    snprintf(root, sizeof root, "%s/file_test.XXXXXX", place != NULL ? place : "/tmp");
    return mkdtemp(root) == NULL;
}

static int tear_down(void **state) {
    (void)state;
    return folder_remove(root) != STATUS_OK || path_is_folder(root);
}

static const char *under_root(char path[PATH_BYTES], const char *name) {
    assert_int_equal(path_join(path, root, name), STATUS_OK);
    return path;
}

static void test_path_copy(void **state) {
    char copy[PATH_BYTES], name[PATH_BYTES + 1];
    (void)state;
    memset(name, 'x', sizeof name);
    name[PATH_BYTES] = '\0';
    assert_int_equal(path_copy(copy, name), STATUS_CONFIG);
    assert_int_equal(path_copy(copy, name + 1), STATUS_OK); /* the longest */
    assert_string_equal(copy, name + 1);
    assert_int_equal(path_temporary(copy, name + 1), STATUS_CONFIG);
    assert_int_equal(path_temporary(copy, "a/b"), STATUS_OK);
    snprintf(name, sizeof name, "a/b.%ld.tmp", (long)getpid());
    assert_string_equal(copy, name);
}

static void test_path_join(void **state) {
    char path[PATH_BYTES], name[PATH_BYTES];
    (void)state;
    assert_int_equal(path_join(path, "a/b", "c"), STATUS_OK);
    assert_string_equal(path, "a/b/c");
    assert_int_equal(path_join(path, "a/b/", "c"), STATUS_OK);
    assert_string_equal(path, "a/b/c");
    memset(name, 'x', sizeof name);
    name[sizeof name - 1] = '\0';
    assert_int_equal(path_join(path, "a", name), STATUS_CONFIG);
    name[sizeof name - 3] = '\0'; /* with "a/" exactly as long as fits */
    assert_int_equal(path_join(path, "a", name), STATUS_OK);
    name[sizeof name - 3] = 'x';
    name[sizeof name - 2] = '\0';
    assert_int_equal(path_join(path, "a", name), STATUS_CONFIG);
}

static void test_folders(void **state) {
    char path[PATH_BYTES], file[PATH_BYTES], **names = NULL;
    size_t count = 0;
    (void)state;
    assert_int_equal(folder_create(under_root(path, "one/two/three")), STATUS_OK);
    assert_true(path_is_folder(path) && !path_is_file(path));
    assert_int_equal(folder_create(path), STATUS_OK); /* there already: fine */
    assert_int_equal(folder_list(path, &names, &count), STATUS_OK);
    assert_int_equal(count, 0);
    names_free(names, count);
    assert_int_equal(file_write_durable(under_root(file, "one/b"), "x", 1), STATUS_OK);
    assert_int_equal(file_write_durable(under_root(file, "one/.a"), "x", 1), STATUS_OK);
    assert_int_equal(folder_list(under_root(path, "one"), &names, &count), STATUS_OK);
    assert_int_equal(count, 3);
    assert_string_equal(names[0], ".a");
    assert_string_equal(names[1], "b");
    assert_string_equal(names[2], "two");
    names_free(names, count);
    assert_int_equal(folder_create(under_root(path, "one/b/c")), STATUS_IO); /* b is a file */
    assert_int_equal(folder_create(""), STATUS_CONFIG);
    assert_int_equal(folder_list(under_root(path, "missing"), &names, &count), STATUS_IO);
    assert_int_equal(folder_sync(path), STATUS_IO);
    assert_int_equal(folder_remove(path), STATUS_OK); /* nothing there: fine */
}

/* What a link points to outlives the folder that the link lies in. */
static void test_remove_follows_no_link(void **state) {
    char kept[PATH_BYTES], folder[PATH_BYTES], link[PATH_BYTES], inside[PATH_BYTES];
    (void)state;
    assert_int_equal(folder_create(under_root(kept, "kept")), STATUS_OK);
    assert_int_equal(file_write_durable(under_root(inside, "kept/file"), "x", 1), STATUS_OK);
    assert_int_equal(folder_create(under_root(folder, "doomed/deep")), STATUS_OK);
    assert_int_equal(symlink(kept, under_root(link, "doomed/deep/link")), 0);
    assert_int_equal(folder_remove(under_root(folder, "doomed")), STATUS_OK);
    assert_true(!path_is_folder(folder) && path_is_file(inside));
}

static void test_write_and_read(void **state) {
    static const char data[] = "one\0two\n";
    char path[PATH_BYTES], temporary[PATH_BYTES], name[64], *text = NULL;
    struct file_map map;
    size_t bytes = 0;
    (void)state;
    assert_int_equal(file_write_durable(under_root(path, "data"), "old and longer", 14), STATUS_OK);
    assert_int_equal(file_write_durable(path, data, sizeof data), STATUS_OK);
    snprintf(name, sizeof name, "data.%ld.tmp", (long)getpid());
    assert_false(path_is_file(under_root(temporary, name)));
    assert_int_equal(file_read(path, sizeof data, &text, &bytes), STATUS_OK);
    assert_int_equal(bytes, sizeof data);
    assert_memory_equal(text, data, sizeof data);
    assert_int_equal(text[bytes], '\0');
    free(text);
    /* One byte above the limit. */
    assert_int_equal(file_read(path, sizeof data - 1, &text, &bytes), STATUS_IO);
    assert_int_equal(file_map_open(path, &map), STATUS_OK);
    assert_int_equal(map.bytes, sizeof data);
    assert_memory_equal(map.data, data, sizeof data);
    file_map_close(&map);
    file_map_close(&map);
}

static void test_empty_missing_and_odd_files(void **state) {
    char path[PATH_BYTES], *text = NULL;
    struct file_map map;
    size_t bytes = 1;
    (void)state;
    assert_int_equal(file_write_durable(under_root(path, "empty"), NULL, 0), STATUS_OK);
    assert_int_equal(file_read(path, 0, &text, &bytes), STATUS_OK);
    assert_true(bytes == 0 && text[0] == '\0');
    free(text);
    assert_int_equal(file_map_open(path, &map), STATUS_OK);
    assert_true(map.data == NULL && map.bytes == 0);
    file_map_close(&map);
    under_root(path, "missing");
    assert_int_equal(file_read(path, 10, &text, &bytes), STATUS_IO);
    assert_non_null(strstr(status_message(), path));
    assert_int_equal(file_map_open(path, &map), STATUS_IO);
    assert_int_equal(file_read(root, 10, &text, &bytes), STATUS_IO); /* a folder */
}

/* The old file stays whole, and no temporary one is left, when writing is not possible. */
static void test_failed_write_leaves_the_old_file(void **state) {
    char path[PATH_BYTES], temporary[PATH_BYTES], name[64], *text = NULL;
    size_t bytes = 0;
    (void)state;
    assert_int_equal(file_write_durable(under_root(path, "precious"), "old", 3), STATUS_OK);
    snprintf(name, sizeof name, "precious.%ld.tmp", (long)getpid());
    assert_int_equal(folder_create(under_root(temporary, name)), STATUS_OK);
    assert_int_equal(file_write_durable(path, "new", 3), STATUS_IO);
    assert_int_equal(file_read(path, 10, &text, &bytes), STATUS_OK);
    assert_string_equal(text, "old");
    free(text);
    assert_int_equal(folder_create(under_root(path, "taken")), STATUS_OK);
    assert_int_equal(file_write_durable(path, "new", 3), STATUS_IO); /* a folder has the name */
    snprintf(name, sizeof name, "taken.%ld.tmp", (long)getpid());
    assert_false(path_is_file(under_root(temporary, name)));
}

/* A second holder waits its time and is refused; once the first lets go it is let in. */
static void test_check_output(void **state) {
    char path[PATH_BYTES];
    (void)state;
    assert_int_equal(file_check_output(under_root(path, "new")), STATUS_OK);
    assert_false(path_is_file(path));
    assert_int_equal(file_write_durable(path, "x", 1), STATUS_OK);
    assert_int_equal(file_check_output(path), STATUS_CONFIG);
    assert_int_equal(file_check_output(root), STATUS_CONFIG); /* a folder */
    assert_int_equal(file_check_output(under_root(path, "nowhere/new")), STATUS_IO);
    assert_int_equal(file_check_output(under_root(path, "new/below")), STATUS_IO);
    assert_int_equal(unlink(under_root(path, "new")), 0);
    assert_int_equal(file_check_output(""), STATUS_CONFIG);
}

static void test_lock(void **state) {
    char path[PATH_BYTES];
    int first = -1, second = -1;
    (void)state;
    assert_int_equal(file_lock(under_root(path, "lock"), 1.0, &first), STATUS_OK);
    assert_int_equal(file_lock(path, 0.03, &second), STATUS_IO);
    assert_non_null(strstr(status_message(), path));
    file_unlock(first);
    assert_int_equal(file_lock(path, 0.0, &second), STATUS_OK);
    file_unlock(second);
    assert_int_equal(file_lock(under_root(path, "missing/lock"), 0.0, &first), STATUS_IO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_path_join), cmocka_unit_test(test_path_copy),
        cmocka_unit_test(test_folders),
        cmocka_unit_test(test_remove_follows_no_link),
        cmocka_unit_test(test_write_and_read),
        cmocka_unit_test(test_empty_missing_and_odd_files),
        cmocka_unit_test(test_failed_write_leaves_the_old_file),
        cmocka_unit_test(test_check_output),
        cmocka_unit_test(test_lock),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}

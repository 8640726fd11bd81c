/* Helpers behind data_test.h. */
#include "tests/data/data_test.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

int folder_setup(void **state) {
    const char *root = getenv("TEST_TMPDIR");
    char *folder = NULL;
    if (asprintf(&folder, "%s/data_test_XXXXXX", root == NULL ? "/tmp" : root) < 0) return -1;
    *state = folder;
    return mkdtemp(folder) == NULL ? -1 : 0;
}

int folder_teardown(void **state) {
    const enum status status = folder_remove(*state);
    free(*state);
    return status == STATUS_OK ? 0 : -1;
}

const char *in_folder(void **state, const char *name) {
    static char paths[8][PATH_BYTES];
    static unsigned turn;
    char *path = paths[turn++ % 8];
    assert_int_equal(path_join(path, *state, name), STATUS_OK);
    return path;
}

void write_file(const char *path, const void *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

void write_text(const char *path, const char *text) { write_file(path, text, strlen(text)); }

bool files_equal(const char *a, const char *b) {
    struct file_map first, second;
    assert_int_equal(file_map_open(a, &first), STATUS_OK);
    assert_int_equal(file_map_open(b, &second), STATUS_OK);
    const bool equal = first.bytes == second.bytes &&
                       (first.bytes == 0 || memcmp(first.data, second.data, first.bytes) == 0);
    file_map_close(&first);
    file_map_close(&second);
    return equal;
}

size_t names_in(const char *folder) {
    char **names = NULL;
    size_t count = 0;
    assert_int_equal(folder_list(folder, &names, &count), STATUS_OK);
    names_free(names, count);
    return count;
}

static void put_little_endian(unsigned char *out, uint32_t value, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) out[i] = (unsigned char)(value >> 8 * i);
}

void write_raw_shard(const char *path, int32_t magic, int32_t version, int32_t count,
                     const void *body, size_t body_bytes, size_t bytes) {
    unsigned char *file = calloc(1, 1024 + body_bytes + bytes);
    assert_non_null(file);
    put_little_endian(file, (uint32_t)magic, 4);
    put_little_endian(file + 4, (uint32_t)version, 4);
    put_little_endian(file + 8, (uint32_t)count, 4);
    if (body_bytes > 0) memcpy(file + 1024, body, body_bytes);
    write_file(path, file, bytes);
    free(file);
}

void write_counting_shard(const char *path, size_t token_bytes, uint32_t first, size_t count) {
    unsigned char *body = calloc(count + 1, token_bytes);
    assert_non_null(body);
    for (size_t i = 0; i < count; i++) {
        put_little_endian(body + i * token_bytes, first + (uint32_t)i, token_bytes);
    }
    write_raw_shard(path, token_bytes == 2 ? 20240520 : 20240801, token_bytes == 2 ? 1 : 7,
                    (int32_t)count, body, count * token_bytes, 1024 + count * token_bytes);
    free(body);
}

void assert_message(const char *words) {
    char copy[512], *rest = copy;
    assert_true(strlen(words) < sizeof copy);
    strcpy(copy, words);
    for (char *word; (word = strsep(&rest, "|")) != NULL;) {
        if (strstr(status_message(), word) == NULL) {
            fail_msg("expected \"%s\" in the message \"%s\"", word, status_message());
        }
    }
}

static void set_file_limit(rlim_t bytes) {
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = bytes < limit.rlim_max ? bytes : limit.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

void limit_file_bytes(size_t bytes) {
    signal(SIGXFSZ, SIG_IGN); /* so that write() returns EFBIG */
    set_file_limit(bytes);
}

void lift_file_limit(void) { set_file_limit(RLIM_INFINITY); }

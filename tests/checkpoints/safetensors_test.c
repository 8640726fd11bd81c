/*
 * The safetensors reader against files that lie, and the writer's promises.
 * Oracle: closed form. A valid file is a few bytes written by hand from the format's description;
 * every case of the table breaks one rule of it and must be refused for that rule.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/checked.h"
#include "checkpoints/safetensors.h"
#include "tests/checkpoints/fixture.h"

struct format_case {
    const char *why;
    const char *header;
    size_t data_bytes;
    const char *reason; /* part of the message; NULL: accepted */
};

#define F32(name, shape, begin, end)                                                               \
    "\"" name "\":{\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]}"
#define NAME_16 "abcdefghijklmnop"
#define NAME_112 NAME_16 NAME_16 NAME_16 NAME_16 NAME_16 NAME_16 NAME_16

static const struct format_case cases[] = {
    /* accepted */
    {"no tensor", "{}", 0, NULL},
    {"one", "{" F32("a", "[2,3]", "0", "24") "}", 24, NULL},
    {"a scalar has no dimensions", "{" F32("a", "[]", "0", "4") "}", 4, NULL},
    {"four dimensions", "{" F32("a", "[1,2,1,3]", "0", "24") "}", 24, NULL},
    {"two, not in order", "{" F32("b", "[1]", "8", "12") "," F32("a", "[2]", "0", "8") "}", 12,
     NULL},
    {"an empty one between",
     "{" F32("a", "[1]", "0", "4") "," F32("b", "[0,9]", "4", "4") "," F32("c", "[1]", "4",
                                                                           "8") "}",
     8, NULL},
    {"metadata", "{\"__metadata__\":{\"format\":\"pt\"}," F32("a", "[1]", "0", "4") "}", 4, NULL},
    {"padded header", "{" F32("a", "[1]", "0", "4") "}     ", 4, NULL},
    {"the longest name", "{" F32(NAME_112 "123456789012345", "[1]", "0", "4") "}", 4, NULL},
    {"half precision",
     "{\"a\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[0,6]},"
     "\"b\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[6,8]}}",
     8, NULL},
    /* the JSON */
    {"not JSON", "hello", 0, "expected JSON"},
    {"empty", "", 0, "expected JSON"},
    {"cut", "{" F32("a", "[1]", "0", "4"), 4, "expected JSON"},
    {"behind the object", "{" F32("a", "[1]", "0", "4") "}x", 4, "expected JSON"},
    {"an array", "[1,2]", 0, "JSON object"},
    {"a string", "\"a\"", 0, "JSON object"},
    /* names */
    {"twice", "{" F32("a", "[1]", "0", "4") "," F32("a", "[1]", "4", "8") "}", 8, "stands twice"},
    {"no name", "{" F32("", "[1]", "0", "4") "}", 4, "1 to 127 bytes"},
    {"too long a name", "{" F32(NAME_112 NAME_16, "[1]", "0", "4") "}", 4, "1 to 127 bytes"},
    {"an escape sequence", "{" F32("a\\u001b[2J", "[1]", "0", "4") "}", 4, "printable ASCII"},
    {"metadata that is none", "{\"__metadata__\":[1]}", 0, "__metadata__"},
    {"metadata of numbers", "{\"__metadata__\":{\"a\":1}}", 0, "__metadata__"},
    {"metadata twice", "{\"__metadata__\":{},\"__metadata__\":{}}", 0, "stands twice"},
    /* entries */
    {"not an object", "{\"a\":1}", 0, "dtype, shape and data_offsets"},
    {"no dtype", "{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype, shape and"},
    {"one key more", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4,
     "dtype, shape and"},
    {"shape twice", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"shape\":[1]}}", 4, "stands twice"},
    {"another dtype", "{\"a\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]}}", 8,
     "\"I64\""},
    {"no such dtype", "{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "\"dtype\""},
    /* shapes */
    {"a number", "{" F32("a", "4", "0", "16") "}", 16, "shape of a to be an array"},
    {"five dimensions", "{" F32("a", "[1,1,1,1,1]", "0", "4") "}", 4, "at most 4 dimensions"},
    {"negative", "{" F32("a", "[-1]", "0", "4") "}", 4, "found -1"},
    {"fractional", "{" F32("a", "[1.5]", "0", "4") "}", 4, "found 1.5"},
    {"infinite", "{" F32("a", "[1e999]", "0", "4") "}", 4, "found inf"},
    {"a string for a size", "{" F32("a", "[\"1\"]", "0", "4") "}", 4, "found a string"},
    {"product beyond 2^64", "{" F32("a", "[4294967296,4294967296]", "0", "4") "}", 4,
     "than a size can"},
    {"bytes beyond 2^64", "{" F32("a", "[4611686018427387904]", "0", "4") "}", 4, "found 4.6"},
    {"wraps to 4 bytes", "{" F32("a", "[2147483649,2147483648,2,2]", "0", "4") "}", 4,
     "than a size"},
    /* offsets */
    {"three", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 8,
     "two integers"},
    {"one only", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4,
     "two integers"},
    {"not integers", "{" F32("a", "[1]", "\"0\"", "4") "}", 4, "a data offset"},
    {"negative begin", "{" F32("a", "[1]", "-4", "0") "}", 4, "found -4"},
    {"backwards", "{" F32("a", "[1]", "4", "0") "}", 4, "from 4 to 0"},
    {"beyond the end", "{" F32("a", "[2]", "0", "8") "}", 4, "the data have 4 bytes"},
    {"far beyond the end", "{" F32("a", "[1]", "9007199254740988", "9007199254740992") "}", 4,
     "the data have 4 bytes"},
    {"shorter than the shape", "{" F32("a", "[2]", "0", "4") "}", 4, "needs 8 bytes"},
    {"longer than the shape", "{" F32("a", "[1]", "0", "8") "}", 8, "needs 4 bytes"},
    {"overlap", "{" F32("a", "[2]", "0", "8") "," F32("b", "[2]", "4", "12") "}", 12,
     "b to begin at"},
    {"same place", "{" F32("a", "[1]", "0", "4") "," F32("b", "[1]", "0", "4") "}", 4,
     "to begin at"},
    {"gap", "{" F32("a", "[1]", "0", "4") "," F32("b", "[1]", "8", "12") "}", 12, "b to begin at"},
    {"gap in front", "{" F32("a", "[1]", "4", "8") "}", 8, "a to begin at byte 0"},
    {"garbage behind", "{" F32("a", "[1]", "0", "4") "}", 5, "end at byte 4"},
};

/* Length, header, and data 0, 1, 2 ... */
static void write_case(const char *path, uint64_t header_bytes, const char *header,
                       size_t data_bytes) {
    const size_t bytes = 8 + strlen(header) + data_bytes;
    unsigned char *file = malloc(bytes);
    assert_non_null(file);
    memcpy(file, &header_bytes, 8);
    memcpy(file + 8, header, strlen(header));
    for (size_t i = 0; i < data_bytes; i++) file[8 + strlen(header) + i] = (unsigned char)i;
    test_write_file(path, file, bytes);
    free(file);
}

static void table_of_files(void **state) {
    const char *path = *state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct safetensors file;
        write_case(path, strlen(cases[i].header), cases[i].header, cases[i].data_bytes);
        const enum status status = safetensors_open(&file, path);
        if (cases[i].reason == NULL) {
            if (status != STATUS_OK) fail_msg("%s: %s", cases[i].why, status_message());
            size_t bytes = 0;
            for (size_t e = 0; e < file.count; e++) {
                assert_int_equal(file.entries[e].offset, bytes);
                bytes += file.entries[e].bytes;
            }
            assert_int_equal(bytes, cases[i].data_bytes);
            if (bytes > 1) assert_int_equal(file.data[1], 1);
            safetensors_close(&file);
        } else {
            expect_refused(status, STATUS_CHECKPOINT, cases[i].reason);
            assert_non_null(strstr(status_message(), path));
        }
    }
}

static void lengths_that_lie(void **state) {
    const char *path = *state;
    const char *header = "{" F32("a", "[1]", "0", "4") "}";
    const uint64_t length = strlen(header);
    const uint64_t lengths[] = {length + 5,        length + 1000,     UINT64_MAX, UINT64_MAX - 7,
                                (uint64_t)1 << 63, (uint64_t)1 << 32, length - 1, 0};
    struct safetensors file;
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        write_case(path, lengths[i], header, 4);
        expect_refused(safetensors_open(&file, path), STATUS_CHECKPOINT,
                       lengths[i] > length ? "header of at most" : "expected JSON");
    }
    for (size_t bytes = 0; bytes < 8; bytes++) {
        test_write_file(path, "\1\0\0\0\0\0\0", bytes);
        expect_refused(safetensors_open(&file, path), STATUS_CHECKPOINT, "at least 8");
    }
    write_case(path, 8, "{}\0     ", 0); /* strlen() ends it at the NUL: shorter than its length */
    expect_refused(safetensors_open(&file, path), STATUS_CHECKPOINT, "header of at most");
    test_write_file(path, "\10\0\0\0\0\0\0\0{}\0     ", 16);
    expect_refused(safetensors_open(&file, path), STATUS_CHECKPOINT, "NUL");
    assert_int_equal(unlink(path), 0);
    expect_refused(safetensors_open(&file, path), STATUS_IO, path);
}

/* Nested deeper than a recursive parser's stack; as long as a header may be; longer. */
static void headers_that_exhaust(void **state) {
    const char *path = *state;
    const size_t limit = (size_t)4 << 20;
    char *header = malloc(limit + 2);
    struct safetensors file;
    assert_non_null(header);
    memset(header, '[', limit + 1);
    header[limit + 1] = '\0';
    write_case(path, limit + 1, header, 0);
    expect_refused(safetensors_open(&file, path), STATUS_CHECKPOINT, "header of at most 4194304");
    header[limit] = '\0';
    write_case(path, limit, header, 0);
    expect_refused(safetensors_open(&file, path), STATUS_CHECKPOINT, "expected JSON");
    for (size_t i = 0; i + 5 < limit; i += 5) memcpy(header + i, "{\"a\":", 5);
    write_case(path, limit, header, 0);
    expect_refused(safetensors_open(&file, path), STATUS_CHECKPOINT, "expected JSON");
    free(header);
}

static struct safetensors_entry entry_named(const char *name, size_t count) {
    struct safetensors_entry entry = {.dtype = SAFETENSORS_F32, .rank = 1, .shape = {count}};
    /* The longest leaves no room for a NUL: meant. */
    memcpy(entry.name, name, size_min(strlen(name) + 1, sizeof entry.name));
    return entry;
}

static void writer_writes_what_was_promised(void **state) {
    const char *path = *state;
    const char *const metadata[] = {"format", "pt"};
    const float numbers[3] = {1.0f, 2.0f, 3.0f};
    struct safetensors_entry entries[2] = {entry_named("a", 2), entry_named("b", 1)};
    struct safetensors_writer *writer = NULL;
    struct file_digest digest;
    size_t bytes = 0;
    unlink(path);
    assert_int_equal(safetensors_writer_open(&writer, path, entries, 2, metadata, 1), STATUS_OK);
    assert_int_equal(safetensors_writer_append(writer, numbers, 4),
                     STATUS_OK); /* in any portions */
    assert_int_equal(safetensors_writer_append(writer, numbers + 1, 8), STATUS_OK);
    assert_int_equal(safetensors_writer_finish(writer, &digest), STATUS_OK);
    char *text = test_read_file(path, &bytes);
    const char *header = "{\"__metadata__\":{\"format\":\"pt\"},"
                         "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
                         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]}}";
    const size_t padded = (strlen(header) + 7) / 8 * 8;
    assert_int_equal(bytes, 8 + padded + 12);
    assert_int_equal(digest.bytes, bytes);
    assert_int_equal((unsigned char)text[0], padded);
    assert_memory_equal(text + 8, header, strlen(header));
    for (size_t i = strlen(header); i < padded; i++) assert_int_equal(text[8 + i], ' ');
    assert_memory_equal(text + 8 + padded, numbers, 12);
    free(text);
    /* An existing file is left alone. */
    expect_refused(safetensors_writer_open(&writer, path, entries, 2, metadata, 1), STATUS_IO,
                   "exists");
    assert_int_equal(unlink(path), 0);
}

static void writer_refuses_broken_promises(void **state) {
    const char *path = *state;
    const float numbers[3] = {1.0f, 2.0f, 3.0f};
    struct safetensors_entry entries[2] = {entry_named("a", 2), entry_named("b", 1)};
    struct safetensors_writer *writer = NULL;
    struct file_digest digest;
    unlink(path);
    assert_int_equal(safetensors_writer_open(&writer, path, entries, 2, NULL, 0), STATUS_OK);
    assert_int_equal(safetensors_writer_append(writer, numbers, 8), STATUS_OK);
    expect_refused(safetensors_writer_append(writer, numbers, 5), STATUS_INTERNAL, "12 bytes");
    expect_refused(safetensors_writer_finish(writer, &digest), STATUS_INTERNAL, "8 came");
    assert_false(path_is_file(path));
    assert_int_equal(safetensors_writer_open(&writer, path, entries, 2, NULL, 0), STATUS_OK);
    safetensors_writer_abandon(writer);
    assert_false(path_is_file(path));

    char longest[SAFETENSORS_NAME_BYTES + 1];
    memset(longest, 'n', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    const char *const bad_names[] = {"a", "", "__metadata__", "tab\there", longest};
    for (size_t i = 0; i < sizeof bad_names / sizeof bad_names[0]; i++) {
        entries[1] = entry_named(bad_names[i], 1); /* the other one is "a" */
        assert_int_not_equal(safetensors_writer_open(&writer, path, entries, 2, NULL, 0),
                             STATUS_OK);
        assert_false(path_is_file(path));
    }
    entries[1] = entry_named("b", SIZE_MAX / 2);
    assert_int_not_equal(safetensors_writer_open(&writer, path, entries, 2, NULL, 0), STATUS_OK);
}

int main(void) {
    struct fixture fixture;
    char path[PATH_BYTES];
    fixture_open(&fixture);
    if (path_join(path, fixture.folder, "file.safetensors") != STATUS_OK) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(table_of_files, path),
        cmocka_unit_test_prestate(lengths_that_lie, path),
        cmocka_unit_test_prestate(headers_that_exhaust, path),
        cmocka_unit_test_prestate(writer_writes_what_was_promised, path),
        cmocka_unit_test_prestate(writer_refuses_broken_promises, path),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    fixture_close(&fixture);
    return failed;
}

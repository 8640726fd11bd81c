/*
 * What the tests of the data room share: a folder for each test, files and shards made byte by byte
 * (not by the code under test), and checks of error messages.
 */
#ifndef DEEPWELL_TESTS_DATA_DATA_TEST_H_
#define DEEPWELL_TESTS_DATA_DATA_TEST_H_

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/status.h"

/* cmocka setup and teardown: *state is the path (char *) of a new folder, removed at the end. */
int folder_setup(void **state);
int folder_teardown(void **state);

/* "folder/name"; the text is good until the eighth next call. */
const char *in_folder(void **state, const char *name);

void write_file(const char *path, const void *data, size_t bytes);
void write_text(const char *path, const char *text);
bool files_equal(const char *a, const char *b);
size_t names_in(const char *folder); /* how many names there are */

/* A shard file with this header and `body` after it, cut or filled with zeros to `bytes`. */
void write_raw_shard(const char *path, int32_t magic, int32_t version, int32_t count,
                     const void *body, size_t body_bytes, size_t bytes);

/* A good shard of `count` tokens first, first + 1, ... */
void write_counting_shard(const char *path, size_t token_bytes, uint32_t first, size_t count);

/* The last message holds all of the words, which are separated by '|'. */
void assert_message(const char *words);

/* Writes beyond `bytes` into any file fail with EFBIG, as they would on a full disk, until the
 * limit is lifted. */
void limit_file_bytes(size_t bytes);
void lift_file_limit(void);

#endif

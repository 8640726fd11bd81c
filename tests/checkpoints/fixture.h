/*
 * What the tests of checkpoints/ share: a small tensor table with every kind of row, contents that
 * are a pure function of the step, a folder of their own, and the check that a checkpoint holds
 * exactly the contents of its step.
 */
#ifndef DEEPWELL_TESTS_CHECKPOINTS_FIXTURE_H_
#define DEEPWELL_TESTS_CHECKPOINTS_FIXTURE_H_

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <setjmp.h>

#include <cmocka.h>

#include "checkpoints/checkpoint.h"

/* Rows of the table by their place. */
enum { ROW_WTE, ROW_WPE, ROW_NORM, ROW_QKV, ROW_QKV_BIAS, ROW_UP, ROW_PLAIN, ROW_ONE_ROW, ROWS };

struct fixture {
    char folder[PATH_BYTES]; /* a fresh one, removed by fixture_close() */
    char run[PATH_BYTES];    /* folder/run; not created */
    struct param_table params;
    float *masters, *moments1, *moments2;
    cJSON *state;
    struct checkpoint_content content;
};

void fixture_open(struct fixture *fixture);
void fixture_close(struct fixture *fixture);

/* Makes `content` that of `step`. */
void fixture_fill(struct fixture *fixture, int64_t step);

/* Fills and saves; keeps everything. */
void fixture_save(struct fixture *fixture, int64_t step);

/* The checkpoint at `path` verifies and holds the contents of its own step, bit for bit; returns
 * it. */
int64_t fixture_expect_whole(struct fixture *fixture, const char *path);

/* checkpoint_newest() finds one, and it is whole; returns its step. */
int64_t fixture_expect_newest(struct fixture *fixture);

/* The path of the step's checkpoint or of a file in it (name NULL: the folder). */
void fixture_path(const struct fixture *fixture, int64_t step, const char *name,
                  char out[PATH_BYTES]);

/* How many names in the run folder contain `part`. */
size_t fixture_count(const struct fixture *fixture, const char *part);

/* Keeps every checkpoint. */
extern const struct checkpoint_retention keep_all;

/* Whole files, asserting success. */
void test_write_file(const char *path, const void *data, size_t bytes);
char *test_read_file(const char *path, size_t *bytes);

/* The call failed with this status, and its message contains `part`. */
void expect_refused(enum status found, enum status expected, const char *part);

/* All numbers of a table, as one rank alone has them. */
static inline struct flat_ranges all_of(const struct param_table *params) {
    static struct flat_range all;
    all = (struct flat_range){.count = params->elements};
    return (struct flat_ranges){&all, 1};
}

#endif

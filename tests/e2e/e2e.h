/*
 * What the end-to-end tests share: the real program, run as a user runs it, with everything it says
 * and leaves behind caught; a deadline for every run; and folders, of which every test has its own.
 *
 * e2e_open() makes a folder with text, token shards (by `deepwell data prepare`) and tiny.conf, a
 * model that trains 16 steps in milliseconds. Every test starts in an empty folder beside these, so
 * that all paths are short, relative and the same in every run: "run", "../tiny.conf".
 */
#ifndef DEEPWELL_TESTS_E2E_E2E_H_
#define DEEPWELL_TESTS_E2E_E2E_H_

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <cmocka.h>

#include <cjson/cJSON.h>

#include "base/file.h"
#include "base/status.h"

#ifdef __SANITIZE_ADDRESS__
enum { E2E_SANITIZED = 1 };
#else
enum { E2E_SANITIZED = 0 };
#endif

enum { E2E_STEPS = 16, E2E_ARGUMENTS_MAX = 40, E2E_LINE_BYTES = 2048 };

/* How a run ended. The texts stay until the next e2e_wait(). */
struct outcome {
    int code;        /* the exit code, or 128 + the signal that ended it, as a shell counts */
    const char *out; /* standard output; may hold any bytes, and a NUL ends it */
    const char *err; /* standard error */
    size_t out_bytes;
    double seconds;
};

/* A running program. */
struct process {
    pid_t pid;
    int number; /* of its output files */
    double begun_seconds;
};

/* What is not usual about a child; all zero: nothing. */
struct unusual {
    const char *program;   /* on the PATH, instead of deepwell; in its line @ stands for deepwell */
    size_t file_bytes_max; /* RLIMIT_FSIZE, with SIGXFSZ ignored: a disk that fills; 0: none */
    bool obeys_modes;      /* root too: file modes count */
    int out_file;          /* a file descriptor for standard output; 0: a file that is caught */
    bool joined;           /* standard error goes where standard output goes */
};

/* The main program's: takes the path of deepwell from the command line, runs the tests, tidies up.
 * Returns what main() should. */
#define E2E_MAIN(argc, argv, tests) \
    (e2e_open(argc, argv) ? e2e_close(cmocka_run_group_tests(tests, NULL, NULL)) : 1)
#define E2E_TEST(name) cmocka_unit_test_setup_teardown(name, e2e_enter, e2e_leave)
bool e2e_open(int argc, char **argv);
int e2e_close(int failed);

/* The test's own empty folder becomes the working folder, and is removed again. */
int e2e_enter(void **state);
int e2e_leave(void **state);

/* `deepwell LINE`, cut at its spaces. Fails the test if it does not end in time. */
const struct outcome *e2e_run(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The same, and it must end with this code; its standard error must hold each of the words, which
 * '|' separates. */
const struct outcome *e2e_expect(int code, const char *words, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

struct process e2e_start(const struct unusual *unusual, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
const struct outcome *e2e_wait(const struct process *process);

/* A run that stands still in its midst, whatever the machine's speed: it prints more lines than fit
 * into a pipe of one page, and nobody reads on once `until` was seen, up to e2e_release(). */
struct stalled {
    struct process process;
    int output;
};
struct stalled e2e_stall(const char *until, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
const struct outcome *e2e_release(const struct stalled *stalled);

void e2e_sleep(double seconds);

/* Until the path is there, and its file holds the text ("": anything). Fails the test if that does
 * not come in time. */
void e2e_await(const char *path, const char *text);

/* How often the word stands in the text. */
size_t e2e_count(const char *text, const char *word);

/* Each part of `words`, which '|' separates, is in the text. `what` names it in the failure. */
void e2e_assert_words(const char *what, const char *text, const char *words);

/* The text behind `label` in the output, up to the end of the line: "4.92 nats". */
const char *e2e_value(const char *text, const char *label);

/* Path, size and hash of every file in the folder (but .lock, which holds a process number), a line
 * each; equal texts mean equal trees. Release with free(). */
char *e2e_tree(const char *folder);
void e2e_assert_same_tree(const char *folder, const char *expected);

/* A whole file, NUL-terminated; release with free(). */
char *e2e_read(const char *path, size_t *bytes);
void e2e_write(const char *path, const void *data, size_t bytes);
void e2e_assert_same_file(const char *a, const char *b);

/* metrics.jsonl of the run: an array of its lines. Release with cJSON_Delete(). */
cJSON *e2e_metrics(const char *run);
/* Record i of this kind, counted from 0; NULL behind the last. */
const cJSON *e2e_record(const cJSON *metrics, const char *kind, size_t i);
double e2e_number(const cJSON *record, const char *name);

/* The run holds each of the steps 1 to `steps` exactly once, in order. */
void e2e_assert_steps(const char *run, int64_t steps);

#endif

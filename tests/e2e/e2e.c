/* Running the program and looking at what it left: tests/e2e/e2e.h. */
#include "tests/e2e/e2e.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/checked.h"
#include "base/clock.h"
#include "base/random.h"

enum { FILE_BYTES_MAX = 1 << 26, SENTENCES = 160, WORDS = 12 };
#define DEADLINE_SECONDS \
    60.0 /* a run takes a tenth of a second; sanitized, on a busy machine, more */

static char binary[PATH_MAX], root[PATH_MAX - 64];
static int processes, tests_entered;
static char *caught_out, *caught_err;

static const char tiny_config[] =
    "device = cpu\nthreads = 2\n"
    "[model]\nlayers = 2\nheads = 2\nwidth = 16\ncontext = 16\nvocabulary = 256\n"
    "[data]\ntrain = ../data/train.bin\nvalidation = ../data/validation.bin\n"
    "[train]\nout = run\nsteps = 16\nbatch = 4\nmicro_batch = 4\nlog_every = 1\n"
    "[optimizer]\nlearning_rate = 3e-3\nwarmup_steps = 4\n"
    "[precision]\nrecipe = fp32\n"
    "[checkpoint]\nevery = 5\n"
    "[validation]\nevery = 5\n";

/* Sentences of random words, some of which are not ASCII. */
static void write_text(const char *path) {
    static const char *const words[] =
        {"the",      "step",        "and",     "loss", "of",    "small",       "model",
         "falls",    "when",        "weights", "move", "along", "caf\xC3\xA9", "\xCE\xB1\xCE\xB2",
         "gradient", "\xE2\x82\xAC"};
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    for (uint64_t i = 0; i < SENTENCES * WORDS; i++) {
        uint32_t random[4];
        random_words(1, RANDOM_TEST, i, random);
        fprintf(file, "%s%s", words[random[0] % (sizeof words / sizeof words[0])],
                i % WORDS == WORDS - 1 ? ".\n" : " ");
    }
    assert_int_equal(fclose(file), 0);
}

bool e2e_open(int argc, char **argv) {
    const char *folder = getenv("TEST_TMPDIR");
    if (argc < 2 || realpath(argv[1], binary) == NULL) {
        fprintf(stderr, "expected the path of the program as the first argument\n");
        return false;
    }
    snprintf(root, sizeof root, "%s/e2e-XXXXXX", folder != NULL ? folder : "/tmp");
    if (mkdtemp(root) == NULL || chdir(root) != 0) {
        fprintf(stderr, "cannot make %s: %s\n", root, strerror(errno));
        return false;
    }
    setenv("OMP_NUM_THREADS", "2", 1);
    setenv("OMP_WAIT_POLICY", "passive", 1);
    write_text("text.txt");
    e2e_write("tiny.conf", tiny_config, strlen(tiny_config));
    const struct outcome *made = e2e_run("data prepare --out data text.txt");
    if (made->code != 0) fprintf(stderr, "cannot prepare data: %s\n", made->err);
    return made->code == 0;
}

int e2e_close(int failed) {
    free(caught_out);
    free(caught_err);
    return folder_remove(root) == STATUS_OK ? failed : 1;
}

int e2e_enter(void **state) {
    (void)state;
    char folder[PATH_MAX];
    snprintf(folder, sizeof folder, "%s/test-%d", root, tests_entered++);
    return mkdir(folder, 0777) == 0 && chdir(folder) == 0 ? 0 : -1;
}

int e2e_leave(void **state) {
    (void)state;
    char folder[PATH_MAX];
    snprintf(folder, sizeof folder, "%s/test-%d", root, tests_entered - 1);
    return chdir(root) == 0 && folder_remove(folder) == STATUS_OK ? 0 : -1;
}

static void output_path(char path[PATH_MAX], const char *what, int number) {
    snprintf(path, PATH_MAX, "%s/%s-%d", root, what, number);
}

/* The child's side of e2e_start(). */
static void become(const struct unusual *unusual, int number, char **argv) {
    char path[PATH_MAX];
    const int flags = O_WRONLY | O_CREAT | O_TRUNC;
    output_path(path, "out", number);
    const int out = unusual->out_file != 0 ? unusual->out_file : open(path, flags, 0666);
    output_path(path, "err", number);
    const int err = unusual->joined ? out : open(path, flags, 0666);
    if (out < 0 || err < 0 || dup2(out, STDOUT_FILENO) < 0 || dup2(err, STDERR_FILENO) < 0)
        _exit(127);
    if (unusual->file_bytes_max > 0) {
        const struct rlimit limit = {unusual->file_bytes_max, unusual->file_bytes_max};
        if (setrlimit(RLIMIT_FSIZE, &limit) != 0 || signal(SIGXFSZ, SIG_IGN) == SIG_ERR) _exit(127);
    }
    /* What is not in the bounding set, root does not get by execve: capabilities(7). */
    if (unusual->obeys_modes && geteuid() == 0 &&
        (prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0) != 0 ||
         prctl(PR_CAPBSET_DROP, CAP_DAC_READ_SEARCH, 0, 0, 0) != 0)) {
        _exit(127);
    }
    /* What others' programs leave allocated is not ours to report. */
    if (unusual->program != NULL) setenv("LSAN_OPTIONS", "detect_leaks=0", 1);
    if (unusual->program != NULL) execvp(unusual->program, argv);
    else execv(binary, argv);
    _exit(127);
}

static struct process start_line(const struct unusual *unusual, char *line) {
    char *argv[E2E_ARGUMENTS_MAX + 1] = {binary}, *rest = line;
    int argc = 1;
    for (char *word; (word = strsep(&rest, " ")) != NULL;) {
        assert_true(argc < E2E_ARGUMENTS_MAX);
        if (word[0] != '\0') argv[argc++] = strcmp(word, "@") == 0 ? binary : word;
    }
    struct process process = {.number = processes++, .begun_seconds = clock_seconds()};
    fflush(NULL);
    process.pid = fork();
    assert_true(process.pid >= 0);
    if (process.pid == 0) become(unusual, process.number, argv);
    return process;
}

#define FORMAT_LINE(line, format)                                            \
    do {                                                                     \
        va_list arguments_;                                                  \
        va_start(arguments_, format);                                        \
        const int bytes_ = vsnprintf(line, sizeof line, format, arguments_); \
        va_end(arguments_);                                                  \
        assert_in_range(bytes_, 0, (int)sizeof line - 1);                    \
    } while (0)

struct process e2e_start(const struct unusual *unusual, const char *format, ...) {
    char line[E2E_LINE_BYTES];
    FORMAT_LINE(line, format);
    return start_line(unusual, line);
}

struct stalled e2e_stall(const char *until, const char *format, ...) {
    enum { PIPE_BYTES = 4096, BITE_BYTES = 64 }; /* bites, so as not to make room for more */
    char line[E2E_LINE_BYTES], text[PIPE_BYTES + 1] = "";
    int ends[2];
    FORMAT_LINE(line, format);
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    assert_true(fcntl(ends[1], F_SETPIPE_SZ, PIPE_BYTES) >= 0);
    const struct unusual unusual = {.out_file = ends[1]};
    const struct stalled stalled = {start_line(&unusual, line), ends[0]};
    close(ends[1]);
    for (size_t used = 0; strstr(text, until) == NULL;) {
        const ssize_t got = read(ends[0], text + used,
                                 size_min(BITE_BYTES, sizeof text - 1 - used));
        if (got <= 0) fail_msg("expected \"%s\" in the first page of: %s", until, text);
        used += (size_t)got;
        text[used] = '\0';
    }
    return stalled;
}

const struct outcome *e2e_release(const struct stalled *stalled) {
    char text[4096];
    while (read(stalled->output, text, sizeof text) > 0) continue;
    close(stalled->output);
    return e2e_wait(&stalled->process);
}

/* Waits for the end; kills what is not over in time. */
static int wait_status(const struct process *process) {
    int status = 0;
    for (;;) {
        const pid_t ended = waitpid(process->pid, &status, WNOHANG);
        if (ended == process->pid) return status;
        assert_int_equal(ended, 0);
        if (clock_seconds() - process->begun_seconds > DEADLINE_SECONDS) {
            kill(process->pid, SIGKILL);
            waitpid(process->pid, &status, 0);
            fail_msg("the program did not end within %g seconds", DEADLINE_SECONDS);
        }
        e2e_sleep(0.0005);
    }
}

static char *take_output(const char *what, int number, size_t *bytes) {
    char path[PATH_MAX];
    output_path(path, what, number);
    if (!path_is_file(path)) { /* it went elsewhere, or the child died before it opened it */
        *bytes = 0;
        return calloc(1, 1);
    }
    char *text = e2e_read(path, bytes);
    unlink(path);
    return text;
}

const struct outcome *e2e_wait(const struct process *process) {
    static struct outcome outcome;
    size_t err_bytes = 0;
    const int status = wait_status(process);
    free(caught_out);
    free(caught_err);
    outcome.seconds = clock_seconds() - process->begun_seconds;
    outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    caught_out = take_output("out", process->number, &outcome.out_bytes);
    caught_err = take_output("err", process->number, &err_bytes);
    outcome.out = caught_out;
    outcome.err = caught_err;
    return &outcome;
}

static const struct outcome *run_line(char *line) {
    const struct unusual usual = {0};
    const struct process process = start_line(&usual, line);
    return e2e_wait(&process);
}

const struct outcome *e2e_run(const char *format, ...) {
    char line[E2E_LINE_BYTES];
    FORMAT_LINE(line, format);
    return run_line(line);
}

const struct outcome *e2e_expect(int code, const char *words, const char *format, ...) {
    char line[E2E_LINE_BYTES], shown[E2E_LINE_BYTES];
    FORMAT_LINE(line, format);
    memcpy(shown, line, sizeof shown);
    const struct outcome *outcome = run_line(line);
    if (outcome->code != code) {
        fail_msg("deepwell %s: expected the exit code %d, found %d: %s", shown, code, outcome->code,
                 outcome->err);
    }
    e2e_assert_words(shown, outcome->err, words);
    return outcome;
}

void e2e_sleep(double seconds) {
    const struct timespec delay = {.tv_sec = (time_t)seconds,
                                   .tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&delay, NULL);
}

static bool holds(const char *path, const char *text) {
    size_t bytes = 0;
    if (access(path, F_OK) != 0 || text[0] == '\0') return access(path, F_OK) == 0;
    char *found = e2e_read(path, &bytes);
    const bool there = strstr(found, text) != NULL;
    free(found);
    return there;
}

void e2e_await(const char *path, const char *text) {
    const double begun = clock_seconds();
    while (!holds(path, text)) {
        if (clock_seconds() - begun > DEADLINE_SECONDS) fail_msg("no %s in %s", text, path);
        e2e_sleep(0.005);
    }
}

size_t e2e_count(const char *text, const char *word) {
    size_t count = 0;
    for (const char *at = text; (at = strstr(at, word)) != NULL; at++) count++;
    return count;
}

void e2e_assert_words(const char *what, const char *text, const char *words) {
    char part[E2E_LINE_BYTES];
    for (const char *at = words; *at != '\0'; at += strspn(at, "|")) {
        const size_t length = strcspn(at, "|");
        assert_true(length < sizeof part);
        memcpy(part, at, length);
        part[length] = '\0';
        at += length;
        if (strstr(text, part) == NULL) fail_msg("%s: expected \"%s\" in: %s", what, part, text);
    }
}

const char *e2e_value(const char *text, const char *label) {
    static char value[E2E_LINE_BYTES];
    const char *at = strstr(text, label);
    if (at == NULL) fail_msg("expected \"%s\" in: %s", label, text);
    at += strlen(label);
    at += strspn(at, " ");
    snprintf(value, sizeof value, "%.*s", (int)strcspn(at, "\n"), at);
    return value;
}

/* Appends the lines of a folder and what is below it; names come sorted. */
static void add_tree(FILE *out, const char *folder, size_t root_length) {
    char **names = NULL, path[PATH_BYTES];
    size_t count = 0;
    if (folder_list(folder, &names, &count) != STATUS_OK) fail_msg("%s", status_message());
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(path_join(path, folder, names[i]), STATUS_OK);
        if (strcmp(names[i], ".lock") == 0) continue;
        if (path_is_folder(path)) {
            fprintf(out, "%s/\n", path + root_length + 1);
            add_tree(out, path, root_length);
            continue;
        }
        size_t bytes = 0;
        char *data = e2e_read(path, &bytes);
        fprintf(out, "%s %zu %016llx\n", path + root_length + 1, bytes,
                (unsigned long long)XXH3_64bits(data, bytes));
        free(data);
    }
    names_free(names, count);
}

char *e2e_tree(const char *folder) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    if (path_is_folder(folder)) add_tree(out, folder, strlen(folder));
    assert_int_equal(fclose(out), 0);
    return text;
}

void e2e_assert_same_tree(const char *folder, const char *expected) {
    char *found = e2e_tree(folder);
    if (strcmp(found, expected) != 0) fail_msg("%s held\n%sand now\n%s", folder, expected, found);
    free(found);
}

char *e2e_read(const char *path, size_t *bytes) {
    char *text = NULL;
    if (file_read(path, FILE_BYTES_MAX, &text, bytes) != STATUS_OK)
        fail_msg("%s", status_message());
    return text;
}

void e2e_write(const char *path, const void *data, size_t bytes) {
    FILE *file = fopen(path, "w");
    if (file == NULL) fail_msg("cannot open %s: %s", path, strerror(errno));
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

void e2e_assert_same_file(const char *a, const char *b) {
    size_t a_bytes = 0, b_bytes = 0, same = 0;
    char *a_data = e2e_read(a, &a_bytes), *b_data = e2e_read(b, &b_bytes);
    while (same < a_bytes && same < b_bytes && a_data[same] == b_data[same]) same++;
    if (a_bytes != b_bytes || same != a_bytes) {
        fail_msg(
            "%s (%zu bytes) and %s (%zu bytes) differ from byte %zu on: \"%.40s\" and \"%.40s\"", a,
            a_bytes, b, b_bytes, same, a_data + same, b_data + same);
    }
    free(a_data);
    free(b_data);
}

cJSON *e2e_metrics(const char *run) {
    char path[PATH_BYTES], *text = NULL;
    size_t bytes = 0;
    cJSON *lines = cJSON_CreateArray();
    assert_int_equal(path_join(path, run, "metrics.jsonl"), STATUS_OK);
    text = e2e_read(path, &bytes);
    for (char *line = text; *line != '\0';) {
        const char *end = NULL;
        cJSON *record = cJSON_ParseWithOpts(line, &end, 0);
        if (record == NULL || *end != '\n') fail_msg("%s: expected JSON: %.100s", path, line);
        cJSON_AddItemToArray(lines, record);
        line += end - line + 1;
    }
    free(text);
    return lines;
}

const cJSON *e2e_record(const cJSON *metrics, const char *kind, size_t i) {
    const cJSON *record = NULL;
    cJSON_ArrayForEach(record, metrics) {
        const char *found = cJSON_GetStringValue(
            cJSON_GetObjectItemCaseSensitive(record, "record"));
        assert_non_null(found);
        if (strcmp(found, kind) == 0 && i-- == 0) return record;
    }
    return NULL;
}

double e2e_number(const cJSON *record, const char *name) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(record, name);
    if (!cJSON_IsNumber(item)) fail_msg("expected a number under \"%s\"", name);
    return item->valuedouble;
}

void e2e_assert_steps(const char *run, int64_t steps) {
    cJSON *metrics = e2e_metrics(run);
    int64_t seen = 0;
    for (const cJSON *record; (record = e2e_record(metrics, "step", (size_t)seen)) != NULL;
         seen++) {
        const double step = e2e_number(record, "step");
        if (step != (double)(seen + 1))
            fail_msg("line %lld has step %g", (long long)seen + 1, step);
    }
    assert_int_equal(seen, steps);
    cJSON_Delete(metrics);
}

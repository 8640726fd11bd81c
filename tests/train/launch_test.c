/*
 * The launcher of one host's ranks, with shell scripts for ranks. Oracle: what a shell says of the
 * same processes: their output, line by line, 128 + n for signal n, and that after the call none of
 * them is left.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "train/launch.h"
#include "train/signals.h"

enum { TEXT = 1 << 18 };

struct result {
    int code;
    double seconds;
    char message[1024], out[TEXT], err[TEXT];
};

static int temporary(void) {
    const char *folder = getenv("TEST_TMPDIR");
    const int file = open(folder != NULL ? folder : "/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    assert_true(file >= 0);
    return file;
}

static void take_text(int file, char text[TEXT]) {
    const ssize_t bytes = pread(file, text, TEXT - 1, 0);
    assert_true(bytes >= 0);
    text[bytes] = '\0';
    close(file);
}

static struct launch shell(const char *script, int ranks, char **arguments) {
    arguments[0] = "sh";
    arguments[1] = "-c";
    arguments[2] = (char *)script;
    arguments[3] = NULL;
    return (struct launch){.ranks = ranks, .program = "/bin/sh", .arguments = arguments,
                           .grace_seconds = 0.5, .note = signals_note(true)};
}

static struct result *run(const char *script, int ranks) {
    static struct result result;
    char *arguments[4];
    struct launch launch = shell(script, ranks, arguments);
    launch.out = temporary();
    launch.err = temporary();
    const double begun = clock_seconds();
    result.code = (int)launch_processes(&launch);
    result.seconds = clock_seconds() - begun;
    snprintf(result.message, sizeof result.message, "%s", status_message());
    take_text(launch.out, result.out);
    take_text(launch.err, result.err);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* no child is left */
    assert_int_equal(errno, ECHILD);
    return &result;
}

static void has(const char *text, const char *words) {
    if (strstr(text, words) == NULL) fail_msg("no \"%s\" in: %s", words, text);
}

static void all_end_well(void **state) {
    (void)state;
    const struct result *r =
        run("echo \"$RANK of $WORLD_SIZE, $LOCAL_RANK of $LOCAL_WORLD_SIZE, $MASTER_ADDR\"; "
            "echo e$RANK >&2; test -n \"$DEEPWELL_RUN\" && test \"$MASTER_PORT\" -gt 0 && "
            /* a group of its own: a terminal's signals come through the launcher alone */
            "test \"$(cut -d' ' -f5 /proc/$$/stat)\" = $$", 3);
    assert_int_equal(r->code, 0);
    has(r->out, "0 of 3, 0 of 3, 127.0.0.1\n");
    has(r->out, "[1] 1 of 3, 1 of 3, 127.0.0.1\n");
    has(r->out, "[2] 2 of 3, 2 of 3, 127.0.0.1\n");
    has(r->err, "[2] e2\n");
    has(r->err, "e0\n");
    assert_null(strstr(r->err, "[0]"));
    assert_null(getenv("DEEPWELL_RUN"));
}

/* Lines that come in pieces stay whole; a last one without its newline gets one; one longer than
 * any buffer is cut, not lost. */
static void lines_stay_lines(void **state) {
    (void)state;
    const struct result *r = run("printf a$RANK; sleep 0.1; printf 'b\\nend'", 2);
    assert_int_equal(r->code, 0);
    has(r->out, "a0b\n");
    has(r->out, "[1] a1b\n");
    has(r->out, "[1] end\n");
    r = run("head -c 150000 /dev/zero | tr '\\0' x", 1);
    size_t letters = 0;
    for (const char *at = r->out; *at != '\0'; at++) letters += *at == 'x';
    assert_int_equal(letters, 150000);
}

static void the_first_failure_ends_all(void **state) {
    (void)state;
    const struct result *r = run("if [ $RANK = 1 ]; then exit 5; fi; sleep 60", 3);
    assert_int_equal(r->code, 5);
    has(r->message, "rank 1 of 3 ended with exit code 5");
    has(r->err, "rank 1 of 3 ended with exit code 5: ending the others");
    assert_true(r->seconds < 5.0);
    r = run("if [ $RANK = 2 ]; then kill -9 $$; fi; exec sleep 60", 3);
    assert_int_equal(r->code, 128 + SIGKILL);
    has(r->message, "rank 2 of 3 was ended by signal 9");
    assert_true(r->seconds < 5.0);
}

/* One that will not go is killed after the grace. */
static void the_deaf_are_killed(void **state) {
    (void)state;
    const struct result *r =
        run("if [ $RANK = 0 ]; then sleep 0.3; exit 3; fi; trap '' TERM; "
            "while :; do sleep 0.05; done", 2);
    assert_int_equal(r->code, 3);
    assert_true(r->seconds >= 0.7 && r->seconds < 5.0);
}

/* The rank that noticed another's death is not the one that is named, whoever is reaped first. */
static void a_witness_is_no_culprit(void **state) {
    (void)state;
    const struct result *r =
        run("if [ $RANK = 0 ]; then sleep 0.3; exit 10; fi; trap 'exit 7' TERM; "
            "while :; do sleep 0.05; done", 2);
    assert_int_equal(r->code, 7);
    has(r->message, "rank 1 of 2 ended with exit code 7");
    assert_int_equal(run("exit 10", 2)->code, 10);
    /* nor where a signal of its own ends the culprit after it was asked to end */
    r = run("if [ $RANK = 0 ]; then sleep 0.3; exit 10; fi; trap 'kill -SEGV $$' TERM; "
            "while :; do sleep 0.05; done",
            2);
    assert_int_equal(r->code, 128 + SIGSEGV);
    has(r->message, "rank 1 of 2 was ended by signal 11");
    r = run("if [ $RANK = 0 ]; then sleep 0.3; exit 10; fi; trap 'kill -KILL $$' TERM; "
            "while :; do sleep 0.05; done",
            2);
    assert_int_equal(r->code, 128 + SIGKILL);
}

static void what_does_not_start(void **state) {
    (void)state;
    char *arguments[4];
    struct launch launch = shell("", 2, arguments);
    launch.program = "/no/such/program";
    launch.out = temporary();
    launch.err = temporary();
    assert_int_equal(launch_processes(&launch), 127);
    launch.ranks = 0;
    assert_int_equal(launch_processes(&launch), STATUS_CONFIG);
    launch.ranks = LAUNCH_RANKS_MAX + 1;
    assert_int_equal(launch_processes(&launch), STATUS_CONFIG);
    close(launch.out);
    close(launch.err);
}

/* To the launcher's group, as a terminal does; with SIGKILL to the launcher alone; with `everyone`
 * also to each rank ("PID up"), as a batch system does. */
static void send(pid_t launcher, int number, bool everyone, const char *out) {
    kill(number == SIGKILL ? launcher : -launcher, number);
    for (const char *at = out; everyone && (at = strstr(at, " up\n")) != NULL; at++) {
        const char *digit = at;
        while (digit > out && digit[-1] >= '0' && digit[-1] <= '9') digit--;
        kill((pid_t)atol(digit), number);
    }
}

/* Starts the launcher in a process group of its own, waits for `ranks` lines that end in "up", then
 * sends the signal. `script` NULL: the ranks are this program (be_rank()). */
static int signalled(const char *script, int ranks, int number, int times, char *out) {
    static char *const own[] = {"launch_test", "rank", NULL};
    int pipe_ends[2];
    size_t used = 0;
    assert_int_equal(pipe(pipe_ends), 0);
    const pid_t pid = fork();
    if (pid == 0) {
        char *arguments[4];
        struct launch launch = shell(script == NULL ? "" : script, ranks, arguments);
        if (script == NULL) {
            launch.program = "/proc/self/exe";
            launch.arguments = own;
        }
        setpgid(0, 0);
        close(pipe_ends[0]);
        launch.out = launch.err = pipe_ends[1];
        _exit((int)launch_processes(&launch));
    }
    close(pipe_ends[1]);
    out[0] = '\0';
    for (bool sent = false;;) {
        int up = 0;
        for (const char *at = out; (at = strstr(at, "up\n")) != NULL; at++) up++;
        if (!sent && up == ranks) {
            sent = true;
            for (int i = 0; i < times; i++) {
                send(pid, number, script == NULL, out);
                if (i + 1 < times) usleep(200 * 1000);
            }
        }
        const ssize_t got = read(pipe_ends[0], out + used, TEXT - 1 - used);
        if (got <= 0) break;
        used += (size_t)got;
        out[used] = '\0';
    }
    close(pipe_ends[0]);
    int how = 0;
    assert_int_equal(waitpid(pid, &how, 0), pid);
    return WIFSIGNALED(how) ? 128 + WTERMSIG(how) : WEXITSTATUS(how);
}

/* Asked to leave, each rank hears it once, saves in its own time, and is not ended by another that
 * was quicker. */
static void signals_are_passed_on_once(void **state) {
    (void)state;
    static char out[TEXT];
    static const char script[] =
        "count=0; trap 'count=$((count+1)); echo heard $count' INT TERM; echo up; "
        "while [ $count = 0 ]; do sleep 0.05; done; sleep 0.$((RANK*6)); echo saved $count; exit 9";
    static const int numbers[] = {SIGINT, SIGTERM};
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(signalled(script, 3, numbers[i], 1, out), STATUS_INTERRUPTED);
        has(out, "saved 1\n");
        has(out, "[1] saved 1\n");
        has(out, "[2] saved 1\n");
        assert_null(strstr(out, "heard 2"));
    }
}

static void a_second_signal_too(void **state) {
    (void)state;
    static char out[TEXT];
    const int code = signalled("trap 'trap - TERM' TERM; echo up; while :; do sleep 0.05; done", 2,
                               SIGTERM, 2, out);
    assert_int_equal(code, 128 + SIGTERM);
}

/* A rank with the program's own handler, which takes a second to save. */
static int be_rank(void) {
    if (signals_install(true) != STATUS_OK) return 1;
    printf("%d up\n", (int)getpid());
    fflush(stdout);
    while (signals_received() == NULL) usleep(10 * 1000);
    for (int i = 0; i < 100; i++) usleep(10 * 1000);
    printf("saved\n");
    return STATUS_INTERRUPTED;
}

/* The launcher and all ranks get the signal, and the ranks the launcher's too: that asked once, and
 * all save; when it comes again they leave at once. */
static void a_signal_to_all_counts_once(void **state) {
    (void)state;
    static char out[TEXT];
    assert_int_equal(signalled(NULL, 2, SIGINT, 1, out), STATUS_INTERRUPTED);
    has(out, "\nsaved\n");
    has(out, "[1] saved\n");
    has(out, "deepwell: leaving after this step; again: at once, unsaved\n");
    const int twice = signalled(NULL, 2, SIGINT, 2, out);
    if (twice != 128 + SIGINT) fail_msg("ended with %d: %s", twice, out);
    assert_null(strstr(out, "\nsaved\n"));
    assert_null(strstr(out, "] saved\n"));
}

/* When the launcher is killed its ranks do not stay behind. */
static void ranks_end_with_the_launcher(void **state) {
    (void)state;
    static char out[TEXT];
    const double begun = clock_seconds();
    /* the read in signalled() ends only when every holder of the pipe has gone */
    const int code = signalled("echo up; exec sleep 60", 2, SIGKILL, 1, out);
    assert_int_equal(code, 128 + SIGKILL);
    assert_true(clock_seconds() - begun < 20.0);
}

/* The reader has gone: the ranks are asked to leave, as SIGPIPE asks a lone process. */
static void a_reader_that_goes(void **state) {
    (void)state;
    char *arguments[4];
    int ends[2];
    struct launch launch =
        shell("trap 'exit 9' TERM; sleep 0.3; while :; do echo line; sleep 0.05; done", 2,
              arguments);
    assert_int_equal(pipe(ends), 0);
    close(ends[0]);
    launch.out = ends[1];
    launch.err = temporary();
    assert_int_equal(launch_processes(&launch), STATUS_INTERRUPTED);
    close(launch.err);
    close(ends[1]);
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "rank") == 0) return be_rank();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_end_well),
        cmocka_unit_test(lines_stay_lines),
        cmocka_unit_test(the_first_failure_ends_all),
        cmocka_unit_test(the_deaf_are_killed),
        cmocka_unit_test(a_witness_is_no_culprit),
        cmocka_unit_test(what_does_not_start),
        cmocka_unit_test(signals_are_passed_on_once),
        cmocka_unit_test(a_second_signal_too),
        cmocka_unit_test(a_signal_to_all_counts_once),
        cmocka_unit_test(ranks_end_with_the_launcher),
        cmocka_unit_test(a_reader_that_goes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

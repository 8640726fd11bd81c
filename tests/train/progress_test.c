/*
 * The progress line. Oracle: lines written out by hand, and a terminal in a few lines of C that
 * applies carriage return, newline and "erase to the end of the line" to what a pseudo-terminal
 * received.
 */
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <pty.h>

#include <cmocka.h>

#include "train/progress.h"
#include "train/signals.h"

static const struct speed_limit bf16_peak = {.tflops = 989.5, .types = 1u << PEAK_BF16};

static struct step_record make_step(int64_t step, double ms) {
    return (struct step_record){
        .step = step,
        .loss = 2.34564,
        .learning_rate = 1e-3,
        .gradient_norm = 0.7123,
        .loss_scale = 65536,
        .tokens = 2048,
        .step_ms = ms,
        .tokens_per_s = 45678.4,
        .tflops = 506.62,
        .mfu = mfu_against(506.62, &bf16_peak),
    };
}

static void the_line_by_hand(void **state) {
    (void)state;
    char line[PROGRESS_LINE_BYTES];
    struct progress progress = progress_open(stdout, 2000, 10, false);
    struct step_record step = make_step(120, 400.0);
    assert_string_equal(progress_line(&progress, &step, line),
                        "step 120/2000  loss 2.3456  lr 1.00e-03  norm 0.712  45,678 tokens/s  "
                        "506.6 TFLOPS  mfu 51.2% of 989.5 (BF16 dense)");
    step.ranks = 2;
    step.comm_exposed_ms = 1.25;
    assert_string_equal(progress_line(&progress, &step, line),
                        "step 120/2000  loss 2.3456  lr 1.00e-03  norm 0.712  45,678 tokens/s  "
                        "exposed 1.2 ms  506.6 TFLOPS  mfu 51.2% of 989.5 (BF16 dense)");
    step.ranks = 1;
    step.tflops = 0.01234;
    step.mfu = mfu_against(step.tflops, &(struct speed_limit){.types = 1u << PEAK_FP32});
    step.skip = SKIP_NONFINITE;
    step.loss = (double)NAN;
    step.tokens_per_s = (double)INFINITY;
    progress.show_loss_scale = true;
    assert_string_equal(progress_line(&progress, &step, line),
                        "step 120/2000  loss nan  lr 1.00e-03  norm 0.712  skipped: not finite  "
                        "0 tokens/s  0.0123 TFLOPS  mfu n/a  scale 65536");
}

/* Runs steps 1..count through a pipe-like stream; the output, release with free(). */
static char *run_in_pipe(int64_t count, int64_t log_every) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    struct progress progress = progress_open(out, count, log_every, false);
    assert_false(progress.terminal);
    for (int64_t step = 1; step <= count; step++) {
        const struct step_record record = make_step(step, 100.0);
        progress_step(&progress, &record);
    }
    progress_message(&progress, "done %d", 7);
    progress_close(&progress);
    assert_int_equal(fclose(out), 0);
    return text;
}

static void a_pipe_gets_plain_lines_now_and_then(void **state) {
    (void)state;
    char *text = run_in_pipe(25, 10);
    static const char *const starts[] = {"step 1/25 ", "step 10/25 ", "step 20/25 ", "step 25/25 ",
                                         "done 7\n"};
    const char *line = text;
    for (size_t i = 0; i < sizeof starts / sizeof starts[0]; i++) {
        assert_memory_equal(line, starts[i], strlen(starts[i]));
        line = strchr(line, '\n') + 1;
    }
    assert_int_equal(*line, '\0');
    assert_null(strpbrk(text, "\r\x1b"));
    assert_non_null(strstr(text, "  0:02 left  loss")); /* 24 of 100 ms, behind step 1 */
    free(text);
}

/* Steps of 1 s, one of 1000 s among them: the estimate for the 10 that are left stays at 10 s. */
static void one_slow_step_does_not_move_the_estimate(void **state) {
    (void)state;
    char line[PROGRESS_LINE_BYTES];
    struct progress progress = progress_open(stdout, 210, 1000000, false);
    progress.terminal = false;
    FILE *null = fopen("/dev/null", "w");
    assert_non_null(null);
    progress.out = null;
    /* more steps than the window holds; the slow one lies in the middle of the window */
    for (int64_t step = 1; step <= 200; step++) {
        const struct step_record record = make_step(step, step <= 100 ? 5000.0
                                                          : step == 160 ? 1e6 : 1000.0);
        progress_step(&progress, &record);
    }
    const struct step_record last = make_step(200, 1000.0);
    assert_non_null(strstr(progress_line(&progress, &last, line), "  0:10 left"));
    assert_int_equal(fclose(null), 0);
}

/* All that the pseudo-terminal received so far. */
static size_t read_all(int terminal, char *bytes, size_t room) {
    size_t used = 0;
    assert_int_equal(fcntl(terminal, F_SETFL, O_NONBLOCK), 0);
    for (;;) {
        assert_true(used < room);
        const ssize_t got = read(terminal, bytes + used, room - used);
        if (got <= 0) return used;
        used += (size_t)got;
    }
}

/* What a terminal shows; writing past the last column is an error here. */
enum { COLUMNS = 60, LINES = 32 };
struct screen {
    char lines[LINES][COLUMNS + 1];
    int line, column;
};

static void screen_take(struct screen *screen, const char *bytes, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (bytes[i] == '\r') {
            screen->column = 0;
        } else if (bytes[i] == '\n') {
            screen->line++;
            assert_true(screen->line < LINES);
        } else if (bytes[i] == '\x1b') {
            assert_true(i + 2 < count && bytes[i + 1] == '[' && bytes[i + 2] == 'K');
            memset(&screen->lines[screen->line][screen->column], 0,
                   (size_t)(COLUMNS - screen->column));
            i += 2;
        } else {
            assert_true(screen->column < COLUMNS);
            screen->lines[screen->line][screen->column++] = bytes[i];
        }
    }
}

static void a_terminal_shows_one_line_and_messages_above(void **state) {
    (void)state;
    int terminal = -1, side = -1;
    struct winsize size = {.ws_row = 24, .ws_col = COLUMNS};
    static struct screen screen;
    char bytes[8192];
    assert_int_equal(openpty(&terminal, &side, NULL, NULL, &size), 0);
    FILE *out = fdopen(side, "w");
    assert_non_null(out);
    struct progress progress = progress_open(out, 1000, 10, false);
    assert_true(progress.terminal);
    for (int64_t step = 1; step <= 999; step++) {
        const struct step_record record = make_step(step, 100.0);
        progress_step(&progress, &record);
        if (step == 500) progress_message(&progress, "first\nsecond \x1b[2J\xC2\x9B\xFF%c", '!');
    }
    progress_close(&progress); /* as after an interruption: shows step 999 although not yet drawn */
    fflush(out);
    screen_take(&screen, bytes, read_all(terminal, bytes, sizeof bytes));
    assert_string_equal(screen.lines[0], "first");
    assert_string_equal(screen.lines[1], "second ?[2J?\xEF\xBF\xBD!");
    assert_string_equal(screen.lines[2], "step 999/1000  100 ms left  loss 2.3456  lr 1.00e-03");
    assert_int_equal(screen.line, 3);
    assert_string_equal(screen.lines[3], "");
    fclose(out);
    close(terminal);
}

/* Ctrl-C: the note takes the place of the line, which stands once, below it. */
static void a_signals_note_leaves_one_line(void **state) {
    (void)state;
    int terminal = -1, side = -1;
    struct winsize size = {.ws_row = 24, .ws_col = COLUMNS};
    static struct screen screen;
    char bytes[8192];
    const struct step_record record = make_step(1, 100.0);
    const int before = dup(STDERR_FILENO);
    assert_int_equal(openpty(&terminal, &side, NULL, NULL, &size), 0);
    assert_true(before >= 0 && dup2(side, STDERR_FILENO) >= 0);
    FILE *out = fdopen(side, "w");
    assert_non_null(out);
    assert_int_equal(signals_install(true), STATUS_OK);
    struct progress progress = progress_open(out, 1000, 10, false);
    progress_step(&progress, &record);
    assert_int_equal(raise(SIGINT), 0);
    progress_close(&progress);
    assert_true(dup2(before, STDERR_FILENO) >= 0);
    screen_take(&screen, bytes, read_all(terminal, bytes, sizeof bytes));
    assert_string_equal(screen.lines[0],
                        "deepwell: leaving after this step; again: at once, unsaved");
    assert_string_equal(screen.lines[1], "step 1/1000  1:40 left  loss 2.3456  lr 1.00e-03");
    assert_int_equal(screen.line, 2);
    fclose(out);
    close(before);
    close(terminal);
}

static void a_message_before_the_first_step_stands_alone(void **state) {
    (void)state;
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    struct progress progress = progress_open(out, 10, 1, false);
    progress.terminal = true;
    progress_message(&progress, "hello");
    progress_close(&progress);
    assert_int_equal(fclose(out), 0);
    assert_string_equal(text, "hello\n");
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_line_by_hand),
        cmocka_unit_test(a_pipe_gets_plain_lines_now_and_then),
        cmocka_unit_test(one_slow_step_does_not_move_the_estimate),
        cmocka_unit_test(a_terminal_shows_one_line_and_messages_above),
        cmocka_unit_test(a_message_before_the_first_step_stands_alone),
        cmocka_unit_test(a_signals_note_leaves_one_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

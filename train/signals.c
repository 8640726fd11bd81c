/* Signal handling behind train/signals.h. */
#include "train/signals.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "train/rank_environment.h"

static const struct {
    int number;
    const char *name;
} handled[] = {{SIGINT, "SIGINT"}, {SIGTERM, "SIGTERM"}, {SIGHUP, "SIGHUP"}, {SIGPIPE, "SIGPIPE"}};
enum { HANDLED = sizeof handled / sizeof handled[0] };

static volatile sig_atomic_t received, passed_on; /* passed_on: by the launcher */
static volatile sig_atomic_t silent, run_is_saved, on_terminal;
static pid_t launcher; /* that started this process as a rank; 0: none */

/* Whether this signal asks a second time. */
static bool is_second(const siginfo_t *info) {
    if (launcher == 0) return received != 0;
    if (info->si_code != SI_USER || info->si_pid != launcher) return false;
    const bool before = passed_on != 0;
    passed_on = 1;
    return before;
}

const char *signals_note(bool saves) {
    return saves ? "deepwell: leaving after this step; again: at once, unsaved\n"
                 : "deepwell: stopping; again: at once\n";
}

static void on_signal(int number, siginfo_t *info, void *context) {
    static const char erase_line[] = "\r\x1b[K"; /* the progress line, which is drawn anew below */
    const char *note = signals_note(run_is_saved);
    (void)context;
    if (number == SIGPIPE) {
        if (received == 0) received = number;
        return;
    }
    /* asked twice: now, as a shell would report it */
    if (is_second(info)) _exit(128 + number);
    if (received != 0) return;
    received = number;
    if (silent) return;
    if (on_terminal && write(STDERR_FILENO, erase_line, sizeof erase_line - 1) < 0) return;
    if (write(STDERR_FILENO, note, strlen(note)) < 0) return; /* nobody reads it: that changes nothing */
}

void signals_be_silent(void) { silent = 1; }

enum status signals_install(bool saves) {
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_RESTART | SA_SIGINFO};
    run_is_saved = saves;
    on_terminal = isatty(STDERR_FILENO);
    launcher = rank_environment_by_gpus() ? getppid() : 0;
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < HANDLED; i++) {
        if (sigaction(handled[i].number, &action, NULL) != 0) {
            return status_set(STATUS_INTERNAL, "cannot handle %s: %s", handled[i].name,
                              strerror(errno));
        }
    }
    return STATUS_OK;
}

const char *signals_received(void) {
    for (size_t i = 0; i < HANDLED; i++) {
        if (handled[i].number == received) return handled[i].name;
    }
    return NULL;
}

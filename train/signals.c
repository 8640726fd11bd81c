/* Signal handling behind train/signals.h. */
#include "train/signals.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

static const struct {
    int number;
    const char *name;
} handled[] = {{SIGINT, "SIGINT"}, {SIGTERM, "SIGTERM"}, {SIGHUP, "SIGHUP"}, {SIGPIPE, "SIGPIPE"}};
enum { HANDLED = sizeof handled / sizeof handled[0] };

static volatile sig_atomic_t received;

static void on_signal(int number) {
    static const char note[] = "\ndeepwell: leaving after this step; again: at once, unsaved\n";
    if (received == 0) {
        received = number;
        if (number != SIGPIPE && write(STDERR_FILENO, note, sizeof note - 1) < 0) {
            return; /* nobody reads it: that changes nothing */
        }
    } else if (number != SIGPIPE) { /* asked twice: now, as a shell would report it */
        _exit(128 + number);
    }
}

enum status signals_install(void) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
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

/* Signal handling behind train/signals.h. */
#include "train/signals.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t received;

static void on_signal(int number) {
    if (received != 0) _exit(128 + number); /* asked twice: now, as a shell would report it */
    received = number;
}

enum status signals_install(void) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGINT, &action, NULL) != 0 || sigaction(SIGTERM, &action, NULL) != 0) {
        return status_set(STATUS_INTERNAL, "cannot install signal handlers: %s", strerror(errno));
    }
    return STATUS_OK;
}

const char *signals_received(void) {
    if (received == 0) return NULL;
    return received == SIGINT ? "SIGINT" : "SIGTERM";
}

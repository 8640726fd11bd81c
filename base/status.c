/* The per-thread message behind base/status.h. */
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MESSAGE_BYTES = 2048 };

static _Thread_local char message[MESSAGE_BYTES];

enum status status_set(enum status code, const char *format, ...) {
    char fresh[MESSAGE_BYTES]; /* the arguments may point into the present message */
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(fresh, sizeof fresh, format, arguments);
    va_end(arguments);
    memcpy(message, fresh, sizeof message);
    return code;
}

enum status status_context(enum status code, const char *format, ...) {
    char fresh[MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    const int written = vsnprintf(fresh, sizeof fresh, format, arguments);
    va_end(arguments);
    if (written >= 0 && (size_t)written < sizeof fresh) {
        const size_t room = sizeof fresh - (size_t)written;
        /* A long message loses its end, not its start. */
        const int shown = room > 3 ? (int)room - 3 : 0;
        snprintf(fresh + written, room, ": %.*s", shown, message);
    }
    memcpy(message, fresh, sizeof message);
    return code;
}

const char *status_message(void) { return message; }

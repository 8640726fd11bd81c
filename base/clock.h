/* Monotonic wall-clock time. */
#ifndef DEEPWELL_BASE_CLOCK_H_
#define DEEPWELL_BASE_CLOCK_H_

#include <time.h>

static inline double clock_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

#endif

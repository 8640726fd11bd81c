/* Fuzz inputs as files in memory, for the entries whose parser takes a path. */
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* A driver that cannot hand its input over tests nothing: stop loudly. */
static void require(int holds, const char *what) {
    if (holds) return;
    perror(what);
    abort();
}

void fuzz_file_open(struct fuzz_file *file, const uint8_t *data, size_t size) {
    file->descriptor = memfd_create("fuzz_input", MFD_CLOEXEC);
    require(file->descriptor >= 0, "memfd_create");
    for (size_t done = 0; done < size;) {
        const ssize_t written = write(file->descriptor, data + done, size - done);
        require(written > 0, "write to the input in memory");
        done += (size_t)written;
    }
    snprintf(file->path, sizeof file->path, "/proc/self/fd/%d", file->descriptor);
}

void fuzz_file_close(struct fuzz_file *file) { close(file->descriptor); }

/*
 * Fuzz inputs as files in memory, for the entries whose parser takes a path. What such a parser
 * maps is a block of exactly the file's size here (the linker's --wrap puts these in the place of
 * base/file.h's): a page has room behind the file's last byte, where a sanitizer sees nothing.
 */
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/file.h"

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

enum status __real_file_map_open(const char *path, struct file_map *map);
void __real_file_map_close(struct file_map *map);
enum status __wrap_file_map_open(const char *path, struct file_map *map);
void __wrap_file_map_close(struct file_map *map);

enum status __wrap_file_map_open(const char *path, struct file_map *map) {
    struct file_map mapped;
    *map = (struct file_map){NULL, 0};
    TRY(__real_file_map_open(path, &mapped));
    if (mapped.bytes > 0) {
        unsigned char *exact = malloc(mapped.bytes);
        require(exact != NULL, "memory for a copy of the input");
        memcpy(exact, mapped.data, mapped.bytes);
        *map = (struct file_map){exact, mapped.bytes};
    }
    __real_file_map_close(&mapped);
    return STATUS_OK;
}

void __wrap_file_map_close(struct file_map *map) {
    free((void *)(uintptr_t)map->data);
    *map = (struct file_map){NULL, 0};
}

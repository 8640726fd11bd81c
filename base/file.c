/* File and folder helpers behind base/file.h. */
#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

enum status path_join(char out[PATH_BYTES], const char *folder, const char *name) {
    const size_t length = strlen(folder);
    const char *slash = length > 0 && folder[length - 1] == '/' ? "" : "/";
    const int written = snprintf(out, PATH_BYTES, "%s%s%s", folder, slash, name);
    if (written < 0 || written >= PATH_BYTES) {
        return status_set(STATUS_CONFIG, "the path %.100s.../%.100s is longer than %d bytes: use a "
                          "shorter folder name", folder, name, PATH_BYTES - 1);
    }
    return STATUS_OK;
}

static enum status path_too_long(const char *path) {
    return status_set(STATUS_CONFIG, "the path %.100s... is longer than %d bytes: use a shorter "
                      "one", path, PATH_BYTES - 1);
}

enum status path_copy(char out[PATH_BYTES], const char *path) {
    const size_t length = strlen(path);
    if (length >= PATH_BYTES) return path_too_long(path);
    memcpy(out, path, length + 1);
    return STATUS_OK;
}

enum status path_temporary(char out[PATH_BYTES], const char *path) {
    const int length = snprintf(out, PATH_BYTES, "%s.%ld.tmp", path, (long)getpid());
    return length < 0 || length >= PATH_BYTES ? path_too_long(path) : STATUS_OK;
}

bool path_is_file(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode);
}

bool path_is_folder(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

/* Creates one level; an existing folder is fine. */
static enum status folder_create_one(const char *path) {
    if (mkdir(path, 0777) == 0 || (errno == EEXIST && path_is_folder(path))) return STATUS_OK;
    if (errno == EEXIST) {
        return status_set(STATUS_IO,
                          "expected a folder or nothing at %s, found something else: "
                          "remove it or name another folder",
                          path);
    }
    return status_set(STATUS_IO, "cannot create the folder %s: %s", path, strerror(errno));
}

enum status folder_create(const char *path) {
    char part[PATH_BYTES];
    const size_t length = strlen(path);
    if (length == 0 || length >= sizeof part) {
        return status_set(STATUS_CONFIG, "expected a folder name of 1 to %d bytes, found %zu bytes",
                          PATH_BYTES - 1, length);
    }
    memcpy(part, path, length + 1);
    for (char *slash = part + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = '\0';
        TRY(folder_create_one(part));
        *slash = '/';
    }
    return folder_create_one(part);
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

enum status folder_list(const char *path, char ***names, size_t *count) {
    enum status status = STATUS_OK;
    char **list = NULL;
    size_t used = 0, capacity = 0;
    DIR *folder = opendir(path);
    if (folder == NULL) {
        return status_set(STATUS_IO, "cannot read the folder %s: %s", path, strerror(errno));
    }
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        if (used == capacity) {
            capacity = capacity == 0 ? 64 : capacity * 2;
            char **grown = realloc(list, capacity * sizeof *list);
            if (grown == NULL) goto out_of_memory;
            list = grown;
        }
        list[used] = strdup(entry->d_name);
        if (list[used] == NULL) goto out_of_memory;
        used++;
    }
    closedir(folder);
    if (used > 0) qsort(list, used, sizeof *list, compare_names);
    *names = list;
    *count = used;
    return STATUS_OK;

out_of_memory:
    status = status_set(STATUS_MEMORY, "out of memory listing the folder %s", path);
    closedir(folder);
    names_free(list, used);
    return status;
}

void names_free(char **names, size_t count) {
    for (size_t i = 0; i < count; i++) free(names[i]);
    free(names);
}

enum status folder_remove(const char *path) {
    struct stat info;
    if (lstat(path, &info) != 0) {
        if (errno == ENOENT) return STATUS_OK;
        return status_set(STATUS_IO, "cannot look at %s: %s", path, strerror(errno));
    }
    if (S_ISDIR(info.st_mode)) {
        char **names = NULL;
        size_t count = 0;
        enum status status = folder_list(path, &names, &count);
        for (size_t i = 0; i < count && status == STATUS_OK; i++) {
            char child[PATH_BYTES];
            status = path_join(child, path, names[i]);
            if (status == STATUS_OK) status = folder_remove(child);
        }
        names_free(names, count);
        TRY(status);
        if (rmdir(path) == 0) return STATUS_OK;
    } else if (unlink(path) == 0) {
        return STATUS_OK;
    }
    return status_set(STATUS_IO, "cannot remove %s: %s", path, strerror(errno));
}

/* Opens a regular file for reading and tells its size. */
static enum status open_regular(const char *path, int *out, size_t *bytes) {
    struct stat info;
    const int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not block */
    if (file < 0) return status_set(STATUS_IO, "cannot open %s: %s", path, strerror(errno));
    if (fstat(file, &info) != 0 || !S_ISREG(info.st_mode)) {
        close(file);
        return status_set(STATUS_IO, "expected a file, found something else: %s", path);
    }
    *out = file;
    *bytes = (size_t)info.st_size;
    return STATUS_OK;
}

enum status file_read(const char *path, size_t limit_bytes, char **text, size_t *bytes) {
    int file = -1;
    size_t size = 0, done = 0;
    TRY(open_regular(path, &file, &size));
    if (size > limit_bytes) {
        close(file);
        return status_set(STATUS_IO, "%s has %zu bytes, expected at most %zu", path, size,
                          limit_bytes);
    }
    char *buffer = malloc(size + 1);
    if (buffer == NULL) {
        close(file);
        return status_set(STATUS_MEMORY, "out of memory reading %s (%zu bytes)", path, size);
    }
    while (done < size) {
        const ssize_t got = read(file, buffer + done, size - done);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            const char *reason = got < 0 ? strerror(errno) : "it became shorter while being read";
            enum status status = status_set(STATUS_IO, "cannot read %s: %s", path, reason);
            free(buffer);
            close(file);
            return status;
        }
        done += (size_t)got;
    }
    close(file);
    buffer[size] = '\0';
    *text = buffer;
    *bytes = size;
    return STATUS_OK;
}

enum status file_map_open(const char *path, struct file_map *map) {
    int file = -1;
    size_t size = 0;
    *map = (struct file_map){NULL, 0};
    TRY(open_regular(path, &file, &size));
    if (size > 0) {
        void *data = mmap(NULL, size, PROT_READ, MAP_PRIVATE, file, 0);
        if (data == MAP_FAILED) {
            enum status status = status_set(STATUS_IO, "cannot map %s (%zu bytes): %s", path, size,
                                            strerror(errno));
            close(file);
            return status;
        }
        *map = (struct file_map){data, size};
    }
    close(file);
    return STATUS_OK;
}

void file_map_close(struct file_map *map) {
    if (map->data != NULL) munmap((void *)(uintptr_t)map->data, map->bytes);
    *map = (struct file_map){NULL, 0};
}

enum status folder_sync(const char *path) {
    const int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0 || fsync(folder) != 0) {
        enum status status = status_set(STATUS_IO, "cannot make the folder %s durable: %s", path,
                                        strerror(errno));
        if (folder >= 0) close(folder);
        return status;
    }
    close(folder);
    return STATUS_OK;
}

static enum status write_all(int file, const char *path, const void *data, size_t bytes) {
    const char *from = data;
    while (bytes > 0) {
        const ssize_t written = write(file, from, bytes);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) {
            return status_set(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
        }
        from += written;
        bytes -= (size_t)written;
    }
    if (fsync(file) != 0) {
        return status_set(STATUS_IO, "cannot make %s durable: %s", path, strerror(errno));
    }
    return STATUS_OK;
}

/* The folder that the file at `path` lies in; the path is shorter than PATH_BYTES. */
static void folder_of(char folder[PATH_BYTES], const char *path) {
    const char *slash = strrchr(path, '/');
    if (slash == NULL) {
        snprintf(folder, PATH_BYTES, ".");
    } else {
        snprintf(folder, PATH_BYTES, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    }
}

enum status file_check_output(const char *path) {
    char folder[PATH_BYTES];
    struct stat info;
    if (path[0] == '\0') return status_set(STATUS_CONFIG, "expected a file's name, found none");
    if (strlen(path) >= PATH_BYTES) return path_too_long(path);
    if (lstat(path, &info) == 0) {
        return status_set(STATUS_CONFIG, "%s exists: name a new file, nothing is overwritten",
                          path);
    }
    folder_of(folder, path);
    if (access(folder, W_OK | X_OK) == 0 && path_is_folder(folder)) return STATUS_OK;
    return status_set(STATUS_IO, "cannot write %s: its folder is not there or not writable", path);
}

enum status file_write_durable(const char *path, const void *data, size_t bytes) {
    char temporary[PATH_BYTES], folder[PATH_BYTES];
    TRY(path_temporary(temporary, path));
    folder_of(folder, path);
    const int file = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file < 0) {
        return status_set(STATUS_IO, "cannot create %s: %s", temporary, strerror(errno));
    }
    enum status status = write_all(file, temporary, data, bytes);
    if (close(file) != 0 && status == STATUS_OK) {
        status = status_set(STATUS_IO, "cannot close %s: %s", temporary, strerror(errno));
    }
    if (status == STATUS_OK && rename(temporary, path) != 0) {
        status = status_set(STATUS_IO, "cannot rename %s to %s: %s", temporary, path,
                            strerror(errno));
    }
    if (status != STATUS_OK) {
        unlink(temporary);
        return status;
    }
    return folder_sync(folder);
}

enum status file_lock(const char *path, double seconds, int *lock) {
    const struct timespec pause = {.tv_nsec = 10 * 1000 * 1000};
    const double until = clock_seconds() + seconds;
    *lock = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666);
    if (*lock < 0) return status_set(STATUS_IO, "cannot open %s: %s", path, strerror(errno));
    while (flock(*lock, LOCK_EX | LOCK_NB) != 0) {
        if (errno == EINTR || (errno == EWOULDBLOCK && clock_seconds() < until)) {
            nanosleep(&pause, NULL);
            continue;
        }
        enum status status = status_set(STATUS_IO, "cannot lock %s: %s", path, strerror(errno));
        file_unlock(*lock);
        *lock = -1;
        return status;
    }
    return STATUS_OK;
}

void file_unlock(int lock) { close(lock); }

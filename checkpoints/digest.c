/* Hashing files as they are written and read: behind checkpoints/digest.h. */
#include "checkpoints/digest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <xxhash.h>

#include "base/file.h"

enum { BUFFER_BYTES = 1 << 20 };

struct digest_writer {
    char path[PATH_BYTES];
    int file;
    XXH3_state_t *hash;
    char *buffer; /* BUFFER_BYTES */
    size_t used;
    size_t bytes; /* written so far, the buffer not counted */
};

static void hash_text(const XXH3_state_t *hash, char text[XXH3_TEXT_BYTES]) {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(hash));
    for (size_t i = 0; i < sizeof canonical.digest; i++) {
        snprintf(text + 2 * i, 3, "%02x", canonical.digest[i]);
    }
}

static enum status no_memory(const char *path) {
    return status_set(STATUS_MEMORY, "out of memory for a buffer of %d bytes for %s", BUFFER_BYTES,
                      path);
}

static enum status hash_open_file(int file, const char *path, XXH3_state_t *hash, char *buffer,
                                  struct file_digest *digest) {
    digest->bytes = 0;
    XXH3_128bits_reset(hash);
    for (;;) {
        const ssize_t got = read(file, buffer, BUFFER_BYTES);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return status_set(STATUS_IO, "cannot read %s: %s", path, strerror(errno));
        if (got == 0) break;
        XXH3_128bits_update(hash, buffer, (size_t)got);
        digest->bytes += (size_t)got;
    }
    hash_text(hash, digest->xxh3_128);
    return STATUS_OK;
}

enum status digest_file(const char *path, struct file_digest *digest) {
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return status_set(STATUS_IO, "cannot open %s: %s", path, strerror(errno));
    XXH3_state_t *hash = XXH3_createState();
    char *buffer = malloc(BUFFER_BYTES);
    enum status status;
    if (hash == NULL || buffer == NULL) {
        status = no_memory(path);
    } else {
        status = hash_open_file(file, path, hash, buffer, digest);
    }
    free(buffer);
    XXH3_freeState(hash);
    close(file);
    return status;
}

enum status digest_file_64(const char *path, uint64_t *hash) {
    struct file_digest digest;
    TRY(digest_file(path, &digest));
    digest.xxh3_128[16] = '\0';
    *hash = strtoull(digest.xxh3_128, NULL, 16);
    return STATUS_OK;
}

static void writer_free(struct digest_writer *writer) {
    free(writer->buffer);
    XXH3_freeState(writer->hash);
    free(writer);
}

enum status digest_writer_open(struct digest_writer **out, const char *path) {
    enum status status = STATUS_OK;
    struct digest_writer *writer = calloc(1, sizeof *writer);
    if (writer == NULL) return no_memory(path);
    TRY_GOTO(path_copy(writer->path, path), fail);
    writer->hash = XXH3_createState();
    writer->buffer = malloc(BUFFER_BYTES);
    if (writer->hash == NULL || writer->buffer == NULL) TRY_GOTO(no_memory(path), fail);
    XXH3_128bits_reset(writer->hash);
    writer->file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (writer->file < 0) {
        TRY_GOTO(status_set(STATUS_IO, "cannot create %s: %s", path, strerror(errno)), fail);
    }
    *out = writer;
    return STATUS_OK;

fail:
    writer_free(writer);
    return status;
}

static enum status write_all(struct digest_writer *writer, const char *data, size_t bytes) {
    XXH3_128bits_update(writer->hash, data, bytes);
    while (bytes > 0) {
        const ssize_t written = write(writer->file, data, bytes);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) {
            return status_set(STATUS_IO, "cannot write %s after %zu bytes: %s", writer->path,
                              writer->bytes, strerror(errno));
        }
        data += written;
        bytes -= (size_t)written;
        writer->bytes += (size_t)written;
    }
    return STATUS_OK;
}

static enum status flush(struct digest_writer *writer) {
    const size_t used = writer->used;
    writer->used = 0;
    return write_all(writer, writer->buffer, used);
}

enum status digest_writer_append(struct digest_writer *writer, const void *data, size_t bytes) {
    if (bytes > BUFFER_BYTES - writer->used) TRY(flush(writer));
    if (bytes > BUFFER_BYTES) return write_all(writer, data, bytes);
    memcpy(writer->buffer + writer->used, data, bytes);
    writer->used += bytes;
    return STATUS_OK;
}

enum status digest_writer_finish(struct digest_writer *writer, struct file_digest *digest) {
    enum status status = flush(writer);
    if (status == STATUS_OK && fsync(writer->file) != 0) {
        status = status_set(STATUS_IO, "cannot make %s durable: %s", writer->path, strerror(errno));
    }
    /* Out of the cache, so that whoever verifies the file reads what the device holds. Only
     * advice. */
    (void)posix_fadvise(writer->file, 0, 0, POSIX_FADV_DONTNEED);
    if (close(writer->file) != 0 && status == STATUS_OK) {
        status = status_set(STATUS_IO, "cannot close %s: %s", writer->path, strerror(errno));
    }
    if (status != STATUS_OK) {
        unlink(writer->path);
    } else {
        digest->bytes = writer->bytes;
        hash_text(writer->hash, digest->xxh3_128);
    }
    writer_free(writer);
    return status;
}

void digest_writer_abandon(struct digest_writer *writer) {
    if (writer == NULL) return;
    close(writer->file);
    unlink(writer->path);
    writer_free(writer);
}

/*
 * Writing a token shard so that a name always stands for a whole file: the tokens go to
 * PATH.PID.tmp, then the header, fsync, rename, fsync of the folder. A crash or a full disk at any
 * point leaves PATH as it was, that is, not there.
 */
#include <errno.h>
#include <libgen.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checked.h"
#include "data/shard.h"
#include "data/shard_format.h"

enum { BLOCK_TOKENS = 8192 }; /* converted at a time */

struct shard_writer {
    char path[PATH_BYTES], temporary[PATH_BYTES];
    FILE *file; /* its buffer joins small appends */
    const struct shard_format *format;
    size_t tokens;
    bool failed;
};

static enum status refuse_existing(const char *path) {
    struct stat info;
    if (lstat(path, &info) != 0) return STATUS_OK; /* any other trouble comes up at creation */
    return status_set(STATUS_IO, "expected %s not to exist, found it there: remove it or choose "
                      "another name", path);
}

/* Records why the file system refused. */
static enum status fail(struct shard_writer *writer, const char *what) {
    writer->failed = true;
    return status_set(STATUS_IO, "cannot %s %s (%zu tokens): %s; nothing was left behind", what,
                      writer->path, writer->tokens, strerror(errno));
}

enum status shard_writer_open(struct shard_writer **out, const char *path, size_t token_bytes) {
    TRY(refuse_existing(path));
    struct shard_writer *writer = calloc(1, sizeof *writer);
    if (writer == NULL) return status_set(STATUS_MEMORY, "out of memory to write %s", path);
    writer->format = token_bytes == 2 ? &shard_formats[0] : &shard_formats[1];
    enum status status = path_copy(writer->path, path);
    if (status == STATUS_OK) status = path_temporary(writer->temporary, path);
    if (status == STATUS_OK && (writer->file = fopen(writer->temporary, "wxe")) == NULL) {
        status = status_set(STATUS_IO, "cannot create %s: %s", path, strerror(errno));
    }
    if (status != STATUS_OK) {
        free(writer);
        return status;
    }
    if (fseeko(writer->file, SHARD_HEADER_BYTES, SEEK_SET) != 0) {
        status = fail(writer, "write");
        shard_writer_abandon(writer);
        return status;
    }
    *out = writer;
    return STATUS_OK;
}

/* Converts and writes one block. */
static enum status append_block(struct shard_writer *writer, const int32_t *tokens, size_t count) {
    uint16_t narrow[BLOCK_TOKENS];
    const int32_t largest = writer->format->token_bytes == 2 ? UINT16_MAX : INT32_MAX;
    for (size_t i = 0; i < count; i++) {
        if (tokens[i] < 0 || tokens[i] > largest) {
            writer->failed = true;
            return status_set(STATUS_DATA, "%s: expected %s tokens, 0 to %d, found %d at position "
                              "%zu: choose wider tokens", writer->path, writer->format->dtype,
                              largest, tokens[i], writer->tokens + i);
        }
        narrow[i] = (uint16_t)tokens[i];
    }
    const void *from = writer->format->token_bytes == 2 ? (const void *)narrow : tokens;
    if (fwrite(from, writer->format->token_bytes, count, writer->file) != count) {
        return fail(writer, "write");
    }
    writer->tokens += count;
    return STATUS_OK;
}

enum status shard_writer_append(struct shard_writer *writer, const int32_t *tokens, size_t count) {
    if (count > SHARD_TOKENS_MAX - writer->tokens) {
        writer->failed = true;
        return status_set(STATUS_DATA, "%s: expected at most %d tokens in one shard, found %zu: "
                          "prepare the text in several parts, one folder each, and train on all "
                          "of them with a pattern such as 'parts/*/train.bin'", writer->path,
                          SHARD_TOKENS_MAX, writer->tokens + count);
    }
    while (count > 0) {
        const size_t block = size_min(count, BLOCK_TOKENS);
        TRY(append_block(writer, tokens, block));
        tokens += block;
        count -= block;
    }
    return STATUS_OK;
}

/* Header, fsync, close, rename. The file is closed in any case. */
static enum status complete(struct shard_writer *writer) {
    int32_t header[SHARD_HEADER_BYTES / sizeof(int32_t)] = {0};
    header[SHARD_MAGIC] = writer->format->magic;
    header[SHARD_VERSION] = writer->format->version;
    header[SHARD_COUNT] = (int32_t)writer->tokens;
    if (fseeko(writer->file, 0, SEEK_SET) != 0 ||
        fwrite(header, sizeof header, 1, writer->file) != 1 || fflush(writer->file) != 0 ||
        fsync(fileno(writer->file)) != 0) {
        return fail(writer, "write");
    }
    FILE *file = writer->file;
    writer->file = NULL;
    if (fclose(file) != 0) return fail(writer, "close");
    TRY(refuse_existing(writer->path));
    if (rename(writer->temporary, writer->path) != 0) return fail(writer, "name");
    writer->temporary[0] = '\0'; /* nothing to remove any more */
    return folder_sync(dirname(writer->path));
}

enum status shard_writer_finish(struct shard_writer *writer) {
    const enum status status =
        writer->failed ? status_set(STATUS_DATA, "%s is not finished: an append to it failed",
                                    writer->path)
                       : complete(writer);
    shard_writer_abandon(writer);
    return status;
}

void shard_writer_abandon(struct shard_writer *writer) {
    if (writer == NULL) return;
    if (writer->file != NULL) fclose(writer->file);
    if (writer->temporary[0] != '\0') unlink(writer->temporary);
    free(writer);
}

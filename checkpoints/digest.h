/*
 * Files and their checksums: a file that is hashed while it is written, and the same of a file that
 * is read. XXH3-128 finds damage by disks, networks and people; it is no defence against forgery.
 * Used by everything in this room that writes a file of a checkpoint, by manifest.c to verify one,
 * and by train/ to compare files over ranks.
 */
#ifndef DEEPWELL_CHECKPOINTS_DIGEST_H_
#define DEEPWELL_CHECKPOINTS_DIGEST_H_

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { XXH3_TEXT_BYTES = 33 }; /* 128 bits as lower-case hex digits and a NUL */

struct file_digest {
    size_t bytes;
    char xxh3_128[XXH3_TEXT_BYTES]; /* canonical, that is as xxhsum prints it */
};

/* Reads the whole file through a bounded buffer. STATUS_IO with the path and the reason. */
enum status digest_file(const char *path, struct file_digest *digest);

/* The first half of it as a number, by which ranks compare what each of them read. */
enum status digest_file_64(const char *path, uint64_t *hash);

/* A new file, written from the start to the end through a bounded buffer. An existing file is
 * refused (STATUS_IO). */
struct digest_writer;
enum status digest_writer_open(struct digest_writer **writer, const char *path);
enum status digest_writer_append(struct digest_writer *writer, const void *data, size_t bytes);

/* Makes the file durable and closes it; *digest tells what was written. Always releases the writer;
 * after a failure the file is gone. */
enum status digest_writer_finish(struct digest_writer *writer, struct file_digest *digest);

/* Closes and removes the unfinished file. NULL is fine. */
void digest_writer_abandon(struct digest_writer *writer);

#endif

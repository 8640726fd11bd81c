/*
 * Token shards: 1024-byte header of 256 little-endian int32, then the tokens.
 *   header[0] magic, header[1] version, header[2] number of tokens, rest 0
 *   20240520, 1: uint16 tokens        20240801, 7: uint32 tokens
 * (the formats of llm.c and modded-nanogpt, so published shards are read as they are;
 * docs/formats.md). A shard is memory-mapped and hostile: length, magic, version, and the largest
 * token are checked.
 */
#ifndef DEEPWELL_DATA_SHARD_H_
#define DEEPWELL_DATA_SHARD_H_

#include <stddef.h>
#include <stdint.h>

#include "base/file.h"
#include "base/status.h"

enum {
    SHARD_HEADER_BYTES = 1024,
    SHARD_TOKENS_MAX = INT32_MAX, /* the count in the header is an int32 */
};

struct shard {
    char path[PATH_BYTES];
    struct file_map map;
    size_t tokens;
    size_t token_bytes; /* 2 or 4 */
};

/* Maps and checks the file; a token >= vocabulary (at most 2^31) is an error that names its
 * position (vocabulary 0: the tokens are not looked at). The rest of the header is not looked at.
 * STATUS_DATA (or STATUS_IO) with expected and found. */
enum status shard_open(struct shard *shard, const char *path, size_t vocabulary);
void shard_close(struct shard *shard);

/* tokens[first .. first + count) as int32; the range must lie inside. */
void shard_read(const struct shard *shard, size_t first, size_t count, int32_t *out);

/* The largest token of the shard, 0 if it has none. Reads the whole file. */
uint32_t shard_largest_token(const struct shard *shard);

/* A shard being written: tokens are appended through a buffer, the header comes last, and the file
 * gets its name only when complete and durable. An existing file is refused. A process that is
 * killed leaves PATH.PID.tmp behind, which may be removed. */
struct shard_writer;
enum status shard_writer_open(struct shard_writer **writer, const char *path, size_t token_bytes);
/* STATUS_DATA if a token does not fit token_bytes or the shard would pass SHARD_TOKENS_MAX. */
enum status shard_writer_append(struct shard_writer *writer, const int32_t *tokens, size_t count);
/* Releases the writer, also on failure; a shard whose append failed is not finished. */
enum status shard_writer_finish(struct shard_writer *writer);
/* Releases the writer and removes the temporary file. NULL is fine. */
void shard_writer_abandon(struct shard_writer *writer);

#endif

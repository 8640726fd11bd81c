/* The numbers of the shard header: what shard.c checks and shard_writer.c writes. */
#ifndef DEEPWELL_DATA_SHARD_FORMAT_H_
#define DEEPWELL_DATA_SHARD_FORMAT_H_

#include <stddef.h>
#include <stdint.h>

/* Places in the header. */
enum { SHARD_MAGIC = 0, SHARD_VERSION = 1, SHARD_COUNT = 2 };

enum { SHARD_FORMATS = 2 };

struct shard_format {
    int32_t magic, version;
    size_t token_bytes;
    const char *dtype;
};

static const struct shard_format shard_formats[SHARD_FORMATS] = {
    {20240520, 1, 2, "uint16"},
    {20240801, 7, 4, "uint32"},
};

#endif

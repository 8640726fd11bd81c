/*
 * Token shards: the checks of a file that may be anything, and reading from its mapping.
 *
 * A mapped file that is made shorter by someone else while it is in use raises SIGBUS on the next
 * read of the lost part, and that ends the run. Length and content are therefore checked once, at
 * open; a shard is never changed in place by deepwell (a writer's file gets its name when it is
 * complete, and replacing it leaves the old mapping whole).
 */
#include "data/shard.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "base/checked.h"
#include "data/shard_format.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "shards are read without swapping bytes");

enum {
    SHOWN_BYTES = 16,                  /* of a file that is no shard */
    SHOWN_TEXT_BYTES = 4 * SHOWN_BYTES + 1,
    BLOCK_TOKENS = 64,                 /* of the search for the largest token */
};

/* The first bytes of a file, readable: "First Citizen:\x0A". */
static const char *quote_start(const struct file_map *map, char text[SHOWN_TEXT_BYTES]) {
    char *out = text;
    for (size_t i = 0; i < size_min(map->bytes, SHOWN_BYTES); i++) {
        const unsigned char byte = map->data[i];
        const char *format = byte >= 0x20 && byte < 0x7F && byte != '\\' ? "%c" : "\\x%02X";
        out += snprintf(out, 5, format, byte);
    }
    *out = '\0';
    return text;
}

static bool looks_like_text(const struct file_map *map) {
    for (size_t i = 0; i < size_min(map->bytes, SHOWN_BYTES); i++) {
        const unsigned char byte = map->data[i];
        if (byte < 0x20 && !isspace(byte)) return false;
    }
    return map->bytes > 0;
}

/* What the file may be instead of a shard, and so what to do. */
static const char *advice(const struct file_map *map) {
    uint64_t json_bytes = 0; /* a safetensors file begins with the length of its JSON header */
    if (map->bytes > sizeof json_bytes) memcpy(&json_bytes, map->data, sizeof json_bytes);
    if (json_bytes > 0 && json_bytes < map->bytes && map->data[8] == '{') {
        return "this looks like a safetensors file, which holds weights and not tokens";
    }
    if (looks_like_text(map)) {
        return "this looks like text: `deepwell data prepare` makes shards of it";
    }
    return "make shards with `deepwell data prepare`";
}

static enum status refuse_stranger(const struct shard *shard) {
    char start[SHOWN_TEXT_BYTES];
    return status_set(STATUS_DATA, "%s: expected a token shard (magic number %d or %d, a header of "
                      "%d bytes, tokens), found %zu bytes that begin with \"%s\"; %s", shard->path,
                      shard_formats[0].magic, shard_formats[1].magic, SHARD_HEADER_BYTES,
                      shard->map.bytes, quote_start(&shard->map, start), advice(&shard->map));
}

/* The format that the magic number stands for; NULL for none. */
static const struct shard_format *find_format(uint32_t magic) {
    for (size_t i = 0; i < SHARD_FORMATS; i++) {
        if (magic == (uint32_t)shard_formats[i].magic) return &shard_formats[i];
    }
    return NULL;
}

/* Checks all of the header that does not depend on the tokens; fills tokens and token_bytes. */
static enum status check_header(struct shard *shard) {
    const size_t bytes = shard->map.bytes;
    int32_t header[SHARD_HEADER_BYTES / sizeof(int32_t)] = {0};
    if (bytes > 0) memcpy(header, shard->map.data, size_min(bytes, sizeof header));
    const uint32_t magic = (uint32_t)header[SHARD_MAGIC];
    if (find_format(__builtin_bswap32(magic)) != NULL) {
        return status_set(STATUS_DATA, "%s: expected a little-endian shard, found the magic number "
                          "%u with its bytes reversed (big-endian): write the shard again with "
                          "little-endian numbers", shard->path, __builtin_bswap32(magic));
    }
    const struct shard_format *format = find_format(magic);
    if (format == NULL) return refuse_stranger(shard);
    if (bytes < sizeof header) {
        return status_set(STATUS_DATA, "%s: expected a header of %d bytes, found a file of %zu "
                          "bytes: it is cut off, copy or prepare it again", shard->path,
                          SHARD_HEADER_BYTES, bytes);
    }
    if (header[SHARD_VERSION] != format->version) {
        return status_set(STATUS_DATA, "%s: expected version %d with the magic number %d (%s "
                          "tokens), found version %d: prepare the data again", shard->path,
                          format->version, format->magic, format->dtype, header[SHARD_VERSION]);
    }
    const size_t body_bytes = bytes - sizeof header;
    if (header[SHARD_COUNT] < 0) {
        return status_set(STATUS_DATA, "%s: expected a number of tokens in the header, found %d "
                          "(the file has room for %zu %s tokens): prepare the data again",
                          shard->path, header[SHARD_COUNT], body_bytes / format->token_bytes,
                          format->dtype);
    }
    const size_t tokens = (size_t)header[SHARD_COUNT];
    if (body_bytes % format->token_bytes != 0 || body_bytes / format->token_bytes != tokens) {
        return status_set(STATUS_DATA, "%s: the header speaks of %zu %s tokens (a file of %zu "
                          "bytes), the file of %zu bytes holds %zu: it is cut off or was written "
                          "by another program, copy or prepare it again", shard->path, tokens,
                          format->dtype, sizeof header + tokens * format->token_bytes, bytes,
                          body_bytes / format->token_bytes);
    }
    shard->tokens = tokens;
    shard->token_bytes = format->token_bytes;
    return STATUS_OK;
}

/* The mapping starts a page and the header is 1024 bytes long, so both views are aligned. */
static const uint16_t *tokens_16(const struct shard *shard) {
    return (const uint16_t *)(const void *)(shard->map.data + SHARD_HEADER_BYTES);
}

static const uint32_t *tokens_32(const struct shard *shard) {
    return (const uint32_t *)(const void *)(shard->map.data + SHARD_HEADER_BYTES);
}

static uint32_t token_at(const struct shard *shard, size_t i) {
    return shard->token_bytes == 2 ? tokens_16(shard)[i] : tokens_32(shard)[i];
}

/* Blocks of a fixed size with a maximum for each place in the block: at -O2 compilers turn such a
 * loop into vector instructions. Both functions return the largest of whole blocks only. */
static uint32_t largest_16(const uint16_t *tokens, size_t blocks) {
    uint16_t lane[BLOCK_TOKENS] = {0}, largest = 0;
    for (size_t block = 0; block < blocks; block++, tokens += BLOCK_TOKENS) {
        for (size_t i = 0; i < BLOCK_TOKENS; i++) {
            lane[i] = tokens[i] > lane[i] ? tokens[i] : lane[i];
        }
    }
    for (size_t i = 0; i < BLOCK_TOKENS; i++) largest = lane[i] > largest ? lane[i] : largest;
    return largest;
}

static uint32_t largest_32(const uint32_t *tokens, size_t blocks) {
    uint32_t lane[BLOCK_TOKENS] = {0}, largest = 0;
    for (size_t block = 0; block < blocks; block++, tokens += BLOCK_TOKENS) {
        for (size_t i = 0; i < BLOCK_TOKENS; i++) {
            lane[i] = tokens[i] > lane[i] ? tokens[i] : lane[i];
        }
    }
    for (size_t i = 0; i < BLOCK_TOKENS; i++) largest = lane[i] > largest ? lane[i] : largest;
    return largest;
}

uint32_t shard_largest_token(const struct shard *shard) {
    const size_t blocks = shard->tokens / BLOCK_TOKENS;
    uint32_t largest = shard->token_bytes == 2 ? largest_16(tokens_16(shard), blocks)
                                               : largest_32(tokens_32(shard), blocks);
    for (size_t i = blocks * BLOCK_TOKENS; i < shard->tokens; i++) {
        const uint32_t token = token_at(shard, i);
        largest = token > largest ? token : largest;
    }
    return largest;
}

/* One fast pass finds out whether all is well; only a bad shard is searched for the place. */
static enum status check_tokens(const struct shard *shard, size_t vocabulary) {
    const uint32_t largest = shard_largest_token(shard);
    if (shard->tokens == 0 || largest < vocabulary) return STATUS_OK;
    size_t place = 0;
    while (token_at(shard, place) < vocabulary) place++;
    return status_set(STATUS_DATA, "%s: expected tokens below the vocabulary of %zu, found token "
                      "%u at position %zu (the largest is %u): prepare the data with the model's "
                      "tokenizer, or set model.vocabulary to %zu or more", shard->path, vocabulary,
                      token_at(shard, place), place, largest, (size_t)largest + 1);
}

enum status shard_open(struct shard *shard, const char *path, size_t vocabulary) {
    enum status status = STATUS_OK;
    *shard = (struct shard){.tokens = 0};
    TRY(path_copy(shard->path, path));
    TRY(file_map_open(path, &shard->map));
    TRY_GOTO(check_header(shard), fail);
    if (vocabulary > 0) TRY_GOTO(check_tokens(shard, vocabulary), fail);
    return STATUS_OK;

fail:
    shard_close(shard);
    return status;
}

void shard_close(struct shard *shard) {
    file_map_close(&shard->map);
    *shard = (struct shard){.tokens = 0};
}

void shard_read(const struct shard *shard, size_t first, size_t count, int32_t *out) {
    if (shard->token_bytes == 2) {
        const uint16_t *tokens = tokens_16(shard) + first;
        for (size_t i = 0; i < count; i++) out[i] = tokens[i];
    } else {
        const uint32_t *tokens = tokens_32(shard) + first;
        for (size_t i = 0; i < count; i++) out[i] = (int32_t)tokens[i];
    }
}

/* Shards described and shown. */
#include "data/inspect.h"

#include <stdint.h>

#include "base/checked.h"
#include "base/file.h"
#include "base/text.h"
#include "data/shard.h"
#include "data/shard_paths.h"
#include "data/tokenizer.h"

enum {
    READ_TOKENS = 1024, /* at a time */
    LINE_TOKENS = 16,   /* numbers on a line */
};

static void print_row(FILE *out, const char *dtype, size_t tokens, const char *largest,
                      size_t bytes, const char *path) {
    char tokens_text[TEXT_BYTES], bytes_text[TEXT_BYTES];
    fprintf(out, "%-6s  %15s  %13s  %10s  %s\n", dtype, text_count(tokens_text, tokens), largest,
            text_bytes(bytes_text, bytes), path);
}

enum status inspect_shards(const char *pattern, FILE *out) {
    enum status status = STATUS_OK;
    char **paths = NULL, largest[TEXT_BYTES];
    size_t count = 0, tokens = 0, bytes = 0;
    TRY(shard_paths(pattern, &paths, &count));
    fprintf(out, "%-6s  %15s  %13s  %10s  %s\n", "dtype", "tokens", "largest token", "size",
            "shard");
    for (size_t i = 0; i < count; i++) {
        struct shard shard;
        TRY_GOTO(shard_open(&shard, paths[i], 0), cleanup);
        print_row(out, shard.token_bytes == 2 ? "uint16" : "uint32", shard.tokens,
                  text_count(largest, shard_largest_token(&shard)), shard.map.bytes, paths[i]);
        tokens += shard.tokens;
        bytes += shard.map.bytes;
        shard_close(&shard);
    }
    if (count > 1) print_row(out, "sum", tokens, "", bytes, pattern);

cleanup:
    names_free(paths, count);
    return status;
}

static void print_text(FILE *out, const int32_t *tokens, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const int32_t byte = tokens[i];
        if ((byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7F) {
            fprintf(out, "\\x%02X", (unsigned)byte);
        } else {
            fputc(byte, out);
        }
    }
}

static void print_numbers(FILE *out, const int32_t *tokens, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const bool ends_line = (i + 1) % LINE_TOKENS == 0 || i + 1 == count;
        fprintf(out, "%u%c", (uint32_t)tokens[i], ends_line ? '\n' : ' ');
    }
}

enum status inspect_tokens(const char *path, size_t first, size_t count, FILE *out) {
    struct shard shard;
    TRY(shard_open(&shard, path, 0));
    if (first >= shard.tokens) {
        const enum status status =
            status_set(STATUS_CONFIG, "expected a first token below %zu, the number of tokens in "
                       "%s, found %zu", shard.tokens, path, first);
        shard_close(&shard);
        return status;
    }
    const bool text = shard_largest_token(&shard) < BYTE_VOCABULARY;
    const size_t shown = size_min(count, shard.tokens - first);
    fprintf(out, "%s: tokens %zu to %zu of %zu\n", path, first, first + shown, shard.tokens);
    for (size_t done = 0; done < shown;) {
        int32_t tokens[READ_TOKENS];
        const size_t block = size_min(shown - done, READ_TOKENS);
        shard_read(&shard, first + done, block, tokens);
        if (text) {
            print_text(out, tokens, block);
        } else {
            print_numbers(out, tokens, block);
        }
        done += block;
    }
    if (text) fputc('\n', out);
    shard_close(&shard);
    return STATUS_OK;
}

/* Shards described, checked and shown. */
#include "data/inspect.h"

#include <inttypes.h>
#include <stdint.h>

#include "base/checked.h"
#include "base/file.h"
#include "base/text.h"
#include "data/description.h"
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

static enum status print_description(const char *pattern, FILE *out) {
    struct description description;
    TRY(description_open(&description, pattern));
    if (description.found) {
        fprintf(out, "tokenizer %s, vocabulary %" PRId64 ", end of text %" PRId64 " (%s)\n",
                description.tokenizer[0] == '\0' ? "bytes" : description.tokenizer,
                description.vocabulary, description.end_of_text, description.path);
    }
    description_close(&description);
    return STATUS_OK;
}

enum status inspect_shards(const char *pattern, FILE *out) {
    enum status status = STATUS_OK;
    char **paths = NULL, largest[TEXT_BYTES];
    size_t count = 0, tokens = 0, bytes = 0;
    TRY(shard_paths(pattern, &paths, &count));
    for (size_t i = 0; i < count; i++) {
        struct shard shard;
        TRY_GOTO(shard_open(&shard, paths[i], 0), cleanup);
        if (i == 0) {
            fprintf(out, "%-6s  %15s  %13s  %10s  %s\n", "dtype", "tokens", "largest token", "size",
                    "shard");
        }
        print_row(out, shard.token_bytes == 2 ? "uint16" : "uint32", shard.tokens,
                  text_count(largest, shard_largest_token(&shard)), shard.map.bytes, paths[i]);
        tokens += shard.tokens;
        bytes += shard.map.bytes;
        shard_close(&shard);
    }
    if (count > 1) print_row(out, "sum", tokens, "", bytes, pattern);
    status = print_description(pattern, out);

cleanup:
    names_free(paths, count);
    return status;
}

/* One shard against the description; opened with its header's own checks in any case. */
static enum status check_against(const struct description *description, const char *path,
                                 FILE *out) {
    struct shard shard;
    bool known = false;
    char tokens[TEXT_BYTES];
    TRY(shard_open(&shard, path, (size_t)description->vocabulary));
    text_count(tokens, shard.tokens);
    shard_close(&shard);
    if (description->found) TRY(description_check_shard(description, path, &known));
    const char *found = description->found ? "not named in dataset.json"
                                           : "no dataset.json: header, length";
    fprintf(out, "good  %15s tokens  %s  (%s)\n", tokens, path,
            known ? "as dataset.json says" : found);
    return STATUS_OK;
}

/* Shards of one pattern may lie in several folders, each with a description of its own. */
static enum status check_shard(const char *path, FILE *out) {
    struct description description;
    TRY(description_open(&description, path));
    enum status status = description.found ? description_check_tokenizer(&description) : STATUS_OK;
    if (status == STATUS_OK) status = check_against(&description, path, out);
    description_close(&description);
    return status;
}

enum status inspect_check(const char *pattern, FILE *out) {
    enum status status = STATUS_OK;
    char **paths = NULL;
    size_t count = 0;
    TRY(shard_paths(pattern, &paths, &count));
    for (size_t i = 0; i < count && status == STATUS_OK; i++) status = check_shard(paths[i], out);
    names_free(paths, count);
    return status;
}

static void print_byte(FILE *out, unsigned char byte) {
    if ((byte < 0x20 && byte != '\n' && byte != '\t') || byte == 0x7F) {
        fprintf(out, "\\x%02X", byte);
    } else {
        fputc(byte, out);
    }
}

/* `tokenizer` NULL: the tokens are bytes. */
static void print_text(FILE *out, const struct tokenizer *tokenizer, const int32_t *tokens,
                       size_t count) {
    for (size_t i = 0; i < count; i++) {
        const unsigned char byte = (unsigned char)tokens[i];
        const char *text = (const char *)&byte;
        size_t bytes = 1;
        if (tokenizer != NULL) text = tokenizer_text(tokenizer, tokens[i], &bytes);
        for (size_t k = 0; k < bytes; k++) print_byte(out, (unsigned char)text[k]);
        if (bytes == 0) fprintf(out, "\\token{%d}", tokens[i]);
    }
}

static void print_numbers(FILE *out, const int32_t *tokens, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const bool ends_line = (i + 1) % LINE_TOKENS == 0 || i + 1 == count;
        fprintf(out, "%u%c", (uint32_t)tokens[i], ends_line ? '\n' : ' ');
    }
}

/* The tokenizer to show the shard with; NULL: none, and then *bytes says whether it is bytes. */
static enum status choose_tokenizer(const struct shard *shard, const char *wished,
                                    struct tokenizer **tokenizer, bool *bytes) {
    struct description description;
    *tokenizer = NULL;
    *bytes = false;
    if (wished[0] != '\0') return tokenizer_open(tokenizer, wished);
    TRY(description_open(&description, shard->path));
    enum status status = STATUS_OK;
    if (description.tokenizer[0] != '\0') {
        status = tokenizer_open(tokenizer, description.tokenizer);
    } else {
        *bytes = shard_largest_token(shard) < BYTE_VOCABULARY;
    }
    description_close(&description);
    return status;
}

static void print_tokens(const struct shard *shard, const struct inspect_range *range,
                         const struct tokenizer *tokenizer, bool text, FILE *out) {
    const size_t shown = size_min(range->count, shard->tokens - range->first);
    fprintf(out, "%s: tokens %zu to %zu of %zu\n", shard->path, range->first, range->first + shown,
            shard->tokens);
    for (size_t done = 0; done < shown;) {
        int32_t tokens[READ_TOKENS];
        const size_t block = size_min(shown - done, READ_TOKENS);
        shard_read(shard, range->first + done, block, tokens);
        if (text) {
            print_text(out, tokenizer, tokens, block);
        } else {
            print_numbers(out, tokens, block);
        }
        done += block;
    }
    if (text) fputc('\n', out);
}

enum status inspect_tokens(const char *path, const struct inspect_range *range, FILE *out) {
    enum status status = STATUS_OK;
    struct tokenizer *tokenizer = NULL;
    struct shard shard;
    bool bytes = false;
    char **paths = NULL;
    size_t count = 0;
    TRY(shard_paths(path, &paths, &count));
    status = count == 1 ? shard_open(&shard, paths[0], 0)
                        : status_set(STATUS_CONFIG, "expected one shard to show, found %zu at '%s'",
                                     count, path);
    names_free(paths, count);
    TRY(status);
    if (range->first >= shard.tokens) {
        status = status_set(STATUS_CONFIG, "expected a first token below %zu, the number of tokens "
                            "in %s, found %zu", shard.tokens, path, range->first);
        goto cleanup;
    }
    if (!range->numbers) {
        TRY_GOTO(choose_tokenizer(&shard, range->tokenizer, &tokenizer, &bytes), cleanup);
    }
    print_tokens(&shard, range, tokenizer, tokenizer != NULL || bytes, out);

cleanup:
    tokenizer_close(tokenizer);
    shard_close(&shard);
    return status;
}

/* The byte tokenizer, and encoding and decoding with what tokenizer_json.c read. */
#include "data/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/file.h"
#include "base/utf8.h"
#include "data/tokenizer_parts.h"

void byte_encode(const unsigned char *text, size_t bytes, int32_t *tokens) {
    for (size_t i = 0; i < bytes; i++) tokens[i] = text[i];
}

enum status tokenizer_open(struct tokenizer **tokenizer, const char *path) {
    char *json = NULL;
    size_t bytes = 0;
    TRY(file_read(path, TOKENIZER_FILE_BYTES_MAX, &json, &bytes));
    const enum status status = tokenizer_parse(tokenizer, path, json, bytes);
    free(json);
    return status;
}

void tokenizer_close(struct tokenizer *tokenizer) {
    if (tokenizer == NULL) return;
    for (size_t i = 0; i < tokenizer->step_count; i++) split_close(&tokenizer->steps[i].split);
    split_close(&tokenizer->space);
    split_close(&tokenizer->word);
    bpe_merges_close(&tokenizer->merges);
    token_table_close(&tokenizer->table);
    free(tokenizer->added);
    free(tokenizer->texts);
    free(tokenizer->strings);
    free(tokenizer);
}

size_t tokenizer_vocabulary(const struct tokenizer *tokenizer) { return tokenizer->vocabulary; }

size_t tokenizer_longest(const struct tokenizer *tokenizer) { return tokenizer->longest; }

int32_t tokenizer_find(const struct tokenizer *tokenizer, const char *content) {
    return token_table_find(&tokenizer->table, content, strlen(content));
}

int32_t tokenizer_end_of_text(const struct tokenizer *tokenizer) {
    static const char *const names[] = {"<|endoftext|>", "<|end_of_text|>", "<|begin_of_text|>",
                                        "</s>", "<eos>"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const int32_t token = tokenizer_find(tokenizer, names[i]);
        if (token >= 0) return token;
    }
    return -1;
}

const char *tokenizer_text(const struct tokenizer *tokenizer, int32_t token, size_t *bytes) {
    *bytes = 0;
    if (token < 0 || (size_t)token >= tokenizer->vocabulary) return "";
    const struct token_text *text = &tokenizer->texts[token];
    if (text->bytes == NULL) return "";
    *bytes = text->count;
    return text->bytes;
}

/* An encoding under way. */
struct encoding {
    const struct tokenizer *tokenizer;
    struct bpe_work work;
    char *characters; /* a word in byte characters, or a piece with a space in front */
    size_t characters_room;
    int32_t *tokens;
    size_t count, room;
    size_t step; /* the next step of the piece at hand */
};

/* Room for `more` tokens, at least doubling. */
static enum status reserve_tokens(struct encoding *encoding, size_t more) {
    size_t wanted = 0, bytes = 0;
    if (encoding->room - encoding->count >= more) return STATUS_OK;
    if (!size_add(encoding->count, more, &wanted) || !size_add(wanted, encoding->room, &wanted) ||
        !size_mul(wanted, sizeof *encoding->tokens, &bytes)) {
        return status_set(STATUS_MEMORY, "expected a text of fewer than 2^61 tokens");
    }
    int32_t *grown = realloc(encoding->tokens, bytes);
    if (grown == NULL) return status_set(STATUS_MEMORY, "out of memory for %zu tokens", wanted);
    encoding->tokens = grown;
    encoding->room = wanted;
    return STATUS_OK;
}

/* The token that the whole word is, -1 if it is none. */
static enum status find_word(struct encoding *encoding, const char *word, size_t bytes,
                             int32_t *token) {
    *token = -1;
    if (bytes > encoding->tokenizer->longest) return STATUS_OK;
    if (encoding->characters_room < 2 * bytes) {
        char *grown = realloc(encoding->characters, 4 * bytes);
        if (grown == NULL) return status_set(STATUS_MEMORY, "out of memory for a word");
        encoding->characters = grown;
        encoding->characters_room = 4 * bytes;
    }
    size_t used = 0;
    for (size_t i = 0; i < bytes; i++) {
        size_t length = 0;
        const char *character = byte_character((unsigned char)word[i], &length);
        memcpy(encoding->characters + used, character, length);
        used += length;
    }
    *token = token_table_find(&encoding->tokenizer->table, encoding->characters, used);
    if (*token >= 0 && encoding->tokenizer->texts[*token].outside) *token = -1;
    return STATUS_OK;
}

static enum status encode_word(struct encoding *encoding, const char *word, size_t bytes) {
    const struct tokenizer *tokenizer = encoding->tokenizer;
    TRY(reserve_tokens(encoding, bytes));
    int32_t *tokens = encoding->tokens + encoding->count;
    if (tokenizer->whole_words) {
        TRY(find_word(encoding, word, bytes, tokens));
        if (tokens[0] >= 0) {
            encoding->count++;
            return STATUS_OK;
        }
    }
    size_t count = bytes;
    for (size_t i = 0; i < bytes; i++) tokens[i] = tokenizer->byte_tokens[(unsigned char)word[i]];
    if (!bpe_merge_word(&tokenizer->merges, &encoding->work, tokens, &count)) {
        return status_set(STATUS_MEMORY, "out of memory for a word of %zu bytes", bytes);
    }
    encoding->count += count;
    return STATUS_OK;
}

static enum status encode_piece(void *context, const char *text, size_t bytes);

/* The words of a piece, each by the next step. */
static enum status run_step(struct encoding *encoding, const char *text, size_t bytes) {
    const struct tokenizer_step *step = &encoding->tokenizer->steps[encoding->step++];
    const enum status status = step->splits
                                   ? split_run(&step->split, text, bytes, encode_piece, encoding)
                                   : encode_piece(encoding, text, bytes);
    encoding->step--;
    return status;
}

static enum status encode_piece(void *context, const char *text, size_t bytes) {
    struct encoding *encoding = context;
    const struct tokenizer *tokenizer = encoding->tokenizer;
    if (encoding->step == tokenizer->step_count) return encode_word(encoding, text, bytes);
    if (!tokenizer->steps[encoding->step].adds_space || text[0] == ' ') {
        return run_step(encoding, text, bytes);
    }
    char *spaced = malloc(bytes + 1);
    if (spaced == NULL) return status_set(STATUS_MEMORY, "out of memory for %zu bytes", bytes);
    spaced[0] = ' ';
    memcpy(spaced + 1, text, bytes);
    const enum status status = run_step(encoding, spaced, bytes + 1);
    free(spaced);
    return status;
}

static enum status encode_between(void *context, const char *text, size_t bytes, int32_t token) {
    struct encoding *encoding = context;
    if (token < 0) return encode_piece(encoding, text, bytes);
    TRY(reserve_tokens(encoding, 1));
    encoding->tokens[encoding->count++] = token;
    return STATUS_OK;
}

/* *repaired = NULL if the text is valid as it is; otherwise a copy with U+FFFD, to be freed. */
static enum status repair(const char *text, size_t bytes, char **repaired, size_t *repaired_bytes) {
    size_t valid = 0, length = 0, room = 0;
    *repaired = NULL;
    while (valid < bytes && (length = utf8_sequence(text + valid, bytes - valid)) > 0) {
        valid += length;
    }
    if (valid == bytes) return STATUS_OK;
    char *out = size_mul(bytes, 3, &room) ? malloc(room) : NULL;
    if (out == NULL) return status_set(STATUS_MEMORY, "out of memory for %zu bytes", bytes);
    size_t used = 0;
    for (size_t i = 0; i < bytes; i += length) {
        length = utf8_sequence(text + i, bytes - i);
        const size_t written = length > 0 ? length : sizeof UTF8_REPLACEMENT - 1;
        memcpy(out + used, length > 0 ? text + i : UTF8_REPLACEMENT, written);
        if (length == 0) length = utf8_broken(text + i, bytes - i);
        used += written;
    }
    *repaired = out;
    *repaired_bytes = used;
    return STATUS_OK;
}

enum status tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t bytes,
                             bool special, int32_t **tokens, size_t *count) {
    char *repaired = NULL;
    struct encoding encoding = {.tokenizer = tokenizer};
    TRY(repair(text, bytes, &repaired, &bytes));
    enum status status = reserve_tokens(&encoding, bytes / 4 + 1);
    if (status == STATUS_OK) {
        status = added_tokens_run(tokenizer, repaired != NULL ? repaired : text, bytes, special,
                                  encode_between, &encoding);
    }
    free(repaired);
    free(encoding.characters);
    bpe_work_close(&encoding.work);
    if (status != STATUS_OK) {
        free(encoding.tokens);
        return status;
    }
    *tokens = encoding.tokens;
    *count = encoding.count;
    return STATUS_OK;
}

/*
 * tokenizer.json of Hugging Face's `tokenizers`: model, added tokens and pre_tokenizer. The
 * post_processor puts tokens around a text and is not used; truncation and padding neither.
 */
#include "data/tokenizer_json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/utf8.h"

/* The parse under way. */
struct reader {
    struct tokenizer *tokenizer;
    const cJSON *vocab, *merges, *added;
    char *string_end;
};

enum status tokenizer_json_refuse_zero(const char *text, size_t bytes) {
    static const char escaped[] = "\\u0000";
    const size_t length = sizeof escaped - 1;
    if (memchr(text, '\0', bytes) != NULL) {
        return status_set(STATUS_DATA, "expected text, found a zero byte");
    }
    for (size_t i = 0; i + 1 < bytes; i++) {
        if (text[i] != '\\') continue;
        if (bytes - i >= length && memcmp(text + i, escaped, length) == 0) {
            return status_set(STATUS_DATA, "expected text, found the character \\u0000");
        }
        i++; /* what is escaped, a backslash too */
    }
    return STATUS_OK;
}

enum status tokenizer_json_find(const cJSON *object, const char *key, const cJSON **item) {
    *item = NULL;
    if (!cJSON_IsObject(object)) {
        return status_set(STATUS_DATA, "expected an object with the key \"%s\", found another "
                          "value", key);
    }
    for (const cJSON *child = object->child; child != NULL; child = child->next) {
        if (strcmp(child->string, key) != 0) continue;
        if (*item != NULL) return status_set(STATUS_DATA, "the key \"%s\" stands twice", key);
        *item = child;
    }
    if (cJSON_IsNull(*item)) *item = NULL;
    return STATUS_OK;
}

enum status tokenizer_json_flag(const cJSON *object, const char *key, bool *value) {
    const cJSON *item = NULL;
    TRY(tokenizer_json_find(object, key, &item));
    if (item == NULL) return STATUS_OK;
    if (!cJSON_IsBool(item)) {
        return status_set(STATUS_DATA, "\"%s\": expected true or false", key);
    }
    *value = cJSON_IsTrue(item);
    return STATUS_OK;
}

enum status tokenizer_json_text(const cJSON *object, const char *key, const char **value) {
    const cJSON *item = NULL;
    TRY(tokenizer_json_find(object, key, &item));
    if (!cJSON_IsString(item)) return status_set(STATUS_DATA, "expected text as \"%s\"", key);
    *value = item->valuestring;
    return STATUS_OK;
}

/* The characters that stand for bytes 0 to 255; made once by make_byte_characters. */
static struct byte_characters {
    char text[BYTE_VOCABULARY][2];
    unsigned char bytes[BYTE_VOCABULARY];
    short of_character[BYTE_CHARACTERS]; /* U+0000 to U+01FF to the byte, -1: none */
    bool made;
} byte_characters;

/* Bytes that are visible in Latin-1 are themselves, the others U+0100 and after, in order. */
static void make_byte_characters(void) {
    struct byte_characters *all = &byte_characters;
    unsigned other = 256;
    for (size_t i = 0; i < BYTE_CHARACTERS; i++) all->of_character[i] = -1;
    for (unsigned byte = 0; byte < BYTE_VOCABULARY; byte++) {
        const bool visible = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
        const unsigned character = visible ? byte : other++;
        all->of_character[character] = (short)byte;
        all->bytes[byte] = character < 0x80 ? 1 : 2;
        all->text[byte][0] = (char)(character < 0x80 ? character : 0xC0 | character >> 6);
        all->text[byte][1] = (char)(0x80 | (character & 0x3F));
    }
    all->made = true;
}

const char *byte_character(unsigned char byte, size_t *bytes) {
    *bytes = byte_characters.bytes[byte];
    return byte_characters.text[byte];
}

/* What a token stands for: the bytes of its characters or, if any of them stands for none, its
 * text as it is. Returns the number of bytes; out may be text. */
static size_t token_bytes(const char *text, size_t bytes, char *out) {
    size_t used = 0, length;
    for (size_t i = 0; i < bytes; i += length) {
        const unsigned char *s = (const unsigned char *)text + i;
        length = utf8_sequence(text + i, bytes - i);
        const unsigned character = length == 1 ? s[0] : (s[0] & 0x1Fu) << 6 | (s[1] & 0x3Fu);
        if (length > 2 || character >= BYTE_CHARACTERS ||
            byte_characters.of_character[character] < 0) {
            memcpy(out, text, bytes);
            return bytes;
        }
        out[used++] = (char)byte_characters.of_character[character];
    }
    return used;
}

/* A copy of text that lives as long as the tokenizer. The room was counted before. */
static char *keep_string(struct reader *reader, const char *text, size_t bytes) {
    char *copy = reader->string_end;
    memcpy(copy, text, bytes);
    copy[bytes] = '\0';
    reader->string_end += bytes + 1;
    return copy;
}

/* Enters a token by its text; `what` names the list in messages. */
static enum status add_token(struct reader *reader, const char *what, const char *text,
                             int32_t token) {
    struct tokenizer *tokenizer = reader->tokenizer;
    const size_t bytes = strlen(text);
    struct token_text *entry = &tokenizer->texts[token];
    if (entry->bytes != NULL) {
        return status_set(STATUS_DATA, "%s: the id %d stands for two tokens, the second is "
                          "\"%.40s\"", what, token, text);
    }
    const char *key = keep_string(reader, text, bytes);
    if (!token_table_add(&tokenizer->table, key, bytes, token)) {
        return status_set(STATUS_DATA, "%s: the token \"%.40s\" stands twice", what, text);
    }
    char *stands_for = keep_string(reader, text, bytes);
    *entry = (struct token_text){stands_for, token_bytes(key, bytes, stands_for), false};
    tokenizer->longest = size_max(tokenizer->longest, entry->count);
    return STATUS_OK;
}

/* A token number, or -1 for what is none. */
static int32_t token_number(const cJSON *item) {
    if (!cJSON_IsNumber(item)) return -1;
    const double value = item->valuedouble;
    if (!(value >= 0 && value < TOKENIZER_TOKENS_MAX)) return -1;
    return (double)(int32_t)value == value ? (int32_t)value : -1;
}

static enum status refuse_number(const char *what, const char *name) {
    return status_set(STATUS_DATA, "%s: expected an id from 0 to %d for the token \"%.40s\"", what,
                      TOKENIZER_TOKENS_MAX - 1, name);
}

/* Counts tokens and the bytes of their texts, finds the largest number, and allocates. */
static enum status make_room(struct reader *reader) {
    struct tokenizer *tokenizer = reader->tokenizer;
    size_t tokens = 0, string_bytes = 0;
    for (const cJSON *item = reader->vocab->child; item != NULL; item = item->next) {
        const int32_t token = token_number(item);
        if (token < 0) return refuse_number("vocab", item->string);
        tokenizer->vocabulary = size_max(tokenizer->vocabulary, (size_t)token + 1);
        string_bytes += 2 * (strlen(item->string) + 1);
        tokens++;
    }
    const cJSON *added = reader->added == NULL ? NULL : reader->added->child;
    for (; added != NULL; added = added->next) {
        const cJSON *id = NULL;
        const char *content = NULL;
        TRY(tokenizer_json_text(added, "content", &content));
        TRY(tokenizer_json_find(added, "id", &id));
        if (token_number(id) < 0) return refuse_number("added_tokens", content);
        tokenizer->vocabulary = size_max(tokenizer->vocabulary, (size_t)token_number(id) + 1);
        string_bytes += 3 * (strlen(content) + 1); /* once more for struct added_token */
        tokenizer->added_count++;
        tokens++;
    }
    tokenizer->strings = malloc(size_max(string_bytes, 1));
    tokenizer->texts = calloc(size_max(tokenizer->vocabulary, 1), sizeof *tokenizer->texts);
    tokenizer->added = calloc(size_max(tokenizer->added_count, 1), sizeof *tokenizer->added);
    if (!token_table_open(&tokenizer->table, tokens) || tokenizer->strings == NULL ||
        tokenizer->texts == NULL || tokenizer->added == NULL) {
        return status_set(STATUS_MEMORY, "out of memory for a vocabulary of %zu", tokens);
    }
    reader->string_end = tokenizer->strings;
    return STATUS_OK;
}

static enum status read_vocab(struct reader *reader) {
    struct tokenizer *tokenizer = reader->tokenizer;
    for (const cJSON *item = reader->vocab->child; item != NULL; item = item->next) {
        TRY(add_token(reader, "vocab", item->string, token_number(item)));
    }
    for (unsigned byte = 0; byte < BYTE_VOCABULARY; byte++) {
        size_t bytes = 0;
        const char *character = byte_character((unsigned char)byte, &bytes);
        tokenizer->byte_tokens[byte] = token_table_find(&tokenizer->table, character, bytes);
        if (tokenizer->byte_tokens[byte] < 0) {
            return status_set(STATUS_DATA, "vocab: expected a token for each of the 256 bytes, "
                              "found none for 0x%02X (\"%.*s\"): only byte-level tokenizers can be "
                              "used", byte, (int)bytes, character);
        }
    }
    return STATUS_OK;
}

/* The two sides of a merge: "a b" or ["a", "b"]. */
static bool merge_sides(const cJSON *item, const char *sides[2], size_t bytes[2]) {
    if (cJSON_IsString(item)) {
        const char *space = strchr(item->valuestring, ' ');
        if (space == NULL || strchr(space + 1, ' ') != NULL) return false;
        sides[0] = item->valuestring;
        bytes[0] = (size_t)(space - item->valuestring);
        sides[1] = space + 1;
        bytes[1] = strlen(sides[1]);
        return bytes[0] > 0 && bytes[1] > 0;
    }
    if (!cJSON_IsArray(item) || cJSON_GetArraySize(item) != 2) return false;
    for (int i = 0; i < 2; i++) {
        sides[i] = cJSON_GetStringValue(cJSON_GetArrayItem(item, i));
        if (sides[i] == NULL || sides[i][0] == '\0') return false;
        bytes[i] = strlen(sides[i]);
    }
    return true;
}

/* `joined` has room for both sides. */
static enum status read_merge(struct tokenizer *tokenizer, const cJSON *item, size_t number,
                              char *joined) {
    const char *sides[2];
    size_t bytes[2];
    if (!merge_sides(item, sides, bytes)) {
        return status_set(STATUS_DATA, "merges: expected two tokens in entry %zu", number);
    }
    memcpy(joined, sides[0], bytes[0]);
    memcpy(joined + bytes[0], sides[1], bytes[1]);
    const int32_t left = token_table_find(&tokenizer->table, sides[0], bytes[0]);
    const int32_t right = token_table_find(&tokenizer->table, sides[1], bytes[1]);
    const int32_t merged = token_table_find(&tokenizer->table, joined, bytes[0] + bytes[1]);
    if (left < 0 || right < 0 || merged < 0) {
        const char *what = left < 0 ? "left side" : right < 0 ? "right side" : "result";
        return status_set(STATUS_DATA, "merges: the %s of entry %zu (\"%.40s\" and \"%.40s\") is "
                          "no token of the vocabulary", what, number, sides[0], sides[1]);
    }
    if (!bpe_merges_add(&tokenizer->merges, left, right, merged)) {
        return status_set(STATUS_DATA, "merges: entry %zu stands twice", number);
    }
    return STATUS_OK;
}

static enum status read_merges(struct reader *reader, size_t file_bytes) {
    struct tokenizer *tokenizer = reader->tokenizer;
    enum status status = STATUS_OK;
    size_t count = 0, number = 0;
    for (const cJSON *item = reader->merges->child; item != NULL; item = item->next) count++;
    char *joined = malloc(file_bytes + 1); /* no entry is longer than the file */
    if (joined == NULL || !bpe_merges_open(&tokenizer->merges, count)) {
        free(joined);
        return status_set(STATUS_MEMORY, "out of memory for %zu merges", count);
    }
    for (const cJSON *item = reader->merges->child; item != NULL; item = item->next) {
        TRY_GOTO(read_merge(tokenizer, item, number++, joined), cleanup);
    }

cleanup:
    free(joined);
    return status;
}

/* Fields of the model that change what the tokens are, and the one value that is known here. */
static enum status check_model(const cJSON *model, bool *whole_words) {
    static const char *const empty[] = {"dropout", "continuing_subword_prefix",
                                        "end_of_word_suffix"};
    const cJSON *item = NULL;
    bool byte_fallback = false;
    TRY(tokenizer_json_find(model, "type", &item));
    if (item != NULL && (!cJSON_IsString(item) || strcmp(item->valuestring, "BPE") != 0)) {
        return status_set(STATUS_DATA, "expected a model of the type BPE, found \"%.40s\": only "
                          "byte-level BPE can be used",
                          cJSON_IsString(item) ? item->valuestring : "no text");
    }
    for (size_t i = 0; i < sizeof empty / sizeof empty[0]; i++) {
        TRY(tokenizer_json_find(model, empty[i], &item));
        const bool nothing = item == NULL || (cJSON_IsString(item) && item->valuestring[0] == '\0');
        if (!nothing && !(cJSON_IsNumber(item) && item->valuedouble == 0)) {
            return status_set(STATUS_DATA, "model: expected no \"%s\", found one", empty[i]);
        }
    }
    TRY(tokenizer_json_flag(model, "byte_fallback", &byte_fallback));
    if (byte_fallback) {
        return status_set(STATUS_DATA, "model: expected byte-level BPE, found byte_fallback, which "
                          "belongs to another kind");
    }
    return tokenizer_json_flag(model, "ignore_merges", whole_words);
}

/* `tokenizers` numbers added tokens itself; a file that says otherwise is not what it would use. */
static enum status check_added_number(const struct tokenizer *tokenizer, const char *content,
                                      int32_t token, size_t *next) {
    const int32_t known = tokenizer_find(tokenizer, content);
    const size_t expected = known >= 0 ? (size_t)known : *next;
    if ((size_t)token != expected) {
        return status_set(STATUS_DATA, "added_tokens: expected the id %zu for \"%.40s\", %s, found "
                          "%d", expected, content,
                          known >= 0 ? "which it has in the vocabulary" : "the next one", token);
    }
    if (expected >= *next) *next = expected + 1;
    return STATUS_OK;
}

static enum status read_added(struct reader *reader, const cJSON *item, size_t *next,
                              struct added_token *added) {
    const char *content = NULL;
    const cJSON *id = NULL;
    TRY(tokenizer_json_text(item, "content", &content));
    TRY(tokenizer_json_find(item, "id", &id));
    if (content[0] == '\0') return status_set(STATUS_DATA, "added_tokens: an empty token");
    const bool known = tokenizer_find(reader->tokenizer, content) >= 0;
    added->token = token_number(id);
    TRY(check_added_number(reader->tokenizer, content, added->token, next));
    if (!known) {
        TRY(add_token(reader, "added_tokens", content, added->token));
        reader->tokenizer->texts[added->token].outside = true;
    }
    added->bytes = strlen(content);
    added->content = keep_string(reader, content, added->bytes);
    TRY(tokenizer_json_flag(item, "special", &added->special));
    added->normalized = !added->special; /* the library's default */
    TRY(tokenizer_json_flag(item, "normalized", &added->normalized));
    TRY(tokenizer_json_flag(item, "single_word", &added->single_word));
    TRY(tokenizer_json_flag(item, "lstrip", &added->takes_left));
    TRY(tokenizer_json_flag(item, "rstrip", &added->takes_right));
    reader->tokenizer->added_starts[added->normalized][(unsigned char)content[0]] = true;
    return STATUS_OK;
}

static int longest_first(const void *a, const void *b) {
    const struct added_token *x = a, *y = b;
    if (x->bytes != y->bytes) return x->bytes > y->bytes ? -1 : 1;
    return x->token < y->token ? -1 : x->token > y->token;
}

static enum status read_all_added(struct reader *reader) {
    struct tokenizer *tokenizer = reader->tokenizer;
    size_t next = tokenizer->table.count, i = 0;
    const cJSON *item = reader->added == NULL ? NULL : reader->added->child;
    for (; item != NULL; item = item->next) {
        TRY(read_added(reader, item, &next, &tokenizer->added[i++]));
    }
    if (tokenizer->added_count > 1) {
        qsort(tokenizer->added, tokenizer->added_count, sizeof *tokenizer->added, longest_first);
    }
    TRY(split_open(&tokenizer->space, "\\s", false));
    /* \w of Rust's regex crate, which the library asks about a token's neighbours */
    TRY(split_open(&tokenizer->word,
                   "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}]", false));
    tokenizer->space.keeps_matches = tokenizer->word.keeps_matches = true;
    return STATUS_OK;
}

static enum status read_root(struct reader *reader, const cJSON *root, size_t file_bytes) {
    const cJSON *model = NULL, *item = NULL;
    TRY(tokenizer_json_find(root, "model", &model));
    if (!cJSON_IsObject(model)) { /* "model" is a word of GPT-2's vocabulary */
        const bool bare = cJSON_GetObjectItemCaseSensitive(root, "!") != NULL; /* a vocabulary */
        return status_set(STATUS_DATA, "expected a tokenizer.json, found no \"model\" in it%s",
                          bare ? " (this looks like GPT-2's encoder.json: `deepwell data prepare "
                                 "--tokenizer` takes it with vocab.bpe and writes a tokenizer.json)"
                               : "");
    }
    TRY(check_model(model, &reader->tokenizer->whole_words));
    TRY(tokenizer_json_find(root, "normalizer", &item));
    if (item != NULL) {
        return status_set(STATUS_DATA, "expected no normalizer, found one, which would change the "
                          "text before it is encoded: use a tokenizer without it");
    }
    TRY(tokenizer_json_find(model, "vocab", &reader->vocab));
    TRY(tokenizer_json_find(model, "merges", &reader->merges));
    TRY(tokenizer_json_find(root, "added_tokens", &reader->added));
    if (!cJSON_IsObject(reader->vocab) || !cJSON_IsArray(reader->merges) ||
        (reader->added != NULL && !cJSON_IsArray(reader->added))) {
        return status_set(STATUS_DATA, "expected an object \"vocab\" and lists \"merges\" and "
                          "\"added_tokens\"");
    }
    TRY(make_room(reader));
    TRY(read_vocab(reader));
    TRY(read_merges(reader, file_bytes));
    TRY(read_all_added(reader));
    return tokenizer_read_steps(reader->tokenizer, root);
}

static enum status parse_text(const char *json, size_t bytes, cJSON **root) {
    for (size_t i = 0, length; i < bytes; i += length) {
        length = json[i] == '\0' ? 0 : utf8_sequence(json + i, bytes - i);
        if (length > 0) continue;
        return status_set(STATUS_DATA, "expected a tokenizer.json, found the byte 0x%02X at place "
                          "%zu, which is no text", (unsigned char)json[i], i + 1);
    }
    TRY(tokenizer_json_refuse_zero(json, bytes));
    const char *end = json;
    *root = cJSON_ParseWithLengthOpts(json, bytes, &end, false);
    while (*root != NULL && end < json + bytes && strchr(" \t\r\n", *end) != NULL) end++;
    if (*root != NULL && end == json + bytes) return STATUS_OK;
    return status_set(STATUS_DATA, "expected a tokenizer.json, found no JSON (it breaks off at "
                      "byte %zu of %zu)", (size_t)(end - json), bytes);
}

enum status tokenizer_parse(struct tokenizer **tokenizer, const char *label, const char *json,
                            size_t bytes) {
    cJSON *root = NULL;
    struct reader reader = {.tokenizer = calloc(1, sizeof *reader.tokenizer)};
    if (reader.tokenizer == NULL) return status_set(STATUS_MEMORY, "out of memory");
    if (!byte_characters.made) make_byte_characters();
    enum status status = parse_text(json, bytes, &root);
    if (status == STATUS_OK) status = read_root(&reader, root, bytes);
    cJSON_Delete(root);
    if (status != STATUS_OK) {
        tokenizer_close(reader.tokenizer);
        return status_context(status, "%s", label);
    }
    *tokenizer = reader.tokenizer;
    return STATUS_OK;
}

/*
 * tokenizer.json in C. Oracles: the tokens that the `tokenizers` library gave for hard texts, with
 * several pre_tokenizers (make_tokenizer_fixture.py); a table of files that must be refused, with
 * the words of the message.
 */
#include "tests/data/data_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "data/tokenizer.h"

static cJSON *fixture, *expected;

static cJSON *read_json(const char *path) {
    char *text = NULL;
    size_t bytes = 0;
    if (file_read(path, 1 << 24, &text, &bytes) != STATUS_OK) return NULL;
    cJSON *root = cJSON_Parse(text);
    free(text);
    return root;
}

static enum status parse_tree(const cJSON *tree, struct tokenizer **tokenizer) {
    char *text = cJSON_PrintUnformatted(tree);
    assert_non_null(text);
    const enum status status = tokenizer_parse(tokenizer, "the file", text, strlen(text));
    cJSON_free(text);
    return status;
}

/* Bytes from hex; release with free(). */
static char *from_hex(const cJSON *item, size_t *bytes) {
    const char *hex = cJSON_GetStringValue(item);
    assert_non_null(hex);
    *bytes = strlen(hex) / 2;
    char *out = malloc(*bytes + 1);
    assert_non_null(out);
    for (size_t i = 0; i < *bytes; i++) {
        unsigned byte = 0;
        assert_int_equal(sscanf(hex + 2 * i, "%2x", &byte), 1);
        out[i] = (char)byte;
    }
    return out;
}

static void assert_tokens(const struct tokenizer *tokenizer, const cJSON *test, bool special) {
    int32_t *tokens = NULL;
    size_t bytes = 0, count = 0;
    const cJSON *ids = cJSON_GetObjectItem(test, special ? "special" : "plain");
    char *text = from_hex(cJSON_GetObjectItem(test, "text"), &bytes);
    assert_int_equal(tokenizer_encode(tokenizer, text, bytes, special, &tokens, &count), STATUS_OK);
    assert_int_equal(count, cJSON_GetArraySize(ids));
    const cJSON *id = ids->child;
    for (size_t i = 0; i < count; i++, id = id->next) assert_int_equal(tokens[i], id->valueint);
    free(tokens);
    free(text);
}

/* The tokens of the plain text put together are the text, with U+FFFD where it was no UTF-8. */
static void assert_spelled(const struct tokenizer *tokenizer, const cJSON *test) {
    size_t bytes = 0, at = 0;
    char *text = from_hex(cJSON_GetObjectItem(test, "valid"), &bytes);
    const cJSON *id = NULL;
    cJSON_ArrayForEach(id, cJSON_GetObjectItem(test, "plain")) {
        size_t length = 0;
        const char *part = tokenizer_text(tokenizer, id->valueint, &length);
        assert_true(length > 0 && length <= bytes - at && length <= tokenizer_longest(tokenizer));
        assert_memory_equal(part, text + at, length);
        at += length;
    }
    assert_int_equal(at, bytes);
    free(text);
}

static void tokens_are_those_of_the_library(void **state) {
    (void)state;
    const cJSON *variant = NULL, *test = NULL;
    size_t compared = 0;
    cJSON_ArrayForEach(variant, expected) {
        struct tokenizer *tokenizer = NULL;
        cJSON *tree = cJSON_Duplicate(fixture, true);
        const cJSON *pre = cJSON_GetObjectItem(variant, "pre_tokenizer");
        const bool ignore = cJSON_IsTrue(cJSON_GetObjectItem(variant, "ignore_merges"));
        cJSON_ReplaceItemInObject(tree, "pre_tokenizer", cJSON_Duplicate(pre, true));
        cJSON_ReplaceItemInObject(cJSON_GetObjectItem(tree, "model"), "ignore_merges",
                                  cJSON_CreateBool(ignore));
        if (parse_tree(tree, &tokenizer) != STATUS_OK) fail_msg("%s", status_message());
        cJSON_ArrayForEach(test, cJSON_GetObjectItem(variant, "cases")) {
            assert_tokens(tokenizer, test, true);
            assert_tokens(tokenizer, test, false);
            if (cJSON_IsTrue(cJSON_GetObjectItem(test, "spells"))) assert_spelled(tokenizer, test);
            compared++;
        }
        tokenizer_close(tokenizer);
        cJSON_Delete(tree);
    }
    assert_true(compared > 400);
}

static void names_and_sizes(void **state) {
    (void)state;
    struct tokenizer *tokenizer = NULL;
    size_t bytes = 1;
    assert_int_equal(parse_tree(fixture, &tokenizer), STATUS_OK);
    assert_int_equal(tokenizer_vocabulary(tokenizer), 605);
    assert_int_equal(tokenizer_find(tokenizer, "<|endoftext|>"), 0);
    assert_int_equal(tokenizer_end_of_text(tokenizer), 0);
    assert_int_equal(tokenizer_find(tokenizer, "<mask>"), 600);
    assert_int_equal(tokenizer_find(tokenizer, "no such token"), -1);
    assert_string_equal(tokenizer_text(tokenizer, 605, &bytes), "");
    assert_int_equal(bytes, 0);
    assert_string_equal(tokenizer_text(tokenizer, -1, &bytes), "");
    tokenizer_close(tokenizer);
    tokenizer_close(NULL);
}

/* The object that a path of keys leads to ("model.vocab"; "": all of it). */
static cJSON *walk(cJSON *tree, const char *path) {
    char copy[64], *rest = copy;
    snprintf(copy, sizeof copy, "%s", path);
    for (char *key; path[0] != '\0' && (key = strsep(&rest, ".")) != NULL;) {
        tree = cJSON_GetObjectItemCaseSensitive(tree, key);
        assert_non_null(tree);
    }
    return tree;
}

static void hostile_files_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *path, *key, *value, *words; /* value NULL: the key is removed */
    } cases[] = {
        {"model", "type", "\"WordPiece\"", "the file|BPE|WordPiece"},
        {"model", "type", "7", "BPE"},
        {"model", "vocab", "[]", "vocab"},
        {"model", "vocab", "{}", "256 bytes|0x00"},
        {"model", "merges", "{}", "merges"},
        {"model", "merges", "[\"a\"]", "two tokens in entry 0"},
        {"model", "merges", "[\"t h\", \"a b c\"]", "entry 1"},
        {"model", "merges", "[\" a\"]", "entry 0"},
        {"model", "merges", "[[\"a\",\"b\",\"c\"]]", "entry 0"},
        {"model", "merges", "[[\"a\",7]]", "entry 0"},
        {"model", "merges", "[\"nowhere a\"]", "left side|nowhere"},
        {"model", "merges", "[\"a nowhere\"]", "right side"},
        {"model", "merges", "[\"} }\"]", "result"},
        {"model", "merges", "[\"t h\",\"t h\"]", "entry 1 stands twice"},
        {"model", "dropout", "0.1", "dropout"},
        {"model", "byte_fallback", "true", "byte_fallback"},
        {"model", "byte_fallback", "\"yes\"", "true or false"},
        {"model", "continuing_subword_prefix", "\"##\"", "continuing_subword_prefix"},
        {"model.vocab", "!", NULL, "0x21"},
        {"model.vocab", "zzz", "5", "stands for two tokens|zzz"},
        {"model.vocab", "zzz", "-1", "id from 0|zzz"},
        {"model.vocab", "zzz", "1.5", "id from 0"},
        {"model.vocab", "zzz", "1e300", "id from 0"},
        {"model.vocab", "zzz", "4194304", "id from 0 to 4194303"},
        {"model.vocab", "zzz", "\"5\"", "id from 0"},
        {"", "model", NULL, "no \"model\""},
        {"", "model", "3", "no \"model\""},
        {"", "normalizer", "{\"type\":\"NFC\"}", "normalizer"},
        {"", "added_tokens", "{}", "added_tokens"},
        {"", "added_tokens", "[3]", "content"},
        {"", "added_tokens", "[{\"id\":600,\"content\":\"\"}]", "empty"},
        {"", "added_tokens", "[{\"id\":601,\"content\":\"<x>\"}]", "expected the id 600|601"},
        {"", "added_tokens", "[{\"id\":9,\"content\":\"<|endoftext|>\"}]", "expected the id 0"},
        {"", "added_tokens", "[{\"id\":600,\"content\":\"<x>\",\"lstrip\":1}]", "true or false"},
        {"", "pre_tokenizer", "null", "ByteLevel|none"},
        {"", "pre_tokenizer", "{\"type\":\"Whitespace\"}", "Whitespace"},
        {"", "pre_tokenizer", "{\"type\":\"Sequence\",\"pretokenizers\":[]}", "ByteLevel"},
        {"", "pre_tokenizer",
         "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\"},"
         "{\"type\":\"Digits\"}]}",
         "last step"},
        {"", "pre_tokenizer",
         "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},\"behavior\":\"Isolated\"}", "PCRE2"},
        {"", "pre_tokenizer",
         "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\w\"},\"behavior\":\"Isolated\"}",
         "special escape"},
        {"", "pre_tokenizer",
         "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a[b]]\"},\"behavior\":\"Isolated\"}",
         "a [ inside"},
        {"", "pre_tokenizer",
         "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a{2}+\"},\"behavior\":\"Isolated\"}",
         "interval"},
        {"", "pre_tokenizer",
         "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\"},\"behavior\":\"Isolated\"}", "1 to"},
        {"", "pre_tokenizer",
         "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"MergedWithNext\"}",
         "MergedWithNext"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct tokenizer *tokenizer = NULL;
        cJSON *tree = cJSON_Duplicate(fixture, true), *object = walk(tree, cases[i].path);
        cJSON_DeleteItemFromObjectCaseSensitive(object, cases[i].key);
        if (cases[i].value != NULL) {
            cJSON_AddItemToObject(object, cases[i].key, cJSON_Parse(cases[i].value));
        }
        assert_int_equal(parse_tree(tree, &tokenizer), STATUS_DATA);
        assert_message(cases[i].words);
        assert_null(tokenizer);
        cJSON_Delete(tree);
    }
}

static void what_is_no_json_is_refused(void **state) {
    static const struct {
        const char *text;
        size_t bytes;
        const char *words;
    } cases[] = {
        {"", 0, "no JSON"},
        {"{", 1, "breaks off"},
        {"[]", 2, "model"},
        {"{} x", 4, "no JSON"},
        {"{\"a\0b\":1}", 9, "0x00 at place 4"},
        {"{\"\xff\":1}", 7, "0xFF at place 3"},
        {"{\"model\":{\"vocab\":{\"a\\u0000b\":1}}}", 34, "character \\u0000"},
        {"{\"\\\\u0000\":1}", 13, "no \"model\""}, /* a backslash and u0000 */
        {"{\"!\":0,\"a\":1}", 13, "encoder.json"},
        {"{\"model\":{},\"model\":{}}", 23, "stands twice"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct tokenizer *tokenizer = NULL;
        const char *path = in_folder(state, "t.json");
        write_file(path, cases[i].text, cases[i].bytes);
        assert_int_equal(tokenizer_open(&tokenizer, path), STATUS_DATA);
        assert_message("t.json");
        assert_message(cases[i].words);
    }
    struct tokenizer *tokenizer = NULL;
    assert_int_equal(tokenizer_open(&tokenizer, *state), STATUS_IO);
    assert_message("expected a file");
    assert_int_equal(tokenizer_open(&tokenizer, in_folder(state, "none.json")), STATUS_IO);
}

/* An expression that takes exponential time ends with a message. */
static void endless_patterns_end(void **state) {
    (void)state;
    struct tokenizer *tokenizer = NULL;
    int32_t *tokens = NULL;
    size_t count = 0;
    cJSON *tree = cJSON_Duplicate(fixture, true);
    cJSON_ReplaceItemInObject(tree, "pre_tokenizer", cJSON_Parse(
        "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":"
        "\"(x+x+)+y\"},\"behavior\":\"Isolated\"},{\"type\":\"ByteLevel\"}]}"));
    assert_int_equal(parse_tree(tree, &tokenizer), STATUS_OK);
    const char text[] = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxyxz";
    assert_int_equal(tokenizer_encode(tokenizer, text + 3, 40, false, &tokens, &count), STATUS_OK);
    free(tokens);
    tokens = NULL;
    cJSON_ReplaceItemInObject(tree, "pre_tokenizer", cJSON_Parse(
        "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":"
        "\"(x+x+)+[yz]{2}\"},\"behavior\":\"Isolated\"},{\"type\":\"ByteLevel\"}]}"));
    tokenizer_close(tokenizer);
    assert_int_equal(parse_tree(tree, &tokenizer), STATUS_OK);
    assert_int_equal(tokenizer_encode(tokenizer, text, sizeof text - 1, false, &tokens, &count),
                     STATUS_DATA);
    assert_message("pattern fails|match limit");
    assert_null(tokens);
    tokenizer_close(tokenizer);
    cJSON_Delete(tree);
}

int main(int argc, char **argv) {
    if (argc == 3) {
        fixture = read_json(argv[1]);
        expected = read_json(argv[2]);
    }
    if (fixture == NULL || expected == NULL) {
        fprintf(stderr, "expected the paths of the two fixture files\n");
        return 1;
    }
#define TEST(name) cmocka_unit_test_setup_teardown(name, folder_setup, folder_teardown)
    const struct CMUnitTest tests[] = {
        TEST(tokens_are_those_of_the_library),
        TEST(names_and_sizes),
        TEST(hostile_files_are_refused),
        TEST(what_is_no_json_is_refused),
        TEST(endless_patterns_end),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    cJSON_Delete(fixture);
    cJSON_Delete(expected);
    return failed;
}

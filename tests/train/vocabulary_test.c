/*
 * Where the vocabulary of a run comes from. Oracles: a table of sources and what must be found; for
 * text, what was put in comes out (the encoder itself is compared with the `tokenizers` library in
 * tests/data/tokenizer_json_test.c).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "train/token_text.h"

enum { FIXTURE_TOKENS = 605 };

static char folder[PATH_BYTES / 2];

static const char *path_of(const char *name) {
    static char path[PATH_BYTES];
    assert_int_equal(path_join(path, folder, name), STATUS_OK);
    return path;
}

static void write_text(const char *name, const char *text) {
    assert_int_equal(file_write_durable(path_of(name), text, strlen(text)), STATUS_OK);
}

static int setup(void **state) {
    (void)state;
    const char *base = getenv("TEST_TMPDIR");
    snprintf(folder, sizeof folder, "%s/vocabulary-%ld", base == NULL ? "/tmp" : base,
             (long)getpid());
    return folder_remove(folder) == STATUS_OK && folder_create(folder) == STATUS_OK ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    return folder_remove(folder) == STATUS_OK ? 0 : -1;
}

static char *fixture;
static size_t fixture_bytes;

static void put_fixture(const char *name) {
    assert_int_equal(file_write_durable(path_of(name), fixture, fixture_bytes), STATUS_OK);
}

/* Training shards in the folder, a model of `vocabulary` tokens. */
static struct config config_for(int64_t vocabulary) {
    struct config config;
    config_defaults(&config);
    assert_int_equal(config_set(&config, "data.train", path_of("train_*.bin")), STATUS_OK);
    config.model.vocabulary = vocabulary;
    return config;
}

static void assert_words(const char *words) {
    if (strstr(status_message(), words) == NULL) {
        fail_msg("expected \"%s\" in \"%s\"", words, status_message());
    }
}

static void without_a_description(void **state) {
    (void)state;
    struct config config = config_for(256);
    assert_int_equal(vocabulary_resolve(&config), STATUS_OK);
    assert_int_equal(vocabulary_end_of_text(&config), 0);
    config = config_for(50257);
    assert_int_equal(vocabulary_resolve(&config), STATUS_OK);
    assert_int_equal(vocabulary_end_of_text(&config), -1);
    assert_string_equal(config.data.tokenizer, "");
    config.sample.every = 1;
    assert_int_equal(vocabulary_resolve(&config), STATUS_CONFIG);
    assert_words("sample.prompt");
    config.data.end_of_text = 50256;
    assert_int_equal(vocabulary_resolve(&config), STATUS_OK);
    assert_int_equal(vocabulary_end_of_text(&config), 50256);
    config.data.end_of_text = 50257;
    assert_int_equal(vocabulary_resolve(&config), STATUS_CONFIG);
    assert_words("below model.vocabulary (50257)");
}

static void from_the_description(void **state) {
    (void)state;
    put_fixture("t.json");
    write_text("dataset.json", "{\"tokenizer\":\"t.json\",\"vocabulary\":605,\"end_of_text\":7}");
    struct config config = config_for(FIXTURE_TOKENS);
    assert_int_equal(vocabulary_resolve(&config), STATUS_OK);
    assert_string_equal(config.data.tokenizer, path_of("t.json"));
    assert_int_equal(config.data.end_of_text, 7);
    config = config_for(FIXTURE_TOKENS); /* what is set wins */
    config.data.end_of_text = 9;
    assert_int_equal(vocabulary_resolve(&config), STATUS_OK);
    assert_int_equal(config.data.end_of_text, 9);
    config = config_for(FIXTURE_TOKENS - 1);
    assert_int_equal(vocabulary_resolve(&config), STATUS_CONFIG);
    assert_words("another model's");
    write_text("dataset.json",
               "{\"tokenizer\":\"gone.json\",\"vocabulary\":605,\"end_of_text\":7}");
    config = config_for(FIXTURE_TOKENS);
    assert_int_equal(vocabulary_resolve(&config), STATUS_IO);
    assert_words("gone.json");
    write_text("nfc.json", "{\"model\":{},\"normalizer\":{\"type\":\"NFC\"}}"); /* not read here */
    write_text("dataset.json", "{\"tokenizer\":\"nfc.json\",\"vocabulary\":605,\"end_of_text\":7}");
    config = config_for(FIXTURE_TOKENS);
    assert_int_equal(vocabulary_resolve(&config), STATUS_OK);
    assert_string_equal(config.data.tokenizer, "");
    assert_int_equal(config.data.end_of_text, 7);
    write_text("dataset.json", "{}");
    config = config_for(FIXTURE_TOKENS);
    assert_int_equal(vocabulary_resolve(&config), STATUS_DATA);
    assert_words("dataset.json");
}

/* Validation shards of another tokenizer: of another size, of bytes, of another file; and those
 * that may be of the same one. */
static void validation_is_of_the_same_tokenizer(void **state) {
    (void)state;
    static const struct {
        const char *description; /* NULL: none */
        enum status status;
    } cases[] = {
        {"{\"tokenizer\":\"t.json\",\"vocabulary\":605,\"end_of_text\":7,"
         "\"tokenizer_xxh3_128\":\"aa\"}", STATUS_OK},
        {"{\"tokenizer\":\"t.json\",\"vocabulary\":605,\"end_of_text\":7}", STATUS_OK},
        {NULL, STATUS_OK},
        {"{\"tokenizer\":\"t.json\",\"vocabulary\":605,\"end_of_text\":7,"
         "\"tokenizer_xxh3_128\":\"bb\"}", STATUS_DATA},
        {"{\"tokenizer\":\"t.json\",\"vocabulary\":604,\"end_of_text\":7}", STATUS_DATA},
        {"{\"tokenizer\":\"bytes\",\"vocabulary\":605,\"end_of_text\":0}", STATUS_DATA},
    };
    put_fixture("t.json");
    write_text("dataset.json", "{\"tokenizer\":\"t.json\",\"vocabulary\":605,\"end_of_text\":7,"
                               "\"tokenizer_xxh3_128\":\"aa\"}");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct config config = config_for(FIXTURE_TOKENS);
        assert_int_equal(folder_remove(path_of("other")), STATUS_OK);
        assert_int_equal(folder_create(path_of("other")), STATUS_OK);
        if (cases[i].description != NULL) write_text("other/dataset.json", cases[i].description);
        assert_int_equal(config_set(&config, "data.validation", path_of("other/v.bin")), STATUS_OK);
        assert_int_equal(vocabulary_resolve(&config), cases[i].status);
        if (cases[i].status != STATUS_OK) assert_words("data.validation");
    }
}

static void from_the_tokenizer_and_the_checkpoint(void **state) {
    (void)state;
    put_fixture("mine.json");
    struct config config = config_for(1000); /* padded beyond the tokenizer's */
    assert_int_equal(config_set(&config, "data.tokenizer", path_of("mine.json")), STATUS_OK);
    assert_int_equal(vocabulary_resolve(&config), STATUS_OK);
    assert_int_equal(config.data.end_of_text, 0); /* the fixture's <|endoftext|> */
    assert_int_equal(vocabulary_prefer_checkpoint(&config, folder), STATUS_OK);
    assert_string_equal(config.data.tokenizer, path_of("mine.json"));
    put_fixture("tokenizer.json");
    assert_int_equal(vocabulary_prefer_checkpoint(&config, folder), STATUS_OK);
    assert_string_equal(config.data.tokenizer, path_of("tokenizer.json"));
}

/* A prompt longer than any text of the configuration, to tokens and back. */
static void text_comes_back(void **state) {
    (void)state;
    struct vocabulary vocabulary;
    struct token_printer printer = {.vocabulary = &vocabulary};
    char prompt[6001] = "", *text = NULL;
    int32_t *tokens = NULL;
    size_t count = 0, bytes = 0;
    put_fixture("t.json");
    struct config config = config_for(1000);
    assert_int_equal(config_set(&config, "data.tokenizer", path_of("t.json")), STATUS_OK);
    assert_int_equal(vocabulary_open(&vocabulary, &config), STATUS_OK);
    while (strlen(prompt) + 15 < sizeof prompt) strcat(prompt, "the \xE6\x97\xA5\xC3\xA9 loss\n");
    assert_int_equal(prompt_tokens(&vocabulary, prompt, &tokens, &count), STATUS_OK);
    assert_true(count > 1000 && count < strlen(prompt));
    FILE *out = open_memstream(&text, &bytes);
    for (size_t i = 0; i < count; i++) token_printer_add(&printer, tokens[i], out);
    token_printer_add(&printer, 999, out); /* padding: no text */
    token_printer_end(&printer, out);
    assert_int_equal(fclose(out), 0);
    assert_memory_equal(text, prompt, strlen(prompt));
    assert_string_equal(text + strlen(prompt), "\xEF\xBF\xBD");
    free(text);
    free(tokens);
    assert_int_equal(prompt_tokens(&vocabulary, "", &tokens, &count), STATUS_OK);
    assert_int_equal(count, 1);
    assert_int_equal(tokens[0], 0);
    free(tokens);
    vocabulary_close(&vocabulary);
}

int main(int argc, char **argv) {
    if (argc != 2 || file_read(argv[1], 1 << 20, &fixture, &fixture_bytes) != STATUS_OK) {
        fprintf(stderr, "expected the path of the tokenizer fixture\n");
        return 1;
    }
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(without_a_description),
        TEST(from_the_description),
        TEST(validation_is_of_the_same_tokenizer),
        TEST(from_the_tokenizer_and_the_checkpoint),
        TEST(text_comes_back),
    };
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    free(fixture);
    return failed;
}

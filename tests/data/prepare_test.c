/*
 * Preparation. Oracles: the bytes of the input, found again in the shards; byte equality of two
 * runs; where each document was before another came; and injected faults (a limit on the size of
 * files, missing and unusable inputs and outputs), after which the output must be as it was.
 */
#include "tests/data/data_test.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "base/random.h"
#include "data/prepare.h"
#include "data/shard.h"

/* One input, both as names in the test's folder. */
static enum status prepare(void **state, const char *input, const char *out, double fraction,
                           bool overwrite, struct prepare_report *report) {
    char input_path[PATH_BYTES], out_path[PATH_BYTES];
    const char *const inputs[] = {input_path};
    assert_int_equal(path_join(input_path, *state, input), STATUS_OK);
    assert_int_equal(path_join(out_path, *state, out), STATUS_OK);
    const struct prepare_options options = {
        .inputs = inputs, .input_count = 1, .out_folder = out_path,
        .validation_fraction = fraction, .overwrite = overwrite,
    };
    return prepare_text(&options, report);
}

/* A shard's bytes and a NUL; release with free(). */
static char *shard_text(const char *path, size_t *bytes) {
    struct shard shard;
    assert_int_equal(shard_open(&shard, path, 256), STATUS_OK);
    assert_int_equal(shard.token_bytes, 2);
    int32_t *tokens = calloc(shard.tokens + 1, sizeof *tokens);
    char *text = calloc(shard.tokens + 1, 1);
    assert_true(tokens != NULL && text != NULL);
    shard_read(&shard, 0, shard.tokens, tokens);
    for (size_t i = 0; i < shard.tokens; i++) text[i] = (char)tokens[i];
    *bytes = shard.tokens;
    shard_close(&shard);
    free(tokens);
    return text;
}

/* Lines of 1 to 120 random bytes, none of them 0. */
static void random_text(char *text, size_t bytes, uint64_t key) {
    for (size_t i = 0; i < bytes; i++) {
        uint32_t words[4];
        random_words(key, RANDOM_TEST, i, words);
        text[i] = words[1] % 60 == 0 ? '\n' : (char)(1 + words[0] % 255);
    }
}

static void write_document(void **state, const char *folder, size_t number, size_t bytes) {
    char name[64], text[4096];
    assert_true(bytes <= sizeof text);
    snprintf(name, sizeof name, "%s/%03zu.txt", folder, number);
    random_text(text, bytes, number);
    write_file(in_folder(state, name), text, bytes);
}

/* `count` documents of different lengths in a new folder. */
static void write_corpus(void **state, const char *folder, size_t count) {
    assert_int_equal(folder_create(in_folder(state, folder)), STATUS_OK);
    for (size_t i = 0; i < count; i++) write_document(state, folder, i, 1 + i * 37 % 3000);
}

static void one_document_comes_back(void **state) {
    enum { BYTES = 300001 }; /* several pieces, and not a round number */
    static char text[BYTES];
    struct prepare_report report;
    size_t train_bytes = 0, validation_bytes = 0;
    random_text(text, BYTES, 1);
    write_file(in_folder(state, "text"), text, BYTES);
    assert_int_equal(prepare(state, "text", "new/out", 0.1, false, &report), STATUS_OK);
    char *train = shard_text(in_folder(state, "new/out/train.bin"), &train_bytes);
    char *validation = shard_text(in_folder(state, "new/out/validation.bin"), &validation_bytes);
    assert_int_equal(report.documents, 1);
    assert_int_equal(report.train_tokens, train_bytes);
    assert_int_equal(report.validation_tokens, validation_bytes);
    assert_int_equal(train_bytes + validation_bytes, BYTES + 1);
    assert_memory_equal(train, text, train_bytes);
    assert_memory_equal(validation, text + train_bytes, validation_bytes); /* its NUL ends text */
    assert_int_equal(validation[validation_bytes - 1], 0);
    /* cut at the last line end at or before nine tenths: none lies in between */
    const size_t wished = BYTES - 30000;
    assert_true(train_bytes <= wished && wished - train_bytes < 4096);
    assert_int_equal(train[train_bytes - 1], '\n');
    assert_null(memchr(text + train_bytes, '\n', wished - train_bytes));
    assert_int_equal(names_in(in_folder(state, "new/out")), 3);
    free(validation);
    free(train);
}

static void one_document_without_lines(void **state) {
    struct prepare_report report;
    write_text(in_folder(state, "text"), "0123456789");
    assert_int_equal(prepare(state, "text", "out", 0.3, false, &report), STATUS_OK);
    assert_int_equal(report.train_tokens, 7);
    assert_int_equal(report.validation_tokens, 4); /* 789 and the end */
    write_text(in_folder(state, "text"), "\n\n");
    assert_int_equal(prepare(state, "text", "out", 0.5, true, &report), STATUS_OK);
    assert_int_equal(report.train_tokens, 1);
    write_text(in_folder(state, "text"), "1");
    assert_int_equal(prepare(state, "text", "out", 0.5, true, &report), STATUS_DATA);
    assert_message("1 bytes|give more text");
}

/* The next document of a shard's text that begins at *at; moves *at behind its end. */
static const char *next_document(const char *text, size_t bytes, size_t *at, size_t *length) {
    const char *start = text + *at, *end = memchr(start, '\0', bytes - *at);
    assert_non_null(end);
    *length = (size_t)(end - start);
    *at += *length + 1;
    return start;
}

/* Each document is whole in exactly one shard, in the order of the names. */
static void many_documents_come_back(void **state) {
    enum { DOCUMENTS = 200 };
    struct prepare_report report;
    char *texts[2];
    size_t bytes[2], at[2] = {0, 0}, total = 0;
    write_corpus(state, "in", DOCUMENTS);
    assert_int_equal(prepare(state, "in", "out", 0.25, false, &report), STATUS_OK);
    assert_int_equal(report.documents, DOCUMENTS);
    texts[0] = shard_text(in_folder(state, "out/train.bin"), &bytes[0]);
    texts[1] = shard_text(in_folder(state, "out/validation.bin"), &bytes[1]);
    size_t in_validation = 0;
    for (size_t i = 0; i < DOCUMENTS; i++) {
        char expected[4096];
        const size_t expected_bytes = 1 + i * 37 % 3000;
        bool found = false;
        random_text(expected, expected_bytes, i);
        for (size_t split = 0; split < 2 && !found; split++) {
            size_t next = at[split], length = 0;
            if (next == bytes[split]) continue;
            const char *text = next_document(texts[split], bytes[split], &next, &length);
            found = length == expected_bytes && memcmp(text, expected, length) == 0;
            if (!found) continue;
            at[split] = next;
            in_validation += split;
        }
        assert_true(found);
        total += expected_bytes + 1;
    }
    assert_int_equal(at[0], bytes[0]);
    assert_int_equal(at[1], bytes[1]);
    assert_int_equal(report.train_tokens + report.validation_tokens, total);
    /* binomial, 200 times 0.25: 50 with a standard deviation of 6.1; five of them */
    assert_true(in_validation > 50 - 31 && in_validation < 50 + 31);
    free(texts[0]);
    free(texts[1]);
}

static void description_tells_what_was_made(void **state) {
    struct prepare_report report;
    char *text = NULL;
    size_t bytes = 0;
    write_corpus(state, "in", 50);
    assert_int_equal(prepare(state, "in", "out", 0.25, false, &report), STATUS_OK);
    assert_int_equal(file_read(in_folder(state, "out/dataset.json"), 1 << 20, &text, &bytes),
                     STATUS_OK);
    cJSON *root = cJSON_ParseWithLength(text, bytes);
    assert_non_null(root);
    const struct {
        const char *name;
        double value;
    } numbers[] = {
        {"vocabulary", 256}, {"end_of_text", 0}, {"documents", 50}, {"validation_fraction", 0.25},
        {"train_tokens", (double)report.train_tokens},
        {"validation_tokens", (double)report.validation_tokens},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        const cJSON *number = cJSON_GetObjectItemCaseSensitive(root, numbers[i].name);
        assert_true(cJSON_IsNumber(number));
        assert_true(number->valuedouble == numbers[i].value);
    }
    const cJSON *tokenizer = cJSON_GetObjectItemCaseSensitive(root, "tokenizer");
    const cJSON *inputs = cJSON_GetObjectItemCaseSensitive(root, "inputs");
    assert_string_equal(cJSON_GetStringValue(tokenizer), "bytes");
    assert_int_equal(cJSON_GetArraySize(inputs), 1);
    assert_string_equal(cJSON_GetStringValue(cJSON_GetArrayItem(inputs, 0)),
                        in_folder(state, "in"));
    cJSON_Delete(root);
    free(text);
}

static void two_runs_are_equal(void **state) {
    static const char *const names[] = {"train.bin", "validation.bin", "dataset.json"};
    struct prepare_report report;
    write_corpus(state, "in", 60);
    assert_int_equal(prepare(state, "in", "a", 0.2, false, &report), STATUS_OK);
    assert_int_equal(prepare(state, "in", "b", 0.2, false, &report), STATUS_OK);
    for (size_t i = 0; i < 3; i++) {
        char a[PATH_BYTES], b[PATH_BYTES];
        assert_int_equal(path_join(a, in_folder(state, "a"), names[i]), STATUS_OK);
        assert_int_equal(path_join(b, in_folder(state, "b"), names[i]), STATUS_OK);
        assert_true(files_equal(a, b));
    }
}

/* True if `part` is what remains of `whole` when the documents of one place are taken out of it. */
static bool is_whole_without_one(const char *whole, size_t whole_bytes, const char *part,
                                 size_t part_bytes) {
    size_t at = 0, from = 0, missing = 0;
    while (at < whole_bytes) {
        size_t length = 0;
        const char *document = next_document(whole, whole_bytes, &at, &length);
        if (part_bytes - from > length && memcmp(part + from, document, length + 1) == 0) {
            from += length + 1;
        } else {
            missing++;
        }
    }
    return from == part_bytes && missing == 1;
}

static void adding_a_document_moves_no_other(void **state) {
    static const char *const names[] = {"train.bin", "validation.bin"};
    struct prepare_report report;
    size_t grown = 0;
    write_corpus(state, "in", 40);
    assert_int_equal(prepare(state, "in", "before", 0.3, false, &report), STATUS_OK);
    write_text(in_folder(state, "in/017 and a half.txt"), "something new\n");
    assert_int_equal(prepare(state, "in", "after", 0.3, false, &report), STATUS_OK);
    for (size_t i = 0; i < 2; i++) {
        char before_path[PATH_BYTES], after_path[PATH_BYTES];
        size_t before_bytes = 0, after_bytes = 0;
        assert_int_equal(path_join(before_path, in_folder(state, "before"), names[i]), STATUS_OK);
        assert_int_equal(path_join(after_path, in_folder(state, "after"), names[i]), STATUS_OK);
        char *before = shard_text(before_path, &before_bytes);
        char *after = shard_text(after_path, &after_bytes);
        if (after_bytes == before_bytes) {
            assert_memory_equal(after, before, before_bytes);
        } else {
            assert_true(is_whole_without_one(after, after_bytes, before, before_bytes));
            grown++;
        }
        free(before);
        free(after);
    }
    assert_int_equal(grown, 1);
}

/* Hidden names, links, binaries, empty files and the output are passed over; nested folders are
 * not; the order is that of whole paths: "b.txt" before "b/c.txt" although "b" comes before
 * "b.txt". */
static void folders_are_walked(void **state) {
    struct prepare_report report;
    size_t bytes = 0;
    assert_int_equal(folder_create(in_folder(state, "in/b/deep/deeper")), STATUS_OK);
    assert_int_equal(folder_create(in_folder(state, "in/.git")), STATUS_OK);
    write_text(in_folder(state, "in/b/deep/deeper/d.txt"), "four");
    write_text(in_folder(state, "in/b/c.txt"), "three");
    write_text(in_folder(state, "in/b.txt"), "two");
    write_text(in_folder(state, "in/a.txt"), "one");
    write_text(in_folder(state, "in/.hidden"), "hidden");
    write_text(in_folder(state, "in/.git/config"), "hidden");
    write_text(in_folder(state, "in/empty"), "");
    write_file(in_folder(state, "in/binary"), "\x7f""ELF\0", 5);
    assert_int_equal(symlink("a.txt", in_folder(state, "in/link")), 0);
    assert_int_equal(symlink("..", in_folder(state, "in/b/loop")), 0);
    assert_int_equal(mkfifo(in_folder(state, "in/pipe"), 0600), 0);
    for (int run = 0; run < 2; run++) { /* the second finds the output of the first */
        assert_int_equal(prepare(state, "in", "in/b/out", 0.5, run == 1, &report), STATUS_OK);
        assert_int_equal(report.documents, 4);
        assert_int_equal(report.skipped_hidden, 2);
        assert_int_equal(report.skipped_special, 3);
        assert_int_equal(report.skipped_binary, 1);
        assert_int_equal(report.skipped_empty, 1);
    }
    char *train = shard_text(in_folder(state, "in/b/out/train.bin"), &bytes);
    const char order[] = "one\0two\0three\0four"; /* less those that went to validation */
    size_t from = 0, at = 0;
    while (at < bytes) {
        size_t length = 0;
        const char *document = next_document(train, bytes, &at, &length);
        while (from < sizeof order && strcmp(order + from, document) != 0) {
            from += strlen(order + from) + 1;
        }
        assert_true(from < sizeof order);
    }
    free(train);
}

static void inputs_that_are_refused(void **state) {
    struct prepare_report report;
    const struct prepare_options none = {.out_folder = *state, .validation_fraction = 0.1};
    assert_int_equal(folder_create(in_folder(state, "in")), STATUS_OK);
    assert_int_equal(prepare(state, "missing.txt", "out", 0.1, false, &report), STATUS_IO);
    assert_message("missing.txt|No such file");
    assert_int_equal(prepare(state, "in", "out", 0.1, false, &report), STATUS_DATA);
    assert_message("found no document|0 empty|name text files");
    write_text(in_folder(state, "in/empty"), "");
    write_file(in_folder(state, "in/binary"), "a\0b", 3);
    assert_int_equal(prepare(state, "in", "out", 0.1, false, &report), STATUS_DATA);
    assert_message("1 empty, 1 binary (|in/binary), 0 hidden");
    assert_int_equal(mkfifo(in_folder(state, "pipe"), 0600), 0);
    assert_int_equal(prepare(state, "pipe", "out", 0.1, false, &report), STATUS_DATA);
    assert_message("pipe|something else");
    assert_int_equal(prepare(state, "in", "in", 0.1, false, &report), STATUS_CONFIG);
    assert_message("binary|another --out");
    write_text(in_folder(state, "text"), "text enough for both sides\n");
    const double fractions[] = {0.0, 1.0, -0.5, 1e300, 0.0 / 0.0};
    for (size_t i = 0; i < sizeof fractions / sizeof fractions[0]; i++) {
        assert_int_equal(prepare(state, "text", "out", fractions[i], false, &report),
                         STATUS_CONFIG);
        assert_message("above 0 and below 1");
    }
    assert_int_equal(prepare_text(&none, &report), STATUS_CONFIG);
    assert_message("found none");
    assert_false(path_is_folder(in_folder(state, "out"))); /* nothing was begun */
}

/* Few documents: the fraction may leave a side empty; one document goes there all the same. */
static void no_side_is_empty(void **state) {
    static const double fractions[] = {0.0001, 0.9999};
    struct prepare_report report;
    write_corpus(state, "in", 3);
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(prepare(state, "in", "out", fractions[i], i > 0, &report), STATUS_OK);
        assert_int_equal(report.documents, 3);
        assert_true(report.validation_tokens > 0 && report.train_tokens > 0);
    }
    assert_int_equal(folder_create(in_folder(state, "same")), STATUS_OK);
    write_text(in_folder(state, "same/a.txt"), "the same text");
    write_text(in_folder(state, "same/b.txt"), "the same text");
    assert_int_equal(prepare(state, "same", "out", 0.1, true, &report), STATUS_DATA);
    assert_message("2 with the same content");
}

/* Every name in OUT holds what it held: the results of an earlier run, or nothing. */
static void earlier_output_is_safe(void **state) {
    static const char *const names[] = {"train.bin", "validation.bin", "dataset.json"};
    struct prepare_report report;
    write_corpus(state, "in", 60);
    assert_int_equal(prepare(state, "in", "kept", 0.2, false, &report), STATUS_OK);
    assert_int_equal(prepare(state, "in", "out", 0.2, false, &report), STATUS_OK);
    write_document(state, "in", 500, 3000);
    assert_int_equal(prepare(state, "in", "out", 0.2, false, &report), STATUS_CONFIG);
    assert_message("dataset.json|--overwrite");
    const size_t limits[] = {2048, 20000, 60000}; /* in the second shard, then in the first */
    for (size_t i = 0; i < 3; i++) {
        limit_file_bytes(limits[i]);
        const enum status fresh = prepare(state, "in", "fresh", 0.2, false, &report);
        const enum status status = prepare(state, "in", "out", 0.2, true, &report);
        lift_file_limit();
        assert_int_equal(fresh, STATUS_IO);
        assert_int_equal(status, STATUS_IO);
        assert_message("out.unfinished|File too large");
        assert_false(path_is_folder(in_folder(state, "fresh")));
        assert_int_equal(names_in(*state), 3); /* in, kept, out: nothing unfinished */
    }
    for (size_t i = 0; i < 3; i++) {
        char kept[PATH_BYTES], out[PATH_BYTES];
        assert_int_equal(path_join(kept, in_folder(state, "kept"), names[i]), STATUS_OK);
        assert_int_equal(path_join(out, in_folder(state, "out"), names[i]), STATUS_OK);
        assert_true(files_equal(kept, out));
    }
    assert_int_equal(names_in(in_folder(state, "out")), 3);
    assert_int_equal(prepare(state, "in", "out", 0.2, true, &report), STATUS_OK);
    assert_false(files_equal(in_folder(state, "kept/dataset.json"),
                             in_folder(state, "out/dataset.json")));
    assert_int_equal(names_in(in_folder(state, "out")), 3);
}

/* What a killed preparation left goes; what another works in, or somebody else made, does not. */
static void what_was_left_behind_is_removed(void **state) {
    struct prepare_report report;
    static const char *const names[] = {"out.unfinished-1", "out.unfinished-2",
                                        "out.unfinished-2x", "out.unfinished",
                                        "in.unfinished-3"};
    write_corpus(state, "in", 60);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        assert_int_equal(folder_create(in_folder(state, names[i])), STATUS_OK);
        char file[64];
        snprintf(file, sizeof file, "%s/train.bin.1.tmp", names[i]);
        write_text(in_folder(state, file), "half");
    }
    const int in_use = open(in_folder(state, "out.unfinished-2"), O_RDONLY | O_DIRECTORY);
    assert_int_equal(flock(in_use, LOCK_EX), 0);
    assert_int_equal(prepare(state, "in", "out", 0.2, false, &report), STATUS_OK);
    assert_int_equal(report.left_behind, 1);
    assert_false(path_is_folder(in_folder(state, names[0])));
    assert_int_equal(names_in(*state), 2 + 4); /* in, out */
    close(in_use);
    assert_int_equal(prepare(state, "in", "out", 0.2, true, &report), STATUS_OK);
    assert_int_equal(report.left_behind, 1);
    assert_int_equal(names_in(*state), 2 + 3);
}

static void outputs_that_are_refused(void **state) {
    struct prepare_report report;
    write_text(in_folder(state, "text"), "text enough for both sides\n");
    assert_int_equal(prepare(state, "text", "text/below", 0.2, false, &report), STATUS_IO);
    assert_message("text");
    assert_int_equal(prepare(state, "text", "text", 0.2, false, &report), STATUS_IO);
    /* a folder in the place of one output: refused before any other is replaced */
    assert_int_equal(prepare(state, "text", "out", 0.2, false, &report), STATUS_OK);
    assert_int_equal(folder_remove(in_folder(state, "out/dataset.json")), STATUS_OK);
    assert_int_equal(folder_create(in_folder(state, "out/dataset.json")), STATUS_OK);
    assert_int_equal(prepare(state, "text", "out", 0.5, true, &report), STATUS_CONFIG);
    assert_message("expected a new folder|dataset.json");
    assert_int_equal(names_in(in_folder(state, "out")), 3);
    /* what somebody else put there is not lost */
    assert_int_equal(folder_remove(in_folder(state, "out/dataset.json")), STATUS_OK);
    write_text(in_folder(state, "out/notes"), "mine\n");
    assert_int_equal(prepare(state, "text", "out", 0.5, true, &report), STATUS_CONFIG);
    assert_message("notes|another --out");
    /* what is no plain text is not taken for it */
    write_text(in_folder(state, "some.jsonl"), "{\"text\": \"a\"}\n");
    assert_int_equal(prepare(state, "some.jsonl", "new", 0.5, false, &report), STATUS_CONFIG);
    assert_message("some.jsonl|--tokenizer");
    assert_false(path_is_folder(in_folder(state, "new")));
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, folder_setup, folder_teardown)
    const struct CMUnitTest tests[] = {
        TEST(one_document_comes_back),
        TEST(one_document_without_lines),
        TEST(many_documents_come_back),
        TEST(description_tells_what_was_made),
        TEST(two_runs_are_equal),
        TEST(adding_a_document_moves_no_other),
        TEST(folders_are_walked),
        TEST(inputs_that_are_refused),
        TEST(no_side_is_empty),
        TEST(earlier_output_is_safe),
        TEST(what_was_left_behind_is_removed),
        TEST(outputs_that_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

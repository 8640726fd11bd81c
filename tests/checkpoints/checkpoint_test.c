/*
 * Whole checkpoints: saving, loading, and refusing what was altered.
 * Oracle: bit equality with contents that are a pure function of the step, and for damage the fact
 * that nothing may verify after a single byte of any file changed.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/checkpoints/fixture.h"

static const char *const file_names[] = {"manifest.json", "config.json", "state.json",
                                         "model.safetensors",
                                         "optimizer-00001-of-00001.safetensors"};
enum { FILE_NAMES = sizeof file_names / sizeof file_names[0] };

static char first_warning[2048], last_warning[2048];
static int warnings;
static void remember_warning(const char *message) {
    snprintf(warnings == 0 ? first_warning : last_warning, sizeof last_warning, "%s", message);
    warnings++;
}

static void round_trip_is_bit_exact(void **unused) {
    (void)unused;
    struct fixture fixture;
    char path[PATH_BYTES];
    fixture_open(&fixture);
    fixture_save(&fixture, 0);
    fixture_save(&fixture, 123456789); /* more digits than the name is padded to */
    fixture_save(&fixture, 7);
    fixture_path(&fixture, 7, NULL, path);
    assert_int_equal(fixture_expect_whole(&fixture, path), 7);
    strcat(path, "/");
    assert_int_equal(fixture_expect_whole(&fixture, path), 7);
    assert_int_equal(fixture_expect_newest(&fixture), 123456789);
    assert_int_equal(fixture_count(&fixture, ""), 3); /* nothing else is left in the run folder */
    fixture_close(&fixture);
}

/* A copy under any name is a checkpoint too; under the name of another step it is not. */
static void names_must_tell_the_truth(void **unused) {
    (void)unused;
    struct fixture fixture;
    struct checkpoint checkpoint;
    char path[PATH_BYTES], best[PATH_BYTES], lie[PATH_BYTES];
    fixture_open(&fixture);
    fixture_save(&fixture, 5);
    fixture_path(&fixture, 5, NULL, path);
    assert_int_equal(path_join(best, fixture.folder, "best"), STATUS_OK);
    assert_int_equal(rename(path, best), 0);
    assert_int_equal(fixture_expect_whole(&fixture, best), 5);
    fixture_path(&fixture, 6, NULL, lie);
    assert_int_equal(rename(best, lie), 0);
    expect_refused(checkpoint_open(&checkpoint, lie), STATUS_CHECKPOINT,
                   "expected the manifest of step 6, found step 5");
    expect_refused(checkpoint_open(&checkpoint, path), STATUS_CHECKPOINT, "no checkpoint folder");
    fixture_close(&fixture);
}

/* The checkpoint of step 2 is refused with a reason that names `file`; the newest good one is step
 * 1, which is offered. */
static void expect_fall_back(struct fixture *fixture, const char *file) {
    struct checkpoint checkpoint;
    char path[PATH_BYTES];
    bool found = false;
    fixture_path(fixture, 2, NULL, path);
    expect_refused(checkpoint_open(&checkpoint, path), STATUS_CHECKPOINT, file);
    expect_refused(STATUS_CHECKPOINT, STATUS_CHECKPOINT, "step_00000001 is whole");
    warnings = 0;
    assert_int_equal(checkpoint_newest(fixture->run, path, &found, remember_warning), STATUS_OK);
    assert_true(found);
    assert_int_equal(warnings, 2);
    assert_non_null(strstr(first_warning, file));
    assert_non_null(strstr(last_warning, path));
    assert_non_null(strstr(path, "step_00000001"));
}

static void every_altered_byte_is_found(void **unused) {
    (void)unused;
    struct fixture fixture;
    char path[PATH_BYTES];
    fixture_open(&fixture);
    fixture_save(&fixture, 1);
    fixture_save(&fixture, 2);
    for (size_t f = 0; f < FILE_NAMES; f++) {
        size_t bytes = 0;
        fixture_path(&fixture, 2, file_names[f], path);
        char *text = test_read_file(path, &bytes);
        const size_t stride =
            1 + bytes / 150; /* about 150 places in each file, every bit in turn */
        for (size_t i = 0, bit = 0; i < bytes; i += stride, bit++) {
            text[i] = (char)(text[i] ^ 1 << bit % 8);
            test_write_file(path, text, bytes);
            expect_fall_back(&fixture, f == 0 ? "step_00000002" : file_names[f]);
            text[i] = (char)(text[i] ^ 1 << bit % 8);
        }
        test_write_file(path, text, bytes);
        free(text);
    }
    assert_int_equal(fixture_expect_newest(&fixture), 2);
    fixture_close(&fixture);
}

static void every_other_length_is_found(void **unused) {
    (void)unused;
    struct fixture fixture;
    char path[PATH_BYTES];
    fixture_open(&fixture);
    fixture_save(&fixture, 1);
    fixture_save(&fixture, 2);
    for (size_t f = 0; f < FILE_NAMES; f++) {
        size_t bytes = 0;
        fixture_path(&fixture, 2, file_names[f], path);
        char *text = test_read_file(path, &bytes);
        const size_t lengths[] = {0,         1,         7,        8,
                                  bytes / 2, bytes - 1, bytes + 1}; /* the NUL behind it */
        for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
            test_write_file(path, text, lengths[i]);
            expect_fall_back(&fixture, file_names[f]);
        }
        assert_int_equal(unlink(path), 0);
        expect_fall_back(&fixture, file_names[f]);
        assert_int_equal(mkdir(path, 0777), 0);
        expect_fall_back(&fixture, file_names[f]);
        assert_int_equal(rmdir(path), 0);
        test_write_file(path, text, bytes);
        free(text);
    }
    assert_int_equal(fixture_expect_newest(&fixture), 2);
    fixture_path(&fixture, 2, "extra.txt", path);
    test_write_file(path, "x", 1);
    /* What somebody laid beside the files (a tokenizer, a note) is not read. */
    assert_int_equal(fixture_expect_newest(&fixture), 2);
    fixture_close(&fixture);
}

/* Replaces `from` by `to` (as long) in the manifest of step 2: consistent JSON that lies. */
static void rewrite_manifest(struct fixture *fixture, const char *from, const char *to) {
    char path[PATH_BYTES];
    size_t bytes = 0;
    fixture_path(fixture, 2, "manifest.json", path);
    char *text = test_read_file(path, &bytes);
    char *at = strstr(text, from);
    assert_non_null(at);
    assert_int_equal(strlen(from), strlen(to));
    memcpy(at, to, strlen(to));
    test_write_file(path, text, bytes);
    free(text);
}

static void hostile_manifests_are_refused(void **unused) {
    (void)unused;
    static const struct {
        const char *from, *to, *reason;
    } cases[] = {
        {"config.json", "../../a.txt", "own folder"},
        {"config.json", "/etc/passwd", "own folder"},
        {"\"state.json\"", "\"..\"        ", "own folder"},
        {"\"state.json\"", "\"\"          ", "own folder"},
        {"\"version\":\t1", "\"version\":\t2", "version"},
        {"\"step\":\t2", "\"step\":\t3", "step"},
        {"\"step\":\t2", "\"stop\":\t2", "step"},
        {"\"files\"", "\"piles\"", "files"},
        {"\"bytes\":\t", "\"bytes\":\t-", "bytes"},
        {"{\n\t\"version\"", "{ \t\"version\"", "altered"},
    };
    struct fixture fixture;
    char path[PATH_BYTES];
    size_t bytes = 0;
    fixture_open(&fixture);
    fixture_save(&fixture, 1);
    fixture_save(&fixture, 2);
    fixture_path(&fixture, 2, "manifest.json", path);
    char *text = test_read_file(path, &bytes);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        if (strlen(cases[i].from) == strlen(cases[i].to)) {
            rewrite_manifest(&fixture, cases[i].from, cases[i].to);
        } else { /* "bytes": the sign takes the place of the first digit */
            char *at = strstr(text, cases[i].from);
            assert_non_null(at);
            char *changed = strdup(text);
            changed[at - text + (ptrdiff_t)strlen(cases[i].from)] = '-';
            test_write_file(path, changed, bytes);
            free(changed);
        }
        expect_fall_back(&fixture, cases[i].reason);
        test_write_file(path, text, bytes);
    }
    /* A file that the checkpoint needs and the manifest forgot: the list is true, but not
     * enough. */
    char *listed = strstr(text, "\t\t}, {\n");
    assert_non_null(listed);
    char *last = strstr(text, ", {\n\t\t\t\"name\":\t\"optimizer-");
    assert_non_null(last);
    strcpy(last, "]\n}");
    test_write_file(path, text, strlen(text));
    char optimizer[PATH_BYTES];
    fixture_path(&fixture, 2, "optimizer-00001-of-00001.safetensors", optimizer);
    assert_int_equal(unlink(optimizer), 0);
    expect_fall_back(&fixture, "does not list optimizer-00001-of-00001.safetensors");
    free(text);
    fixture_close(&fixture);
}

static void newest_with_nothing_to_find(void **unused) {
    (void)unused;
    struct fixture fixture;
    char path[PATH_BYTES];
    bool found = true;
    fixture_open(&fixture);
    assert_int_equal(checkpoint_newest(fixture.run, path, &found, NULL), STATUS_OK);
    assert_false(found); /* no run folder */
    fixture_save(&fixture, 3);
    fixture_path(&fixture, 3, "state.json", path);
    assert_int_equal(unlink(path), 0);
    expect_refused(checkpoint_newest(fixture.run, path, &found, NULL), STATUS_CHECKPOINT,
                   "none of the 1 checkpoints");
    assert_false(found);
    /* Names that are none of ours, or of unfinished work, are not looked at. */
    static const char *const others[] = {"step_00000009.tmp-1-0",
                                         "step_00000009.deleting-1-0",
                                         "step_00000009.damaged-1-0",
                                         "step_9",
                                         "step_000000009",
                                         "step_",
                                         "step_0000000x",
                                         "step_99999999999999999999",
                                         "x"};
    char from[PATH_BYTES];
    fixture_path(&fixture, 3, NULL, from);
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        assert_int_equal(path_join(path, fixture.run, others[i]), STATUS_OK);
        assert_int_equal(rename(from, path), 0);
        memcpy(from, path, sizeof from);
        found = true;
        assert_int_equal(checkpoint_newest(fixture.run, path, &found, NULL), STATUS_OK);
        assert_false(found);
    }
    fixture_close(&fixture);
}

static void same_step_again(void **unused) {
    (void)unused;
    struct fixture fixture;
    struct stat before, after;
    char path[PATH_BYTES], folder[PATH_BYTES];
    fixture_open(&fixture);
    fixture_save(&fixture, 1);
    fixture_save(&fixture, 2);
    fixture_path(&fixture, 2, NULL, folder);
    assert_int_equal(stat(folder, &before), 0);
    fixture_save(&fixture, 2);
    assert_int_equal(stat(folder, &after), 0);
    assert_int_equal(before.st_ino, after.st_ino); /* verifies: left alone */
    fixture_path(&fixture, 2, "model.safetensors", path);
    assert_int_equal(truncate(path, 100), 0);
    assert_int_equal(fixture_expect_newest(&fixture), 1);
    fixture_save(&fixture, 2);
    assert_int_equal(stat(folder, &after), 0);
    assert_int_not_equal(before.st_ino, after.st_ino); /* does not: replaced */
    assert_int_equal(fixture_expect_newest(&fixture), 2);
    assert_int_equal(fixture_count(&fixture, ""), 2);
    fixture_close(&fixture);
}

static void what_cannot_be_saved_is_refused(void **unused) {
    (void)unused;
    struct fixture fixture;
    const struct checkpoint_retention none = {.keep = 0, .keep_every = 0};
    fixture_open(&fixture);
    fixture_save(&fixture, 1);
    fixture_fill(&fixture, 2);
    expect_refused(checkpoint_save(fixture.run, &fixture.content, &none), STATUS_CONFIG,
                   "at least 1");
    fixture.content.step = 3; /* the state says 2 */
    expect_refused(checkpoint_save(fixture.run, &fixture.content, &keep_all), STATUS_INTERNAL,
                   "\"step\"");
    fixture_fill(&fixture, 2);
    cJSON_AddNumberToObject(fixture.state, "loss", (double)NAN);
    expect_refused(checkpoint_save(fixture.run, &fixture.content, &keep_all), STATUS_NUMERICS,
                   "loss");
    static const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < fixture.params.length; i++) { /* the last number of each parameter */
        const struct param *param = &fixture.params.params[i];
        fixture_fill(&fixture, 2);
        fixture.masters[param->offset + param_count(param) - 1] = bad[i % 4];
        expect_refused(checkpoint_save(fixture.run, &fixture.content, &keep_all), STATUS_NUMERICS,
                       param->name);
    }
    fixture_fill(&fixture, 2);
    fixture.content.model.n_head = 4; /* does not divide 6 */
    expect_refused(checkpoint_save(fixture.run, &fixture.content, &keep_all), STATUS_CONFIG,
                   "n_head");
    fixture_fill(&fixture, 2);
    char inside[PATH_BYTES];
    fixture_path(&fixture, 1, "config.json", inside); /* a run folder below a file */
    expect_refused(checkpoint_save(inside, &fixture.content, &keep_all), STATUS_IO, "config.json");
    assert_int_equal(fixture_count(&fixture, ""), 1);
    assert_int_equal(fixture_expect_newest(&fixture), 1);
    fixture_close(&fixture);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip_is_bit_exact),
        cmocka_unit_test(names_must_tell_the_truth),
        cmocka_unit_test(every_altered_byte_is_found),
        cmocka_unit_test(every_other_length_is_found),
        cmocka_unit_test(hostile_manifests_are_refused),
        cmocka_unit_test(newest_with_nothing_to_find),
        cmocka_unit_test(same_step_again),
        cmocka_unit_test(what_cannot_be_saved_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

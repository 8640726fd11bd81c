/*
 * Damaged checkpoints, a disk that fills, a run folder that is in use: what is left of a run, and
 * that it goes on from there.
 *
 * Oracle: fault injection (each file of a checkpoint cut and flipped; RLIMIT_FSIZE for a full disk;
 * a second process) and bit equality with a run that met no fault.
 */
#include "tests/e2e/e2e.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char *const files[] = {"config.json", "manifest.json", "model.safetensors",
                                    "optimizer-00001-of-00001.safetensors", "state.json"};
enum { FILES = sizeof files / sizeof files[0] };

enum damage { CUT, FLIPPED, GONE, DAMAGES };

static void damage_file(const char *path, enum damage damage) {
    size_t bytes = 0;
    char *data = e2e_read(path, &bytes);
    assert_true(bytes > 0);
    assert_int_equal(remove(path), 0);
    if (damage == FLIPPED) data[bytes / 2] = (char)(data[bytes / 2] ^ 1);
    if (damage != GONE) e2e_write(path, data, damage == CUT ? bytes - 1 : bytes);
    free(data);
}

static void a_damaged_checkpoint_is_passed_over(void **state) {
    (void)state;
    char path[PATH_BYTES], words[128];
    e2e_expect(0, "", "train ../tiny.conf");
    char *expected = e2e_tree("run/step_00000016");
    for (size_t i = 0; i < FILES; i++) {
        for (int damage = 0; damage < DAMAGES; damage++) {
            snprintf(path, sizeof path, "run/step_00000016/%s", files[i]);
            snprintf(words, sizeof words,
                     "warning|step_00000016|%s|run/step_00000015 is the newest", files[i]);
            damage_file(path, (enum damage)damage);
            if (strcmp(files[i], "manifest.json") != 0 ||
                damage != GONE) { /* else it is no checkpoint */
                snprintf(path, sizeof path, "step_00000016|%s|run/step_00000015 is whole",
                         files[i]);
                e2e_expect(STATUS_CHECKPOINT, path, "eval run/step_00000016");
            }
            const struct outcome *eval = e2e_expect(0, words, "eval run");
            e2e_assert_words("eval", eval->out, "run/step_00000015 (step 15)");
            const struct outcome *train = e2e_expect(0, "", "train ../tiny.conf");
            e2e_assert_words("train", train->out, words);
            e2e_assert_words("train", train->out, "continuing run/step_00000015");
            e2e_assert_same_tree("run/step_00000016", expected);
            e2e_assert_steps("run", E2E_STEPS);
        }
    }
    free(expected);
}

static void without_a_whole_checkpoint_nothing_happens(void **state) {
    (void)state;
    static const char *const steps[] = {"10", "15", "16"};
    char path[PATH_BYTES];
    e2e_expect(0, "", "train ../tiny.conf");
    for (size_t i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "run/step_000000%s/%s", steps[i], files[i + 1]);
        damage_file(path, FLIPPED);
    }
    char *expected = e2e_tree("run");
    e2e_expect(STATUS_CHECKPOINT, "none of the 3 checkpoints in run verifies",
               "train ../tiny.conf");
    e2e_expect(STATUS_CHECKPOINT, "none of the 3 checkpoints in run verifies", "eval run");
    e2e_expect(STATUS_CHECKPOINT, "none of the 3 checkpoints in run verifies", "sample run");
    e2e_assert_same_tree("run", expected);
    free(expected);
}

static void a_full_disk_keeps_what_was_saved(void **state) {
    (void)state;
    /* beside weights of 46 kB, moments of 93 kB: in the middle of one, of the other, at the first
     * file */
    static const size_t limits[] = {40000, 60000, 93000};
    static const char options[] = "--optimizer.schedule constant";
    e2e_expect(0, "", "train ../tiny.conf %s", options);
    char *expected = e2e_tree("run/step_00000016");
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        assert_int_equal(folder_remove("run"), STATUS_OK);
        e2e_expect(0, "", "train ../tiny.conf --train.steps 8 %s", options);
        char *saved = e2e_tree("run/step_00000008");
        const struct unusual unusual = {.file_bytes_max = limits[i]};
        const struct process process = e2e_start(&unusual, "train ../tiny.conf %s", options);
        const struct outcome *full = e2e_wait(&process);
        if (full->code != STATUS_IO)
            fail_msg("limit %zu: code %d: %s", limits[i], full->code, full->err);
        e2e_assert_words("a full disk", full->err, "File too large");
        e2e_assert_same_tree("run/step_00000008", saved);
        char *left = e2e_tree("run");
        if (strstr(left, "tmp") != NULL) fail_msg("leftovers in run:\n%s", left);
        free(left);
        free(saved);
        e2e_expect(0, "", "eval run/step_00000008");
        e2e_expect(0, "", "train ../tiny.conf %s", options);
        e2e_assert_same_tree("run/step_00000016", expected);
        e2e_assert_steps("run", E2E_STEPS);
    }
    free(expected);
}

static const struct outcome *run_by_modes(const char *line) {
    const struct unusual unusual = {.obeys_modes = true};
    const struct process process = e2e_start(&unusual, "%s", line);
    return e2e_wait(&process);
}

/* A file that cannot be read now may be whole: going on from an older checkpoint would lose it. */
static void an_unreadable_newest_checkpoint_is_no_damaged_one(void **state) {
    (void)state;
    char path[PATH_BYTES];
    e2e_expect(0, "", "train ../tiny.conf");
    for (size_t i = 0; i < FILES; i++) {
        snprintf(path, sizeof path, "run/step_00000016/%s", files[i]);
        char *expected = e2e_tree("run");
        assert_int_equal(chmod(path, 0), 0);
        const char *const lines[] = {"train ../tiny.conf --train.steps 20", "eval run"};
        for (size_t l = 0; l < 2; l++) {
            const struct outcome *outcome = run_by_modes(lines[l]);
            if (outcome->code != STATUS_IO) {
                fail_msg("%s, %s: code %d: %s", files[i], lines[l], outcome->code, outcome->err);
            }
            e2e_assert_words("an unreadable file", outcome->err, "Permission denied");
            e2e_assert_words("an unreadable file", outcome->err, files[i]);
        }
        assert_int_equal(chmod(path, 0644), 0);
        e2e_assert_same_tree("run", expected);
        free(expected);
    }
}

/* A folder that turns read-only while the run goes on: the save in the background fails, and the
 * run ends with its reason instead of training on for nothing. */
static void a_failed_save_in_the_background_ends_the_run(void **state) {
    (void)state;
    e2e_expect(0, "", "train ../tiny.conf --train.steps 5");
    char *saved = e2e_tree("run/step_00000005");
    assert_int_equal(chmod("run", 0555), 0);
    const struct outcome *outcome =
        run_by_modes("train ../tiny.conf --checkpoint.background on --train.steps 2000");
    assert_int_equal(chmod("run", 0755), 0);
    assert_int_equal(outcome->code, STATUS_IO);
    e2e_assert_words("a read-only run", outcome->err, "Permission denied|run");
    e2e_assert_same_tree("run/step_00000005", saved);
    free(saved);
    e2e_expect(0, "", "train ../tiny.conf --train.steps 8");
}

static void checkpoints_are_listed_verified_and_pruned(void **state) {
    (void)state;
    e2e_expect(0, "", "train ../tiny.conf --checkpoint.keep 9");
    const struct outcome *list = e2e_expect(0, "", "checkpoint list run");
    e2e_assert_words("list", list->out, "run/step_00000016|run/step_00000015|run/step_00000005");
    e2e_expect(0, "", "checkpoint verify run");
    damage_file("run/step_00000010/state.json", FLIPPED);
    const struct outcome *verify = e2e_expect(STATUS_CHECKPOINT, "1 of 4 checkpoints in run",
                                              "checkpoint verify run");
    e2e_assert_words("verify", verify->out,
                     "whole    run/step_00000016|damaged  run/step_00000010|state.json|"
                     "whole    run/step_00000005");
    e2e_expect(STATUS_CHECKPOINT, "", "checkpoint verify run/step_00000010");
    e2e_expect(STATUS_CONFIG, "--keep", "checkpoint prune run");
    e2e_expect(0, "", "checkpoint prune run --keep 1 --keep_every 15");
    char *left = e2e_tree("run");
    e2e_assert_words("what is left", left, "step_00000016|step_00000015");
    assert_null(strstr(left, "step_00000010"));
    assert_null(strstr(left, "step_00000005"));
    free(left);
    e2e_expect(0, "", "checkpoint verify run");
}

static void a_run_in_use_is_left_alone(void **state) {
    (void)state;
    enum { STEPS = 60 };
    char words[64];
    const struct stalled first = e2e_stall("saved run/step_00000005",
                                           "train ../tiny.conf --train.steps %d", STEPS);
    snprintf(words, sizeof words, "in use by process %ld", (long)first.process.pid);
    e2e_expect(STATUS_IO, words, "train ../tiny.conf");
    e2e_expect(STATUS_IO, words, "checkpoint prune run --keep 1");
    e2e_expect(0, "", "eval run"); /* reading is no use of that kind */
    const struct outcome *outcome = e2e_release(&first);
    if (outcome->code != 0)
        fail_msg("the first run ended with %d: %s", outcome->code, outcome->err);
    e2e_assert_steps("run", STEPS);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        E2E_TEST(a_damaged_checkpoint_is_passed_over),
        E2E_TEST(without_a_whole_checkpoint_nothing_happens),
        E2E_TEST(a_full_disk_keeps_what_was_saved),
        E2E_TEST(an_unreadable_newest_checkpoint_is_no_damaged_one),
        E2E_TEST(a_failed_save_in_the_background_ends_the_run),
        E2E_TEST(checkpoints_are_listed_verified_and_pruned),
        E2E_TEST(a_run_in_use_is_left_alone),
    };
    return E2E_MAIN(argc, argv, tests);
}

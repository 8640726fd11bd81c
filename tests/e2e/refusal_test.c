/*
 * Bad input of every kind: what the program says, the code it ends with, and that it touched
 * nothing.
 *
 * Oracle: the table below, a digest of the whole folder (path, size and hash of every file) before
 * and after, and docs/exit_codes.md, in which the cause must stand in the row of the code that was
 * seen; and the rows of that page against enum status.
 */
#include "tests/e2e/e2e.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct refusal {
    const char *line;
    enum status code;
    const char *words;      /* in standard error, separated by '|' */
    const char *documented; /* the cause, in the code's row of docs/exit_codes.md */
};

/* The folder holds a finished run, "run", and the files of make_bad_files(). */
static const struct refusal refusals[] = {
    {"", STATUS_CONFIG, "a command is missing", "missing value or name"},
    {"trian ../tiny.conf", STATUS_CONFIG, "unknown command \"trian\"|did you mean train?",
     "unknown command"},
    {"data prepar", STATUS_CONFIG, "unknown subcommand prepar|did you mean prepare",
     "unknown command"},
    {"sample run --tokns 3", STATUS_CONFIG, "unknown option --tokns|did you mean --tokens",
     "option"},
    {"sample run --tokns=3", STATUS_CONFIG, "unknown option --tokns|did you mean --tokens",
     "option"},
    {"plan ../tiny.conf --tensor", STATUS_CONFIG, "unknown option --tensor|did you mean --tensors",
     "option"},
    {"sample run --sample.tokns 3", STATUS_CONFIG, "did you mean sample.tokens", "key"},
    {"train ../tiny.conf --train.stepz 3", STATUS_CONFIG, "train.stepz|did you mean train.steps",
     "key"},
    {"train ../tiny.conf --steps 3", STATUS_CONFIG, "\"steps\"|did you mean train.steps", "key"},
    {"train bad_key.conf", STATUS_CONFIG, "bad_key.conf:2|model.layrs|did you mean model.layers",
     "key"},
    {"train bad_section.conf", STATUS_CONFIG, "bad_section.conf:1|unknown section [modle]|model",
     "section"},
    {"train bad_line.conf", STATUS_CONFIG, "bad_line.conf:1|key = value",
     "a file that cannot be read"},
    {"train ../data/train.bin", STATUS_CONFIG, "zero byte", "a file that cannot be read"},
    {"train nowhere.conf", STATUS_CONFIG, "nowhere.conf|No such file",
     "a file that cannot be read"},
    {"train ../tiny.conf other.conf", STATUS_CONFIG, "one name too many|other.conf", "name"},
    {"eval", STATUS_CONFIG, "eval: expected MODEL|found nothing", "missing value or name"},
    {"convert run", STATUS_CONFIG, "convert: expected MODEL|FOLDER|found only run",
     "missing value or name"},
    {"train run", STATUS_CONFIG, "the run's folder run: give run/configuration.conf",
     "a file that cannot be read"},
    {"train ../data", STATUS_CONFIG, "found the folder ../data", "a file that cannot be read"},
    {"probe --device cpu", STATUS_CONFIG, "all devices|--measure", "contradict"},
    {"train ../tiny.conf --train.steps", STATUS_CONFIG, "train.steps|expected a value",
     "missing value or name"},
    {"train ../tiny.conf --train.batch 0", STATUS_CONFIG, "train.batch|1 to 1048576|\"0\"",
     "out of bounds"},
    {"train ../tiny.conf --train.steps 12abc", STATUS_CONFIG, "train.steps|whole number|12abc",
     "out of bounds"},
    {"train ../tiny.conf --optimizer.learning_rate nan", STATUS_CONFIG, "learning_rate|nan",
     "out of bounds"},
    {"sample run --top_p 0", STATUS_CONFIG, "--top_p|above 0", "out of bounds"},
    {"train ../tiny.conf --precision.recipe fp7", STATUS_CONFIG,
     "fp32, bf16, fp16, fp8, fp8_block, mxfp8 or nvfp4|fp7", "out of bounds"},
    {"train ../tiny.conf --precision.recipe mxfp8", STATUS_CONFIG,
     "precision.recipe = mxfp8|model.width to be a multiple of 32, found 16", "contradict"},
    {"train ../tiny.conf --precision.lm_head fp8", STATUS_CONFIG,
     "precision.recipe = fp32|precision.lm_head = fp8|bf16", "contradict"},
    {"train ../tiny.conf --precision.recipe fp8 --train.sequence_length 7 --train.micro_batch 1",
     STATUS_CONFIG, "precision.recipe = fp8|tokens of a micro-batch|multiple of 16, found 7",
     "contradict"},
    {"train ../tiny.conf --train.sequence_length 17", STATUS_CONFIG,
     "train.sequence_length = 17|model.context = 16", "contradict"},
    {"train ../tiny.conf --train.micro_batch 3", STATUS_CONFIG,
     "train.batch = 4|train.micro_batch = 3", "contradict"},
    {"train ../tiny.conf --model.heads 3", STATUS_CONFIG, "model.width = 16|model.heads = 3",
     "contradict"},
    {"train ../tiny.conf --optimizer.schedule wsd --optimizer.decay_steps 17", STATUS_CONFIG,
     "decay_steps = 17|steps = 16", "contradict"},
    {"data prepare --out ../data ../text.txt", STATUS_CONFIG, "dataset.json|--overwrite",
     "is there already"},

    {"train ../tiny.conf --data.train nowhere.bin", STATUS_DATA,
     "nowhere.bin|no such file|data prepare", "missing"},
    {"train ../tiny.conf --data.train nowhere/*.bin", STATUS_DATA,
     "nowhere/*.bin|no such file|data prepare", "missing"},
    {"train ../tiny.conf --data.train cut.bin", STATUS_DATA, "cut.bin|9516|9515|cut off",
     "cut off"},
    {"train ../tiny.conf --data.train header.bin", STATUS_DATA, "header.bin|1024|1000", "cut off"},
    {"train ../tiny.conf --data.train empty.bin", STATUS_DATA, "empty.bin|0 bytes",
     "not a shard at all"},
    {"train ../tiny.conf --data.train magic.bin", STATUS_DATA, "magic.bin|20240520",
     "not a shard at all"},
    {"train ../tiny.conf --data.validation ../text.txt", STATUS_DATA, "text.txt|looks like text",
     "not a shard at all"},
    {"train ../tiny.conf --model.vocabulary 200 --train.out fresh/run", STATUS_DATA,
     "below the vocabulary of 200|position", "beyond the vocabulary"},
    {"eval run --data short.bin", STATUS_DATA, "short.bin|at least 17|found 10",
     "too short for one sequence"},
    {"eval run --data nowhere.bin", STATUS_DATA, "nowhere.bin", "missing"},

    {"train ../tiny.conf --model.width 32", STATUS_CHECKPOINT, "model.width is 32|made with 16",
     "of another model"},
    {"eval run --model.width 32", STATUS_CHECKPOINT, "expected|found", "of another model"},
    {"train ../tiny.conf --train.init run", STATUS_CHECKPOINT, "train.init is run|made with",
     "other first weights"},
    {"train ../tiny.conf --train.seed 2", STATUS_CHECKPOINT, "train.seed is 2|made with 1", "seed"},
    {"train ../tiny.conf --data.train ../data/validation.bin --train.steps 20", STATUS_CHECKPOINT,
     "not what the checkpoint was trained on|fingerprint", "data"},
    {"train ../tiny.conf --train.resume never", STATUS_CHECKPOINT, "never|run/step_00000016",
     "although `train.resume` is never"},
    {"train ../tiny.conf --train.resume run/step_00000012", STATUS_CHECKPOINT,
     "no checkpoint folder run/step_00000012|run/step_00000016", "missing"},
    {"train ../tiny.conf --train.resume run/step_00000010", STATUS_CHECKPOINT,
     "step 10|run/step_00000016 is newer", "older than others"},
    {"eval nowhere", STATUS_CHECKPOINT, "no checkpoint folder nowhere", "missing"},
    {"sample ../text.txt", STATUS_CHECKPOINT, "expected a model of llm.c|found", "missing"},
    {"sample ../data", STATUS_CHECKPOINT, "holds no checkpoint", "missing"},

    {"train ../tiny.conf --train.out ../text.txt/run", STATUS_IO, "text.txt", "not a folder"},
    {"train ../tiny.conf --train.out ../text.txt", STATUS_IO,
     "a folder or nothing at ../text.txt, found something else", "not a folder"},
    {"data prepare --out ../text.txt/data ../text.txt", STATUS_IO, "text.txt", "not a folder"},

    {"train ../tiny.conf --train.out fresh/run --model.width 65536 --model.layers 1000",
     STATUS_MEMORY, "needs|optimizer|TiB|free on|train.recompute", "more memory wanted"},
    {"bench step ../tiny.conf --model.width 65536 --model.layers 1000", STATUS_MEMORY, "needs|TiB",
     "more memory wanted"},

    {"plan ../tiny.conf --ranks 0", STATUS_CONFIG, "--ranks|from 1 to 65536|\"0\"",
     "out of bounds"},
    {"plan ../tiny.conf --ranks 2 --link-GBps x", STATUS_CONFIG, "--link-GBps|above 0|x",
     "out of bounds"},
    {"plan ../tiny.conf --ranks 2", STATUS_CONFIG, "--ranks 2|--link-GBps|bench comm",
     "contradict"},
    {"plan ../tiny.conf --step-ms 3", STATUS_CONFIG, "--step-ms|--ranks N", "contradict"},
    {"plan ../tiny.conf --ranks 2 --link-GBps 1 --train.batch 9 --train.micro_batch 3",
     STATUS_CONFIG, "train.batch = 9|2 ranks|multiple of 6", "contradict"},
    {"plan ../tiny.conf --ranks 2 --link-GBps 1 --train.batch 24 --train.micro_batch 8",
     STATUS_CONFIG, "train.batch = 24|multiple of 16, or set train.micro_batch = 6", "contradict"},
    {"plan ../tiny.conf --ranks 1 --link-GBps 1 --device cpu", STATUS_CONFIG,
     "--step-ms|--mfu.peak", "contradict"},
    {"train ../tiny.conf --gpus 0", STATUS_CONFIG, "--gpus|from 1 to 64|\"0\"", "out of bounds"},
    {"train ../tiny.conf --gpus two", STATUS_CONFIG, "--gpus|from 1 to 64|two", "out of bounds"},
    {"train ../tiny.conf --gpus 2 --device cpu", STATUS_CONFIG, "--gpus 2|mpirun -np 2",
     "contradict each other"},
    {"train ../tiny.conf --gpus 64 --device auto", STATUS_DEVICE, "--gpus 64", "accelerator"},
    {"train ../tiny.conf --device cuda", STATUS_DEVICE, "cuda|--device cpu", "accelerator"},
};

static char *exit_codes; /* docs/exit_codes.md */

static void write_changed(const char *path, const char *data, size_t bytes, size_t at,
                          char change) {
    char *copy = malloc(bytes);
    assert_non_null(copy);
    memcpy(copy, data, bytes);
    copy[at] = (char)(copy[at] ^ change);
    e2e_write(path, copy, bytes);
    free(copy);
}

static void make_bad_files(void) {
    enum { HEADER_BYTES = 1024, COUNT_AT = 8, SHORT_TOKENS = 10 };
    static const char key[] = "[model]\nlayrs = 2\n", section[] = "[modle]\nlayers = 2\n",
                      line[] = "layers 2\n";
    size_t bytes = 0;
    e2e_write("bad_key.conf", key, strlen(key));
    e2e_write("bad_section.conf", section, strlen(section));
    e2e_write("bad_line.conf", line, strlen(line));
    char *shard = e2e_read("../data/train.bin", &bytes);
    e2e_write("cut.bin", shard, bytes - 1);
    e2e_write("header.bin", shard, 1000);
    e2e_write("empty.bin", shard, 0);
    write_changed("magic.bin", shard, bytes, 0, 1);
    const int32_t tokens = SHORT_TOKENS;
    memcpy(shard + COUNT_AT, &tokens, sizeof tokens);
    e2e_write("short.bin", shard, HEADER_BYTES + SHORT_TOKENS * sizeof(uint16_t));
    free(shard);
    assert_int_equal(folder_create("fresh/run"), STATUS_OK);
}

/* The row of the code in docs/exit_codes.md. */
static const char *documented(enum status code) {
    char start[32];
    snprintf(start, sizeof start, "\n| %d | ", (int)code);
    if (strstr(exit_codes, start) == NULL)
        fail_msg("docs/exit_codes.md has no row for %d", (int)code);
    return e2e_value(exit_codes, start);
}

static void bad_input_is_refused_and_changes_nothing(void **state) {
    (void)state;
    e2e_expect(0, "", "train ../tiny.conf");
    make_bad_files();
    char *here = e2e_tree("."), *data = e2e_tree("../data");
    assert_non_null(strstr(here, "run/metrics.jsonl"));
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        const struct refusal *refusal = &refusals[i];
        const bool wants_gpu = strstr(refusal->line, "--device cuda") != NULL;
        if (wants_gpu) setenv("CUDA_VISIBLE_DEVICES", "", 1); /* none here, on any machine */
        const struct outcome *outcome = e2e_expect((int)refusal->code, refusal->words, "%s",
                                                   refusal->line);
        if (wants_gpu) unsetenv("CUDA_VISIBLE_DEVICES");
        assert_memory_equal(outcome->err, "deepwell: ", strlen("deepwell: "));
        e2e_assert_words("docs/exit_codes.md", documented(refusal->code), refusal->documented);
        e2e_assert_same_tree(".", here);
        e2e_assert_same_tree("../data", data);
    }
    free(here);
    free(data);
    e2e_expect(0, "", "train ../tiny.conf"); /* and the run is still good */
}

static void the_page_has_every_code(void **state) {
    (void)state;
    static const char *const names[] = {
        [STATUS_OK] = "STATUS_OK",
        [STATUS_INTERNAL] = "STATUS_INTERNAL",
        [STATUS_CONFIG] = "STATUS_CONFIG",
        [STATUS_DATA] = "STATUS_DATA",
        [STATUS_CHECKPOINT] = "STATUS_CHECKPOINT",
        [STATUS_IO] = "STATUS_IO",
        [STATUS_NUMERICS] = "STATUS_NUMERICS",
        [STATUS_MEMORY] = "STATUS_MEMORY",
        [STATUS_DEVICE] = "STATUS_DEVICE",
        [STATUS_INTERRUPTED] = "STATUS_INTERRUPTED",
        [STATUS_RANKS] = "STATUS_RANKS",
    };
    size_t rows = 0;
    for (size_t code = 0; code < sizeof names / sizeof names[0]; code++) {
        char quoted[64];
        snprintf(quoted, sizeof quoted, "`%s` |", names[code]);
        e2e_assert_words("docs/exit_codes.md", documented((enum status)code), quoted);
    }
    for (const char *at = exit_codes; (at = strstr(at, "| `STATUS_")) != NULL; at++) rows++;
    assert_int_equal(rows, sizeof names / sizeof names[0]);
}

/* Standard output that takes no more is an error, and the run is there all the same. */
static void a_full_output_is_noticed(void **state) {
    (void)state;
    static const char *const lines[] = {"train ../tiny.conf",
                                        "eval run",
                                        "sample run --tokens 5",
                                        "plan ../tiny.conf",
                                        "train --help",
                                        "probe",
                                        "--version"};
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        const struct unusual unusual = {.out_file = open("/dev/full", O_WRONLY | O_CLOEXEC)};
        assert_true(unusual.out_file > 0);
        const struct process process = e2e_start(&unusual, "%s", lines[i]);
        close(unusual.out_file);
        const struct outcome *outcome = e2e_wait(&process);
        if (outcome->code != STATUS_IO) fail_msg("%s: exit code %d", lines[i], outcome->code);
        e2e_assert_words(lines[i], outcome->err, "standard output");
    }
    e2e_assert_words("docs/exit_codes.md", documented(STATUS_IO), "standard output");
    e2e_expect(0, "", "eval run/step_00000016");
}

/* In one pipe or file the error stands behind all that was printed before it. */
static void the_error_stands_last(void **state) {
    (void)state;
    static const char line[] = "data info ../data/train.bin nowhere.bin", all[] = "all";
    const struct unusual unusual = {.out_file = creat(all, 0666), .joined = true};
    assert_true(unusual.out_file > 0);
    const struct process process = e2e_start(&unusual, "%s", line);
    close(unusual.out_file);
    assert_int_equal(e2e_wait(&process)->code, STATUS_DATA);
    size_t bytes = 0;
    char *text = e2e_read(all, &bytes);
    const char *row = strstr(text, "train.bin"), *error = strstr(text, "deepwell: ");
    assert_non_null(row);
    assert_true(error > row);
    free(text);
}

static void help_is_help(void **state) {
    (void)state;
    static const char *const commands[] = {"train", "sample", "eval", "data",
                                           "plan",  "bench",  "probe"};
    const struct outcome *help = e2e_expect(0, "", "--help");
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        e2e_assert_words("--help", help->out, commands[i]);
    }
    e2e_assert_words("--help", help->out, "docs/exit_codes.md");
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        const struct outcome *outcome = e2e_expect(0, "", "%s --help", commands[i]);
        e2e_assert_words(commands[i], outcome->out, commands[i]);
        assert_string_equal(outcome->err, "");
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        E2E_TEST(bad_input_is_refused_and_changes_nothing),
        E2E_TEST(the_page_has_every_code),
        E2E_TEST(a_full_output_is_noticed),
        E2E_TEST(the_error_stands_last),
        E2E_TEST(help_is_help),
    };
    size_t bytes = 0;
    if (argc != 3 || file_read(argv[2], 1 << 20, &exit_codes, &bytes) != STATUS_OK) {
        fprintf(stderr, "expected the paths of the program and of docs/exit_codes.md\n");
        return 1;
    }
    const int failed = E2E_MAIN(argc, argv, tests);
    free(exit_codes);
    return failed;
}

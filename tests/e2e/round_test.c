/*
 * From text to a trained model and back to text, as a user goes: prepare, train, eval, sample,
 * plan.
 *
 * Oracles: the program's own numbers said twice (validation line and eval, header and plan, shard
 * and text); bit equality of two identical runs, of recomputation on and off; the closed forms of
 * train/schedule.h; UTF-8's definition (RFC 3629) by base/utf8.h; the kernel's count of resident
 * memory against the plan.
 */
#include "base/utf8.h"
#include "tests/e2e/e2e.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/schedule.h"

static void eval_repeats_the_last_validation(void **state) {
    (void)state;
    char expected[64];
    e2e_expect(0, "", "train ../tiny.conf");
    cJSON *metrics = e2e_metrics("run");
    const cJSON *last = NULL, *record;
    for (size_t i = 0; (record = e2e_record(metrics, "validation", i)) != NULL; i++) last = record;
    assert_non_null(last);
    assert_true(e2e_number(last, "step") == E2E_STEPS);
    const struct outcome *eval = e2e_expect(0, "", "eval run");
    snprintf(expected, sizeof expected, "%.7f nats a token", e2e_number(last, "loss"));
    assert_string_equal(e2e_value(eval->out, "\nloss"), expected);
    snprintf(expected, sizeof expected, "%.4f", e2e_number(last, "perplexity"));
    assert_string_equal(e2e_value(eval->out, "\nperplexity"), expected);
    snprintf(expected, sizeof expected, "%.5f", e2e_number(last, "bits_per_byte"));
    assert_string_equal(e2e_value(eval->out, "\nbits a byte"), expected);
    /* It learned: a model that knows nothing has ln 256 = 5.55. */
    assert_true(e2e_number(last, "loss") < log(256.0) - 0.2);
    cJSON_Delete(metrics);
}

/* The text of a sample; release with free(). */
static char *sample(const char *options) {
    const struct outcome *outcome = e2e_expect(0, "", "sample run --prompt the --tokens 120 %s",
                                               options);
    assert_int_equal(strlen(outcome->out), outcome->out_bytes); /* no NUL among them */
    for (size_t i = 0; i < outcome->out_bytes;) {
        const size_t length = utf8_sequence(outcome->out + i, outcome->out_bytes - i);
        if (length == 0) fail_msg("byte %zu of a sample is not UTF-8", i);
        i += length;
    }
    assert_memory_equal(outcome->out, "the", 3);
    return strdup(outcome->out);
}

static void samples_depend_on_their_seed(void **state) {
    (void)state;
    e2e_expect(0, "", "train ../tiny.conf");
    char *first = sample("--seed 7"), *again = sample("--seed 7"), *other = sample("--seed 8");
    assert_string_equal(first, again);
    assert_string_not_equal(first, other);
    char *likely = sample("--temperature 0 --seed 7"),
         *likely_too = sample("--temperature 0 --seed 8");
    assert_string_equal(likely, likely_too);
    assert_string_not_equal(likely, first);
    char *const texts[] = {first, again, other, likely, likely_too};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) free(texts[i]);
}

/* Everything in a record but how long it took. */
static void assert_same_record(cJSON *a, cJSON *b) {
    static const char *const times[] = {"step_ms", "data_wait_ms", "tokens_per_s", "tflops", "ms",
                                        "stall_ms"};
    for (size_t i = 0; i < sizeof times / sizeof times[0]; i++) {
        cJSON_DeleteItemFromObject(a, times[i]);
        cJSON_DeleteItemFromObject(b, times[i]);
    }
    char *first = cJSON_PrintUnformatted(a), *second = cJSON_PrintUnformatted(b);
    assert_string_equal(first, second);
    free(first);
    free(second);
}

static void identical_runs_are_identical(void **state) {
    (void)state;
    static const char *const recipes[] = {"fp32", "bf16", "fp16"};
    /* A background save's record comes when it is done, between whichever steps. */
    static const char in_order[] = "--checkpoint.background off";
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(folder_remove("run"), STATUS_OK);
        assert_int_equal(folder_remove("first"), STATUS_OK);
        e2e_expect(0, "", "train ../tiny.conf --precision.recipe %s %s", recipes[i], in_order);
        assert_int_equal(rename("run", "first"), 0);
        e2e_expect(0, "", "train ../tiny.conf --precision.recipe %s %s", recipes[i], in_order);
        cJSON *first = e2e_metrics("first"), *second = e2e_metrics("run");
        assert_int_equal(cJSON_GetArraySize(first), cJSON_GetArraySize(second));
        for (int line = 0; line < cJSON_GetArraySize(first); line++) {
            assert_same_record(cJSON_GetArrayItem(first, line), cJSON_GetArrayItem(second, line));
        }
        cJSON_Delete(first);
        cJSON_Delete(second);
        assert_int_equal(remove("first/metrics.jsonl") | remove("run/metrics.jsonl"), 0);
        char *expected = e2e_tree("first");
        assert_non_null(strstr(expected, "step_00000016/model.safetensors"));
        e2e_assert_same_tree("run", expected); /* weights, moments, state, manifest */
        free(expected);
    }
}

static void recomputation_changes_no_bit(void **state) {
    (void)state;
    static const char *const kinds[] = {"gelu", "block"};
    e2e_expect(0, "", "train ../tiny.conf --train.out none --precision.recipe bf16");
    for (size_t i = 0; i < 2; i++) {
        char path[PATH_BYTES];
        e2e_expect(0, "",
                   "train ../tiny.conf --train.out %s --train.recompute %s "
                   "--precision.recipe bf16",
                   kinds[i], kinds[i]);
        snprintf(path, sizeof path, "%s/step_00000016/model.safetensors", kinds[i]);
        e2e_assert_same_file("none/step_00000016/model.safetensors", path);
    }
}

/*
 * The same sequences in other micro-batches: the same sums in another order. Adam's update of a
 * weight with gradient g that is off by d is off by at most lr d / |g|, which moves the loss by |g|
 * times that, lr d; over N weights, lr N d. A gradient is a sum over 64 tokens, so d is about
 * sqrt(64) 2^-24 of its size, and sizes are about norm / sqrt(N). With N = 10,944, lr <= 3e-3 and
 * norms <= 2: 3e-3 sqrt(10,944) 2 * 8 * 2^-24 = 3e-7 a step, and a step inherits the differences of
 * those before it, whose gradients differ too: 16^2 / 2 * 3e-7 = 4e-5. A mean loss itself is
 * rounded to 2^-22 (it lies below 8), which is less.
 *
 * Losses alone would hide a wrong scale of the gradients, to which clipping and Adam are blind: in
 * the first step, where the weights are still the same, the norm is that sum's, off by 8 * 2^-24 of
 * itself.
 */
static void accumulation_is_the_same_sum(void **state) {
    (void)state;
    const double bound = 4e-5;
    e2e_expect(0, "", "train ../tiny.conf --train.out whole --checkpoint.every 0");
    for (int micro = 1; micro <= 2; micro++) {
        char run[32];
        snprintf(run, sizeof run, "micro%d", micro);
        const struct outcome *outcome = e2e_expect(0, "",
                                                   "train ../tiny.conf --train.out %s "
                                                   "--train.micro_batch %d --checkpoint.every 0",
                                                   run, micro);
        e2e_assert_words(run, outcome->out,
                         micro == 1 ? "4 micro-batches of 1" : "2 micro-batches of 2");
        cJSON *whole = e2e_metrics("whole"), *parts = e2e_metrics(run);
        double worst = 0.0;
        for (size_t i = 0; i < E2E_STEPS; i++) {
            const double difference = e2e_number(e2e_record(whole, "step", i), "loss") -
                                      e2e_number(e2e_record(parts, "step", i), "loss");
            worst = fmax(worst, fabs(difference));
        }
        print_message("  micro-batch %d: losses differ by at most %.2g, bound %.2g\n", micro, worst,
                      bound);
        assert_true(worst <= bound);
        const double ratio = e2e_number(e2e_record(parts, "step", 0), "gradient_norm") /
                             e2e_number(e2e_record(whole, "step", 0), "gradient_norm");
        assert_true(fabs(ratio - 1.0) <= 8 * 0x1p-24);
        cJSON_Delete(whole);
        cJSON_Delete(parts);
    }
}

static void metrics_follow_the_schedule(void **state) {
    (void)state;
    static const struct {
        const char *name;
        struct schedule schedule;
    } cases[] = {
        {"cosine", {SCHEDULE_COSINE, 3e-3, 0.1, E2E_STEPS, 4, 0}},
        {"wsd", {SCHEDULE_WSD, 3e-3, 0.1, E2E_STEPS, 4, 5}},
    };
    for (size_t i = 0; i < 2; i++) {
        const struct schedule *schedule = &cases[i].schedule;
        e2e_expect(0, "",
                   "train ../tiny.conf --train.out %s --optimizer.schedule %s "
                   "--optimizer.decay_steps %lld --optimizer.final_fraction 0.1",
                   cases[i].name, cases[i].name, (long long)schedule->decay_steps);
        cJSON *metrics = e2e_metrics(cases[i].name);
        for (int64_t step = 0; step < E2E_STEPS; step++) {
            const cJSON *record = e2e_record(metrics, "step", (size_t)step);
            const double expected = (double)(float)schedule_learning_rate(schedule, step);
            assert_true(e2e_number(record, "learning_rate") == expected);
            assert_true(e2e_number(record, "tokens") == 4 * 16);
            assert_true(e2e_number(record, "step_ms") > 0.0);
            assert_true(e2e_number(record, "data_wait_ms") >= 0.0);
            const double rate = e2e_number(record, "tokens") / e2e_number(record, "step_ms") * 1e3;
            assert_true(fabs(e2e_number(record, "tokens_per_s") / rate - 1.0) < 1e-12);
        }
        cJSON_Delete(metrics);
    }
}

/* What size a text such as "1.25 GiB at most" means. */
static double bytes_of(const char *text) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB"};
    char unit[8] = "";
    double number = 0.0;
    assert_int_equal(sscanf(text, "%lf %7[A-Za-z]", &number, unit), 2);
    for (size_t i = 0; i < 4; i++, number *= 1024.0) {
        if (strcmp(units[i], unit) == 0) return number;
    }
    fail_msg("expected a size, found \"%s\"", text);
    return 0.0;
}

static void plan_counts_what_the_run_counts(void **state) {
    (void)state;
    char counted[64];
    const struct outcome *plan = e2e_expect(0, "", "plan ../tiny.conf");
    snprintf(counted, sizeof counted, "vocabulary 256: %.*s parameters\n",
             (int)strcspn(e2e_value(plan->out, "\nparameters"), " "),
             e2e_value(plan->out, "\nparameters"));
    const double planned = bytes_of(e2e_value(plan->out, "\n  together"));
    const struct outcome *run = e2e_expect(0, "", "train ../tiny.conf");
    e2e_assert_words("the run's header", run->out, counted);
    /* 12 C^2 + 13 C for each block, C for each token and position, 2 C at the end */
    e2e_assert_words("the run's header", run->out, " 10,944 parameters");
    assert_int_equal(2 * (12 * 16 * 16 + 13 * 16) + (256 + 16) * 16 + 2 * 16, 10944);
    assert_true(bytes_of(e2e_value(run->out, "\nmemory")) == planned);
}

/*
 * A model of about 100 MB. What the process holds beside the plan (program, libraries, OpenBLAS's
 * buffers) is what a tiny model's process holds, and is taken away.
 */
static void plan_tells_the_memory(void **state) {
    (void)state;
    static const char model[] =
        "--device cpu --threads 2 --model.layers 3 --model.heads 4 --model.width "
        "384 --model.context 64 --model.vocabulary 512 --train.batch 8 "
        "--train.micro_batch 8 --precision.recipe fp32 --data.train= "
        "--data.validation= --train.steps 9 --optimizer.warmup_steps 0";
    if (E2E_SANITIZED) skip(); /* its shadow memory is in the count */
    const struct outcome *plan = e2e_expect(0, "", "plan %s", model);
    const double planned = bytes_of(e2e_value(plan->out, "\n  together"));
    const struct outcome *empty = e2e_expect(0, "", "bench step ../tiny.conf --steps 1 --warmup 1");
    const double beside = bytes_of(e2e_value(empty->out, "\nmemory"));
    const struct outcome *bench = e2e_expect(0, "", "bench step %s --steps 1 --warmup 1", model);
    const double peak = bytes_of(e2e_value(bench->out, "\nmemory")) - beside;
    print_message("  planned %.1f MB, measured %.1f MB beside %.1f MB of a tiny model\n",
                  planned * 1e-6, peak * 1e-6, beside * 1e-6);
    assert_true(planned > 100e6);
    assert_true(fabs(peak / planned - 1.0) < 0.1);
}

static void data_goes_there_and_back(void **state) {
    (void)state;
    char line[256];
    size_t bytes = 0;
    char *text = e2e_read("../text.txt", &bytes);
    e2e_expect(0, "", "data prepare --out a ../text.txt");
    e2e_expect(0, "", "data prepare --out b ../text.txt");
    char *expected = e2e_tree("a");
    e2e_assert_same_tree("b", expected);
    e2e_expect(STATUS_CONFIG, "--overwrite", "data prepare --out a ../text.txt");
    e2e_assert_same_tree("a", expected);
    free(expected);
    const struct outcome *info = e2e_expect(0, "", "data info a/train.bin a/validation.bin");
    e2e_assert_words("data info", info->out, "train.bin|validation.bin|uint16");
    const struct outcome *shown = e2e_expect(0, "", "data show a/train.bin --first 100 --count 64");
    snprintf(line, sizeof line, "%.64s", text + 100);
    e2e_assert_words("data show", shown->out, line);
    free(text);
}

/* The curves are those of training: losses of the metrics, in the bits that FP32 has. The first
 * differs by rounding alone; a recipe against itself by nothing. */
static void numerics_are_those_of_training(void **state) {
    (void)state;
    enum { STEPS = 4, TENSORS = 2 * 4 * 3 }; /* two blocks, four linears, three operands */
    const struct outcome *same = e2e_expect(
        0, "", "bench numerics ../tiny.conf --recipe bf16 --against bf16 --steps 2 --seeds 2");
    e2e_assert_words("bench numerics", same->out, "all  |0.0000|seed 2|mean gap +0.0000");
    const struct outcome *out = e2e_expect(
        0, "", "bench numerics ../tiny.conf --recipe fp8 --steps %d --out n.json", STEPS);
    e2e_assert_words("bench numerics", out->out,
                     "(emulated), against fp32|current in these errors: a first step has no amaxes|"
                     "attention.qkv.out_gradient|gradient errors|seed 1");
    char *text = e2e_read("n.json", &(size_t){0});
    cJSON *json = cJSON_Parse(text);
    const cJSON *losses = cJSON_GetArrayItem(cJSON_GetObjectItem(json, "losses"), 0);
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(json, "tensors")), TENSORS);
    assert_int_equal(cJSON_GetArraySize(losses), STEPS);
    e2e_expect(0, "", "train ../tiny.conf --precision.recipe fp8");
    cJSON *metrics = e2e_metrics("run");
    for (int i = 0; i < STEPS; i++) {
        const double trained = e2e_number(e2e_record(metrics, "step", (size_t)i), "loss");
        assert_true((float)cJSON_GetArrayItem(losses, i)->valuedouble == (float)trained);
    }
    cJSON_Delete(metrics);
    cJSON_Delete(json);
    free(text);
    e2e_expect(STATUS_CONFIG, "data.train",
               "bench numerics ../tiny.conf --recipe bf16 --data.train=");
    e2e_expect(STATUS_CONFIG, "are both fp32|--recipe bf16, |mxfp8 or nvfp4",
               "bench numerics ../tiny.conf");
    e2e_expect(STATUS_CONFIG, "n.json exists|nothing is overwritten",
               "bench numerics ../tiny.conf --recipe bf16 --steps 0 --out n.json");
    e2e_expect(STATUS_CONFIG, "--against|bf61|did you mean bf16?",
               "bench numerics ../tiny.conf --against bf61");
    e2e_expect(STATUS_CONFIG, "fp9", "bench numerics ../tiny.conf --recipe fp9");
    for (int zero = 0; zero <= 3; zero++) {
        e2e_expect(STATUS_CONFIG, "bench numerics|comm.order = fast, found fixed",
                   "bench numerics ../tiny.conf --comm.order fixed --train.zero %d", zero);
    }
    const struct outcome *current = e2e_expect(
        0, "", "bench numerics ../tiny.conf --recipe fp8 --steps 0 --precision.scaling current");
    assert_null(strstr(current->out, "a first step has no amaxes"));
}

/* It has nothing to save, and does not say that it has. */
static void numerics_stop_when_asked(void **state) {
    (void)state;
    const struct stalled endless =
        e2e_stall("  all ", "bench numerics ../tiny.conf --recipe bf16 --steps 1000000");
    assert_int_equal(kill(endless.process.pid, SIGTERM), 0);
    const struct outcome *stopped = e2e_release(&endless);
    assert_int_equal(stopped->code, STATUS_INTERRUPTED);
    e2e_assert_words("bench numerics", stopped->err,
                     "deepwell: stopping; again: at once|stopped by SIGTERM");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        E2E_TEST(eval_repeats_the_last_validation), E2E_TEST(samples_depend_on_their_seed),
        E2E_TEST(identical_runs_are_identical),     E2E_TEST(recomputation_changes_no_bit),
        E2E_TEST(accumulation_is_the_same_sum),     E2E_TEST(metrics_follow_the_schedule),
        E2E_TEST(plan_counts_what_the_run_counts),  E2E_TEST(plan_tells_the_memory),
        E2E_TEST(data_goes_there_and_back),         E2E_TEST(numerics_are_those_of_training),
        E2E_TEST(numerics_stop_when_asked),
    };
    return E2E_MAIN(argc, argv, tests);
}

/*
 * The measuring commands, run as a user runs them. Times are noise and are not looked at.
 *
 * Oracles: the counts of `plan` (calls, GEMM shapes), which come from the step's own code; exit
 * codes and messages of a table of wrong inputs; the rule that a figure above the peak is an
 * error.
 */
#include "tests/e2e/e2e.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Lines that begin with `start`. */
static size_t lines_of(const char *text, const char *start) {
    size_t count = 0;
    for (const char *line = text; line != NULL; line = strchr(line, '\n')) {
        line += *line == '\n';
        count += strncmp(line, start, strlen(start)) == 0;
    }
    return count;
}

/* The number of calls that plan lists for the operation. */
static long planned_calls(const char *plan, const char *name) {
    char start[64];
    snprintf(start, sizeof start, "\n  %s ", name);
    return strtol(e2e_value(plan, start), NULL, 10);
}

/* Without a link that costs anything every number of ranks takes what one takes; a refused stage is
 * said to be. scaling_test and ranks_memory_test have the numbers. */
static void many_ranks_are_planned(void **state) {
    (void)state;
    const struct outcome *plan = e2e_expect(
        0, "", "plan ../tiny.conf --train.batch 16 --train.micro_batch 2 --ranks 4 --link-GBps "
               "1000000000 --latency-us 1e-9 --step-ms 40 --sample.every 5");
    e2e_assert_words("plan", plan->out,
                     "ranks       4, each with 4 sequences a step in 2 micro-batches|"
                     "one rank alone takes 40.00 ms, as given|predicted, not measured|refused");
    assert_int_equal(lines_of(plan->out, "     0      40.00     100.0%           0.00"), 1);
    assert_int_equal(lines_of(plan->out, "     3      40.00     100.0%           0.00"), 1);
    assert_int_equal(lines_of(plan->out, "         1     40.00 100.0%"), 1);
    assert_int_equal(lines_of(plan->out, "         2     40.00 100.0%"), 1);
    assert_int_equal(lines_of(plan->out, "         4     40.00 100.0%"), 1);
    plan = e2e_expect(0, "", "plan ../tiny.conf --train.batch 16 --train.micro_batch 2 --ranks 4 "
                             "--link-GBps 1 --step-ms 40 --comm.order fixed");
    e2e_assert_words("plan", plan->out, "comm.order = fixed: all micro-batches' gradients travel");
}

/* What plan says would fit does by plan itself; a batch whose activations no machine holds. */
static void what_does_not_fit_is_told_what_would(void **state) {
    static const char line[] = "plan ../tiny.conf --train.batch 1048576 --train.micro_batch 0 "
                               "--model.context 1024 --train.sequence_length 1024";
    static const char start[] = "would fit", named[] = "train.micro_batch = ";
    char row[256];
    (void)state;
    const struct outcome *plan = e2e_expect(0, "", "%s", line);
    e2e_assert_words("plan", plan->out, "DOES NOT FIT|would fit|train.recompute = none");
    snprintf(row, sizeof row, "%s", e2e_value(plan->out, start));
    const long micro = strtol(strstr(row, named) + strlen(named), NULL, 10);
    assert_true(micro >= 1 && micro < 1048576);
    plan = e2e_expect(0, "", "%s --train.micro_batch %ld", line, micro / 2 > 0 ? micro / 2 : 1);
    assert_null(strstr(plan->out, start));
    plan = e2e_expect(0, "", "plan ../tiny.conf --model.width 16384 --model.layers 200");
    e2e_assert_words("plan", plan->out, "would fit|nothing by train.micro_batch");
}

static void the_floor_has_the_plans_calls(void **state) {
    char expected[128];
    (void)state;
    char *plan = strdup(e2e_expect(0, "", "plan ../tiny.conf")->out);
    const long gemms = planned_calls(plan, "gemm");
    const long attention = planned_calls(plan, "attention_forward") +
                           planned_calls(plan, "attention_backward");
    assert_true(gemms > 0 && attention > 0);
    free(plan);
    const struct outcome *floor = e2e_expect(0, "", "bench floor ../tiny.conf --seconds 0.05");
    e2e_assert_words("bench floor", floor->out, "device |floor |tokens/s|TFLOPS|their sum|");
    assert_int_equal(lines_of(floor->out, "power "), 0); /* a CPU has no counter */
    snprintf(expected, sizeof expected, "ms alone, %ld calls", gemms);
    e2e_assert_words("GEMMs", e2e_value(floor->out, "\n  GEMMs"), expected);
    snprintf(expected, sizeof expected, "ms alone, %ld calls", attention);
    e2e_assert_words("attention", e2e_value(floor->out, "\n  attention"), expected);
}

static void a_step_stands_beside_its_floor(void **state) {
    (void)state;
    const struct outcome *step = e2e_run(
        "bench step ../tiny.conf --steps 2 --warmup 1 --warmup_seconds 0.05 --ops --floor "
        "--seconds 0.05");
    /* on a machine whose speed jumps, the step may have been faster than the GEMMs alone: then
     * it says so */
    if (step->code != 0) {
        assert_int_equal(step->code, STATUS_INTERNAL);
        e2e_assert_words("bench step --floor", step->err, "measurement error|its GEMMs alone");
    }
    e2e_assert_words("bench step --floor", step->out,
                     "\nstep |\nspeed |\nwarm-up |operations of a step|\n  data |the step |"
                     "\nfloor |\nshare       step at|% of the floor");
    assert_null(strstr(step->out, "search for algorithms")); /* a CPU searches none */
    assert_int_equal(lines_of(step->out, "power "), 0);
    const double share = strtod(strstr(step->out, "step at ") + strlen("step at "), NULL);
    double mine = 0.0, floor = 0.0;
    assert_int_equal(sscanf(strstr(step->out, "of the floor: "), "of the floor: %lf of %lf", &mine,
                            &floor), 2);
    /* one decimal of the share, whole tokens a second of thousands */
    assert_true(share - 100.0 * mine / floor < 0.2 && 100.0 * mine / floor - share < 0.2);
}

static void gemms_are_those_of_the_step(void **state) {
    size_t shapes = 0;
    (void)state;
    char *plan = strdup(e2e_expect(0, "", "plan ../tiny.conf")->out);
    shapes = lines_of(strstr(plan, "its GEMMs"), "  ");
    free(plan);
    const struct outcome *gemm = e2e_expect(0, "",
                                            "bench gemm ../tiny.conf --seconds 0.01 --warmup 0.01");
    assert_int_equal(lines_of(gemm->out, "  all of a step"), 1);
    /* tiny.conf has one micro-batch: nothing is added, so every shape is one GEMM */
    assert_int_equal(lines_of(strstr(gemm->out, "GEMM, m x n x k"), "  "), shapes + 1);
    const struct outcome *one = e2e_expect(
        0, "", "bench gemm 33 48 40 --seconds 0.01 --warmup 0.01 --type bf16 --result fp32 "
               "--transpose_a --transpose_b --accumulate --device cpu");
    e2e_assert_words("one GEMM", one->out, "33 x 48 x 40 TT bf16 -> fp32, adds|emulated");
    const struct outcome *narrow = e2e_expect(
        0, "", "bench gemm 32 96 64 --seconds 0.01 --warmup 0.01 --precision.recipe nvfp4 "
               "--device cpu");
    e2e_assert_words("a narrow GEMM", narrow->out, "32 x 96 x 64 e2m1 x e2m1 -> bf16|emulated");
    const struct outcome *native = e2e_expect(
        0, "", "bench gemm 32 96 64 --seconds 0.01 --warmup 0.01 --type fp32 --device cpu");
    assert_null(strstr(native->out, "emulated"));
}

static void every_operation_is_timed_alone(void **state) {
    static const char *const names[] = {
        "embedding_forward", "embedding_backward", "norm_forward", "norm_backward",
        "attention_forward", "attention_backward", "gelu_forward", "gelu_backward",
        "bias_backward", "cross_entropy", "adamw", "gradient_sumsq", "loss_sum",
    };
    (void)state;
    const struct outcome *ops = e2e_expect(0, "",
                                           "bench ops ../tiny.conf --seconds 0.01 --warmup 1");
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char start[64];
        snprintf(start, sizeof start, "  %s ", names[i]);
        assert_true(lines_of(ops->out, start) >= 1);
    }
    e2e_assert_words("bench ops", ops->out, "\ncopy |their sum|a whole step");
}

static void probe_measures(void **state) {
    (void)state;
    const struct outcome *probe = e2e_expect(0, "", "probe --measure --seconds 0.02");
    e2e_assert_words("probe --measure", probe->out,
                     "measuring |\nrecipe fp32 |native|\nrecipe fp8 |emulated in fp32, |"
                     "TFLOPS sustained, gemm |e4m3 x e4m3 -> bf16|\nrecipe nvfp4 |"
                     "e2m1 x e2m1 -> bf16|\ncopy ");
}

/* A run on the CPU, which has no counter of energy, says nothing of it. */
static void energy_is_not_guessed(void **state) {
    (void)state;
    const struct outcome *run = e2e_expect(0, "", "train ../tiny.conf --device cpu");
    assert_int_equal(lines_of(run->out, "energy "), 0);
    cJSON *metrics = e2e_metrics("run");
    assert_null(e2e_record(metrics, "energy", 0));
    assert_null(cJSON_GetObjectItem(e2e_record(metrics, "step", 0), "gpu_power_w"));
    cJSON_Delete(metrics);
}

/* 1e-9 TFLOPS is a thousand operations a second, which every machine exceeds. */
static void more_than_the_peak_is_no_success(void **state) {
    static const char *const lines[] = {
        "bench step ../tiny.conf --steps 1 --warmup 1", "bench floor ../tiny.conf --seconds 0.02",
        "bench gemm 64 64 64 --seconds 0.01 --warmup 0.01", "bench ops ../tiny.conf --seconds 0.01",
    };
    (void)state;
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        e2e_expect(STATUS_INTERNAL, "measurement error|mfu.peak", "%s --mfu.peak 1e-9", lines[i]);
    }
}

static void wrong_inputs_are_refused(void **state) {
    static const struct { const char *line, *words; } cases[] = {
        {"bench", "expected a subcommand"},
        {"bench flor ../tiny.conf", "unknown subcommand flor|did you mean floor"},
        {"bench floor ../tiny.conf --seconds 0", "--seconds|above 0"},
        {"bench floor ../tiny.conf --seconds nan", "--seconds|above 0"},
        {"bench floor ../tiny.conf other.conf", "one name too many"},
        {"bench gemm 3 4", "M N K or a configuration"},
        {"bench gemm 3 4 0", "whole numbers|\"0\""},
        {"bench gemm 3 4 99999999999999999999", "whole numbers"},
        {"bench gemm 3 4 5 6", "one name too many"},
        {"bench gemm 3 4 5 --type fp8", "--type|bf16|fp8"},
        {"bench gemm 3 4 5 --type bf16 --result fp16", "--result|bf16|fp16"},
        {"bench gemm ../tiny.conf --transpose_a", "give M N K"},
        {"bench gemm 32 32 48 --precision.recipe mxfp8", "mxfp8|multiples of 32|48"},
        {"bench gemm 32 32 64 --precision.recipe mxfp8 --accumulate", "--type|mxfp8"},
        {"bench ops nowhere.conf", "nowhere.conf"},
        {"probe --measure --seconds 1e9", "--seconds|at most 3600"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        e2e_expect(STATUS_CONFIG, cases[i].words, "%s", cases[i].line);
    }
    e2e_expect(STATUS_MEMORY, "wanted", "bench gemm 1000000000 1000000 8 --device cpu");
}

static void every_subcommand_has_help(void **state) {
    static const char *const names[] = {"step", "floor", "gemm", "ops"};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        e2e_assert_words("help", e2e_expect(0, "", "bench --help")->out, names[i]);
        e2e_assert_words("help", e2e_expect(0, "", "bench %s --help", names[i])->out,
                         "usage:|--seconds");
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        E2E_TEST(many_ranks_are_planned),
        E2E_TEST(what_does_not_fit_is_told_what_would),
        E2E_TEST(the_floor_has_the_plans_calls),
        E2E_TEST(a_step_stands_beside_its_floor),
        E2E_TEST(gemms_are_those_of_the_step),
        E2E_TEST(every_operation_is_timed_alone),
        E2E_TEST(probe_measures),
        E2E_TEST(energy_is_not_guessed),
        E2E_TEST(more_than_the_peak_is_no_success),
        E2E_TEST(wrong_inputs_are_refused),
        E2E_TEST(every_subcommand_has_help),
    };
    return E2E_MAIN(argc, argv, tests);
}

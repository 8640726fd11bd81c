/*
 * Multiple-choice scoring. Oracle: the losses of each completion taken token by token from the
 * logits of the generation path (key-value caches, no batches, no masks), log-softmax in double.
 *
 * The labels are random, so that the share of right answers is neither 0 nor 1; initial weights of
 * this size give completions losses that differ by far more than the two paths do (1e-5, see
 * validation_test.c), which the test asserts.
 */
#include "train/choices_eval.h"

#include <stdio.h>

#include "tests/train/small_run.h"
#include "train/sampler.h"

enum { EXAMPLES = 24, WORDS_MAX = 4096 };

static char folder[PATH_BYTES], path[PATH_BYTES];

static size_t draw(size_t *draws, size_t below) {
    return (size_t)(random_uniform(3, RANDOM_TEST, (*draws)++) * (float)below);
}

/* Contexts of 1 to 6 tokens, some of which do not fit before their completion; 2 to 4 completions
 * of 1 to 5 tokens. */
static int make_file(void **state) {
    (void)state;
    const char *base = getenv("TEST_TMPDIR");
    static uint16_t words[512 + WORDS_MAX];
    const int32_t header[] = {20240522, 1, EXAMPLES, 0};
    size_t used = 512, draws = 0;
    EXPECT_OK(path_join(folder, base == NULL ? "/tmp" : base, "choices_XXXXXX"));
    assert_non_null(mkdtemp(folder));
    EXPECT_OK(path_join(path, folder, "choices.bin"));
    memcpy(words, header, sizeof header);
    for (size_t e = 0; e < EXAMPLES; e++) {
        const size_t start = used, completions = 2 + draw(&draws, 3);
        words[used++] = 65535;
        words[used++] = 0;
        words[used++] = (uint16_t)e;
        words[used++] = (uint16_t)draw(&draws, completions);
        words[used++] = (uint16_t)completions;
        for (size_t part = 0; part <= completions; part++) {
            const size_t count = 1 + draw(&draws, part == 0 ? 6 : 5);
            words[used++] = (uint16_t)count;
            for (size_t i = 0; i < count; i++) words[used++] = (uint16_t)draw(&draws, VOCABULARY);
        }
        words[start + 1] = (uint16_t)(2 * (used - start));
    }
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(words, 2, used, file), used);
    assert_int_equal(fclose(file), 0);
    return 0;
}

static int remove_file(void **state) {
    (void)state;
    return folder_remove(folder) == STATUS_OK ? 0 : -1;
}

/* The loss of one completion, behind as much of the context as fits. */
static double direct_loss(struct engine *engine, const struct choice_example *example, size_t c) {
    int32_t tokens[32];
    const size_t count = example->completion_tokens[c], all = example->context_tokens + count;
    const size_t skipped = all - 1 > LENGTH ? all - 1 - LENGTH : 0;
    double sum = 0.0;
    for (size_t i = 0; i < all; i++) {
        tokens[i] = i < example->context_tokens
                        ? example->context[i]
                        : example->completions[c][i - example->context_tokens];
    }
    gpt_generation_reset(&engine->generation);
    for (size_t i = skipped; i + 1 < all; i++) {
        struct tensor logits;
        EXPECT_OK(gpt_generation_step(&engine->generation, &tokens[i], &logits));
        const float *row = logits.data;
        double total = 0.0;
        for (size_t v = 0; v < VOCABULARY; v++) total += exp((double)row[v]);
        if (i + 1 >= example->context_tokens) sum += log(total) - (double)row[tokens[i + 1]];
    }
    return sum;
}

/* Whether the completion of the least loss is right; the runner-up must be clearly worse. */
static bool answers_right(const double *losses, const struct choice_example *example) {
    size_t best = 0;
    for (size_t c = 1; c < example->completion_count; c++) {
        if (losses[c] < losses[best]) best = c;
    }
    for (size_t c = 0; c < example->completion_count; c++) {
        assert_true(c == best || losses[c] > losses[best] + 1e-4);
    }
    return best == example->label;
}

static struct choices_score direct_score(struct engine *engine, const struct choices *choices,
                                         size_t examples) {
    size_t right = 0, right_norm = 0;
    for (size_t e = 0; e < examples; e++) {
        const struct choice_example example = choices_get(choices, e);
        double sums[CHOICES_COMPLETIONS_MAX], means[CHOICES_COMPLETIONS_MAX];
        for (size_t c = 0; c < example.completion_count; c++) {
            sums[c] = direct_loss(engine, &example, c);
            means[c] = sums[c] / (double)example.completion_tokens[c];
        }
        right += answers_right(sums, &example);
        right_norm += answers_right(means, &example);
    }
    return (struct choices_score){.examples = examples,
                                  .accuracy = (double)right / (double)examples,
                                  .accuracy_norm = (double)right_norm / (double)examples};
}

static void scores_are_those_of_the_logits(void **state) {
    (void)state;
    static const int64_t batches[] = {1, 3, 100};
    static const size_t wanted[] = {0, 1, 7, 1000};
    for (size_t b = 0; b < sizeof batches / sizeof batches[0]; b++) {
        struct small_run run;
        struct choices choices;
        small_config(&run.config, CONFIG_RECIPE_FP32);
        run.config.validation.micro_batch = batches[b];
        small_run_open(&run, ENGINE_EVALUATE | ENGINE_GENERATE);
        EXPECT_OK(choices_open(&choices, path, VOCABULARY));
        for (size_t w = 0; w < sizeof wanted / sizeof wanted[0]; w++) {
            const size_t examples = wanted[w] == 0 || wanted[w] > EXAMPLES ? EXAMPLES : wanted[w];
            const struct choices_score expected = direct_score(&run.engine, &choices, examples);
            struct choices_score score;
            EXPECT_OK(choices_evaluate(&run.engine, &choices, wanted[w], true, &score));
            assert_int_equal(score.examples, examples);
            assert_true(score.accuracy == expected.accuracy);
            assert_true(score.accuracy_norm == expected.accuracy_norm);
            if (w > 0 || b > 0) continue;
            print_message("  right %.3f, by mean %.3f\n", score.accuracy, score.accuracy_norm);
            assert_true(score.accuracy > 0.0 && score.accuracy < 1.0);
            assert_true(score.accuracy != score.accuracy_norm);
        }
        choices_close(&choices);
        small_run_close(&run);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(scores_are_those_of_the_logits)};
    return cmocka_run_group_tests(tests, make_file, remove_file);
}

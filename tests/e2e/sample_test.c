/*
 * deepwell sample as people use it.
 * Oracle: the texts of a call against those of calls with one prompt and one seed each, byte for
 * byte; a stopped text against the whole one, cut by hand; exit codes by docs/exit_codes.md.
 */
#include "tests/e2e/e2e.h"

#include <ctype.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char model[] = "sample run --device cpu --tokens 40";

/* What a call prints; release with free(). */
static char *sample(const char *options) {
    const struct outcome *outcome = e2e_expect(0, "", "%s %s", model, options);
    assert_int_equal(strlen(outcome->out), outcome->out_bytes);
    return strdup(outcome->out);
}

static void a_seed_is_a_text(void **state) {
    (void)state;
    e2e_expect(0, "", "train ../tiny.conf");
    char *first = sample("--prompt the --seed 7"), *again = sample("--prompt the --seed 7");
    char *other = sample("--prompt the --seed 8");
    char *both = sample("--prompt the --seed 7 --count 2"), *expected = NULL;
    assert_string_equal(first, again);
    assert_true(strcmp(first, other) != 0);
    assert_true(asprintf(&expected, "--- seed 7\n%s--- seed 8\n%s", first, other) > 0);
    assert_string_equal(both, expected);
    char *greedy = sample("--prompt the --temperature 0 --seed 7");
    char *greedy_too = sample("--prompt the --temperature 0 --seed 8");
    assert_string_equal(greedy, greedy_too);
    char *const texts[] = {first, again, other, both, expected, greedy, greedy_too};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) free(texts[i]);
}

/* A prompt of a file gives what it gives alone, whatever stands beside it: short ones, none, one
 * beyond the context of 16. */
static void prompts_of_a_file(void **state) {
    (void)state;
    static const char *const prompts[] = {"the", "", "loss\xC3\xA9",
                                          "the_model_falls_and_falls", "a"};
    char file[256] = "", *expected = NULL, *whole = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&expected, &bytes);
    assert_non_null(out);
    e2e_expect(0, "", "train ../tiny.conf");
    for (size_t i = 0; i < sizeof prompts / sizeof prompts[0]; i++) {
        char options[128];
        snprintf(options, sizeof options, "--prompt=%s --seed 3", prompts[i]);
        char *alone = sample(options);
        fprintf(out, "--- prompt %zu\n%s", i + 1, alone);
        free(alone);
        strcat(strcat(file, prompts[i]), "\n");
    }
    assert_int_equal(fclose(out), 0);
    e2e_write("prompts.txt", file, strlen(file));
    whole = sample("--prompts prompts.txt --seed 3");
    assert_string_equal(whole, expected);
    free(whole);
    free(expected);
    e2e_write("one.txt", "the\n", 4);
    whole = sample("--prompts one.txt --count 2 --seed 3");
    e2e_assert_words("seeds of a prompt", whole,
                     "--- prompt 1, seed 3\nthe|--- prompt 1, seed 4\nthe");
    free(whole);
    e2e_write("zero.txt", "a\n\0", 3);
    e2e_expect(STATUS_DATA, "zero.txt:2: expected text, found a zero byte",
               "sample run --prompts zero.txt");
    e2e_write("empty.txt", "", 0);
    e2e_expect(STATUS_DATA, "empty.txt: expected prompts, one a line",
               "sample run --prompts empty.txt");
    e2e_expect(STATUS_IO, "nowhere.txt", "sample run --prompts nowhere.txt");
    e2e_expect(STATUS_CONFIG, "--prompt or --prompts", "sample run --prompt a --prompts one.txt");
}

/* The text up to the stop that comes first; neither the prompt nor a stop that never comes counts.
 */
static void a_stop_ends_the_text(void **state) {
    (void)state;
    enum { PROMPT = 3, FAR = 8 };
    char options[128];
    e2e_expect(0, "", "train ../tiny.conf");
    char *whole = sample("--prompt the --seed 3");
    size_t at = PROMPT + FAR;
    while (whole[at] != '\0' && !isalpha((unsigned char)whole[at])) at++;
    assert_true(whole[at] != '\0');
    const char letter = whole[at];
    const size_t kept = (size_t)(strchr(whole + PROMPT, letter) - whole);
    snprintf(options, sizeof options, "--prompt the --seed 3 --stop %c --stop zyxwvutsrqponm",
             letter);
    char *stopped = sample(options);
    assert_int_equal(strlen(stopped), kept + 1);
    assert_memory_equal(stopped, whole, kept);
    assert_int_equal(stopped[kept], '\n');
    char *never = sample("--prompt the --seed 3 --stop zyxwvutsrqponm");
    assert_string_equal(never, whole);
    free(whole);
    free(stopped);
    free(never);
    e2e_expect(STATUS_CONFIG, "stop: expected 1 to 256 bytes, found 0", "sample run --stop=");
}

/* A text that ended by itself says after how many tokens; asked for so many, it is the same text
 * and says nothing. The end is one token of 256, so that a text of 40 has it once in seven. */
static void an_early_end_is_noted(void **state) {
    (void)state;
    e2e_expect(0, "", "train ../tiny.conf");
    for (int seed = 1; seed <= 200; seed++) {
        const struct outcome *outcome = e2e_expect(0, "", "%s --prompt the --seed %d", model, seed);
        size_t tokens = 0;
        if (outcome->err[0] == '\0') continue;
        if (sscanf(outcome->err, "note: the text ended by itself after %zu of 40 tokens\n",
                   &tokens) != 1) {
            fail_msg("%s", outcome->err);
        }
        if (tokens == 0) continue; /* no text of no tokens can be asked for */
        char *text = strdup(outcome->out);
        outcome = e2e_expect(0, "", "sample run --device cpu --prompt the --seed %d --tokens %zu",
                             seed, tokens);
        assert_string_equal(outcome->out, text);
        assert_string_equal(outcome->err, "");
        free(text);
        return;
    }
    fail_msg("none of 200 texts ended by itself");
}

/* A stopped call prints what it had and says that it was stopped. So many texts, since each may end
 * by itself at any token. */
static void a_signal_is_no_success(void **state) {
    (void)state;
    static const int numbers[] = {SIGTERM, SIGINT};
    static const char *const words[] = {"sampling stopped by SIGTERM",
                                        "sampling stopped by SIGINT"};
    e2e_expect(0, "", "train ../tiny.conf");
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        const struct stalled run = e2e_stall("the", "sample run --device cpu --prompt the "
                                             "--count 1000000");
        assert_int_equal(kill(run.process.pid, numbers[i]), 0);
        const struct outcome *outcome = e2e_release(&run);
        if (outcome->code != STATUS_INTERRUPTED) fail_msg("code %d", outcome->code);
        e2e_assert_words("a stopped call", outcome->err, words[i]);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        E2E_TEST(a_seed_is_a_text),
        E2E_TEST(prompts_of_a_file),
        E2E_TEST(a_stop_ends_the_text),
        E2E_TEST(an_early_end_is_noted),
        E2E_TEST(a_signal_is_no_success),
    };
    return E2E_MAIN(argc, argv, tests);
}

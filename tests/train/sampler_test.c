/*
 * The choice of the next token. Oracles: closed form (which tokens can come at all, softmax
 * probabilities by a chi-square test), bit equality for repetition. Continuations of a whole text:
 * the choice repeated over the logits of a generation that is fed by hand.
 *
 * Chi-square: of n draws over k tokens with expected counts e, sum (count - e)^2 / e follows
 * chi-square with k - 1 degrees of freedom d. Its quantile is d (1 - 2 / (9 d) + z sqrt(2 /
 * (9 d)))^3 (Wilson and Hilferty, 1931); z = 4.75 leaves a chance of one in a million. The seed is
 * fixed, so the test always gives the same.
 */
#include "tests/kernels/testing.h"
#include "train/sampler.h"

enum { VOCABULARY = 11, DRAWS = 20000 };

/* No order, a tie between 3 and 8, and one token far below the rest. */
static const float logits[VOCABULARY] = {0.5f,  -1.0f, 2.0f,  1.25f, 0.0f, -9.0f,
                                         -0.5f, 1.0f,  1.25f, 0.75f, -2.0f};
/* The same by falling logit; equal ones by number. */
static const int32_t ranking[VOCABULARY] = {2, 3, 8, 7, 9, 0, 4, 6, 1, 10, 5};

static int32_t pick(const struct sampling *sampling, uint64_t index) {
    struct candidate candidates[VOCABULARY];
    return sampler_pick(sampling, logits, VOCABULARY, index, candidates);
}

static void assert_always(const struct sampling *sampling, int32_t token) {
    for (uint64_t i = 0; i < 1000; i++) assert_int_equal(pick(sampling, i), token);
}

static void one_token_is_left(void **state) {
    (void)state;
    assert_always(&(struct sampling){.temperature = 0.0, .top_p = 1.0, .seed = 1}, 2);
    assert_always(&(struct sampling){.temperature = 0.0, .top_k = 5, .top_p = 0.5, .seed = 1}, 2);
    assert_always(&(struct sampling){.temperature = 5.0, .top_k = 1, .top_p = 1.0, .seed = 2}, 2);
    assert_always(&(struct sampling){.temperature = 5.0, .top_p = 1e-9, .seed = 3}, 2);
    /* exp(-1 / 1e-3) is nothing beside 1 */
    assert_always(&(struct sampling){.temperature = 1e-3, .top_p = 1.0, .seed = 4}, 2);
}

static void equal_logits_in_the_order_of_tokens(void **state) {
    (void)state;
    float equal[VOCABULARY] = {0};
    struct candidate candidates[VOCABULARY];
    struct sampling sampling = {.temperature = 0.0, .top_p = 1.0};
    assert_int_equal(sampler_pick(&sampling, equal, VOCABULARY, 0, candidates), 0);
    sampling.temperature = 1.0;
    sampling.top_k = 3;
    bool seen[VOCABULARY] = {false};
    for (uint64_t i = 0; i < 1000; i++) {
        seen[sampler_pick(&sampling, equal, VOCABULARY, i, candidates)] = true;
    }
    for (size_t token = 0; token < VOCABULARY; token++) assert_int_equal(seen[token], token < 3);
}

/* exp(logit / temperature) of the `kept` first of the ranking, made to sum to 1. */
static void probabilities(double temperature, size_t kept, double out[VOCABULARY]) {
    double sum = 0.0;
    for (size_t i = 0; i < VOCABULARY; i++) {
        out[ranking[i]] = i < kept ? exp((double)logits[ranking[i]] / temperature) : 0.0;
        sum += out[ranking[i]];
    }
    for (size_t i = 0; i < VOCABULARY; i++) out[i] /= sum;
}

static void assert_distribution(const struct sampling *sampling, size_t kept) {
    size_t counts[VOCABULARY] = {0}, cells = 0;
    double expected[VOCABULARY], chi_square = 0.0;
    double rare_expected = 0.0, rare_count = 0.0; /* of cells below 5, left out */
    for (uint64_t i = 0; i < DRAWS; i++) counts[pick(sampling, i)]++;
    probabilities(sampling->temperature, kept, expected);
    for (size_t token = 0; token < VOCABULARY; token++) {
        const double e = expected[token] * DRAWS, count = (double)counts[token];
        if (e == 0.0) {
            assert_int_equal(counts[token], 0);
        } else if (e < 5.0) {
            rare_expected += e;
            rare_count += count;
        } else {
            chi_square += (count - e) * (count - e) / e;
            cells++;
        }
    }
    /* Too few to be judged by their distribution; their number is. */
    assert_true(rare_count <= 5.0 + 10.0 * rare_expected);
    const double d = (double)cells - 1.0;
    const double threshold = d * pow(1.0 - 2.0 / (9.0 * d) + 4.75 * sqrt(2.0 / (9.0 * d)), 3.0);
    if (chi_square > threshold) fail_msg("chi-square %g above %g", chi_square, threshold);
    assert_true(chi_square > 0.0);
}

static void draws_follow_the_probabilities(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 3; seed++) {
        assert_distribution(&(struct sampling){.temperature = 1.0, .top_p = 1.0, .seed = seed},
                            VOCABULARY);
        assert_distribution(&(struct sampling){.temperature = 0.7, .top_p = 1.0, .seed = seed},
                            VOCABULARY);
        assert_distribution(&(struct sampling){.temperature = 3.0, .top_p = 1.0, .seed = seed},
                            VOCABULARY);
        assert_distribution(&(struct sampling){1.0, 4, 1.0, seed}, 4);
        assert_distribution(&(struct sampling){1.0, 2, 1.0, seed}, 2); /* cuts through the tie */
        assert_distribution(&(struct sampling){1.0, 1000, 1.0, seed}, VOCABULARY);
    }
}

/* The fewest of the ranking that reach top_p, for limits between the sums of probabilities. */
static void top_p_keeps_the_fewest_that_reach_it(void **state) {
    (void)state;
    for (size_t kept = 2; kept < VOCABULARY - 1; kept++) {
        double p[VOCABULARY], before = 0.0;
        probabilities(1.0, VOCABULARY, p);
        for (size_t i = 0; i + 1 < kept; i++) before += p[ranking[i]];
        const double top_p = before + 0.5 * p[ranking[kept - 1]];
        assert_distribution(&(struct sampling){1.0, 0, top_p, 7}, kept);
    }
    /* top_k cuts first: of two tokens, a share of the two. */
    double two[VOCABULARY];
    probabilities(1.0, 2, two);
    assert_distribution(&(struct sampling){1.0, 2, two[2] + 0.01, 7}, 2);
    assert_always(&(struct sampling){1.0, 2, two[2] - 0.01, 7}, 2);
}

static void the_same_seed_and_index_give_the_same_token(void **state) {
    (void)state;
    const struct sampling a = {.temperature = 1.0, .top_p = 1.0, .seed = 5};
    struct sampling b = a;
    size_t equal = 0, repeated = 0;
    b.seed = 6;
    for (uint64_t i = 0; i < 1000; i++) {
        assert_int_equal(pick(&a, i), pick(&a, i));
        equal += pick(&a, i) == pick(&b, i);
        repeated += pick(&a, i) == pick(&a, i + 1);
    }
    /* Independent draws agree with probability sum p^2, here 0.19: in 190 of 1000, give or take
     * 13. */
    assert_true(equal < 300 && repeated < 300);
}

/* ---- whole texts ---- */

static void configure(struct config *config) {
    config_defaults(config);
    config->model = (struct config_model){
        .layers = 2, .heads = 2, .width = 16, .context = 12, .vocabulary = VOCABULARY};
    config->precision.recipe = CONFIG_RECIPE_FP32;
    config->threads = 1;
}

struct text {
    int32_t tokens[64];
    size_t count, stop_after;
};

static bool emit(void *context, int32_t token) {
    struct text *text = context;
    assert_true(text->count < 64);
    text->tokens[text->count++] = token;
    return text->count != text->stop_after;
}

static struct text continue_text(struct engine *engine, const int32_t *prompt, size_t count,
                                 size_t tokens, int32_t stop, size_t stop_after) {
    struct text text = {.stop_after = stop_after};
    const struct generation_request request = {
        .prompt = prompt, .prompt_count = count, .tokens = tokens, .stop = stop,
        .sampling = {.temperature = 1.0, .top_p = 0.9, .seed = 11}, .emit = emit, .context = &text,
    };
    EXPECT_OK(sampler_generate(engine, &request));
    return text;
}

/* Feeding one token at a time; a full context starts again from its second half. */
static struct text continue_by_hand(struct engine *engine, const int32_t *prompt, size_t count,
                                    size_t tokens) {
    enum { CONTEXT = 12 };
    const struct sampling sampling = {.temperature = 1.0, .top_p = 0.9, .seed = 11};
    struct gpt_generation *generation = &engine->generation;
    struct candidate candidates[VOCABULARY];
    struct text text = {0};
    struct tensor next = {0};
    int32_t history[128];
    size_t length = count, fed = count > CONTEXT ? count - CONTEXT / 2 : 0;
    memcpy(history, prompt, count * sizeof *history);
    gpt_generation_reset(generation);
    for (size_t i = 0; i < tokens; i++) {
        if (generation->past == CONTEXT) {
            gpt_generation_reset(generation);
            fed = length - CONTEXT / 2;
        }
        while (fed < length) EXPECT_OK(gpt_generation_step(generation, &history[fed++], &next));
        history[length] = sampler_pick(&sampling, next.data, VOCABULARY, i, candidates);
        text.tokens[text.count++] = history[length++];
    }
    return text;
}

static void texts_are_the_choice_repeated(void **state) {
    (void)state;
    static const int32_t prompt[15] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 1, 2, 3, 4};
    static const size_t counts[] = {1, 5, 12, 13, 15}; /* below, at and above the context of 12 */
    struct config config;
    struct engine engine;
    configure(&config);
    EXPECT_OK(engine_open(&engine, &config, ENGINE_GENERATE, ENGINE_REAL));
    EXPECT_OK(engine_initialise(&engine, &config));
    for (size_t i = 0; i < engine.gpt.table.elements; i++) {
        engine.masters[i] *= 20.0f; /* some contrast */
    }
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        const struct text got = continue_text(&engine, prompt, counts[i], 40, -1, 0);
        const struct text again = continue_text(&engine, prompt, counts[i], 40, -1, 0);
        const struct text expected = continue_by_hand(&engine, prompt, counts[i], 40);
        assert_int_equal(got.count, 40);
        assert_memory_equal(got.tokens, again.tokens, sizeof got.tokens);
        assert_memory_equal(got.tokens, expected.tokens, sizeof got.tokens);
    }
    engine_close(&engine);
}

static void texts_end(void **state) {
    (void)state;
    static const int32_t prompt[3] = {1, 2, 3};
    struct config config;
    struct engine engine;
    configure(&config);
    EXPECT_OK(engine_open(&engine, &config, ENGINE_GENERATE, ENGINE_REAL));
    EXPECT_OK(engine_initialise(&engine, &config));
    const struct text whole = continue_text(&engine, prompt, 3, 30, -1, 0);
    assert_int_equal(continue_text(&engine, prompt, 3, 0, -1, 0).count, 0);
    /* the receiver had enough */
    assert_int_equal(continue_text(&engine, prompt, 3, 30, -1, 7).count, 7);
    size_t first = 0;
    while (whole.tokens[first] != whole.tokens[20]) first++;
    const struct text stopped = continue_text(&engine, prompt, 3, 30, whole.tokens[20], 0);
    assert_int_equal(stopped.count, first); /* the stop itself is not emitted */
    assert_memory_equal(stopped.tokens, whole.tokens, first * sizeof(int32_t));

    engine.masters[param_table_find(&engine.gpt.table, "final_norm.bias")->offset] = NAN;
    struct text text = {0};
    const struct generation_request request = {.prompt = prompt, .prompt_count = 3, .tokens = 1,
                                               .stop = -1, .emit = emit, .context = &text};
    expect_status(STATUS_NUMERICS, sampler_generate(&engine, &request));
    assert_non_null(strstr(status_message(), "the logit of token 0 is"));
    engine_close(&engine);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_token_is_left),
        cmocka_unit_test(equal_logits_in_the_order_of_tokens),
        cmocka_unit_test(draws_follow_the_probabilities),
        cmocka_unit_test(top_p_keeps_the_fewest_that_reach_it),
        cmocka_unit_test(the_same_seed_and_index_give_the_same_token),
        cmocka_unit_test(texts_are_the_choice_repeated),
        cmocka_unit_test(texts_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

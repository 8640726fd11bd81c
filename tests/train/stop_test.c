/*
 * Stops in a stream. Oracle: a search over the whole text at once, which looks at every end from
 * the first on for the longest stop that ends there; thousands of random texts and stops over two
 * and three symbols, so that stops overlap, contain each other and nearly come.
 */
#include "train/stop.h"

#include <string.h>

#include "tests/kernels/testing.h"

enum { TEXT_MAX = 40, TEXTS = 20000 };

struct text {
    int32_t symbols[TEXT_MAX];
    size_t count;
};

static void append(void *context, int32_t symbol) {
    struct text *text = context;
    assert_true(text->count < TEXT_MAX);
    text->symbols[text->count++] = symbol;
}

/* Where the text ends by the oracle; `count` if no stop comes. *end: behind the stop. */
static size_t search(const struct stop_list *list, const struct text *text, size_t *end) {
    for (*end = 1; *end <= text->count; (*end)++) {
        size_t longest = 0;
        for (size_t i = 0; i < list->count; i++) {
            const struct stop *stop = &list->items[i];
            if (stop->count <= *end && stop->count > longest &&
                memcmp(text->symbols + *end - stop->count, stop->symbols,
                       stop->count * sizeof *stop->symbols) == 0) {
                longest = stop->count;
            }
        }
        if (longest > 0) return *end - longest;
    }
    return text->count;
}

static size_t draw(size_t *draws, size_t below) {
    return (size_t)(random_uniform(8, RANDOM_TEST, (*draws)++) * (float)below);
}

static void random_texts_end_where_a_search_says(void **state) {
    (void)state;
    size_t draws = 0, stopped = 0, held = 0;
    for (size_t n = 0; n < TEXTS; n++) {
        int32_t symbols[4][6];
        struct stop_list list = {.count = draw(&draws, 5)};
        const size_t kinds = 2 + n % 2;
        for (size_t i = 0; i < list.count; i++) {
            list.items[i] = (struct stop){symbols[i], 1 + draw(&draws, 6)};
            for (size_t s = 0; s < 6; s++) symbols[i][s] = (int32_t)draw(&draws, kinds) - 1;
        }
        struct text text = {.count = draw(&draws, TEXT_MAX)}, got = {.count = 0};
        for (size_t i = 0; i < text.count; i++) text.symbols[i] = (int32_t)draw(&draws, kinds) - 1;
        size_t end = 0;
        const size_t expected = search(&list, &text, &end);
        struct stop_filter filter = {.list = &list};
        for (size_t i = 0; i < text.count; i++) {
            stop_filter_add(&filter, text.symbols[i], append, &got);
            assert_int_equal(filter.stopped, expected < text.count && i + 1 >= end);
            assert_true(got.count <= expected); /* never part of the stop */
        }
        held += filter.held_count > 0;
        stop_filter_end(&filter, append, &got);
        assert_int_equal(got.count, expected);
        assert_memory_equal(got.symbols, text.symbols, expected * sizeof *text.symbols);
        stopped += filter.stopped;
    }
    assert_true(stopped > TEXTS / 4 && stopped < 9 * TEXTS / 10 && held > TEXTS / 100);
}

/* Symbols come out as soon as they can belong to no stop. */
static void no_more_is_held_than_must_be(void **state) {
    (void)state;
    int32_t symbols[] = {1, 2, 1, 3};
    const struct stop_list list = {.items = {{symbols, 4}}, .count = 1};
    static const struct {
        int32_t symbol;
        size_t out;
    } steps[] = {{5, 1}, {1, 1}, {2, 1}, {1, 1}, {2, 3}, {1, 3}, {1, 6}, {4, 8}};
    struct stop_filter filter = {.list = &list};
    struct text got = {.count = 0};
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        stop_filter_add(&filter, steps[i].symbol, append, &got);
        assert_int_equal(got.count, steps[i].out);
    }
}

/* The longest stop, missed by its last symbol and then complete. */
static void the_longest_stop_fits(void **state) {
    (void)state;
    static int32_t symbols[STOP_SYMBOLS_MAX];
    const struct stop_list list = {.items = {{symbols, STOP_SYMBOLS_MAX}}, .count = 1};
    struct stop_filter filter = {.list = &list};
    struct text got = {.count = 0};
    symbols[STOP_SYMBOLS_MAX - 1] = 1; /* zeros, then a one */
    for (size_t i = 0; i < STOP_SYMBOLS_MAX + 3; i++) stop_filter_add(&filter, 0, append, &got);
    assert_int_equal(got.count, 4);
    stop_filter_add(&filter, 1, append, &got);
    assert_true(filter.stopped);
    assert_int_equal(got.count, 4);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_texts_end_where_a_search_says),
        cmocka_unit_test(no_more_is_held_than_must_be),
        cmocka_unit_test(the_longest_stop_fits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

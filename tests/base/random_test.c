/*
 * Oracles: the known answers that the authors of Philox publish with Random123 (kat_vectors,
 * philox4x32, 10 rounds); moments and quantiles of the distributions. Our counter words are {index
 * low, index high, stream, 0}, so of the published vectors those with a last counter word of 0 can
 * be reached, which is the first; the round function is checked on the others through
 * reference_words below, itself checked on all. Statistical bounds are 5 standard errors.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/random.h"

/* Philox-4x32-10 as in figure 2 of the paper, with any counter. */
static void reference_words(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t k0 = key[0], k1 = key[1];
    memcpy(out, counter, 4 * sizeof *out);
    for (int round = 0; round < 10; round++) {
        const uint64_t a = (uint64_t)out[0] * 0xD2511F53u, b = (uint64_t)out[2] * 0xCD9E8D57u;
        const uint32_t x1 = out[1], x3 = out[3];
        out[0] = (uint32_t)(b >> 32) ^ x1 ^ k0;
        out[1] = (uint32_t)b;
        out[2] = (uint32_t)(a >> 32) ^ x3 ^ k1;
        out[3] = (uint32_t)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

static void test_known_answers(void **state) {
    static const struct {
        uint32_t counter[4], key[2], expected[4];
    } vectors[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    uint32_t words[4];
    (void)state;
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        reference_words(vectors[i].counter, vectors[i].key, words);
        assert_memory_equal(words, vectors[i].expected, sizeof words);
    }
    random_words(0, 0, 0, words);
    assert_memory_equal(words, vectors[0].expected, sizeof words);
}

/* Every bit of seed, stream and index arrives where the layout says. */
static void test_layout(void **state) {
    (void)state;
    for (int bit = 0; bit < 160; bit++) {
        const uint64_t seed = bit < 64 ? (uint64_t)1 << bit : 5;
        const uint64_t index = bit >= 64 && bit < 128 ? (uint64_t)1 << (bit - 64) : 6;
        const uint32_t stream = bit >= 128 ? (uint32_t)1 << (bit - 128) : 7;
        const uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), stream, 0};
        const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
        uint32_t expected[4], words[4];
        reference_words(counter, key, expected);
        random_words(seed, stream, index, words);
        assert_memory_equal(words, expected, sizeof words);
    }
}

static void test_uniform(void **state) {
    enum { COUNT = 200000, BINS = 20 };
    int bins[BINS] = {0};
    double sum = 0.0;
    (void)state;
    for (uint64_t i = 0; i < COUNT; i++) {
        const float x = random_uniform(1, RANDOM_TEST, i);
        assert_true(x >= 0.0f && x < 1.0f);
        bins[(int)(x * (float)BINS)]++;
        sum += (double)x;
    }
    assert_true(fabs(sum / COUNT - 0.5) < 5.0 / sqrt(12.0 * COUNT));
    for (int i = 0; i < BINS; i++) {
        assert_true(fabs(bins[i] - (double)COUNT / BINS) < 5.0 * sqrt((double)COUNT / BINS));
    }
}

/* Moments 1 to 4 (their variances are 1, 2, 15, 96) and the share within one standard deviation. */
static void test_normal(void **state) {
    enum { COUNT = 200000 };
    static const double expected[4] = {0.0, 1.0, 0.0, 3.0}, variance[4] = {1.0, 2.0, 15.0, 96.0};
    double moments[4] = {0}, inside = 0.0;
    (void)state;
    for (uint64_t i = 0; i < COUNT; i++) {
        const double x = (double)random_normal(1, RANDOM_TEST, i);
        assert_true(isfinite(x));
        for (int power = 0; power < 4; power++) moments[power] += pow(x, power + 1) / COUNT;
        inside += fabs(x) < 1.0 ? 1.0 / COUNT : 0.0;
    }
    for (int power = 0; power < 4; power++) {
        assert_true(fabs(moments[power] - expected[power]) < 5.0 * sqrt(variance[power] / COUNT));
    }
    assert_true(fabs(inside - erf(sqrt(0.5))) < 5.0 * sqrt(0.25 / COUNT));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_answers),
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_uniform),
        cmocka_unit_test(test_normal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

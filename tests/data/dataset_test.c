/*
 * The order of the sequences and the samples. Oracles: a permutation visits every place once
 * (counted); shards of tokens 0, 1, 2, ... whose samples tell where they come from; equality and
 * inequality of fingerprints under known changes.
 */
#include "tests/data/data_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/dataset.h"

static void assert_bijection(uint64_t seed, uint64_t epoch, uint64_t count) {
    unsigned char *visited = calloc(count, 1);
    assert_non_null(visited);
    for (uint64_t i = 0; i < count; i++) {
        const uint64_t place = dataset_permute(seed, epoch, i, count);
        if (place >= count || visited[place]) {
            fail_msg("count %lu: element %lu goes to %lu again or outside", (unsigned long)count,
                     (unsigned long)i, (unsigned long)place);
        }
        visited[place] = 1;
    }
    free(visited);
}

static void permutation_is_a_bijection(void **state) {
    (void)state;
    const uint64_t primes[] = {1009, 4099, 7919, 65537, 99991};
    for (uint64_t count = 1; count <= 1000; count++) {
        assert_bijection(count, count % 3, count);
    }
    for (size_t i = 0; i < sizeof primes / sizeof primes[0]; i++) assert_bijection(7, i, primes[i]);
    for (unsigned bits = 10; bits <= 16; bits++) {
        const uint64_t power = UINT64_C(1) << bits;
        assert_bijection(UINT64_MAX, 0, power - 1);
        assert_bijection(UINT64_MAX, 1, power);
        assert_bijection(UINT64_MAX, UINT64_MAX, power + 1);
    }
}

/* Counts that no table holds: the places lie inside, and neighbours do not collide. */
static void permutation_of_huge_counts(void **state) {
    (void)state;
    const uint64_t counts[] = {UINT32_MAX, (UINT64_C(1) << 32) + 1, (UINT64_C(1) << 63) + 1,
                               UINT64_MAX};
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        uint64_t places[200];
        for (uint64_t i = 0; i < 200; i++) {
            places[i] = dataset_permute(3, 1, i < 100 ? i : counts[c] - i, counts[c]);
            assert_true(places[i] < counts[c]);
            for (uint64_t j = 0; j < i; j++) assert_true(places[i] != places[j]);
        }
    }
}

/*
 * Two independent permutations of 1000 agree in 1 place on average (Poisson, variance 1), and so
 * does one with the identity; more than 10 has a probability of 1e-8. A random permutation has a
 * mean distance of count / 3 between places of neighbours; its mean over 999 pairs has a standard
 * deviation below count * 0.24 / sqrt(999) * sqrt(2) = 11, so six of them give 333 +- 66.
 */
static void permutations_differ_and_mix(void **state) {
    (void)state;
    enum { COUNT = 1000 };
    size_t same_epoch = 0, same_seed = 0, same_place = 0;
    double distance = 0.0;
    for (uint64_t i = 0; i < COUNT; i++) {
        const uint64_t place = dataset_permute(1, 0, i, COUNT);
        assert_true(place == dataset_permute(1, 0, i, COUNT));
        same_epoch += place == dataset_permute(1, 1, i, COUNT);
        same_seed += place == dataset_permute(2, 0, i, COUNT);
        same_place += place == i;
        if (i == 0) continue;
        const uint64_t before = dataset_permute(1, 0, i - 1, COUNT);
        distance += (double)(place > before ? place - before : before - place);
    }
    assert_true(same_epoch <= 10 && same_seed <= 10 && same_place <= 10);
    distance /= COUNT - 1;
    assert_true(distance > 333.0 - 66.0 && distance < 333.0 + 66.0);
}

/* Shard sizes with T = 4: 2 sequences and 1 token over, none (4 tokens), none (empty), 3, exactly
 * 1. Tokens count on over all shards, so that inputs[0] tells shard and place. */
enum { LENGTH = 4, SEQUENCES = 6, TOKENS = 10 + 4 + 0 + 13 + 5 };
static const int32_t starts[SEQUENCES] = {0, 4, 14, 18, 22, 27};

static const char *write_shards(void **state) {
    const size_t sizes[] = {10, 4, 0, 13, 5};
    uint32_t first = 0;
    for (size_t i = 0; i < 5; i++) {
        char name[16];
        snprintf(name, sizeof name, "s%zu.bin", i);
        write_counting_shard(in_folder(state, name), i % 2 == 0 ? 2 : 4, first, sizes[i]);
        first += (uint32_t)sizes[i];
    }
    return in_folder(state, "s*.bin");
}

static void samples_are_shifted_windows(void **state) {
    const enum dataset_order orders[] = {ORDER_SEQUENTIAL, ORDER_SHUFFLED};
    const char *pattern = write_shards(state);
    for (size_t o = 0; o < 2; o++) {
        struct dataset dataset;
        assert_int_equal(dataset_open(&dataset, pattern, LENGTH, TOKENS, orders[o], 5), STATUS_OK);
        assert_int_equal(dataset.sequences, SEQUENCES);
        assert_int_equal(dataset.tokens, TOKENS);
        assert_int_equal(dataset.shard_count, 5);
        for (uint64_t epoch = 0; epoch < 4; epoch++) {
            unsigned seen = 0;
            for (uint64_t i = 0; i < SEQUENCES; i++) {
                int32_t inputs[LENGTH], targets[LENGTH];
                size_t which = 0;
                dataset_sample(&dataset, epoch * SEQUENCES + i, inputs, targets);
                while (which < SEQUENCES && starts[which] != inputs[0]) which++;
                assert_true(which < SEQUENCES);
                if (orders[o] == ORDER_SEQUENTIAL) assert_int_equal(which, i);
                seen |= 1u << which;
                for (int32_t t = 0; t < LENGTH; t++) {
                    assert_int_equal(inputs[t], starts[which] + t);
                    assert_int_equal(targets[t], starts[which] + t + 1);
                }
            }
            assert_int_equal(seen, (1u << SEQUENCES) - 1); /* every sequence once an epoch */
        }
        dataset_close(&dataset);
    }
}

static void the_last_samples_of_time(void **state) {
    struct dataset dataset;
    int32_t inputs[LENGTH], targets[LENGTH];
    assert_int_equal(dataset_open(&dataset, write_shards(state), LENGTH, TOKENS, ORDER_SHUFFLED, 5),
                     STATUS_OK);
    dataset_sample(&dataset, UINT64_MAX, inputs, targets);
    assert_int_equal(targets[LENGTH - 1], inputs[0] + LENGTH);
    dataset_close(&dataset);
}

static enum status open_shuffled(void **state, struct dataset *dataset, const char *pattern,
                                 size_t length, size_t vocabulary) {
    return dataset_open(dataset, in_folder(state, pattern), length, vocabulary, ORDER_SHUFFLED, 0);
}

static void patterns(void **state) {
    const char *const sorted[] = {"S9.bin", "odd[1]*.bin", "s0.bin", "s10.bin", "s2.bin"};
    struct dataset dataset;
    write_shards(state);
    write_counting_shard(in_folder(state, "s10.bin"), 2, 0, 5);
    write_counting_shard(in_folder(state, "S9.bin"), 2, 0, 5);
    write_counting_shard(in_folder(state, "odd[1]*.bin"), 2, 0, 5);
    assert_int_equal(open_shuffled(state, &dataset, "s0.bin", 3, 256), STATUS_OK);
    assert_int_equal(dataset.shard_count, 1);
    dataset_close(&dataset);
    /* sorted by bytes: upper case before lower case, s10 before s2 */
    assert_int_equal(open_shuffled(state, &dataset, "[osS]*[029\\*].bin", 3, 256), STATUS_OK);
    assert_int_equal(dataset.shard_count, 5);
    for (size_t i = 0; i < 5; i++) {
        assert_string_equal(dataset.shards[i].path, in_folder(state, sorted[i]));
    }
    dataset_close(&dataset);
    /* what is a file is no pattern, whatever its name */
    assert_int_equal(open_shuffled(state, &dataset, "odd[1]*.bin", 3, 256), STATUS_OK);
    assert_int_equal(dataset.shard_count, 1);
    dataset_close(&dataset);
}

static void refusals(void **state) {
    struct dataset dataset;
    write_shards(state);
    assert_int_equal(open_shuffled(state, &dataset, "", 3, 256), STATUS_DATA);
    assert_message("found the folder|/train*.bin");
    assert_int_equal(open_shuffled(state, &dataset, "t*.bin", 3, 256), STATUS_DATA);
    assert_message("t*.bin|no such file|deepwell data prepare");
    assert_int_equal(open_shuffled(state, &dataset, "s*.bin", 100, 256), STATUS_DATA);
    assert_message("at least 101 tokens|found 13|sequence length");
    assert_int_equal(open_shuffled(state, &dataset, "s*.bin", 13, 256), STATUS_DATA);
    assert_int_equal(open_shuffled(state, &dataset, "s*.bin", 0, 256), STATUS_CONFIG);
    assert_int_equal(open_shuffled(state, &dataset, "s*.bin", 4, 20), STATUS_DATA);
    assert_message("s3.bin|vocabulary of 20|token 20 at position 6");
    /* one bad shard among good ones */
    write_text(in_folder(state, "s5.bin"), "text");
    assert_int_equal(open_shuffled(state, &dataset, "s*.bin", 4, 256), STATUS_DATA);
    assert_message("s5.bin|looks like text");
    assert_null(dataset.shards);
}

static void get_fingerprint(void **state, const char *pattern, char fingerprint[33]) {
    struct dataset dataset;
    assert_int_equal(dataset_open(&dataset, in_folder(state, pattern), 8, 0, ORDER_SHUFFLED, 0),
                     STATUS_OK);
    assert_int_equal(strlen(dataset.fingerprint), 32);
    assert_int_equal(strspn(dataset.fingerprint, "0123456789abcdef"), 32);
    memcpy(fingerprint, dataset.fingerprint, 33);
    dataset_close(&dataset);
}

/* Large enough (4 MB) that only samples of the content are looked at. */
static void fingerprint_notices_other_data(void **state) {
    enum { COUNT = 1 << 20 };
    char base[33], other[33];
    write_counting_shard(in_folder(state, "a.bin"), 4, 0, COUNT);
    get_fingerprint(state, "a.bin", base);
    get_fingerprint(state, "a*.bin", other); /* the same file by another pattern */
    assert_string_equal(base, other);

    assert_int_equal(folder_create(in_folder(state, "moved")), STATUS_OK);
    write_counting_shard(in_folder(state, "moved/a.bin"), 4, 0, COUNT);
    get_fingerprint(state, "moved/a.bin", other); /* another folder */
    assert_string_equal(base, other);

    write_counting_shard(in_folder(state, "b.bin"), 4, 0, COUNT);
    get_fingerprint(state, "b.bin", other); /* another name */
    assert_string_not_equal(base, other);
    get_fingerprint(state, "?.bin", other); /* one shard more */
    assert_string_not_equal(base, other);
    write_counting_shard(in_folder(state, "moved/a.bin"), 4, 0, COUNT - 1); /* a token fewer */
    get_fingerprint(state, "moved/a.bin", other);
    assert_string_not_equal(base, other);
    write_counting_shard(in_folder(state, "moved/a.bin"), 4, 1, COUNT); /* other content */
    get_fingerprint(state, "moved/a.bin", other);
    assert_string_not_equal(base, other);
}

/* Of a file up to 256 KiB every token counts, and of any file the first and the last. */
static void fingerprint_notices_single_tokens(void **state) {
    const size_t counts[] = {1000, 1 << 20};
    for (size_t c = 0; c < 2; c++) {
        const size_t count = counts[c], places[] = {0, 500, count - 1};
        char base[33], other[33];
        write_counting_shard(in_folder(state, "a.bin"), 4, 0, count);
        get_fingerprint(state, "a.bin", base);
        for (size_t i = 0; i < 3; i++) {
            const char *path = in_folder(state, "a.bin");
            write_counting_shard(path, 4, 0, count);
            FILE *file = fopen(path, "r+b");
            assert_non_null(file);
            assert_int_equal(fseek(file, 1024 + 4 * (long)places[i], SEEK_SET), 0);
            assert_int_equal(fputc(0xAB, file), 0xAB);
            assert_int_equal(fclose(file), 0);
            get_fingerprint(state, "a.bin", other);
            assert_string_not_equal(base, other);
        }
    }
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, folder_setup, folder_teardown)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(permutation_is_a_bijection),
        cmocka_unit_test(permutation_of_huge_counts),
        cmocka_unit_test(permutations_differ_and_mix),
        TEST(samples_are_shifted_windows),
        TEST(the_last_samples_of_time),
        TEST(patterns),
        TEST(refusals),
        TEST(fingerprint_notices_other_data),
        TEST(fingerprint_notices_single_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/*
 * The deterministic driver of the fuzz entries: each seed as it is, then thousands of random
 * mutations of the seeds, the same ones in every run. Oracle: no crash, no sanitizer report, no
 * leak, no hang.
 *
 * The inputs run in a child process; the number of the input under way lies in shared memory, so
 * that the parent can say which one ended the child whatever the way (signal, sanitizer, exit, time
 * limit).
 *   fuzz_<thing>                 all inputs
 *   fuzz_<thing> NUMBER [FILE]   only input NUMBER, in this process (for a debugger), saved as FILE
 * Longer searches use libFuzzer with the same entry, which brings its own main:
 *   bazel run --config=fuzz //tests/fuzz:fuzz_<thing> -- -max_total_time=600
 */
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/random.h"

enum {
    MUTATED_INPUTS = 10000,
    INPUT_SECONDS_MAX = 10, /* much for a loaded machine with a sanitizer, little for a hang */
    CHANGES_MAX = 4,        /* in one mutated input */
    INPUT_BYTES_MAX = 2 * FUZZ_SEED_BYTES_MAX,
};

/* Numbers at which parsers go wrong: signs, powers of two, and their neighbours. */
static const uint64_t edge_values[] = {
    0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000,
    0xFFFFFFFF, 0x100000000, 0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF,
    0x3FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFF8,
};

/* Bytes that mean something in the text formats. */
static const char edge_bytes[] = "{}[]\"\\,:=#;/-+.eE0 \n\r\t";

struct dice {
    uint64_t input; /* seed of the stream: the number of the input */
    uint64_t rolls;
};

static size_t roll(struct dice *dice, size_t below) {
    uint32_t words[4];
    random_words(dice->input, RANDOM_TEST, dice->rolls++, words);
    return ((size_t)words[0] << 32 | words[1]) % below;
}

/* Headers lie in front, so half of the places are chosen among the first 64 bytes. */
static size_t roll_place(struct dice *dice, size_t size) {
    const size_t near = size < 64 ? size : 64;
    return roll(dice, roll(dice, 2) == 0 ? near : size);
}

/* One change of data[0..size), size > 0; returns the new size. */
static size_t mutate(struct dice *dice, uint8_t *data, size_t size) {
    const size_t place = roll_place(dice, size);
    const size_t length = 1 + roll(dice, size - place);
    switch (roll(dice, 8)) {
    case 0: /* one bit */
        data[place] = (uint8_t)(data[place] ^ (1u << roll(dice, 8)));
        return size;
    case 1: /* any byte */
        data[place] = (uint8_t)roll(dice, 256);
        return size;
    case 2: /* a byte with a meaning */
        data[place] = (uint8_t)edge_bytes[roll(dice, sizeof edge_bytes - 1)];
        return size;
    case 3: { /* an edge value of 1, 2, 4 or 8 bytes, little-endian, aligned as headers are */
        const uint64_t value = edge_values[roll(dice, sizeof edge_values / sizeof edge_values[0])];
        const size_t width = (size_t)1 << roll(dice, 4);
        const size_t start = place / width * width;
        memcpy(data + start, &value, start + width <= size ? width : size - start);
        return size;
    }
    case 4: /* cut the end off */
        return place;
    case 5: /* take a piece out */
        memmove(data + place, data + place + length, size - place - length);
        return size - length;
    case 6: /* repeat a piece */
        if (size + length > INPUT_BYTES_MAX) return size;
        memmove(data + place + length, data + place, size - place);
        return size + length;
    default: /* copy a piece over another place */
        memmove(data + roll(dice, size - length + 1), data + place, length);
        return size;
    }
}

/* Input `number`: below `seeds` a seed as it is, above it a mutation of one. Returns its size. */
static size_t make_input(size_t number, size_t seeds, uint8_t *data) {
    if (number < seeds) return fuzz_seeds(number, data, FUZZ_SEED_BYTES_MAX);
    struct dice dice = {.input = number, .rolls = 0};
    size_t size = fuzz_seeds(roll(&dice, seeds), data, FUZZ_SEED_BYTES_MAX);
    for (size_t changes = 1 + roll(&dice, CHANGES_MAX); changes > 0 && size > 0; changes--) {
        size = mutate(&dice, data, size);
    }
    return size;
}

/* Runs one input from a block of exactly its size, so that reading past the end is seen. */
static void run_input(size_t number, size_t seeds, uint8_t *room, const char *copy_path) {
    const size_t size = make_input(number, seeds, room);
    uint8_t *exact = malloc(size > 0 ? size : 1);
    if (exact == NULL) abort();
    memcpy(exact, room, size);
    if (copy_path != NULL) {
        FILE *copy = fopen(copy_path, "wb");
        if (copy == NULL || fwrite(exact, 1, size, copy) != size || fclose(copy) != 0) abort();
    }
    LLVMFuzzerTestOneInput(exact, size);
    free(exact);
}

/* The child: all inputs. exit() runs the leak check where there is one. */
static void run_all(size_t inputs, size_t seeds, uint8_t *room, volatile size_t *under_way) {
    for (size_t number = 0; number < inputs; number++) {
        *under_way = number;
        alarm(INPUT_SECONDS_MAX);
        run_input(number, seeds, room, NULL);
    }
    alarm(0);
    free(room);
    exit(0);
}

int main(int argc, char **argv) {
    uint8_t *room = malloc(INPUT_BYTES_MAX);
    volatile size_t *under_way = mmap(NULL, sizeof *under_way, PROT_READ | PROT_WRITE,
                                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (room == NULL || under_way == MAP_FAILED) abort();
    size_t seeds = 0;
    while (fuzz_seeds(seeds, room, FUZZ_SEED_BYTES_MAX) > 0) seeds++;
    if (seeds == 0) {
        fprintf(stderr, "%s: fuzz_seeds gave no seed\n", argv[0]);
        return 1;
    }
    if (argc > 1) {
        run_input((size_t)strtoull(argv[1], NULL, 10), seeds, room, argc > 2 ? argv[2] : NULL);
        free(room);
        return 0;
    }
    const size_t inputs = seeds + MUTATED_INPUTS;
    const pid_t child = fork();
    if (child == 0) run_all(inputs, seeds, room, under_way);
    free(room);
    int end = 0;
    if (child < 0 || waitpid(child, &end, 0) != child) abort();
    if (WIFEXITED(end) && WEXITSTATUS(end) == 0) {
        printf("%zu seeds and %d mutations of them\n", seeds, MUTATED_INPUTS);
        return 0;
    }
    if (WIFSIGNALED(end)) {
        fprintf(stderr, "ended by signal %d (%s)\n", WTERMSIG(end), strsignal(WTERMSIG(end)));
    }
    fprintf(stderr, "failed at input %zu; to see it alone: %s %zu /tmp/input\n", *under_way,
            argv[0], *under_way);
    return 1;
}

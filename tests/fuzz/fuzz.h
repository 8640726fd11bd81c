/*
 * What one fuzz entry (fuzz_<thing>.c) has to provide, and what it may use.
 *
 * The same file serves two drivers: libFuzzer (its command line stands in fuzz_smoke.c) and the
 * deterministic smoke run that is part of the normal tests. A parser passes when no input crashes
 * it, trips a sanitizer, leaks, or takes longer than a few seconds; an entry may add assertions
 * about inputs that were accepted.
 */
#ifndef DEEPWELL_TESTS_FUZZ_FUZZ_H_
#define DEEPWELL_TESTS_FUZZ_FUZZ_H_

#include <stddef.h>
#include <stdint.h>

/* Provided by the entry: parses one input. Returns 0. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Provided by the entry: writes the valid input number `index` (0, 1, ...) into seed[0..capacity)
 * and returns its size; 0 when there is no such number. Mutations start from these. */
size_t fuzz_seeds(size_t index, uint8_t *seed, size_t capacity);

enum { FUZZ_SEED_BYTES_MAX = 65536 };

/* For parsers that take a path: the input as a file in memory, there until fuzz_file_close. */
struct fuzz_file {
    int descriptor;
    char path[32]; /* "/proc/self/fd/N" */
};
void fuzz_file_open(struct fuzz_file *file, const uint8_t *data, size_t size);
void fuzz_file_close(struct fuzz_file *file);

#endif

/*
 * Counter-based random numbers: Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as
 * 1, 2, 3", SC 2011). A value is a pure function of (seed, stream, index), so nothing has to be
 * saved or advanced, any thread computes any element, and every device gives the same numbers.
 */
#ifndef DEEPWELL_BASE_RANDOM_H_
#define DEEPWELL_BASE_RANDOM_H_

#include <stdint.h>

/* Streams keep users of one seed apart. */
enum random_stream {
    RANDOM_INIT = 1,     /* initial weights */
    RANDOM_ORDER = 2,    /* the order of the training sequences */
    RANDOM_SAMPLE = 3,   /* text generation */
    RANDOM_TEST = 4,     /* tests and benchmarks */
    RANDOM_ROUNDING = 5, /* stochastic rounding (kernels/quantised.h), the tensor above bit 8 */
};

/* The four 32-bit words at `index` of the stream. */
void random_words(uint64_t seed, uint32_t stream, uint64_t index, uint32_t words[4]);

/* Uniform in [0, 1), 24 random bits. */
float random_uniform(uint64_t seed, uint32_t stream, uint64_t index);

/* Standard normal, Box-Muller in double. */
float random_normal(uint64_t seed, uint32_t stream, uint64_t index);

#endif

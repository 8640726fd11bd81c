/* Philox-4x32-10 and the distributions built on it. */
#include "base/random.h"

#include <math.h>

void random_words(uint64_t seed, uint32_t stream, uint64_t index, uint32_t words[4]) {
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    uint32_t x[4] = {(uint32_t)index, (uint32_t)(index >> 32), stream, 0};
    for (int round = 0; round < 10; round++) {
        const uint64_t product0 = (uint64_t)0xD2511F53u * x[0];
        const uint64_t product1 = (uint64_t)0xCD9E8D57u * x[2];
        const uint32_t next[4] = {
            (uint32_t)(product1 >> 32) ^ x[1] ^ key0,
            (uint32_t)product1,
            (uint32_t)(product0 >> 32) ^ x[3] ^ key1,
            (uint32_t)product0,
        };
        for (int i = 0; i < 4; i++) x[i] = next[i];
        key0 += 0x9E3779B9u; /* the Weyl constants of the paper: golden ratio and sqrt(3) - 1 */
        key1 += 0xBB67AE85u;
    }
    for (int i = 0; i < 4; i++) words[i] = x[i];
}

float random_uniform(uint64_t seed, uint32_t stream, uint64_t index) {
    uint32_t words[4];
    random_words(seed, stream, index, words);
    return (float)(words[0] >> 8) * 0x1p-24f;
}

float random_normal(uint64_t seed, uint32_t stream, uint64_t index) {
    uint32_t words[4];
    random_words(seed, stream, index, words);
    /* (0, 1]: the logarithm must be finite. */
    const double radius_uniform = ((double)words[0] + 1.0) * 0x1p-32;
    const double angle = 6.283185307179586476925 * ((double)words[1] * 0x1p-32);
    return (float)(sqrt(-2.0 * log(radius_uniform)) * cos(angle));
}

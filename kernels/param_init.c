/* Initial values of the parameters, behind kernels/param_table.h. */
#include "base/random.h"
#include "kernels/param_table.h"

/* Row r's numbers start at index r * 2^40 of the random stream; no tensor has more
 * (param_table.c). */
enum { ROW_INDEX_SHIFT = 40 };

static float initial_value(const struct param *param, uint64_t seed, uint64_t index) {
    switch (param->init) {
    case INIT_ZERO: return 0.0f;
    case INIT_ONE: return 1.0f;
    case INIT_NORMAL: return param->init_std * random_normal(seed, RANDOM_INIT, index);
    }
    return 0.0f;
}

void param_initialise(const struct param_table *table, size_t row, uint64_t seed, float *values) {
    const struct param *param = &table->params[row];
    const size_t real = param_count(param);
    const uint64_t first = (uint64_t)row << ROW_INDEX_SHIFT;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < real; i++) values[i] = initial_value(param, seed, first + i);
    for (size_t i = real; i < param->count; i++) values[i] = 0.0f; /* padding */
}

void param_table_initialise(const struct param_table *table, uint64_t seed, float *flat) {
    for (size_t row = 0; row < table->length; row++) {
        const struct param *param = &table->params[row];
        const size_t end = row + 1 < table->length ? param[1].offset : table->elements;
        param_initialise(table, row, seed, flat + param->offset);
        for (size_t i = param->offset + param->count; i < end; i++) flat[i] = 0.0f; /* gap */
    }
}

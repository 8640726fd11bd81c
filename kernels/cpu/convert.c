/* Conversion between number formats, and the search for numbers that are none. */
#include <math.h>

#include "base/checked.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"

enum status cpu_convert(struct device *device, struct tensor out, struct tensor in) {
    const size_t elements = tensor_count(in);
    if (tensor_count(out) != elements) {
        return status_set(STATUS_INTERNAL, "convert: (%zu, %zu) into (%zu, %zu)", in.rows,
                          in.columns, out.rows, out.columns);
    }
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (size_t first = 0; first < elements; first += ROW_TILE) {
        float buffer[ROW_TILE];
        const size_t count = size_min(ROW_TILE, elements - first);
        row_store(&out, first, count, row_read(&in, first, count, buffer));
    }
    return STATUS_OK;
}

enum status cpu_find_nonfinite(struct device *device, struct tensor in, size_t *index) {
    const size_t elements = tensor_count(in);
    size_t found = SIZE_MAX;
#pragma omp parallel for schedule(static) num_threads(device->threads) reduction(min : found)
    for (size_t first = 0; first < elements; first += ROW_TILE) {
        float buffer[ROW_TILE];
        const size_t count = size_min(ROW_TILE, elements - first);
        const float *values = row_read(&in, first, count, buffer);
        for (size_t i = 0; i < count; i++) {
            if (!isfinite(values[i])) found = size_min(found, first + i);
        }
    }
    *index = found;
    return STATUS_OK;
}

/* What the two directions of the layer norm share: the shapes they take. */
#ifndef DEEPWELL_KERNELS_CUDA_NORM_CUH_
#define DEEPWELL_KERNELS_CUDA_NORM_CUH_

#include "base/checked.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/numbers.cuh"

enum { NORM_THREADS_MAX = 1024 };

/* Threads of a block: one for each W columns, in whole warps; 0: the row is too wide. */
static inline int norm_threads(size_t columns) {
    const size_t owners = columns % 8 == 0 ? columns / 8 : columns;
    return owners > NORM_THREADS_MAX ? 0 : (int)align_up(owners, WARP);
}

static inline enum status refuse_width(const char *operation, size_t columns) {
    return status_set(STATUS_INTERNAL,
                      "%s: expected a width that is a multiple of 8 up to 8192, or any up "
                      "to 1024; found %zu",
                      operation, columns);
}

#endif

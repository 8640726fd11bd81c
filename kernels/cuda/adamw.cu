/*
 * AdamW (Loshchilov and Hutter, 2019) over the flat buffers in one launch, compute-type weights
 * included. The ranges travel as an argument of the kernel; a thread's eight numbers lie in one,
 * since ranges begin and end at multiples of PARAM_ALIGNMENT.
 */
#include "base/checked.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/numbers.cuh"

namespace {

enum { THREADS = 256, GROUPS = 2, RANGES_MAX = 2000 };

struct ranges {
    struct {
        uint32_t end_groups; /* of eight numbers, from the buffer's start */
        float weight_decay;
    } at[RANGES_MAX];
    uint32_t count, first_group;
};

template <typename T> struct args {
    float *masters, *moments1, *moments2;
    const float *gradients;
    T *weights; /* nullptr: the masters are the weights */
    float beta1, beta2, epsilon;
    const struct step_state *state;
};

__device__ inline float bias_correction(float beta, int64_t t) {
    return (float)(1.0 / (1.0 - pow((double)beta, (double)t)));
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
    adamw_kernel(const args<T> a, const __grid_constant__ ranges r) {
    __shared__ float corrections[2];
    const struct step_state *s = a.state;
    if (s->skip != SKIP_NONE) return;
    if (threadIdx.x < 2)
        corrections[threadIdx.x] = bias_correction(threadIdx.x == 0 ? a.beta1 : a.beta2,
                                                   s->updates);
    __syncthreads();
    const float multiplier = s->gradient_multiplier, rate = s->learning_rate;
    const uint32_t end = r.at[r.count - 1].end_groups;
    uint32_t range = 0;
    const uint32_t begin = r.first_group + blockIdx.x * (THREADS * GROUPS);
    /* the range of the block's first group */
    for (uint32_t low = 0, high = r.count - 1; low < high;) {
        const uint32_t middle = (low + high) / 2;
        if (r.at[middle].end_groups <= begin)
            low = middle + 1;
        else
            high = middle;
        range = low;
    }
#pragma unroll
    for (int k = 0; k < GROUPS; k++) {
        const uint32_t group = begin + (uint32_t)k * THREADS + threadIdx.x;
        if (group >= end) return;
        while (r.at[range].end_groups <= group) range++;
        const float decay = r.at[range].weight_decay;
        const size_t at = (size_t)group * 8;
        float p[8], m[8], v[8], g[8];
        unpack(g, load_once<float, 8>(a.gradients + at));
        unpack(p, load_once<float, 8>(a.masters + at));
        unpack(m, load_once<float, 8>(a.moments1 + at));
        unpack(v, load_once<float, 8>(a.moments2 + at));
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float scaled = g[i] * multiplier;
            m[i] = a.beta1 * m[i] + (1.0f - a.beta1) * scaled;
            v[i] = a.beta2 * v[i] + (1.0f - a.beta2) * (scaled * scaled);
            const float update = m[i] * corrections[0] / (sqrtf(v[i] * corrections[1]) + a.epsilon);
            p[i] -= rate * (update + decay * p[i]);
        }
        store(a.moments1 + at, pack<float, 8>(m));
        store(a.moments2 + at, pack<float, 8>(v));
        store(a.masters + at, pack<float, 8>(p));
        if (a.weights != nullptr) store(a.weights + at, pack<T, 8>(p));
    }
}

enum status gather_ranges(const struct adamw *op, ranges *out) {
    size_t next = op->range_count > 0 ? op->ranges[0].offset : 0;
    const size_t first = next;
    for (size_t i = 0; i < op->range_count; i++) {
        const struct adamw_range *range = &op->ranges[i];
        if (range->offset != next || range->offset % 8 != 0 || range->count % 8 != 0 ||
            (range->offset + range->count) / 8 > UINT32_MAX) {
            return status_set(STATUS_INTERNAL,
                              "adamw: range %zu is %zu numbers at %zu, expected at %zu, "
                              "in multiples of 8",
                              i, range->count, range->offset, next);
        }
        next += range->count;
        out->at[i] = {(uint32_t)(next / 8), range->weight_decay};
    }
    out->count = (uint32_t)op->range_count;
    out->first_group = (uint32_t)(first / 8);
    return STATUS_OK;
}

} /* namespace */

extern "C" enum status cuda_adamw(struct device *device, const struct adamw *op) {
    if (op->range_count == 0) return STATUS_OK;
    if (op->range_count > RANGES_MAX) {
        return status_set(STATUS_INTERNAL, "adamw: %zu ranges, at most %d", op->range_count,
                          RANGES_MAX);
    }
    ranges r;
    TRY(gather_ranges(op, &r));
    const size_t groups = r.at[r.count - 1].end_groups - r.first_group;
    FOR_DTYPE(op->weights.data == NULL ? DTYPE_F32 : op->weights.dtype, {
        const args<T> a = {op->masters,   op->moments1,          op->moments2,
                           op->gradients, (T *)op->weights.data, op->beta1,
                           op->beta2,     op->epsilon,           op->state};
        adamw_kernel<T>
            <<<blocks_for(groups, THREADS * GROUPS), THREADS, 0, backend_of(device)->stream>>>(a,
                                                                                               r);
    })
    return cuda_launched("adamw");
}

/*
 * Sums over a step in double and in fixed order, the decision made from them, conversion of
 * formats, and the search for numbers that are none.
 */
#include "base/checked.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/numbers.cuh"

namespace {

enum { THREADS = 512, SUM_BLOCKS = 1024 };

/* The block's sum of x, in thread 0. */
__device__ inline double block_sum(double x) {
    __shared__ double shared[THREADS / WARP];
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = x;
    __syncthreads();
    x = 0.0;
    for (int w = 0; threadIdx.x == 0 && w < THREADS / WARP; w++) x += shared[w];
    return x;
}

__global__ void loss_sum_kernel(struct step_state *state, const float *losses, size_t count) {
    double sum = 0.0;
    for (size_t i = threadIdx.x; i < count; i += THREADS) sum += (double)losses[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) state->loss_sum += sum;
}

/* Groups of four and, by the last threads, what is left of them. */
__global__ void squares_kernel(double *partials, const float *x, size_t count) {
    const size_t stride = (size_t)gridDim.x * THREADS;
    double sum = 0.0;
#pragma unroll 4
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < count / 4; i += stride) {
        const float4 v = __ldcs(reinterpret_cast<const float4 *>(x) + i);
        sum += (double)v.x * (double)v.x + (double)v.y * (double)v.y;
        sum += (double)v.z * (double)v.z + (double)v.w * (double)v.w;
    }
    const size_t tail = count / 4 * 4 + (size_t)threadIdx.x;
    if (blockIdx.x == 0 && tail < count) sum += (double)x[tail] * (double)x[tail];
    sum = block_sum(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

__global__ void squares_finish_kernel(struct step_state *state, const double *partials,
                                      size_t count) {
    double sum = 0.0;
    for (size_t i = threadIdx.x; i < count; i += THREADS) sum += partials[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) state->gradient_sumsq = sum;
}

/* A thread a group of W numbers; W is 8 where the parts begin at multiples of 8 numbers. */
template <typename T, int W>
__global__ void sum_parts_kernel(float *out, const T *parts, size_t count, size_t part_count,
                                 bool accumulate) {
    const size_t stride = (size_t)gridDim.x * blockDim.x;
    for (size_t group = (size_t)blockIdx.x * blockDim.x + threadIdx.x; group < count / W;
         group += stride) {
        float sum[W], x[W];
        unpack(sum, load<float, W>(out + group * W));
        for (size_t part = 0; part < part_count; part++) {
            unpack(x, load<T, W>(parts + part * count + group * W));
            const bool add = accumulate || part > 0;
            for (int i = 0; i < W; i++) sum[i] = add ? sum[i] + x[i] : x[i];
        }
        store(out + group * W, pack<float, W>(sum));
    }
}

__global__ void block_sumsq_kernel(double *out, const float *x) {
    const float *own = x + (size_t)blockIdx.x * SUMSQ_BLOCK;
    double sum = 0.0;
    for (int i = (int)threadIdx.x; i < SUMSQ_BLOCK; i += THREADS) {
        sum += (double)own[i] * (double)own[i];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

/* One thread adds, in order; the others fetch. */
__global__ void total_sumsq_kernel(struct step_state *state, const double *sums, size_t count) {
    __shared__ double fetched[THREADS];
    double total = 0.0;
    for (size_t first = 0; first < count; first += THREADS) {
        const size_t i = first + threadIdx.x;
        fetched[threadIdx.x] = i < count ? sums[i] : 0.0;
        __syncthreads();
        for (int t = 0; threadIdx.x == 0 && t < THREADS; t++) total += fetched[t];
        __syncthreads();
    }
    if (threadIdx.x == 0) state->gradient_sumsq = total;
}

__global__ void begin_kernel(struct step_state *state, const struct step_policy policy) {
    state->policy = policy;
    state->loss_sum = state->gradient_sumsq = 0.0;
    state->leaving = (double)policy.leave;
}

__global__ void decide_kernel(struct step_state *state) {
    step_control_decide(state);
}

template <typename Out, typename In>
__global__ void convert_kernel(Out *out, const In *in, size_t count) {
    const size_t stride = (size_t)gridDim.x * blockDim.x;
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (size_t group = i; group < count / 8; group += stride) {
        float x[8];
        unpack(x, load<In, 8>(in + group * 8));
        store(out + group * 8, pack<Out, 8>(x));
    }
    const size_t tail = count / 8 * 8 + i;
    if (tail < count) out[tail] = narrow<Out>(widen(in[tail]));
}

template <typename T>
__global__ void nonfinite_kernel(unsigned long long *first, const T *x, size_t count) {
    const size_t stride = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        if (!isfinite(widen(x[i]))) {
            atomicMin(first, (unsigned long long)i); /* the least index, whoever comes first */
            return;
        }
    }
}

unsigned grid_for(const struct device *device, size_t work) {
    const size_t most = (size_t)backend_of(device)->multiprocessors * 8;
    return (unsigned)size_max(1, size_min(ceil_div(work, THREADS), most));
}

} /* namespace */

extern "C" size_t cuda_reduce_scratch_bytes(void) { return SUM_BLOCKS * sizeof(double); }

extern "C" enum status cuda_loss_sum(struct device *device, struct step_state *state,
                                     const float *losses, size_t count) {
    loss_sum_kernel<<<1, THREADS, 0, backend_of(device)->stream>>>(state, losses, count);
    return cuda_launched("loss_sum");
}

extern "C" enum status cuda_gradient_sumsq(struct device *device, struct step_state *state,
                                           const float *gradients, size_t count) {
    cudaStream_t stream = backend_of(device)->stream;
    double *partials = (double *)device->scratch;
    TRY(cuda_scratch(device, "gradient_sumsq", cuda_reduce_scratch_bytes()));
    squares_kernel<<<SUM_BLOCKS, THREADS, 0, stream>>>(partials, gradients, count);
    squares_finish_kernel<<<1, THREADS, 0, stream>>>(state, partials, SUM_BLOCKS);
    return cuda_launched("gradient_sumsq");
}

extern "C" enum status cuda_sum_parts(struct device *device, float *out, struct tensor parts,
                                      bool accumulate) {
    const size_t count = parts.columns;
    cudaStream_t stream = backend_of(device)->stream;
    FOR_DTYPE(parts.dtype, {
        if (count % 8 == 0) {
            sum_parts_kernel<T, 8><<<grid_for(device, count / 8), THREADS, 0, stream>>>(
                out, (const T *)parts.data, count, parts.rows, accumulate);
        } else {
            sum_parts_kernel<T, 1><<<grid_for(device, count), THREADS, 0, stream>>>(
                out, (const T *)parts.data, count, parts.rows, accumulate);
        }
    })
    return cuda_launched("sum_parts");
}

extern "C" enum status cuda_block_sumsq(struct device *device, double *out, const float *x,
                                        size_t count) {
    const size_t blocks = count / SUMSQ_BLOCK;
    if (blocks == 0) return STATUS_OK;
    block_sumsq_kernel<<<(unsigned)blocks, THREADS, 0, backend_of(device)->stream>>>(out, x);
    return cuda_launched("block_sumsq");
}

extern "C" enum status cuda_total_sumsq(struct device *device, struct step_state *state,
                                        const double *sums, size_t count) {
    total_sumsq_kernel<<<1, THREADS, 0, backend_of(device)->stream>>>(state, sums, count);
    return cuda_launched("total_sumsq");
}

extern "C" enum status cuda_step_begin(struct device *device, struct step_state *state,
                                       const struct step_policy *policy) {
    begin_kernel<<<1, 1, 0, backend_of(device)->stream>>>(state, *policy);
    return cuda_launched("step_begin");
}

extern "C" enum status cuda_step_decide(struct device *device, struct step_state *state) {
    decide_kernel<<<1, 1, 0, backend_of(device)->stream>>>(state);
    return cuda_launched("step_decide");
}

extern "C" enum status cuda_convert(struct device *device, struct tensor out, struct tensor in) {
    const size_t count = tensor_count(in);
    if (tensor_count(out) != count) {
        return status_set(STATUS_INTERNAL, "convert: (%zu, %zu) into (%zu, %zu)", in.rows,
                          in.columns, out.rows, out.columns);
    }
    FOR_DTYPE(in.dtype, {
        using In = T;
        FOR_DTYPE(out.dtype, {
            convert_kernel<T, In>
                <<<grid_for(device, count / 8), THREADS, 0, backend_of(device)->stream>>>(
                    (T *)out.data, (const In *)in.data, count);
        })
    })
    return cuda_launched("convert");
}

extern "C" enum status cuda_find_nonfinite(struct device *device, struct tensor in, size_t *index) {
    const size_t count = tensor_count(in);
    unsigned long long *first = (unsigned long long *)device->scratch, found = 0;
    TRY(cuda_scratch(device, "find_nonfinite", sizeof *first));
    CUDA_TRY(cudaMemsetAsync(first, 255, sizeof *first, backend_of(device)->stream));
    FOR_DTYPE(in.dtype, {
        nonfinite_kernel<T><<<grid_for(device, count), THREADS, 0, backend_of(device)->stream>>>(
            first, (const T *)in.data, count);
    })
    TRY(cuda_launched("find_nonfinite"));
    TRY(device->calls->download(device, &found, first, sizeof found));
    *index = (size_t)found;
    return STATUS_OK;
}

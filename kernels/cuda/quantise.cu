/*
 * Quantisation under one scale a tensor (SCALE_TENSOR), one pass for both copies, of many tensors
 * in one launch; and the scale states of a step. The other scale modes are in quantise_blocks.cu.
 */
#include "base/checked.h"
#include "kernels/cuda/quantise.cuh"
#include "kernels/cuda/quantise.h"

namespace {

enum { JOBS = 64, SEARCH_GROUPS = 4, STATE_THREADS = 1024 };

template <typename T> struct numbers_source {
    using type = T;
    enum { WORDS = sizeof(Numbers<T, 8>) / 16 };
    const T *in;
    __device__ void column(size_t) {}
    __device__ const void *word(int w, size_t at) const {
        return reinterpret_cast<const uint4 *>(in + at) + w;
    }
    __device__ void compute(float (&x)[8], const uint4 *words, size_t) const {
        unpack(x, tile_numbers<T>(words));
    }
};

/* Job i works in blocks [end of i - 1, end of i). Kernel argument: launches are recorded in CUDA
 * graphs, and nothing else has to stay where it is. */
struct job_list {
    struct tile_job jobs[JOBS];
    const void *in[JOBS];
    unsigned end[JOBS];
    int count;
};

/* The job of this block, and its first block. */
__device__ inline int find_job(const job_list &list, unsigned *first) {
    int low = 0, high = list.count - 1;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (blockIdx.x < list.end[middle])
            high = middle;
        else
            low = middle + 1;
    }
    *first = low == 0 ? 0 : list.end[low - 1];
    return low;
}

template <typename T, bool SUMS>
__global__ void __launch_bounds__(TILE_THREADS, SUMS ? 3 : 4)
    quantise_kernel(const __grid_constant__ job_list list) {
    unsigned first;
    const int i = find_job(list, &first);
    tile_run<numbers_source<T>, SUMS, true>({(const T *)list.in[i]}, list.jobs[i],
                                            blockIdx.x - first);
}

/* A thread looks at SEARCH_GROUPS times 8 numbers. */
template <typename T>
__global__ void __launch_bounds__(TILE_THREADS) amax_kernel(const __grid_constant__ job_list list) {
    unsigned first;
    const int i = find_job(list, &first);
    const size_t groups = list.jobs[i].rows * list.jobs[i].columns / 8;
    const size_t from = (size_t)(blockIdx.x - first) * SEARCH_GROUPS * TILE_THREADS + threadIdx.x;
    Numbers<T, 8> in[SEARCH_GROUPS] = {};
    float amax = 0.0f;
#pragma unroll
    for (size_t k = 0; k < SEARCH_GROUPS; k++) { /* not load_once: to be read again soon */
        const size_t group = from + k * TILE_THREADS;
        if (group < groups) in[k] = load<T, 8>((const T *)list.in[i] + group * 8);
    }
#pragma unroll
    for (size_t k = 0; k < SEARCH_GROUPS; k++) {
        float x[8];
        unpack(x, in[k]);
        amax = larger_size8(amax, x);
    }
    raise_amax(list.jobs[i].copies.state, amax);
}

/* Blocks from here on belong to the next job. */
enum status add_blocks(job_list *list, int i, size_t blocks) {
    const size_t end = (i == 0 ? 0 : list->end[i - 1]) + blocks;
    if (end > 0x7FFFFFFF) return status_set(STATUS_INTERNAL, "quantise: %zu blocks", end);
    list->end[i] = (unsigned)end;
    return STATUS_OK;
}

const struct operand *either_of(const struct quantise *op) {
    return op->out.row.codes != NULL ? &op->out.row : &op->out.transposed;
}

bool needs_search(const struct quantise *op) {
    return op->scaling == SCALING_CURRENT && !op->amax_known;
}

/* The amaxes of those of the list that want it raised first. */
enum status search(struct device *device, const struct quantise *ops, const job_list *all) {
    job_list list = {};
    for (int i = 0; i < all->count; i++) {
        if (!needs_search(&ops[i])) continue;
        const size_t groups = tensor_count(ops[i].in) / 8;
        list.jobs[list.count] = all->jobs[i];
        list.in[list.count] = all->in[i];
        TRY(add_blocks(&list, list.count, ceil_div(groups, SEARCH_GROUPS * TILE_THREADS)));
        list.count++;
    }
    if (list.count == 0) return STATUS_OK;
    FOR_DTYPE(ops[0].in.dtype, {
        amax_kernel<T>
            <<<list.end[list.count - 1], TILE_THREADS, 0, backend_of(device)->stream>>>(list);
    })
    return cuda_launched("amax");
}

enum status fill_job(struct device *device, const struct quantise *op, struct tile_job *job) {
    const struct operand *either = either_of(op);
    struct copies_args copies = {};
    copies.row = (uint8_t *)op->out.row.codes;
    copies.transposed = (uint8_t *)op->out.transposed.codes;
    copies.state = either->state;
    copies.rows = op->in.rows;
    copies.e5m2 = either->format == FORMAT_E5M2;
    *job = tile_job_of(device, copies, op->in.rows, op->in.columns);
    job->current = op->scaling == SCALING_CURRENT;
    return op->bias_gradient == NULL ? STATUS_OK : tile_job_sum(device, "quantise", job);
}

__global__ void scales_begin_kernel(struct scale_state *states, size_t count, bool clear_amax) {
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) scale_state_begin(&states[i], clear_amax);
}

/* One block: all look at all before any is changed. */
__global__ void __launch_bounds__(STATE_THREADS)
    scales_update_kernel(struct step_state *state, struct scale_state *states, size_t count,
                         bool enter) {
    bool finite = !state->halted && isfinite(state->gradient_sumsq) && isfinite(state->loss_sum);
    for (size_t i = threadIdx.x; i < count; i += STATE_THREADS)
        finite = finite && states[i].amax_bits < 0x7F800000u;
    finite = __syncthreads_and(finite);
    if (!finite && threadIdx.x == 0) state->gradient_sumsq = (double)NAN;
    for (size_t i = threadIdx.x; i < count; i += STATE_THREADS) {
        if (finite)
            scale_state_end(&states[i], enter);
        else
            scale_state_drop(&states[i]);
    }
}

} /* namespace */

/* Only the last of `ops` may want a bias gradient: scratch memory holds one tensor's. */
extern "C" enum status quantise_tensors(struct device *device, const struct quantise *ops,
                                        size_t count) {
    job_list list = {};
    for (size_t i = 0; i < count; i++) {
        TRY(fill_job(device, &ops[i], &list.jobs[i]));
        list.in[i] = ops[i].in.data;
        list.count++;
        TRY(add_blocks(&list, (int)i, (size_t)list.jobs[i].across * list.jobs[i].down));
    }
    TRY(search(device, ops, &list));
    const struct quantise *last = &ops[count - 1];
    const bool sums = last->bias_gradient != NULL;
    const unsigned blocks = list.end[count - 1];
    cudaStream_t stream = backend_of(device)->stream;
    FOR_DTYPE(ops[0].in.dtype, {
        if (sums)
            quantise_kernel<T, true><<<blocks, TILE_THREADS, 0, stream>>>(list);
        else
            quantise_kernel<T, false><<<blocks, TILE_THREADS, 0, stream>>>(list);
    })
    TRY(cuda_launched("quantise"));
    if (!sums) return STATUS_OK;
    const struct tile_job *job = &list.jobs[count - 1];
    return cuda_column_sums(device, &last->bias_gradient, 1, job->partials, job->down, job->columns,
                            last->accumulate);
}

extern "C" size_t quantise_tensors_most(void) { return JOBS; }

extern "C" enum status cuda_scales_begin(struct device *device, struct scale_state *states,
                                         size_t count, bool clear_amax) {
    enum { THREADS = 128 };
    if (count == 0) return STATUS_OK;
    scales_begin_kernel<<<blocks_for(count, THREADS), THREADS, 0, backend_of(device)->stream>>>(
        states, count, clear_amax);
    return cuda_launched("scales_begin");
}

extern "C" enum status cuda_scales_update(struct device *device, struct step_state *state,
                                          struct scale_state *states, size_t count, bool enter) {
    scales_update_kernel<<<1, STATE_THREADS, 0, backend_of(device)->stream>>>(state, states, count,
                                                                              enter);
    return cuda_launched("scales_update");
}

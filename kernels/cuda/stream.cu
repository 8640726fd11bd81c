/*
 * Moving bytes and nothing else, in 16-byte accesses that leave the caches alone. Threads side by
 * side hold units side by side, one of each array; 8 blocks of 512 threads for a multiprocessor,
 * twice what it holds at once, reach the copy rate of an H200 (3.9 TB/s, docs/gpu.md).
 */
#include "base/checked.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/numbers.cuh"

namespace {

enum { THREADS = 512, BLOCKS_EACH = 8 };

__device__ inline uint32_t fold(uint4 x) { return x.x ^ x.y ^ x.z ^ x.w; }

__global__ void __launch_bounds__(THREADS)
    stream_kernel(uint4 *out, const uint4 *in, size_t reads, size_t writes, size_t n,
                  uint32_t *checksum) {
    __shared__ uint32_t sums[THREADS / WARP];
    const size_t stride = (size_t)gridDim.x * THREADS;
    uint32_t sum = 0;
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += stride) {
        uint4 x = {0, 0, 0, 0};
#pragma unroll 4
        for (size_t j = i; j < reads; j += n) {
            const uint4 y = __ldcs(in + j);
            x = {x.x ^ y.x, x.y ^ y.y, x.z ^ y.z, x.w ^ y.w};
        }
        for (size_t j = i; j < writes; j += n) __stcs(out + j, x);
        sum ^= fold(x);
    }
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) sum ^= __shfl_xor_sync(~0u, sum, step);
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = sum;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int warp = 1; warp < THREADS / WARP; warp++) sum ^= sums[warp];
    atomicXor(checksum, sum); /* in any order the same */
}

} /* namespace */

extern "C" enum status cuda_stream(struct device *device, const struct stream *op) {
    const struct cuda_backend *backend = backend_of(device);
    const size_t n = stream_threads(op);
    if (((uintptr_t)op->in | (uintptr_t)op->out) % STREAM_UNIT_BYTES != 0 ||
        op->checksum == nullptr) {
        return status_set(STATUS_INTERNAL, "stream: from %p to %p, expected multiples of %d",
                          op->in, op->out, STREAM_UNIT_BYTES);
    }
    if (n == 0) return STATUS_OK;
    const size_t blocks = size_min(ceil_div(n, THREADS),
                                   (size_t)backend->multiprocessors * BLOCKS_EACH);
    stream_kernel<<<(unsigned)blocks, THREADS, 0, backend->stream>>>(
        (uint4 *)op->out, (const uint4 *)op->in, op->read_units, op->write_units, n, op->checksum);
    return cuda_launched("stream");
}

/* The counters of kernels/cuda/communication.h: kernels of one thread. */
#include "kernels/cuda/communication.h"
#include "kernels/cuda/cuda.h"

namespace {

/* What the host sees first must be true first: the kind and size, then that it has begun. */
__global__ void begins_kernel(volatile stream_progress *progress, uint64_t kind, uint64_t bytes) {
    progress->kind = kind;
    progress->bytes = bytes;
    __threadfence_system();
    progress->begun = progress->begun + 1;
    __threadfence_system();
}

__global__ void done_kernel(volatile stream_progress *progress) {
    progress->done = progress->done + 1;
    __threadfence_system();
}

__device__ uint64_t now_ns() {
    uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

__global__ void wait_begins_kernel(stream_waits *waits) { waits->begun_ns = now_ns(); }

__global__ void wait_ends_kernel(stream_waits *waits) {
    const uint64_t now = now_ns();
    if (now > waits->begun_ns) waits->total_ns += now - waits->begun_ns;
}

__global__ void note_waits_kernel(const stream_waits *waits, volatile uint64_t *noted) {
    *noted = waits->total_ns;
    __threadfence_system();
}

} /* namespace */

extern "C" void *cuda_compute_stream(const struct device *device) {
    return backend_of(device)->stream;
}

extern "C" enum status cuda_stream_begins(void *stream, struct stream_progress *progress,
                                          uint64_t kind, uint64_t bytes) {
    begins_kernel<<<1, 1, 0, (cudaStream_t)stream>>>(progress, kind, bytes);
    return cuda_launched("the begin of a collective");
}

extern "C" enum status cuda_stream_done(void *stream, struct stream_progress *progress) {
    done_kernel<<<1, 1, 0, (cudaStream_t)stream>>>(progress);
    return cuda_launched("the end of a collective");
}

extern "C" enum status cuda_stream_wait_begins(void *stream, struct stream_waits *waits) {
    wait_begins_kernel<<<1, 1, 0, (cudaStream_t)stream>>>(waits);
    return cuda_launched("the begin of a wait for collectives");
}

extern "C" enum status cuda_stream_wait_ends(void *stream, struct stream_waits *waits) {
    wait_ends_kernel<<<1, 1, 0, (cudaStream_t)stream>>>(waits);
    return cuda_launched("the end of a wait for collectives");
}

extern "C" enum status cuda_stream_note_waits(void *stream, const struct stream_waits *waits,
                                              uint64_t *noted) {
    note_waits_kernel<<<1, 1, 0, (cudaStream_t)stream>>>(waits, noted);
    return cuda_launched("the note of waits for collectives");
}

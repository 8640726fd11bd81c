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

/*
 * What communication between GPUs (train/comm_nccl.c) needs of a device: its stream, and counters
 * that say from the host how far a stream is, also through recordings that run again. Plain C.
 */
#ifndef DEEPWELL_KERNELS_CUDA_COMMUNICATION_H_
#define DEEPWELL_KERNELS_CUDA_COMMUNICATION_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "base/status.h"
#include "kernels/device.h"

/* In pinned memory that the device writes. Read without waiting; each number whole. */
struct stream_progress {
    uint64_t begun, done; /* pieces of work on the stream so far */
    uint64_t kind, bytes; /* of the one begun last, as given */
};

/* The cudaStream_t on which all operations of a GPU run. */
void *cuda_compute_stream(const struct device *device);

/* In the order of `stream` (a cudaStream_t): a piece of work begins or is done. `progress` is the
 * device's address of it. One thread and a few bytes, about 2 us. */
enum status cuda_stream_begins(void *stream, struct stream_progress *progress, uint64_t kind,
                               uint64_t bytes);
enum status cuda_stream_done(void *stream, struct stream_progress *progress);

#ifdef __cplusplus
}
#endif
#endif

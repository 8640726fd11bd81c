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

/* In device memory, all zero at first: how long a stream has waited for others. */
struct stream_waits {
    uint64_t begun_ns; /* of the wait under way, by the GPU's own clock */
    uint64_t total_ns;
};

/* The cudaStream_t on which all operations of a GPU run. */
void *cuda_compute_stream(const struct device *device);

/* In the order of `stream` (a cudaStream_t): a piece of work begins or is done. `progress` is the
 * device's address of it. One thread and a few bytes, about 2 us. */
enum status cuda_stream_begins(void *stream, struct stream_progress *progress, uint64_t kind,
                               uint64_t bytes);
enum status cuda_stream_done(void *stream, struct stream_progress *progress);

/* In the order of `stream`: it is about to wait for another stream, and has waited. What lies
 * between is added to total_ns, in recordings each time that they run (events would keep the last
 * run alone). And: total_ns so far goes to *noted, the device's address of pinned memory. One
 * thread each. */
enum status cuda_stream_wait_begins(void *stream, struct stream_waits *waits);
enum status cuda_stream_wait_ends(void *stream, struct stream_waits *waits);
enum status cuda_stream_note_waits(void *stream, const struct stream_waits *waits, uint64_t *noted);

#ifdef __cplusplus
}
#endif
#endif

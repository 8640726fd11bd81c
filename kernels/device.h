/*
 * A device: memory, and the table of operations that work on it. Layers hold a device and know
 * nothing else about it. One process drives one device.
 */
#ifndef DEEPWELL_KERNELS_DEVICE_H_
#define DEEPWELL_KERNELS_DEVICE_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct ops;

enum device_kind { DEVICE_CPU };

struct device {
    enum device_kind kind;
    const struct ops *ops; /* kernels/ops.h */
    char name[128];        /* "AMD EPYC, 2 threads" */
    int threads;           /* CPU: OpenMP threads */
    size_t memory_bytes;   /* free to this process when opened (container limits counted) */
    void *scratch;         /* working memory of single operations; from the scratch arena */
    size_t scratch_bytes;
    void *interposed;      /* for a table of operations that wraps another (train/op_trace.h) */
};

/* `threads` 0: all that this process may use. */
enum status device_open_cpu(struct device *device, int threads);
void device_close(struct device *device);

/* Zeroed, aligned to at least 256 bytes; STATUS_MEMORY with wanted and free bytes when refused. */
enum status device_allocate(struct device *device, size_t bytes, void **out);
void device_release(struct device *device, void *memory, size_t bytes);

/* Between host memory and the device, in stream order; on return the host buffer may be reused. */
enum status device_upload(struct device *device, void *to, const void *from_host, size_t bytes);
enum status device_download(struct device *device, void *to_host, const void *from, size_t bytes);

/* Host access to device memory, for checkpoints and initialisation. On a CPU it is the memory
 * itself; an accelerator copies to host memory, and back on unmapping if `changed`. Every map is
 * unmapped, also after a failure. */
enum status device_map(struct device *device, void *memory, size_t bytes, void **host);
enum status device_unmap(struct device *device, void *memory, void *host, size_t bytes,
                         bool changed);

/* Gives operations their working memory; ops.scratch_bytes says how much a model needs. */
void device_set_scratch(struct device *device, void *scratch, size_t bytes);

#endif

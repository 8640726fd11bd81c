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

enum device_kind { DEVICE_CPU, DEVICE_CUDA };

struct device;
struct device_recording;

/* What one kind of device does behind the functions below, which say what each means:
 * kernels/device.c has the CPU's, kernels/cuda/device.c an NVIDIA GPU's. */
struct device_calls {
    void (*close)(struct device *);
    enum status (*allocate)(struct device *, size_t bytes, void **out);
    void (*release)(struct device *, void *memory, size_t bytes);
    enum status (*upload)(struct device *, void *to, const void *from_host, size_t bytes);
    enum status (*download)(struct device *, void *to_host, const void *from, size_t bytes);
    enum status (*read_begin)(struct device *, size_t slot, void *to_host, const void *from,
                              size_t bytes);
    bool (*read_ready)(struct device *, size_t slot);
    enum status (*read_end)(struct device *, size_t slot);
    enum status (*map)(struct device *, void *memory, size_t bytes, void **host);
    enum status (*unmap)(struct device *, void *memory, void *host, size_t bytes, bool changed);
    enum status (*wait)(struct device *);
    enum status (*mark)(struct device *, size_t index);
    enum status (*seconds_between)(struct device *, size_t first, size_t second, double *seconds);
    enum status (*record_begin)(struct device *); /* NULL: this kind does not record */
    enum status (*record_end)(struct device *, struct device_recording **out);
    enum status (*replay)(struct device *, struct device_recording *);
    void (*recording_close)(struct device_recording *);
};

struct device {
    enum device_kind kind;
    const struct ops *ops; /* kernels/ops.h */
    const struct device_calls *calls;
    void *backend;       /* of an accelerator; owned by its calls */
    char name[128];      /* "AMD EPYC, 2 threads" */
    char bus_id[32];     /* a GPU's PCI address, as NVML writes it; "": none */
    int threads;         /* CPU: OpenMP threads */
    size_t memory_bytes; /* free to this process when opened (container limits counted) */
    void *scratch;       /* working memory of single operations; from the scratch arena */
    size_t scratch_bytes;           /* of it for any operation */
    size_t attention_scratch_bytes; /* and for attention, which may work where others' data lies */
    size_t logits_bytes; /* the most logits of one chunk, where no chunk is set */
    char note[512];      /* what the user should know of the choice of this device; "": nothing */
    void *interposed;    /* for a table of operations that wraps another (train/op_trace.h) */
};

/* `threads` 0: all that this process may use. */
enum status device_open_cpu(struct device *device, int threads);

/* How a GEMM's algorithm is chosen: among all candidates, hot; among all, in short bursts; the
 * library's first answer. Each is checked. */
enum gemm_effort { GEMM_EFFORT_FULL, GEMM_EFFORT_FAST, GEMM_EFFORT_OFF };

/* All zeros is the default. */
struct device_options {
    enum gemm_effort gemm_effort;
    bool
        attention_any_order; /* attention's backward pass may add in any order: not deterministic */
    bool own_attention;      /* no cuDNN: the own kernels in every format (their tests) */
    int index;               /* of the GPUs that this process sees: the local rank. Where a launcher
                              * shows each process one alone, it is that one */
};

/* The CUDA device that the options name. STATUS_DEVICE with what is missing (a build with
 * CUDA, a driver, a newer one, code for its architecture) and what to do. */
enum status device_open_cuda(struct device *device, const struct device_options *options);
void device_close(struct device *device);

/* Zeroed, aligned to at least 256 bytes; STATUS_MEMORY with wanted and free bytes when refused. */
enum status device_allocate(struct device *device, size_t bytes, void **out);
void device_release(struct device *device, void *memory, size_t bytes);

/* Between host memory and the device, in stream order; on return the host buffer may be reused. */
enum status device_upload(struct device *device, void *to, const void *from_host, size_t bytes);
enum status device_download(struct device *device, void *to_host, const void *from, size_t bytes);

/* A download that nobody waits for: asked for with begin, in stream order, and there after end,
 * which waits for it (for nothing, where ready). `slot` is below DEVICE_READS and free, `bytes` at
 * most DEVICE_READ_BYTES; to_host receives the numbers by the end. */
enum { DEVICE_READS = 2, DEVICE_READ_BYTES = 1 << 16 };
enum status device_read_begin(struct device *device, size_t slot, void *to_host, const void *from,
                              size_t bytes);
bool device_read_ready(struct device *device, size_t slot);
enum status device_read_end(struct device *device, size_t slot);

/* Host access to device memory, for checkpoints and initialisation. On a CPU it is the memory
 * itself; an accelerator copies to host memory, and back on unmapping if `changed`. Every map is
 * unmapped, also after a failure. */
enum status device_map(struct device *device, void *memory, size_t bytes, void **host);
enum status device_unmap(struct device *device, void *memory, void *host, size_t bytes,
                         bool changed);

/* Returns when all that was asked of the device is done, and reports what went wrong in it. */
enum status device_wait(struct device *device);

/* Marks a point in the order of the device's work, without waiting; `index` below DEVICE_MARKS.
 * Then the time between two marks; waits for the second. */
enum { DEVICE_MARKS = 16384 };
enum status device_mark(struct device *device, size_t index);
enum status device_seconds_between(struct device *device, size_t first, size_t second,
                                   double *seconds);

/* What operations are asked for between begin and end is not run but kept, to be run as often as
 * wanted with one call (CUDA graphs): the same operations on the same memory, so the same bits.
 * Only where device_records(); everything recorded must have run once before. A recording in which
 * an operation failed is ended too, with out NULL: nothing is kept, and the operation's message
 * stays; where the failure broke the recording itself, it also stays with out, and *out is NULL. */
bool device_records(const struct device *device);
enum status device_record_begin(struct device *device);
enum status device_record_end(struct device *device, struct device_recording **out);
enum status device_replay(struct device *device, struct device_recording *recording);
void device_recording_close(struct device *device, struct device_recording *recording);

/* Gives operations their working memory; ops.scratch_bytes says how much a model needs. */
void device_set_scratch(struct device *device, void *scratch, size_t bytes);
/* From now on all operations but attention keep to its first `bytes`: behind them lies something
 * that nobody needs while attention runs. */
void device_share_scratch(struct device *device, size_t bytes);

#endif

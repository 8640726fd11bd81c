/* An NVIDIA GPU as a device, behind kernels/device.h: memory, copies, marks, recordings. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <local_cuda/build_info.h>

#include "base/checked.h"
#include "base/text.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/inventory.h"

/* Logits of one chunk: GPT-2's of some 42,000 tokens, at most 1 / 32 of the memory. */
static const size_t logits_bytes_max = (size_t)4 << 30;

struct device_recording {
    cudaGraphExec_t graph;
};

enum status cuda_check(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return STATUS_OK;
    const bool memory = error == cudaErrorMemoryAllocation;
    cudaGetLastError(); /* it must not be taken for a later call's failure */
    return status_set(memory ? STATUS_MEMORY : STATUS_DEVICE, "CUDA: %s failed: %s (%s)%s", what,
                      cudaGetErrorName(error), cudaGetErrorString(error),
                      memory ? ": lower train.micro_batch, or stop what else uses the GPU" : "");
}

void cuda_note(struct device *device, const char *format, ...) {
    const size_t used = strlen(device->note), room = sizeof device->note - used;
    const char *const between = used == 0 ? "" : "; ";
    va_list arguments;
    va_start(arguments, format);
    if (strlen(between) < room) {
        memcpy(device->note + used, between, strlen(between) + 1);
        vsnprintf(device->note + used + strlen(between), room - strlen(between), format,
                  arguments);
    }
    va_end(arguments);
}

enum status cuda_launched(const char *operation) {
    return cuda_check(cudaGetLastError(), operation);
}

static enum status enough_scratch(const char *operation, size_t bytes, size_t there) {
    if (bytes <= there) return STATUS_OK;
    return status_set(STATUS_INTERNAL, "%s: %zu bytes of scratch memory wanted, %zu there",
                      operation, bytes, there);
}

enum status cuda_scratch(const struct device *device, const char *operation, size_t bytes) {
    return enough_scratch(operation, bytes, device->scratch_bytes);
}

enum status cuda_attention_scratch(const struct device *device, const char *operation,
                                   size_t bytes) {
    return enough_scratch(operation, bytes, device->attention_scratch_bytes);
}

enum status cuda_shape(const char *operation, const char *what, struct tensor t, enum dtype dtype,
                       size_t rows, size_t columns) {
    if (t.rows == rows && t.columns == columns && t.data != NULL && t.dtype == dtype)
        return STATUS_OK;
    return status_set(STATUS_INTERNAL,
                      "%s: expected %s (%zu, %zu) in %s, found (%zu, %zu) in %s at %p", operation,
                      what, rows, columns, dtype_name(dtype), t.rows, t.columns,
                      dtype_name(t.dtype), t.data);
}

static enum status cuda_wait(struct device *device) {
    return cuda_check(cudaStreamSynchronize(backend_of(device)->stream), "the work on the GPU");
}

static enum status cuda_zero(struct device *device, void *memory, size_t bytes) {
    CUDA_TRY(cudaMemsetAsync(memory, 0, bytes, backend_of(device)->stream));
    return STATUS_OK;
}

static enum status cuda_allocate(struct device *device, size_t bytes, void **out) {
    char wanted_text[TEXT_BYTES], free_text[TEXT_BYTES];
    const cudaError_t error = cudaMalloc(out, bytes);
    if (error == cudaErrorMemoryAllocation) {
        size_t free_bytes = 0, total_bytes = 0;
        cudaGetLastError();
        cudaMemGetInfo(&free_bytes, &total_bytes);
        return status_set(STATUS_MEMORY,
                          "%s wanted, %s free on %s: use a smaller model, batch or "
                          "sequence length",
                          text_bytes(wanted_text, bytes), text_bytes(free_text, free_bytes),
                          device->name);
    }
    TRY(cuda_check(error, "cudaMalloc"));
    enum status status = cuda_zero(device, *out, bytes);
    if (status == STATUS_OK) status = cuda_wait(device);
    if (status == STATUS_OK) return STATUS_OK;
    cudaFree(*out);
    *out = NULL;
    return status;
}

static void cuda_release(struct device *device, void *memory, size_t bytes) {
    (void)device;
    (void)bytes;
    cudaFree(memory);
}

/* At most UPLOAD_BYTES through the next slot of the ring. */
static enum status upload_part(struct cuda_backend *backend, void *to, const void *from,
                               size_t bytes) {
    struct upload_slot *slot = &backend->slots[backend->next_slot];
    backend->next_slot = (backend->next_slot + 1) % UPLOAD_SLOTS;
    CUDA_TRY(cudaEventSynchronize(slot->free));
    memcpy(slot->pinned, from, bytes);
    CUDA_TRY(cudaMemcpyAsync(slot->device, slot->pinned, bytes, cudaMemcpyHostToDevice,
                             backend->copy_stream));
    CUDA_TRY(cudaEventRecord(slot->copied, backend->copy_stream));
    CUDA_TRY(cudaStreamWaitEvent(backend->stream, slot->copied, 0));
    CUDA_TRY(cudaMemcpyAsync(to, slot->device, bytes, cudaMemcpyDeviceToDevice, backend->stream));
    CUDA_TRY(cudaEventRecord(slot->free, backend->stream));
    return STATUS_OK;
}

static enum status cuda_upload(struct device *device, void *to, const void *from_host,
                               size_t bytes) {
    for (size_t first = 0; first < bytes; first += UPLOAD_BYTES) {
        TRY(upload_part(backend_of(device), (char *)to + first, (const char *)from_host + first,
                        size_min(UPLOAD_BYTES, bytes - first)));
    }
    return STATUS_OK;
}

static enum status cuda_download(struct device *device, void *to_host, const void *from,
                                 size_t bytes) {
    CUDA_TRY(
        cudaMemcpyAsync(to_host, from, bytes, cudaMemcpyDeviceToHost, backend_of(device)->stream));
    return cuda_wait(device);
}

static enum status cuda_read_begin(struct device *device, size_t slot, void *to_host,
                                   const void *from, size_t bytes) {
    struct cuda_backend *backend = backend_of(device);
    struct read_slot *read = &backend->reads[slot];
    read->to_host = to_host;
    read->bytes = bytes;
    CUDA_TRY(cudaMemcpyAsync(read->pinned, from, bytes, cudaMemcpyDeviceToHost, backend->stream));
    CUDA_TRY(cudaEventRecord(read->done, backend->stream));
    return STATUS_OK;
}

/* A failure is ready too: read_end says what it is. */
static bool cuda_read_ready(struct device *device, size_t slot) {
    return cudaEventQuery(backend_of(device)->reads[slot].done) != cudaErrorNotReady;
}

static enum status cuda_read_end(struct device *device, size_t slot) {
    const struct read_slot *read = &backend_of(device)->reads[slot];
    TRY(cuda_check(cudaEventSynchronize(read->done), "the work on the GPU"));
    memcpy(read->to_host, read->pinned, read->bytes);
    return STATUS_OK;
}

static enum status cuda_map(struct device *device, void *memory, size_t bytes, void **host) {
    *host = malloc(size_max(bytes, 1));
    if (*host == NULL) {
        return status_set(STATUS_MEMORY, "out of host memory for a copy of %zu bytes of GPU memory",
                          bytes);
    }
    const enum status status = cuda_download(device, *host, memory, bytes);
    if (status == STATUS_OK) return STATUS_OK;
    free(*host);
    *host = NULL;
    return status;
}

static enum status cuda_unmap(struct device *device, void *memory, void *host, size_t bytes,
                              bool changed) {
    const enum status status = changed ? cuda_upload(device, memory, host, bytes) : STATUS_OK;
    free(host);
    return status;
}

static enum status cuda_mark(struct device *device, size_t index) {
    struct cuda_backend *backend = backend_of(device);
    cudaEvent_t *mark = &backend->marks[index];
    if (*mark == NULL) CUDA_TRY(cudaEventCreate(mark));
    CUDA_TRY(cudaEventRecord(*mark, backend->stream));
    return STATUS_OK;
}

static enum status cuda_seconds_between(struct device *device, size_t first, size_t second,
                                        double *seconds) {
    const struct cuda_backend *backend = backend_of(device);
    float ms = 0.0f;
    CUDA_TRY(cudaEventSynchronize(backend->marks[second]));
    CUDA_TRY(cudaEventElapsedTime(&ms, backend->marks[first], backend->marks[second]));
    *seconds = (double)ms * 1e-3;
    return STATUS_OK;
}

static enum status cuda_record_begin(struct device *device) {
    struct cuda_backend *backend = backend_of(device);
    CUDA_TRY(cudaStreamBeginCapture(backend->stream, cudaStreamCaptureModeThreadLocal));
    backend->recording = true;
    return STATUS_OK;
}

static enum status cuda_record_end(struct device *device, struct device_recording **out) {
    struct cuda_backend *backend = backend_of(device);
    cudaGraph_t graph = NULL;
    if (out != NULL) *out = NULL;
    backend->recording = false;
    const cudaError_t error = cudaStreamEndCapture(backend->stream, &graph);
    if (out == NULL || error == cudaErrorStreamCaptureInvalidated) {
        cudaGetLastError(); /* what broke the recording has said why: that message stays */
        if (graph != NULL) cudaGraphDestroy(graph);
        return out == NULL ? STATUS_OK : STATUS_DEVICE;
    }
    TRY(cuda_check(error, "cudaStreamEndCapture"));
    struct device_recording *recording = calloc(1, sizeof *recording);
    enum status status = recording == NULL
                             ? status_set(STATUS_MEMORY, "out of memory for a recording")
                             : cuda_check(cudaGraphInstantiate(&recording->graph, graph, 0),
                                          "cudaGraphInstantiate");
    cudaGraphDestroy(graph);
    if (status == STATUS_OK)
        *out = recording;
    else
        free(recording);
    return status;
}

static enum status cuda_replay(struct device *device, struct device_recording *recording) {
    CUDA_TRY(cudaGraphLaunch(recording->graph, backend_of(device)->stream));
    return STATUS_OK;
}

static void cuda_recording_close(struct device_recording *recording) {
    cudaGraphExecDestroy(recording->graph);
    free(recording);
}

static void close_slot(struct upload_slot *slot) {
    if (slot->copied != NULL) cudaEventDestroy(slot->copied);
    if (slot->free != NULL) cudaEventDestroy(slot->free);
    cudaFreeHost(slot->pinned);
    cudaFree(slot->device);
}

static void cuda_close(struct device *device) {
    struct cuda_backend *backend = backend_of(device);
    if (backend == NULL) return;
    if (backend->stream != NULL) cudaStreamSynchronize(backend->stream);
    attention_service_close(backend->attention);
    gemm_service_close(backend->gemm);
    for (size_t i = 0; backend->marks != NULL && i < DEVICE_MARKS; i++) {
        if (backend->marks[i] != NULL) cudaEventDestroy(backend->marks[i]);
    }
    for (size_t i = 0; i < UPLOAD_SLOTS; i++) close_slot(&backend->slots[i]);
    for (size_t i = 0; i < DEVICE_READS; i++) {
        if (backend->reads[i].done != NULL) cudaEventDestroy(backend->reads[i].done);
        cudaFreeHost(backend->reads[i].pinned);
    }
    if (backend->copy_stream != NULL) cudaStreamDestroy(backend->copy_stream);
    if (backend->stream != NULL) cudaStreamDestroy(backend->stream);
    free(backend->marks);
    free(backend);
    device->backend = NULL;
}

static const struct device_calls cuda_calls = {
    .close = cuda_close,
    .allocate = cuda_allocate,
    .release = cuda_release,
    .upload = cuda_upload,
    .download = cuda_download,
    .read_begin = cuda_read_begin,
    .read_ready = cuda_read_ready,
    .read_end = cuda_read_end,
    .map = cuda_map,
    .unmap = cuda_unmap,
    .wait = cuda_wait,
    .mark = cuda_mark,
    .seconds_between = cuda_seconds_between,
    .record_begin = cuda_record_begin,
    .record_end = cuda_record_end,
    .replay = cuda_replay,
    .recording_close = cuda_recording_close,
};

/* Which device, or why there is none, in the words of the inventory. */
static enum status choose_device(const struct device_options *options, int *index) {
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess && count > 0) {
        *index = cuda_device_of(options->index, count);
        if (*index >= 0 && *index < count) return STATUS_OK;
        return status_set(STATUS_DEVICE, "GPU %d is wanted, and this process sees %d (nvidia-smi, "
                          "CUDA_VISIBLE_DEVICES): start no more ranks on a host than it has GPUs",
                          *index, count);
    }
    static struct cuda_inventory inventory;
    cudaGetLastError();
    cuda_inventory_read(&inventory);
    return status_set(STATUS_DEVICE, "no usable GPU: %s", inventory.message);
}

static enum status check_code(const struct cudaDeviceProp *properties) {
    const cudaError_t error = cuda_code_probe();
    if (error == cudaSuccess) return STATUS_OK;
    cudaGetLastError();
    return status_set(STATUS_DEVICE,
                      "%s has compute capability %d.%d, but this build has code for %s "
                      "(%s): set DEEPWELL_CUDA_ARCHS=%d%d and build again",
                      properties->name, properties->major, properties->minor, DEEPWELL_CUDA_ARCHS,
                      cudaGetErrorName(error), properties->major, properties->minor);
}

static enum status open_slots(struct cuda_backend *backend) {
    for (size_t i = 0; i < UPLOAD_SLOTS; i++) {
        struct upload_slot *slot = &backend->slots[i];
        CUDA_TRY(cudaMallocHost(&slot->pinned, UPLOAD_BYTES));
        CUDA_TRY(cudaMalloc(&slot->device, UPLOAD_BYTES));
        CUDA_TRY(cudaEventCreateWithFlags(&slot->copied, cudaEventDisableTiming));
        CUDA_TRY(cudaEventCreateWithFlags(&slot->free, cudaEventDisableTiming));
    }
    for (size_t i = 0; i < DEVICE_READS; i++) {
        struct read_slot *read = &backend->reads[i];
        CUDA_TRY(cudaMallocHost(&read->pinned, DEVICE_READ_BYTES));
        CUDA_TRY(cudaEventCreateWithFlags(&read->done, cudaEventDisableTiming));
    }
    return STATUS_OK;
}

static enum status open_backend(struct device *device, int index) {
    struct cuda_backend *backend = backend_of(device);
    struct cudaDeviceProp properties;
    size_t free_bytes = 0, total_bytes = 0;
    CUDA_TRY(cudaGetDeviceProperties(&properties, index));
    CUDA_TRY(cudaSetDevice(index));
    TRY(check_code(&properties));
    backend->multiprocessors = properties.multiProcessorCount;
    backend->capability = 10 * properties.major + properties.minor;
    backend->shared_bytes = properties.sharedMemPerBlockOptin;
    backend->l2_bytes = (size_t)properties.l2CacheSize;
    CUDA_TRY(cudaStreamCreateWithFlags(&backend->stream, cudaStreamNonBlocking));
    CUDA_TRY(cudaStreamCreateWithFlags(&backend->copy_stream, cudaStreamNonBlocking));
    TRY(open_slots(backend));
    snprintf(device->name, sizeof device->name, "%.100s", properties.name);
    CUDA_TRY(cudaDeviceGetPCIBusId(device->bus_id, sizeof device->bus_id, index));
    TRY(gemm_service_open(device));
    TRY(attention_service_open(device));
    CUDA_TRY(cudaMemGetInfo(&free_bytes, &total_bytes));
    const size_t reserved = cuda_reserved_bytes + total_bytes / CUDA_SEARCH_SHARE;
    device->memory_bytes = free_bytes - size_min(free_bytes, reserved);
    device->logits_bytes = size_min(logits_bytes_max, total_bytes / 32);
    return STATUS_OK;
}

enum status device_open_cuda(struct device *device, const struct device_options *options) {
    *device = (struct device){.kind = DEVICE_CUDA,
                              .ops = &cuda_ops,
                              .calls = &cuda_calls,
                              .threads = 1};
    int index = 0;
    TRY(choose_device(options, &index));
    struct cuda_backend *backend = calloc(1, sizeof *backend);
    device->backend = backend;
    if (backend != NULL) backend->options = *options;
    if (backend != NULL) backend->marks = calloc(DEVICE_MARKS, sizeof *backend->marks);
    enum status status = backend == NULL || backend->marks == NULL
                             ? status_set(STATUS_MEMORY, "out of host memory for the GPU's state")
                             : open_backend(device, index);
    if (status != STATUS_OK) {
        cuda_close(device);
        *device = (struct device){0};
    }
    return status;
}

/* Behind kernels/device.h: the CPU as a device (memory by mmap, threads by OpenMP), and the
 * dispatch to the kind of device. */
#include "kernels/device.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/checked.h"
#include "base/clock.h"
#include "base/text.h"
#include "kernels/cpu/cpu.h"
#include "kernels/host.h"

enum { THREADS_MAX = 1024, HUGE_PAGE_BYTES = 2 << 20, CPU_LOGITS_BYTES = 64 << 20,
       COPY_BYTES = 1 << 20 };

static double cpu_marks[DEVICE_MARKS]; /* clock_seconds() at each */

/* Maps `bytes` at a multiple of a huge page, so that the whole range can be huge pages. */
static void *map_aligned(size_t bytes) {
    const size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    size_t padded = 0;
    if (!size_add(bytes, HUGE_PAGE_BYTES + page_bytes, &padded)) return MAP_FAILED;
    char *mapped = mmap(NULL, padded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return MAP_FAILED;
    char *end = mapped + align_up(padded, page_bytes);
    char *first = mapped + (align_up((size_t)mapped, HUGE_PAGE_BYTES) - (size_t)mapped);
    char *last = first + align_up(bytes, page_bytes);
    if (first > mapped) munmap(mapped, (size_t)(first - mapped));
    if (end > last) munmap(last, (size_t)(end - last));
    return first;
}

/* Touches every page now: what the check of free memory promised is then really held, no step meets
 * a page fault, and the pages lie near the threads that work on them. */
static void touch_pages(const struct device *device, char *memory, size_t bytes) {
    const size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    const size_t pages = ceil_div(bytes, page_bytes);
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (size_t page = 0; page < pages; page++) ((volatile char *)memory)[page * page_bytes] = 0;
}

static enum status cpu_allocate(struct device *device, size_t bytes, void **out) {
    char wanted_text[TEXT_BYTES], free_text[TEXT_BYTES];
    const size_t free_bytes = host_memory_free_bytes();
    void *memory = bytes > free_bytes ? MAP_FAILED : map_aligned(bytes);
    if (memory == MAP_FAILED) {
        return status_set(STATUS_MEMORY,
                          "%s wanted, %s free on %s: use a smaller model, batch or "
                          "sequence length",
                          text_bytes(wanted_text, bytes), text_bytes(free_text, free_bytes),
                          device->name);
    }
    madvise(memory, bytes, MADV_HUGEPAGE); /* a wish: without huge pages all works, slower */
    touch_pages(device, memory, bytes);
    *out = memory;
    return STATUS_OK;
}

static void cpu_release(struct device *device, void *memory, size_t bytes) {
    (void)device;
    munmap(memory, bytes);
}

/* One thread does not reach the memory's rate: a checkpoint's gigabytes are copied by all. */
static void copy(const struct device *device, void *to, const void *from, size_t bytes) {
    const size_t pieces = ceil_div(bytes, COPY_BYTES);
#pragma omp parallel for num_threads(device->threads) if (pieces > 4)
    for (size_t i = 0; i < pieces; i++) {
        const size_t at = i * COPY_BYTES;
        memcpy((char *)to + at, (const char *)from + at, size_min(COPY_BYTES, bytes - at));
    }
}

static enum status cpu_upload(struct device *device, void *to, const void *from_host,
                              size_t bytes) {
    copy(device, to, from_host, bytes);
    return STATUS_OK;
}

static enum status cpu_download(struct device *device, void *to_host, const void *from,
                                size_t bytes) {
    copy(device, to_host, from, bytes);
    return STATUS_OK;
}

static enum status cpu_read_begin(struct device *device, size_t slot, void *to_host,
                                  const void *from, size_t bytes) {
    (void)slot;
    return cpu_download(device, to_host, from, bytes);
}

static bool cpu_read_ready(struct device *device, size_t slot) {
    (void)device;
    (void)slot;
    return true;
}

static enum status cpu_read_end(struct device *device, size_t slot) {
    (void)device;
    (void)slot;
    return STATUS_OK;
}

static enum status cpu_map(struct device *device, void *memory, size_t bytes, void **host) {
    (void)device;
    (void)bytes;
    *host = memory;
    return STATUS_OK;
}

static enum status cpu_unmap(struct device *device, void *memory, void *host, size_t bytes,
                             bool changed) {
    (void)device;
    (void)memory;
    (void)host;
    (void)bytes;
    (void)changed;
    return STATUS_OK;
}

static enum status cpu_wait(struct device *device) {
    (void)device;
    return STATUS_OK;
}

/* A CPU has done everything when it is asked to mark: the clock will do. */
static enum status cpu_mark(struct device *device, size_t index) {
    (void)device;
    cpu_marks[index] = clock_seconds();
    return STATUS_OK;
}

static enum status cpu_seconds_between(struct device *device, size_t first, size_t second,
                                       double *seconds) {
    (void)device;
    *seconds = cpu_marks[second] - cpu_marks[first];
    return STATUS_OK;
}

static void cpu_close(struct device *device) { (void)device; }

static const struct device_calls cpu_calls = {
    .close = cpu_close,
    .allocate = cpu_allocate,
    .release = cpu_release,
    .upload = cpu_upload,
    .download = cpu_download,
    .read_begin = cpu_read_begin,
    .read_ready = cpu_read_ready,
    .read_end = cpu_read_end,
    .map = cpu_map,
    .unmap = cpu_unmap,
    .wait = cpu_wait,
    .mark = cpu_mark,
    .seconds_between = cpu_seconds_between,
};

enum status device_open_cpu(struct device *device, int threads) {
    char cpu[sizeof device->name - 32];
    *device = (struct device){
        .kind = DEVICE_CPU,
        .ops = &cpu_ops,
        .calls = &cpu_calls,
        .logits_bytes = CPU_LOGITS_BYTES,
    };
    if (threads < 0 || threads > THREADS_MAX) {
        return status_set(STATUS_CONFIG, "expected 1 to %d threads, or 0 for all, found %d",
                          THREADS_MAX, threads);
    }
    device->threads = threads == 0 ? (int)size_min((size_t)host_threads(), THREADS_MAX) : threads;
    TRY(cpu_threads_start(device->threads));
    device->memory_bytes = host_memory_free_bytes();
    host_cpu_name(cpu, sizeof cpu);
    snprintf(device->name, sizeof device->name, "%s, %d thread%s", cpu, device->threads,
             device->threads == 1 ? "" : "s");
    return STATUS_OK;
}

void device_close(struct device *device) {
    if (device->calls != NULL) device->calls->close(device);
    *device = (struct device){0};
}

enum status device_allocate(struct device *device, size_t bytes, void **out) {
    *out = NULL;
    return bytes == 0 ? STATUS_OK : device->calls->allocate(device, bytes, out);
}

void device_release(struct device *device, void *memory, size_t bytes) {
    if (memory != NULL) device->calls->release(device, memory, bytes);
}

enum status device_upload(struct device *device, void *to, const void *from_host, size_t bytes) {
    return device->calls->upload(device, to, from_host, bytes);
}

enum status device_download(struct device *device, void *to_host, const void *from, size_t bytes) {
    return device->calls->download(device, to_host, from, bytes);
}

enum status device_read_begin(struct device *device, size_t slot, void *to_host, const void *from,
                              size_t bytes) {
    if (slot >= DEVICE_READS || bytes > DEVICE_READ_BYTES) {
        return status_set(STATUS_INTERNAL, "read of %zu bytes through slot %zu: at most %d, slots "
                          "below %d", bytes, slot, DEVICE_READ_BYTES, DEVICE_READS);
    }
    return device->calls->read_begin(device, slot, to_host, from, bytes);
}

bool device_read_ready(struct device *device, size_t slot) {
    return device->calls->read_ready(device, slot);
}

enum status device_read_end(struct device *device, size_t slot) {
    return device->calls->read_end(device, slot);
}

enum status device_map(struct device *device, void *memory, size_t bytes, void **host) {
    return device->calls->map(device, memory, bytes, host);
}

enum status device_unmap(struct device *device, void *memory, void *host, size_t bytes,
                         bool changed) {
    return device->calls->unmap(device, memory, host, bytes, changed);
}

enum status device_wait(struct device *device) { return device->calls->wait(device); }

enum status device_mark(struct device *device, size_t index) {
    if (index >= DEVICE_MARKS) {
        return status_set(STATUS_INTERNAL, "mark %zu of %d", index, DEVICE_MARKS);
    }
    return device->calls->mark(device, index);
}

enum status device_seconds_between(struct device *device, size_t first, size_t second,
                                   double *seconds) {
    return device->calls->seconds_between(device, first, second, seconds);
}

bool device_records(const struct device *device) {
    return device->calls->record_begin != NULL && device->interposed == NULL;
}

enum status device_record_begin(struct device *device) {
    return device->calls->record_begin(device);
}

enum status device_record_end(struct device *device, struct device_recording **out) {
    return device->calls->record_end(device, out);
}

enum status device_replay(struct device *device, struct device_recording *recording) {
    return device->calls->replay(device, recording);
}

void device_recording_close(struct device *device, struct device_recording *recording) {
    if (recording != NULL) device->calls->recording_close(recording);
}

void device_set_scratch(struct device *device, void *scratch, size_t bytes) {
    device->scratch = scratch;
    device->scratch_bytes = device->attention_scratch_bytes = bytes;
}

void device_share_scratch(struct device *device, size_t bytes) { device->scratch_bytes = bytes; }

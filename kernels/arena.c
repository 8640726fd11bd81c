/* Bump allocation behind kernels/arena.h; the same arithmetic measures and lays out. */
#include "kernels/arena.h"

#include <stdint.h>

#include "base/checked.h"
#include "base/text.h"

struct arena arena_measure(const char *name) {
    return (struct arena){.name = name, .capacity_bytes = SIZE_MAX};
}

enum status arena_open(struct arena *arena, const char *name, struct device *device, size_t bytes) {
    void *base = NULL;
    *arena = (struct arena){.name = name, .device = device};
    const enum status status = device_allocate(device, bytes, &base);
    if (status != STATUS_OK) return status_context(status, "memory for %s", name);
    arena->base = base;
    arena->capacity_bytes = bytes;
    return STATUS_OK;
}

void arena_close(struct arena *arena) {
    if (arena->device != NULL) device_release(arena->device, arena->base, arena->capacity_bytes);
    *arena = (struct arena){0};
}

enum status arena_take(struct arena *arena, size_t count, size_t item_bytes, void **out) {
    size_t bytes = 0, first = 0, end = 0;
    if (!size_mul(count, item_bytes, &bytes) ||
        !size_add(arena->used_bytes, ARENA_ALIGNMENT - 1, &first) ||
        !size_add(first -= first % ARENA_ALIGNMENT, bytes, &end)) {
        return status_set(STATUS_MEMORY, "%s: %zu items of %zu bytes are more than any machine can "
                          "address: use a smaller model or batch", arena->name, count, item_bytes);
    }
    if (end > arena->capacity_bytes) {
        return status_set(STATUS_INTERNAL,
                          "%s: %zu bytes wanted at %zu, but only %zu were measured", arena->name,
                          bytes, first, arena->capacity_bytes);
    }
    *out = arena->base == NULL ? NULL : arena->base + first;
    arena->used_bytes = end;
    return STATUS_OK;
}

enum status arena_tensor(struct arena *arena, enum dtype dtype, size_t rows, size_t columns,
                         struct tensor *out) {
    size_t count = 0;
    void *data = NULL;
    if (!size_mul(rows, columns, &count)) {
        return status_set(STATUS_MEMORY, "%s: a tensor of %zu x %zu is more than any machine can "
                          "address: use a smaller model or batch", arena->name, rows, columns);
    }
    TRY(arena_take(arena, count, dtype_bytes(dtype), &data));
    *out = tensor_make(data, dtype, rows, columns);
    return STATUS_OK;
}

/*
 * Memory by lifetime. An arena is laid out twice by the same code: once measuring (no memory, sizes
 * only; this is also what `plan` prints), then for real in one allocation of exactly that size.
 * Nothing is released singly, and nothing is allocated after the first step.
 *
 * Owned by the trainer; layers receive one to lay their tensors out in.
 */
#ifndef DEEPWELL_KERNELS_ARENA_H_
#define DEEPWELL_KERNELS_ARENA_H_

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"
#include "kernels/device.h"
#include "kernels/tensor.h"

enum { ARENA_ALIGNMENT = 256 };

struct arena {
    const char *name;      /* "parameters", "activations", ...: for messages and the memory table */
    struct device *device; /* where the memory lies; NULL while measuring */
    char *base;            /* NULL while measuring */
    size_t used_bytes;
    size_t capacity_bytes; /* SIZE_MAX while measuring */
};

/* A measuring arena: arena_take counts and returns NULL pointers. */
struct arena arena_measure(const char *name);

/* Allocates `bytes` (of zeros) on the device. STATUS_MEMORY with the numbers if they are not to be
 * had. */
enum status arena_open(struct arena *arena, const char *name, struct device *device, size_t bytes);
void arena_close(struct arena *arena);

/* count * item_bytes bytes, aligned to ARENA_ALIGNMENT; the product is checked. */
enum status arena_take(struct arena *arena, size_t count, size_t item_bytes, void **out);
enum status arena_tensor(struct arena *arena, enum dtype dtype, size_t rows, size_t columns,
                         struct tensor *out);

#endif

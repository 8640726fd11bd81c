/* Attention while generating: appends keys and values to the caches, then attends to them. */
#include <omp.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"

/* One head's new keys or values to rows [past, past + rows) of the cache; packed is scratch
 * memory. */
static void cache_append(struct head_view cache, struct head_view from, size_t past, size_t rows,
                         size_t width, float *packed) {
    head_pack(packed, from, 0, rows, width);
    head_unpack(cache, packed, past, rows, width);
}

enum status cpu_attention_cached(struct device *device, const struct attention_cached *op) {
    const char *const name = "attention_cached";
    const size_t length = op->sequence_length, heads = op->heads, channels = op->out.columns;
    struct scratch scratch = scratch_begin_attention(device);
    struct buffers buffers = {0};
    TRY(attention_check(name, op->qkv, op->out, op->batch * length, heads));
    TRY(shape_check(name, "keys", op->keys, op->batch * op->capacity, channels));
    TRY(shape_check(name, "values", op->values, op->batch * op->capacity, channels));
    if (op->past > op->capacity || length > op->capacity - op->past) {
        return status_set(STATUS_INTERNAL, "%s: %zu tokens after %zu in a cache of %zu", name,
                          length, op->past, op->capacity);
    }
    const size_t keys = op->past + length, width = channels / heads;
    TRY(scratch_take(&scratch, name, (size_t)device->threads, attention_forward_floats(keys, width),
                     &buffers));
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (size_t i = 0; i < op->batch * heads; i++) {
        const size_t sequence = i / heads, column = i % heads * width;
        const struct tensor qkv = tensor_rows(op->qkv, sequence * length, length);
        const struct head_view new_keys = {qkv, channels + column};
        const struct head_view new_values = {qkv, 2 * channels + column};
        const struct attention_head head = {
            .query = {qkv, column},
            .key = {tensor_rows(op->keys, sequence * op->capacity, keys), column},
            .value = {tensor_rows(op->values, sequence * op->capacity, keys), column},
            .out = {tensor_rows(op->out, sequence * length, length), column},
            .queries = length,
            .past = op->past,
            .width = width,
        };
        float *memory = buffer_at(buffers, (size_t)omp_get_thread_num());
        cache_append(head.key, new_keys, op->past, length, width, memory);
        cache_append(head.value, new_values, op->past, length, width, memory);
        attention_head_forward(&head, memory);
    }
    return STATUS_OK;
}

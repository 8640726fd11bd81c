/*
 * Communication of a run of one rank: what leaves it arrives there. The sums are the numbers
 * themselves; where a collective moves numbers to another place, they are copied by the device's
 * own operations, in the order of its work.
 */
#include <stdint.h>
#include <string.h>

#include "kernels/ops.h"
#include "train/comm.h"

/* By `convert`, whose unit is a number: all that is moved on a device are whole numbers of 2 bytes
 * or more. */
static enum status copy(struct comm *comm, void *out, const void *in, size_t bytes) {
    if (out == in) return STATUS_OK;
    const enum dtype dtype = bytes % sizeof(float) == 0 ? DTYPE_F32 : DTYPE_BF16;
    const size_t count = bytes / dtype_bytes(dtype);
    const struct tensor to = tensor_make(out, dtype, 1, count);
    const struct tensor from = tensor_make((void *)(uintptr_t)in, dtype, 1, count);
    return comm->device->ops->convert(comm->device, to, from);
}

static enum status all_reduce(struct comm *comm, void *data, size_t count, enum comm_type type,
                              enum comm_sum sum) {
    (void)comm, (void)data, (void)count, (void)type, (void)sum;
    return STATUS_OK;
}

static enum status reduce_scatter(struct comm *comm, void *out, const void *in, size_t count,
                                  enum comm_type type) {
    return copy(comm, out, in, count * comm_type_bytes(type));
}

static enum status broadcast(struct comm *comm, void *data, size_t bytes, int root) {
    (void)comm, (void)data, (void)bytes, (void)root;
    return STATUS_OK;
}

static enum status nothing(struct comm *comm) {
    (void)comm; /* both run on the device's one stream */
    return STATUS_OK;
}

static enum status note_waits(struct comm *comm, size_t slot) {
    (void)comm, (void)slot; /* it waits for nobody */
    return STATUS_OK;
}

static double noted_seconds(const struct comm *comm, size_t slot) {
    (void)comm, (void)slot;
    return 0.0;
}

static enum status gather_host(struct comm *comm, void *out, const void *in, size_t bytes) {
    (void)comm;
    if (bytes > 0) memcpy(out, in, bytes);
    return STATUS_OK;
}

static void stop(struct comm *comm, int code) { (void)comm, (void)code; }

static void close_single(struct comm *comm) { (void)comm; }

static const struct comm_calls single_calls = {
    .all_reduce = all_reduce,
    .reduce_scatter = reduce_scatter,
    .all_gather = copy,
    .exchange = copy,
    .broadcast = broadcast,
    .after_compute = nothing,
    .compute_after = nothing,
    .note_waits = note_waits,
    .noted_seconds = noted_seconds,
    .gather_host = gather_host,
    .broadcast_host = broadcast,
    .abort = stop,
    .close = close_single,
};

void comm_open_single(struct comm *comm, struct device *device) {
    *comm = (struct comm){
        .calls = &single_calls, .device = device, .rank = 0, .world = 1, .name = "one rank",
    };
}

/* The calls of train/comm.h: those of the implementation behind them. */
#include "train/comm.h"

void comm_close(struct comm *comm) {
    if (comm->calls != NULL) comm->calls->close(comm);
    *comm = (struct comm){0};
}

void comm_abort(struct comm *comm, int code) {
    if (comm->calls != NULL) comm->calls->abort(comm, code);
}

enum status comm_all_reduce(struct comm *comm, void *data, size_t count, enum comm_type type,
                            enum comm_sum sum) {
    return comm->calls->all_reduce(comm, data, count, type, sum);
}

enum status comm_reduce_scatter(struct comm *comm, void *out, const void *in, size_t count,
                                enum comm_type type) {
    return comm->calls->reduce_scatter(comm, out, in, count, type);
}

enum status comm_all_gather(struct comm *comm, void *out, const void *in, size_t bytes) {
    return comm->calls->all_gather(comm, out, in, bytes);
}

enum status comm_exchange(struct comm *comm, void *out, const void *in, size_t bytes) {
    return comm->calls->exchange(comm, out, in, bytes);
}

enum status comm_broadcast(struct comm *comm, void *data, size_t bytes, int root) {
    return comm->calls->broadcast(comm, data, bytes, root);
}

enum status comm_after_compute(struct comm *comm) { return comm->calls->after_compute(comm); }

enum status compute_after_comm(struct comm *comm) { return comm->calls->compute_after(comm); }

enum status comm_note_waits(struct comm *comm, size_t slot) {
    return comm->calls->note_waits(comm, slot);
}

double comm_waited_seconds(const struct comm *comm, size_t first, size_t second) {
    return comm->calls->noted_seconds(comm, second) - comm->calls->noted_seconds(comm, first);
}

enum status comm_gather_host(struct comm *comm, void *out, const void *in, size_t bytes) {
    return comm->calls->gather_host(comm, out, in, bytes);
}

enum status comm_broadcast_host(struct comm *comm, void *data, size_t bytes, int root) {
    return comm->calls->broadcast_host(comm, data, bytes, root);
}

enum status comm_barrier(struct comm *comm) {
    return comm->calls->gather_host(comm, NULL, NULL, 0);
}

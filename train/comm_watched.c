/* The calls of train/comm_watched.h. */
#include "train/comm_watched.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/text.h"

static struct comm_watched *watched_of(const struct comm *comm) { return comm->backend; }

/* The device is the outer one's: the engine opens it late. */
static enum status enter(struct comm *comm, bool waits, const char *what, size_t bytes) {
    struct comm_watched *w = watched_of(comm);
    char text[WATCHDOG_WHAT_BYTES], size[TEXT_BYTES];
    w->inner.device = comm->device;
    TRY(watchdog_check(w->watchdog));
    if (!waits) return STATUS_OK;
    snprintf(text, sizeof text, "%s of %s", what, text_bytes(size, bytes));
    watchdog_enter(w->watchdog, text);
    return STATUS_OK;
}

/* What broke a call off says less than the watchdog, which did it. */
static enum status leave(struct comm *comm, bool waits, enum status status) {
    struct comm_watched *w = watched_of(comm);
    if (waits) watchdog_leave(w->watchdog);
    if (status != STATUS_OK) TRY(watchdog_check(w->watchdog));
    return status;
}

static enum status all_reduce(struct comm *comm, void *data, size_t count, enum comm_type type,
                              enum comm_sum sum) {
    struct comm_watched *w = watched_of(comm);
    TRY(enter(comm, w->waits, "all_reduce", count * comm_type_bytes(type)));
    return leave(comm, w->waits, comm_all_reduce(&w->inner, data, count, type, sum));
}

static enum status reduce_scatter(struct comm *comm, void *out, const void *in, size_t count,
                                  enum comm_type type) {
    struct comm_watched *w = watched_of(comm);
    const size_t bytes = count * comm_type_bytes(type) * (size_t)comm->world;
    TRY(enter(comm, w->waits, "reduce_scatter", bytes));
    return leave(comm, w->waits, comm_reduce_scatter(&w->inner, out, in, count, type));
}

static enum status all_gather(struct comm *comm, void *out, const void *in, size_t bytes) {
    struct comm_watched *w = watched_of(comm);
    TRY(enter(comm, w->waits, "all_gather", bytes));
    return leave(comm, w->waits, comm_all_gather(&w->inner, out, in, bytes));
}

static enum status exchange(struct comm *comm, void *out, const void *in, size_t bytes) {
    struct comm_watched *w = watched_of(comm);
    TRY(enter(comm, w->waits, "exchange", bytes * (size_t)comm->world));
    return leave(comm, w->waits, comm_exchange(&w->inner, out, in, bytes));
}

static enum status broadcast(struct comm *comm, void *data, size_t bytes, int root) {
    struct comm_watched *w = watched_of(comm);
    TRY(enter(comm, w->waits, "broadcast", bytes));
    return leave(comm, w->waits, comm_broadcast(&w->inner, data, bytes, root));
}

static enum status after_compute(struct comm *comm) {
    TRY(enter(comm, false, "", 0));
    return leave(comm, false, comm_after_compute(&watched_of(comm)->inner));
}

static enum status compute_after(struct comm *comm) {
    TRY(enter(comm, false, "", 0));
    return leave(comm, false, compute_after_comm(&watched_of(comm)->inner));
}

static enum status note_waits(struct comm *comm, size_t slot) {
    return comm_note_waits(&watched_of(comm)->inner, slot);
}

static double noted_seconds(const struct comm *comm, size_t slot) {
    const struct comm *inner = &watched_of(comm)->inner;
    return inner->calls->noted_seconds(inner, slot);
}

static enum status gather_host(struct comm *comm, void *out, const void *in, size_t bytes) {
    TRY(enter(comm, true, bytes == 0 ? "barrier" : "gather_host", bytes));
    return leave(comm, true, comm_gather_host(&watched_of(comm)->inner, out, in, bytes));
}

static enum status broadcast_host(struct comm *comm, void *data, size_t bytes, int root) {
    TRY(enter(comm, true, "broadcast_host", bytes));
    return leave(comm, true, comm_broadcast_host(&watched_of(comm)->inner, data, bytes, root));
}

/* The others are told this thread's message, which says why this rank ends. */
static void stop(struct comm *comm, int code) {
    struct comm_watched *w = watched_of(comm);
    if (w->aborted) return;
    w->aborted = true;
    watchdog_close(w->watchdog, (enum status)code);
    w->watchdog = NULL;
    comm_abort(&w->inner, code);
}

static void close_watched(struct comm *comm) {
    struct comm_watched *w = watched_of(comm);
    w->inner.device = comm->device;
    /* a watchdog that asks inner for its progress goes first; one that does not watches it close */
    if (!w->waits) watchdog_close(w->watchdog, STATUS_OK);
    comm_close(&w->inner);
    if (w->waits) watchdog_close(w->watchdog, STATUS_OK);
    rendezvous_close(&w->talk);
    rendezvous_close(&w->watched);
    free(w);
}

static const struct comm_calls watched_calls = {
    .all_reduce = all_reduce,
    .reduce_scatter = reduce_scatter,
    .all_gather = all_gather,
    .exchange = exchange,
    .broadcast = broadcast,
    .after_compute = after_compute,
    .compute_after = compute_after,
    .note_waits = note_waits,
    .noted_seconds = noted_seconds,
    .gather_host = gather_host,
    .broadcast_host = broadcast_host,
    .abort = stop,
    .close = close_watched,
};

void comm_watch(struct comm *comm, struct comm_watched *watched) {
    *comm = (struct comm){
        .calls = &watched_calls, .backend = watched, .rank = watched->inner.rank,
        .world = watched->inner.world,
    };
    snprintf(comm->name, sizeof comm->name, "%s", watched->inner.name);
}

enum status comm_at_step(struct comm *comm, int64_t step) {
    if (comm->calls != &watched_calls) return STATUS_OK;
    watchdog_at_step(watched_of(comm)->watchdog, step);
    return watchdog_check(watched_of(comm)->watchdog);
}

void comm_allow(struct comm *comm, double seconds) {
    if (comm->calls == &watched_calls) watchdog_allow(watched_of(comm)->watchdog, seconds);
}

/*
 * NCCL behind train/comm_nccl.h.
 *
 * Every call of NCCL is made under a lock, and the waits between them are not: the watchdog's
 * thread can abort in between, after which the communicator is gone and every call is refused. Each
 * collective is enclosed by two counters on its stream (kernels/cuda/communication.h), from which
 * the watchdog reads how far the device is, in recordings too.
 */
#include "train/comm_nccl.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include "base/clock.h"
#include "base/text.h"
#include "kernels/cuda/communication.h"
#include "train/star.h"

_Static_assert(sizeof(ncclUniqueId) == COMM_NCCL_ID_BYTES, "the id of NCCL");

enum { POLL_MICROSECONDS = 20 };
static const double close_seconds = 20.0, break_off_seconds = 1.0;

enum call_kind { CALL_ALL_REDUCE, CALL_REDUCE_SCATTER, CALL_ALL_GATHER, CALL_EXCHANGE,
                 CALL_BROADCAST, CALL_KINDS };
static const char *const call_names[CALL_KINDS] = {"all_reduce", "reduce_scatter", "all_gather",
                                                   "exchange", "broadcast"};

/* One collective; count and type as NCCL takes them. */
struct call {
    enum call_kind kind;
    void *out;
    const void *in;
    size_t count;
    ncclDataType_t type;
    ncclRedOp_t op;
    int root;
    size_t bytes; /* that this rank gives, for messages */
};

struct nccl_backend {
    ncclComm_t comm;
    pthread_mutex_t lock; /* of comm and aborted */
    bool aborted;
    enum { JOIN_WANTED, JOIN_DONE, JOIN_FAILED } join;
    enum status join_status;
    struct comm_nccl_options options;
    const struct rendezvous *talk;
    cudaStream_t compute, stream;
    cudaEvent_t compute_there, comm_there;
    struct stream_progress *_Atomic progress; /* pinned; NULL before the ranks joined */
    struct stream_progress *device_progress;  /* the same memory as the device sees it */
    struct stream_waits *waits;               /* of the compute stream; device memory */
    uint64_t *noted, *device_noted;           /* (COMM_NOTES) nanoseconds; pinned, as `progress` */
};

static struct nccl_backend *backend_of(const struct comm *comm) { return comm->backend; }

static enum status cuda_result(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return STATUS_OK;
    cudaGetLastError();
    return status_set(error == cudaErrorMemoryAllocation ? STATUS_MEMORY : STATUS_DEVICE,
                      "communication: %s failed: %s (%s)", what, cudaGetErrorName(error),
                      cudaGetErrorString(error));
}
#define TRY_CUDA(call) TRY(cuda_result((call), #call))

static void pause_shortly(void) {
    const struct timespec pause = {.tv_nsec = POLL_MICROSECONDS * 1000};
    nanosleep(&pause, NULL);
}

/* ---- calls that do not block ---- */

static enum status broken_off(void) {
    return status_set(STATUS_RANKS, "communication between the ranks was broken off");
}

static enum status nccl_result(struct nccl_backend *b, ncclResult_t result, const char *what) {
    if (result == ncclSuccess) return STATUS_OK;
    const bool remote = result == ncclRemoteError || result == ncclSystemError;
    const char *detail = b->comm == NULL ? "" : ncclGetLastError(b->comm);
    return status_set(remote ? STATUS_RANKS : STATUS_DEVICE, "NCCL: %s failed: %s%s%s (NCCL_DEBUG="
                      "INFO tells more)", what, ncclGetErrorString(result),
                      detail[0] == '\0' ? "" : ": ", detail);
}

/* Until NCCL has done what `result` says is under way; `until` 0: as long as it takes, which the
 * watchdog limits. */
static enum status settle(struct nccl_backend *b, ncclResult_t result, const char *what,
                          double until) {
    for (;;) {
        pthread_mutex_lock(&b->lock);
        const bool aborted = b->aborted;
        if (!aborted && result == ncclInProgress) {
            const ncclResult_t asked = ncclCommGetAsyncError(b->comm, &result);
            if (asked != ncclSuccess) result = asked;
        }
        const bool wait = !aborted && result == ncclInProgress;
        const enum status status = aborted ? broken_off()
                                   : wait  ? STATUS_OK
                                           : nccl_result(b, result, what);
        pthread_mutex_unlock(&b->lock);
        if (!wait) return status;
        if (until > 0.0 && clock_seconds() > until) {
            return status_set(STATUS_RANKS, "NCCL: %s did not finish in time: a rank is missing, "
                              "or the network between them (NCCL_DEBUG=INFO tells more)", what);
        }
        pause_shortly();
    }
}

/* Neither wrong nor over yet: what a communicator that does not block answers. */
static bool going_on(ncclResult_t result) {
    return result == ncclSuccess || result == ncclInProgress;
}

static ncclResult_t exchange_parts(struct nccl_backend *b, const struct comm *comm,
                                   const struct call *c) {
    ncclResult_t result = ncclGroupStart();
    for (int r = 0; r < comm->world && going_on(result); r++) {
        const size_t at = (size_t)r * c->count;
        result = ncclSend((const char *)c->in + at, c->count, c->type, r, b->comm, b->stream);
        if (!going_on(result)) break;
        result = ncclRecv((char *)c->out + at, c->count, c->type, r, b->comm, b->stream);
    }
    const ncclResult_t ended = ncclGroupEnd();
    return going_on(result) ? ended : result;
}

static ncclResult_t issue(struct nccl_backend *b, const struct comm *comm, const struct call *c) {
    switch (c->kind) {
    case CALL_ALL_REDUCE:
        return ncclAllReduce(c->in, c->out, c->count, c->type, c->op, b->comm, b->stream);
    case CALL_REDUCE_SCATTER:
        return ncclReduceScatter(c->in, c->out, c->count, c->type, c->op, b->comm, b->stream);
    case CALL_ALL_GATHER:
        return ncclAllGather(c->in, c->out, c->count, c->type, b->comm, b->stream);
    case CALL_BROADCAST:
        return ncclBroadcast(c->in, c->out, c->count, c->type, c->root, b->comm, b->stream);
    default: return exchange_parts(b, comm, c);
    }
}

static enum status join(struct comm *comm);

static enum status run(struct comm *comm, const struct call *c) {
    struct nccl_backend *b = backend_of(comm);
    ncclResult_t result = ncclSuccess;
    TRY(join(comm));
    if (c->count == 0) return STATUS_OK;
    TRY(cuda_stream_begins(b->stream, b->device_progress, c->kind, c->bytes));
    pthread_mutex_lock(&b->lock);
    if (!b->aborted) result = issue(b, comm, c);
    pthread_mutex_unlock(&b->lock);
    TRY(settle(b, result, call_names[c->kind], 0.0));
    return cuda_stream_done(b->stream, b->device_progress);
}

/* ---- the collectives ---- */

static ncclDataType_t number_type(enum comm_type type) {
    switch (type) {
    case COMM_F32: return ncclFloat32;
    case COMM_BF16: return ncclBfloat16;
    case COMM_F64: return ncclFloat64;
    case COMM_U32: return ncclUint32;
    }
    return ncclNumTypes;
}

static enum status all_reduce(struct comm *comm, void *data, size_t count, enum comm_type type,
                              enum comm_sum sum) {
    return run(comm, &(struct call){
        .kind = CALL_ALL_REDUCE, .out = data, .in = data, .count = count, .type = number_type(type),
        .op = sum == COMM_MAX ? ncclMax : ncclSum, .bytes = count * comm_type_bytes(type),
    });
}

static enum status reduce_scatter(struct comm *comm, void *out, const void *in, size_t count,
                                  enum comm_type type) {
    return run(comm, &(struct call){
        .kind = CALL_REDUCE_SCATTER, .out = out, .in = in, .count = count,
        .type = number_type(type), .op = ncclSum,
        .bytes = count * comm_type_bytes(type) * (size_t)comm->world,
    });
}

static enum status all_gather(struct comm *comm, void *out, const void *in, size_t bytes) {
    return run(comm, &(struct call){
        .kind = CALL_ALL_GATHER, .out = out, .in = in, .count = bytes, .type = ncclUint8,
        .bytes = bytes,
    });
}

static enum status exchange(struct comm *comm, void *out, const void *in, size_t bytes) {
    return run(comm, &(struct call){
        .kind = CALL_EXCHANGE, .out = out, .in = in, .count = bytes, .type = ncclUint8,
        .bytes = bytes * (size_t)comm->world,
    });
}

static enum status broadcast(struct comm *comm, void *data, size_t bytes, int root) {
    return run(comm, &(struct call){
        .kind = CALL_BROADCAST, .out = data, .in = data, .count = bytes, .type = ncclUint8,
        .root = root, .bytes = bytes,
    });
}

static enum status after_compute(struct comm *comm) {
    struct nccl_backend *b = backend_of(comm);
    TRY(join(comm));
    TRY_CUDA(cudaEventRecord(b->compute_there, b->compute));
    TRY_CUDA(cudaStreamWaitEvent(b->stream, b->compute_there, 0));
    return STATUS_OK;
}

static enum status compute_after(struct comm *comm) {
    struct nccl_backend *b = backend_of(comm);
    TRY(join(comm));
    TRY_CUDA(cudaEventRecord(b->comm_there, b->stream));
    TRY(cuda_stream_wait_begins(b->compute, b->waits));
    TRY_CUDA(cudaStreamWaitEvent(b->compute, b->comm_there, 0));
    return cuda_stream_wait_ends(b->compute, b->waits);
}

static enum status note_waits(struct comm *comm, size_t slot) {
    struct nccl_backend *b = backend_of(comm);
    TRY(join(comm));
    return cuda_stream_note_waits(b->compute, b->waits, &b->device_noted[slot]);
}

static double noted_seconds(const struct comm *comm, size_t slot) {
    const volatile uint64_t *noted = backend_of(comm)->noted;
    return noted == NULL ? 0.0 : (double)noted[slot] * 1e-9;
}

/* Over the ranks' TCP connections: no GPU has to be open, and none is disturbed. */
static enum status gather_host(struct comm *comm, void *out, const void *in, size_t bytes) {
    const struct nccl_backend *b = backend_of(comm);
    return star_gather(b->talk, out, in, bytes, b->options.timeout_seconds);
}

static enum status broadcast_host(struct comm *comm, void *data, size_t bytes, int root) {
    const struct nccl_backend *b = backend_of(comm);
    return star_broadcast(b->talk, data, bytes, root, b->options.timeout_seconds);
}

/* ---- for the watchdog ---- */

void comm_nccl_progress(void *context, struct watchdog_progress *p) {
    const struct nccl_backend *b = backend_of(context);
    const volatile struct stream_progress *now = b->progress;
    char text[TEXT_BYTES];
    if (now == NULL) return;
    const bool host_waits = p->entered > p->left;
    p->left += now->done; /* first: what is done was begun */
    p->entered += now->begun;
    const uint64_t kind = now->kind;
    if (host_waits || now->begun == 0) return;
    snprintf(p->what, sizeof p->what, "%s of %s", kind < CALL_KINDS ? call_names[kind] : "?",
             text_bytes(text, now->bytes));
}

void comm_nccl_break_off(void *context) {
    struct nccl_backend *b = backend_of(context);
    const double until = clock_seconds() + break_off_seconds;
    while (pthread_mutex_trylock(&b->lock) != 0) {
        if (clock_seconds() > until) return; /* stuck inside NCCL: the watchdog ends the process */
        pause_shortly();
    }
    if (!b->aborted && b->comm != NULL) ncclCommAbort(b->comm);
    b->comm = NULL;
    b->aborted = true;
    pthread_mutex_unlock(&b->lock);
}

/* ---- opening and closing ---- */

static void stop(struct comm *comm, int code) {
    (void)code; /* this process ends with it; what started the ranks ends the others */
    comm_nccl_break_off(comm);
}

static void close_nccl(struct comm *comm) {
    struct nccl_backend *b = backend_of(comm);
    if (b->comm != NULL) {
        const double until = clock_seconds() + close_seconds;
        const ncclResult_t result = ncclCommFinalize(b->comm);
        if (settle(b, result, "leaving", until) == STATUS_OK) {
            ncclCommDestroy(b->comm);
        } else {
            ncclCommAbort(b->comm);
        }
    }
    if (b->progress != NULL) cudaFreeHost(b->progress);
    if (b->noted != NULL) cudaFreeHost(b->noted);
    if (b->waits != NULL) cudaFree(b->waits);
    if (b->compute_there != NULL) cudaEventDestroy(b->compute_there);
    if (b->comm_there != NULL) cudaEventDestroy(b->comm_there);
    if (b->stream != NULL) cudaStreamDestroy(b->stream);
    pthread_mutex_destroy(&b->lock);
    free(b);
}

static const struct comm_calls nccl_calls = {
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
    .close = close_nccl,
};

enum status comm_nccl_id(unsigned char id[COMM_NCCL_ID_BYTES]) {
    ncclUniqueId made;
    struct nccl_backend none = {0};
    TRY(nccl_result(&none, ncclGetUniqueId(&made), "making an id"));
    memcpy(id, made.internal, COMM_NCCL_ID_BYTES);
    return STATUS_OK;
}

/* Communication goes first where both wait for multiprocessors: others wait for it. */
static enum status open_stream(struct nccl_backend *b) {
    struct stream_progress *progress = NULL;
    int least = 0, greatest = 0;
    TRY_CUDA(cudaDeviceGetStreamPriorityRange(&least, &greatest));
    TRY_CUDA(cudaStreamCreateWithPriority(&b->stream, cudaStreamNonBlocking, greatest));
    TRY_CUDA(cudaEventCreateWithFlags(&b->compute_there, cudaEventDisableTiming));
    TRY_CUDA(cudaEventCreateWithFlags(&b->comm_there, cudaEventDisableTiming));
    TRY_CUDA(cudaHostAlloc((void **)&progress, sizeof *progress, cudaHostAllocMapped));
    memset(progress, 0, sizeof *progress);
    b->progress = progress;
    TRY_CUDA(cudaHostGetDevicePointer((void **)&b->device_progress, progress, 0));
    TRY_CUDA(cudaMalloc((void **)&b->waits, sizeof *b->waits));
    TRY_CUDA(cudaMemset(b->waits, 0, sizeof *b->waits));
    TRY_CUDA(cudaHostAlloc((void **)&b->noted, COMM_NOTES * sizeof *b->noted, cudaHostAllocMapped));
    memset(b->noted, 0, COMM_NOTES * sizeof *b->noted);
    TRY_CUDA(cudaHostGetDevicePointer((void **)&b->device_noted, b->noted, 0));
    return STATUS_OK;
}

static enum status join_once(struct comm *comm) {
    struct nccl_backend *b = backend_of(comm);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclResult_t result = ncclSuccess;
    ncclUniqueId id;
    if (comm->device == NULL || comm->device->kind != DEVICE_CUDA) {
        return status_set(STATUS_INTERNAL, "NCCL between ranks that are not on GPUs");
    }
    b->compute = cuda_compute_stream(comm->device);
    TRY(open_stream(b));
    config.blocking = 0;
    if (b->options.max_ctas > 0) config.maxCTAs = b->options.max_ctas;
    memcpy(id.internal, b->options.id, sizeof id.internal);
    pthread_mutex_lock(&b->lock);
    if (!b->aborted) {
        result = ncclCommInitRankConfig(&b->comm, comm->world, id, comm->rank, &config);
    }
    pthread_mutex_unlock(&b->lock);
    return settle(b, result, "joining the other ranks",
                  clock_seconds() + b->options.start_seconds);
}

/* Tried once: a second time would open everything again and wait for ranks that gave up. */
static enum status join(struct comm *comm) {
    struct nccl_backend *b = backend_of(comm);
    if (b->join == JOIN_DONE) return STATUS_OK;
    if (b->join == JOIN_FAILED) {
        return status_set(b->join_status, "communication: the ranks did not join, as said before");
    }
    b->join_status = join_once(comm);
    b->join = b->join_status == STATUS_OK ? JOIN_DONE : JOIN_FAILED;
    return b->join_status;
}

enum status comm_open_nccl(struct comm *comm, const struct comm_nccl_options *options,
                           const struct rendezvous *talk) {
    int version = 0;
    *comm = (struct comm){0};
    struct nccl_backend *b = calloc(1, sizeof *b);
    if (b == NULL) return status_set(STATUS_MEMORY, "out of memory for communication");
    const enum status status = nccl_result(b, ncclGetVersion(&version), "asking its version");
    if (status != STATUS_OK) {
        free(b);
        return status;
    }
    pthread_mutex_init(&b->lock, NULL);
    b->options = *options;
    b->talk = talk;
    *comm = (struct comm){.calls = &nccl_calls, .backend = b, .rank = talk->rank,
                          .world = talk->world};
    snprintf(comm->name, sizeof comm->name, "NCCL %d.%d.%d", version / 10000,
             version % 10000 / 100, version % 100);
    return STATUS_OK;
}

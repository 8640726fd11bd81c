/*
 * Communication of CPU ranks through Open MPI. Everything is done on return, so there is nothing to
 * order. Sums that must have the same bits on all ranks are made on one and sent to the others.
 *
 * MPI counts in int: what is larger than that in bytes goes in units of UNIT_BYTES.
 */
#include <limits.h>
#include <mpi.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "kernels/tensor.h"
#include "train/comm.h"

enum { UNIT_BYTES = 1024 };

struct mpi_backend {
    MPI_Datatype unit; /* UNIT_BYTES bytes */
    MPI_Op bf16_sum;
    double waited_seconds; /* in collectives on device memory */
    double noted_seconds[COMM_NOTES];
    bool aborted;
};

static struct mpi_backend *backend_of(const struct comm *comm) { return comm->backend; }

static enum status check(int code, const char *what) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    if (code == MPI_SUCCESS) return STATUS_OK;
    MPI_Error_string(code, text, &length);
    return status_set(STATUS_DEVICE, "%s between the ranks failed: %s", what, text);
}

/* The end of a collective that began then: nothing was computed beside it. */
static enum status done(const struct comm *comm, double begun, enum status status) {
    backend_of(comm)->waited_seconds += clock_seconds() - begun;
    return status;
}

/* So many bytes as a count and a type that MPI can say. */
struct quantity {
    int count;
    MPI_Datatype type;
};

static enum status quantity_of(const struct comm *comm, size_t bytes, struct quantity *out) {
    if (bytes % UNIT_BYTES == 0 && bytes / UNIT_BYTES <= INT_MAX) {
        *out = (struct quantity){(int)(bytes / UNIT_BYTES), backend_of(comm)->unit};
        return STATUS_OK;
    }
    if (bytes <= INT_MAX) {
        *out = (struct quantity){(int)bytes, MPI_BYTE};
        return STATUS_OK;
    }
    return status_set(STATUS_INTERNAL, "expected at most %d bytes, or a multiple of %d, for one "
                      "collective; found %zu", INT_MAX, UNIT_BYTES, bytes);
}

static enum status count_of(size_t count, int *out) {
    if (count > INT_MAX) {
        return status_set(STATUS_INTERNAL, "expected at most %d numbers in one sum over ranks, "
                          "found %zu", INT_MAX, count);
    }
    *out = (int)count;
    return STATUS_OK;
}

/* MPI knows no BF16: sums are rounded to it after each addition, as NCCL's are. */
static void sum_bf16(void *in, void *inout, int *length, MPI_Datatype *type) {
    const uint16_t *a = in;
    uint16_t *b = inout;
    (void)type;
    for (int i = 0; i < *length; i++) {
        b[i] = bf16_from_float(float_from_bf16(a[i]) + float_from_bf16(b[i]));
    }
}

static MPI_Datatype number_type(enum comm_type type) {
    switch (type) {
    case COMM_F32: return MPI_FLOAT;
    case COMM_BF16: return MPI_UINT16_T;
    case COMM_F64: return MPI_DOUBLE;
    case COMM_U32: return MPI_UINT32_T;
    }
    return MPI_DATATYPE_NULL;
}

static MPI_Op operation(const struct comm *comm, enum comm_type type, enum comm_sum sum) {
    if (sum == COMM_MAX) return MPI_MAX;
    return type == COMM_BF16 ? backend_of(comm)->bf16_sum : MPI_SUM;
}

static enum status all_reduce(struct comm *comm, void *data, size_t count, enum comm_type type,
                              enum comm_sum sum) {
    int n = 0;
    TRY(count_of(count, &n));
    const MPI_Datatype t = number_type(type);
    const bool root = comm->rank == 0;
    const double begun = clock_seconds();
    int code = MPI_Reduce(root ? MPI_IN_PLACE : data, data, n, t, operation(comm, type, sum), 0,
                          MPI_COMM_WORLD);
    if (code == MPI_SUCCESS) code = MPI_Bcast(data, n, t, 0, MPI_COMM_WORLD);
    return done(comm, begun, check(code, "a sum"));
}

static enum status reduce_scatter(struct comm *comm, void *out, const void *in, size_t count,
                                  enum comm_type type) {
    int n = 0;
    TRY(count_of(count, &n));
    const double begun = clock_seconds();
    const int code = MPI_Reduce_scatter_block(in, out, n, number_type(type),
                                              operation(comm, type, COMM_SUM), MPI_COMM_WORLD);
    return done(comm, begun, check(code, "reduce-scatter"));
}

static enum status gather(struct comm *comm, void *out, const void *in, size_t bytes) {
    struct quantity q = {0, MPI_BYTE};
    TRY(quantity_of(comm, bytes, &q));
    const bool in_place = in == (const char *)out + (size_t)comm->rank * bytes;
    return check(MPI_Allgather(in_place ? MPI_IN_PLACE : in, q.count, q.type, out, q.count, q.type,
                               MPI_COMM_WORLD), "all-gather");
}

static enum status all_gather(struct comm *comm, void *out, const void *in, size_t bytes) {
    const double begun = clock_seconds();
    return done(comm, begun, gather(comm, out, in, bytes));
}

static enum status exchange(struct comm *comm, void *out, const void *in, size_t bytes) {
    struct quantity q = {0, MPI_BYTE};
    TRY(quantity_of(comm, bytes, &q));
    const double begun = clock_seconds();
    const int code = MPI_Alltoall(in, q.count, q.type, out, q.count, q.type, MPI_COMM_WORLD);
    return done(comm, begun, check(code, "an exchange"));
}

static enum status broadcast_host(struct comm *comm, void *data, size_t bytes, int root) {
    struct quantity q = {0, MPI_BYTE};
    TRY(quantity_of(comm, bytes, &q));
    return check(MPI_Bcast(data, q.count, q.type, root, MPI_COMM_WORLD), "a broadcast");
}

static enum status broadcast(struct comm *comm, void *data, size_t bytes, int root) {
    const double begun = clock_seconds();
    return done(comm, begun, broadcast_host(comm, data, bytes, root));
}

static enum status nothing(struct comm *comm) {
    (void)comm;
    return STATUS_OK;
}

static enum status note_waits(struct comm *comm, size_t slot) {
    backend_of(comm)->noted_seconds[slot] = backend_of(comm)->waited_seconds;
    return STATUS_OK;
}

static double noted_seconds(const struct comm *comm, size_t slot) {
    return backend_of(comm)->noted_seconds[slot];
}

static enum status gather_host(struct comm *comm, void *out, const void *in, size_t bytes) {
    if (bytes == 0) return check(MPI_Barrier(MPI_COMM_WORLD), "a barrier");
    return gather(comm, out, in, bytes);
}

/* MPI_Abort would end the process here and now, before its message is out; what started the ranks
 * ends the others when this one leaves without MPI_Finalize. */
static void stop(struct comm *comm, int code) {
    (void)code;
    backend_of(comm)->aborted = true;
}

static void close_mpi(struct comm *comm) {
    struct mpi_backend *backend = backend_of(comm);
    if (!backend->aborted) {
        MPI_Op_free(&backend->bf16_sum);
        MPI_Type_free(&backend->unit);
        MPI_Finalize();
    }
    free(backend);
}

static const struct comm_calls mpi_calls = {
    .all_reduce = all_reduce,
    .reduce_scatter = reduce_scatter,
    .all_gather = all_gather,
    .exchange = exchange,
    .broadcast = broadcast,
    .after_compute = nothing,
    .compute_after = nothing,
    .note_waits = note_waits,
    .noted_seconds = noted_seconds,
    .gather_host = gather_host,
    .broadcast_host = broadcast_host,
    .abort = stop,
    .close = close_mpi,
};

static enum status check_world(const struct comm *comm) {
    int rank = 0, world = 0;
    TRY(check(MPI_Comm_rank(MPI_COMM_WORLD, &rank), "MPI_Comm_rank"));
    TRY(check(MPI_Comm_size(MPI_COMM_WORLD, &world), "MPI_Comm_size"));
    if (rank == comm->rank && world == comm->world) return STATUS_OK;
    return status_set(STATUS_CONFIG,
                      "the launcher says rank %d of %d, Open MPI says rank %d of %d: "
                      "start CPU ranks with mpirun (mpirun -n %d deepwell train ...)",
                      comm->rank, comm->world, rank, world, comm->world);
}

/* "Open MPI v4.1.4, package: ..." up to the comma. */
static void name_library(struct comm *comm) {
    char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int length = 0;
    MPI_Get_library_version(text, &length);
    snprintf(comm->name, sizeof comm->name, "%.*s", (int)strcspn(text, ","), text);
}

enum status comm_open_mpi(struct comm *comm, struct device *device, int rank, int world) {
    int provided = 0;
    struct mpi_backend *backend = calloc(1, sizeof *backend);
    if (backend == NULL) return status_set(STATUS_MEMORY, "out of memory for Open MPI");
    *comm = (struct comm){
        .calls = &mpi_calls, .device = device, .backend = backend, .rank = rank, .world = world,
    };
    enum status status = STATUS_OK;
    /* Threads that save or read ahead never call MPI. */
    TRY_GOTO(check(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided), "starting MPI"),
             fail);
    TRY_GOTO(check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "starting MPI"),
             fail);
    TRY_GOTO(check(MPI_Type_contiguous(UNIT_BYTES, MPI_BYTE, &backend->unit), "starting MPI"),
             fail);
    TRY_GOTO(check(MPI_Type_commit(&backend->unit), "starting MPI"), fail);
    TRY_GOTO(check(MPI_Op_create(sum_bf16, 1, &backend->bf16_sum), "starting MPI"), fail);
    TRY_GOTO(check_world(comm), fail);
    name_library(comm);
    return STATUS_OK;
fail:
    comm_abort(comm, (int)status);
    comm_close(comm);
    return status;
}

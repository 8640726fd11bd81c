/*
 * Communication between the ranks of a run: one process a device. Three implementations behind one
 * table of calls: one rank (comm_single.c), Open MPI for CPU ranks (comm_mpi.c), NCCL for GPUs.
 *
 * Two kinds of calls:
 * - Collectives on device memory. They go to a stream of their own, in the order asked for, and
 *   return without waiting; on a CPU they are done on return. comm_after_compute() and
 *   compute_after_comm() are all that orders the two streams. Both can be part of a recording
 *   (kernels/device.h) as long as each recording ends behind a compute_after_comm(). Every rank
 *   asks for the same collectives in the same order with the same counts.
 * - Calls on host memory (barrier, gather_host, broadcast_host): the host waits. For starting,
 *   agreeing, saving.
 *
 * A failure of either is final: the communicator can only be aborted. After comm_abort() the
 * process ends without waiting for others, and what started the ranks ends them.
 *
 * Owned by the trainer or engine (ranks.h hands it round); called by exchange.c, ranks.c.
 */
#ifndef DEEPWELL_TRAIN_COMM_H_
#define DEEPWELL_TRAIN_COMM_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "kernels/device.h"

enum comm_type { COMM_F32, COMM_BF16, COMM_F64, COMM_U32 };
enum comm_sum { COMM_SUM, COMM_MAX }; /* COMM_MAX: U32 only; flags, and bits of amaxes */

static inline size_t comm_type_bytes(enum comm_type type) {
    return type == COMM_F64 ? 8 : type == COMM_BF16 ? 2 : 4;
}

enum { COMM_NOTES = 4 };

struct comm;

struct comm_calls {
    /* data[i] = sum (or largest) over ranks of data[i], in place. The same bits on every rank. */
    enum status (*all_reduce)(struct comm *, void *data, size_t count, enum comm_type type,
                              enum comm_sum sum);
    /* out (count) = this rank's part of the sum over ranks of `in` (world * count): part r goes to
     * rank r. F32 or BF16, sums in the type of the numbers (NCCL: BF16 sums are rounded at each
     * addition; so they are here). out and in lie apart. */
    enum status (*reduce_scatter)(struct comm *, void *out, const void *in, size_t count,
                                  enum comm_type type);
    /* out (world * bytes): part r is what rank r has at `in` (bytes). in may lie at out + rank *
     * bytes. */
    enum status (*all_gather)(struct comm *, void *out, const void *in, size_t bytes);
    /* out (world * bytes): part r is what rank r has at its in + own rank * bytes. in and out lie
     * apart. What comm.order = fixed sums from. */
    enum status (*exchange)(struct comm *, void *out, const void *in, size_t bytes);
    /* data (bytes) of rank `root` on every rank. */
    enum status (*broadcast)(struct comm *, void *data, size_t bytes, int root);
    /* Collectives asked for from now on wait for the device's work so far; and the device's work
     * from now on for the collectives so far. */
    enum status (*after_compute)(struct comm *);
    enum status (*compute_after)(struct comm *);
    /* Keeps in `slot` (below COMM_NOTES), in the order of the device's work and without waiting for
     * it, how long that work has stood still for collectives so far. What slot holds, in seconds:
     * true once the device is past the note. */
    enum status (*note_waits)(struct comm *, size_t slot);
    double (*noted_seconds)(const struct comm *, size_t slot);

    /* Host memory; out (world * bytes): part r is what rank r has at `in`. Waits for all ranks, and
     * thereby for their host's calls so far, not for their devices. From the main thread. */
    enum status (*gather_host)(struct comm *, void *out, const void *in, size_t bytes);
    /* data (bytes) of rank `root` on every rank, in host memory. Waits for root. From the main
     * thread. For all that one rank knows: gathering takes world times the bytes on each. */
    enum status (*broadcast_host)(struct comm *, void *data, size_t bytes, int root);
    /* Ends the communicator at once, whatever is under way. `code`: exit code for a launcher that
     * wants one. May return; then close() does not wait for anybody. */
    void (*abort)(struct comm *, int code);
    void (*close)(struct comm *);
};

struct comm {
    const struct comm_calls *calls;
    struct device *device; /* whose memory collectives work on; outlives the communicator */
    void *backend;         /* owned by the calls */
    int rank, world;
    bool failed;           /* all ranks know of a failure, and end (ranks_agree) */
    char name[64];         /* "one rank", "Open MPI 4.1.4", "NCCL 2.27.3": for headers */
};

/* One rank: collectives copy where out is not in, or do nothing. */
void comm_open_single(struct comm *comm, struct device *device);

/* Open MPI, for CPU ranks that mpirun or srun started as rank `rank` of `world`. STATUS_DEVICE in a
 * build without MPI, saying what to install. */
enum status comm_open_mpi(struct comm *comm, struct device *device, int rank, int world);

/* All zero: nothing was opened. */
void comm_close(struct comm *comm);
void comm_abort(struct comm *comm, int code);

enum status comm_all_reduce(struct comm *comm, void *data, size_t count, enum comm_type type,
                            enum comm_sum sum);
enum status comm_reduce_scatter(struct comm *comm, void *out, const void *in, size_t count,
                                enum comm_type type);
enum status comm_all_gather(struct comm *comm, void *out, const void *in, size_t bytes);
enum status comm_exchange(struct comm *comm, void *out, const void *in, size_t bytes);
enum status comm_broadcast(struct comm *comm, void *data, size_t bytes, int root);
enum status comm_after_compute(struct comm *comm);
enum status compute_after_comm(struct comm *comm);
/* Exposed communication: how long the device's work stood still for collectives between two notes.
 * On a GPU the time from where the compute stream was done with all that it had, to where it could
 * go on behind compute_after_comm(); an empty wait counts as the few us that asking costs. On a CPU
 * all time within collectives on device memory, since nothing runs beside them. Waiting for ranks
 * that come late is in it. One rank: 0. The note never waits; the seconds are to be read once the
 * device is past the second note. */
enum status comm_note_waits(struct comm *comm, size_t slot);
double comm_waited_seconds(const struct comm *comm, size_t first, size_t second);
enum status comm_gather_host(struct comm *comm, void *out, const void *in, size_t bytes);
enum status comm_broadcast_host(struct comm *comm, void *data, size_t bytes, int root);
enum status comm_barrier(struct comm *comm);

#endif

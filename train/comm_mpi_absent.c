/* A build without MPI: many CPU ranks are refused. */
#include "train/comm.h"

enum status comm_open_mpi(struct comm *comm, struct device *device, int rank, int world) {
    (void)device;
    *comm = (struct comm){0};
    return status_set(STATUS_DEVICE, "this is rank %d of %d on the CPU, but deepwell was built "
                      "without Open MPI, through which CPU ranks talk: install libopenmpi-dev and "
                      "openmpi-bin, build again (docs/build.md), or start one rank", rank, world);
}

/* train/comm_nccl.h in a build without NCCL: says so, and how to get it. */
#include "train/comm_nccl.h"

enum status comm_nccl_id(unsigned char id[COMM_NCCL_ID_BYTES]) {
    (void)id;
    return status_set(STATUS_DEVICE, "several GPUs are wanted, but deepwell was built without "
                      "NCCL, through which they talk: install CUDA and NCCL (docs/build.md) and "
                      "build again, or start one rank");
}

enum status comm_open_nccl(struct comm *comm, const struct comm_nccl_options *options,
                           const struct rendezvous *talk) {
    unsigned char id[COMM_NCCL_ID_BYTES];
    (void)options, (void)talk;
    *comm = (struct comm){0};
    return comm_nccl_id(id);
}

void comm_nccl_progress(void *comm, struct watchdog_progress *progress) {
    (void)comm, (void)progress; /* what the host entered stays */
}

void comm_nccl_break_off(void *comm) { (void)comm; }

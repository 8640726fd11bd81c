/* Behind train/ranks_cores.h. */
#include "train/ranks_cores.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/host.h"

int rank_cores_share(const struct rank_cores *all, int world, int rank) {
    const struct rank_cores *own = &all[rank];
    int sharing = 0;
    if (own->told) return 0;
    for (int r = 0; r < world; r++) {
        cpu_set_t both;
        CPU_AND(&both, &own->processors, &all[r].processors);
        const bool here = strncmp(own->host, all[r].host, sizeof own->host) == 0;
        if (r == rank || (here && CPU_COUNT(&both) > 0)) sharing++;
    }
    if (sharing == 1) return 0;
    return own->threads > sharing ? own->threads / sharing : 1;
}

static struct rank_cores own_cores(void) {
    const char *wanted = getenv("OMP_NUM_THREADS");
    struct rank_cores own = {.threads = host_threads(),
                             .told = wanted != NULL && strtol(wanted, NULL, 10) > 0};
    FILE *boot = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (boot == NULL || fgets(own.host, sizeof own.host, boot) == NULL) {
        rendezvous_own_host(own.host);
    }
    if (boot != NULL) fclose(boot);
    /* more processors than a mask holds: as if all ranks were on all */
    if (sched_getaffinity(0, sizeof own.processors, &own.processors) != 0) {
        memset(&own.processors, 0xff, sizeof own.processors);
    }
    return own;
}

enum status ranks_share_cores(struct comm *comm, int *threads) {
    const struct rank_cores own = own_cores();
    struct rank_cores *all = calloc((size_t)comm->world, sizeof *all);
    if (all == NULL) return status_set(STATUS_MEMORY, "out of memory for the ranks' processors");
    const enum status status = comm_gather_host(comm, all, &own, sizeof own);
    if (status == STATUS_OK) *threads = rank_cores_share(all, comm->world, comm->rank);
    free(all);
    return status;
}

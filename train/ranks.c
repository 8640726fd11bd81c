/* What all ranks must have in common: behind train/ranks.h. */
#include "train/ranks.h"

#include <stdio.h>
#include <stdlib.h>

#include "train/rendezvous.h"

enum { SHOWN_BYTES = 1500 };

enum status ranks_agree(struct comm *comm, enum status own) {
    if (comm->world == 1 || comm->failed) return own;
    char message[SHOWN_BYTES] = "";
    const int mine = (int)own;
    int *all = calloc((size_t)comm->world, sizeof *all);
    if (all == NULL) return status_set(STATUS_MEMORY, "out of memory comparing ranks");
    if (own != STATUS_OK) snprintf(message, sizeof message, "%s", status_message());
    enum status status = comm_gather_host(comm, all, &mine, sizeof mine);
    int failed = 0; /* the lowest rank that did; world: none */
    while (status == STATUS_OK && failed < comm->world && all[failed] == STATUS_OK) failed++;
    if (status == STATUS_OK && failed < comm->world) {
        status = comm_broadcast_host(comm, message, sizeof message, failed);
        message[SHOWN_BYTES - 1] = '\0';
        if (status == STATUS_OK) {
            status = status_set((enum status)all[failed], "rank %d: %s", failed, message);
            comm->failed = true;
        }
    }
    free(all);
    return status;
}

/* Which ranks' value of this check is not rank 0's; whether any is. */
static bool find_others(bool *others, const uint64_t *values, size_t stride, int world) {
    bool any = false;
    for (int rank = 0; rank < world; rank++) {
        others[rank] = values[(size_t)rank * stride] != values[0];
        any = any || others[rank];
    }
    return any;
}

enum status ranks_check(struct comm *comm, const struct ranks_check *checks, size_t count) {
    if (comm->world == 1) return STATUS_OK;
    uint64_t *mine = calloc(count, sizeof *mine);
    uint64_t *all = calloc((size_t)comm->world * count, sizeof *all);
    bool *others = calloc((size_t)comm->world, sizeof *others);
    enum status status = STATUS_OK;
    char names[RANKS_TEXT_BYTES];
    if (mine == NULL || all == NULL || others == NULL) {
        status = status_set(STATUS_MEMORY, "out of memory comparing ranks");
        goto cleanup;
    }
    for (size_t i = 0; i < count; i++) mine[i] = checks[i].value;
    TRY_GOTO(comm_gather_host(comm, all, mine, count * sizeof *mine), cleanup);
    for (size_t i = 0; i < count && status == STATUS_OK; i++) {
        if (!find_others(others, all + i, count, comm->world)) continue;
        status = status_set(STATUS_CONFIG, "%s of %s is not that of rank 0: start all ranks alike",
                            checks[i].what, ranks_text(names, others, comm->world));
        comm->failed = true;
    }
cleanup:
    free(mine);
    free(all);
    free(others);
    return status;
}

/* Behind train/ranks_start.h. */
#include "train/ranks_start.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "train/ranks_open.h"
#include "train/signals.h"

enum status ranks_start(struct ranks *ranks, struct comm *comm, const struct config *config) {
    TRY(ranks_open(ranks, comm, config));
    if (ranks->world > 1) signals_be_silent();
    if (ranks->rank == 0 || freopen("/dev/null", "w", stdout) != NULL) return STATUS_OK;
    return status_set(STATUS_IO, "cannot open /dev/null");
}

/* Every key by itself, so that a difference is named. All have the same keys, for all are the same
 * build (ranks_open). */
enum status ranks_check_alike(struct comm *comm, const struct config *config) {
    struct ranks_check *checks = NULL;
    size_t count = 0;
    if (comm->world == 1) return STATUS_OK;
    cJSON *keys = config_to_json(config);
    if (keys != NULL) checks = calloc((size_t)cJSON_GetArraySize(keys), sizeof *checks);
    enum status status = checks == NULL ? status_set(STATUS_MEMORY, "out of memory comparing ranks")
                                        : STATUS_OK;
    TRY_GOTO(ranks_agree(comm, status), cleanup);
    for (const cJSON *key = keys->child; key != NULL; key = key->next) {
        const char *value = cJSON_GetStringValue(key);
        checks[count++] = (struct ranks_check){key->string, XXH3_64bits(value, strlen(value))};
    }
    status = ranks_check(comm, checks, count);
cleanup:
    free(checks);
    cJSON_Delete(keys);
    return status;
}

void ranks_leave(const struct ranks *ranks, struct comm *comm, enum status status, bool shared) {
    if (ranks->world <= 1 || status == STATUS_OK) return;
    if (comm->failed || shared) {
        if (ranks->rank > 0) status_set(status, "%s", "");
        return;
    }
    status_context(status, "rank %d", ranks->rank);
    comm_abort(comm, (int)status);
}

const char *ranks_described(char text[RANKS_DESCRIBED_BYTES], const struct engine *engine) {
    static const char *const shared[] = {"nothing", "optimizer", "optimizer and gradients", "all"};
    const struct exchange *x = &engine->exchange;
    snprintf(text, RANKS_DESCRIBED_BYTES,
             "%d through %s; sharing %s (train.zero %d); sums in %s, "
             "%s",
             engine->ranks.world, engine->comm->name, shared[x->zero], x->zero,
             x->bf16 ? "bf16" : "fp32", x->fixed ? "in the order of one rank" : "in any order");
    return text;
}

void ranks_print_exposed(const struct ranks *ranks, double exposed_seconds, double seconds,
                         int64_t steps) {
    if (ranks->world == 1 || steps <= 0 || seconds <= 0.0) return;
    printf("exposed     %.2f ms of communication in a step of %.2f: %.2f %%, the mean over %lld "
           "steps on rank 0\n",
           exposed_seconds / (double)steps * 1e3, seconds / (double)steps * 1e3,
           100.0 * exposed_seconds / seconds, (long long)steps);
}

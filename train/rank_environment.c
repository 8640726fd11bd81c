/* Reading launchers' environments: behind train/rank_environment.h. */
#include "train/rank_environment.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

/* Below the ports that systems hand out by themselves (Linux: 32768 and up). */
enum { PORT_FIRST = 20000, PORT_COUNT = 10000, PORT_MAX = 65535, VALUE_SHOWN = 64 };

/* A value as it can stand in a message. */
static const char *shown(char text[VALUE_SHOWN], const char *value) {
    size_t i = 0;
    for (; value[i] != '\0' && i < VALUE_SHOWN - 4; i++) {
        text[i] = isprint((unsigned char)value[i]) ? value[i] : '?';
    }
    snprintf(text + i, VALUE_SHOWN - i, "%s", value[i] == '\0' ? "" : "...");
    return text;
}

enum status rank_number(const char *name, const char *text, int64_t least, int64_t most,
                        int *out) {
    char found[VALUE_SHOWN];
    const size_t digits = strspn(text, "0123456789");
    int64_t value = 0;
    bool right = digits > 0 && text[digits] == '\0';
    for (size_t i = 0; right && i < digits; i++) {
        value = 10 * value + (text[i] - '0');
        right = value <= most;
    }
    if (!right || value < least) {
        return status_set(STATUS_CONFIG, "%s: expected a whole number from %lld to %lld, found "
                          "\"%s\"", name, (long long)least, (long long)most, shown(found, text));
    }
    *out = (int)value;
    return STATUS_OK;
}

/* ---- Slurm's list of hosts ---- */

static bool is_host_character(char c) {
    return isalnum((unsigned char)c) || c == '.' || c == '-' || c == '_';
}

/* The first number of the bracket that `at` is behind, with its zeros; `at` moves past the
 * bracket. False unless it is numbers, ranges and commas up to ']'. */
static bool first_of_bracket(const char **at, char *host, size_t *used) {
    const char *c = *at;
    const size_t first = strspn(c, "0123456789");
    if (first == 0 || *used + first >= HOST_BYTES) return false;
    memcpy(host + *used, c, first);
    *used += first;
    for (bool range = false;; range = *c++ == '-') {
        const size_t digits = strspn(c, "0123456789");
        c += digits;
        if (digits == 0 || (*c != '-' && *c != ',' && *c != ']') || (range && *c == '-')) {
            return false;
        }
        if (*c == ']') break;
    }
    *at = c + 1;
    return true;
}

enum status hostlist_first(const char *list, char out[HOST_BYTES]) {
    char host[HOST_BYTES], found[VALUE_SHOWN];
    const char *at = list;
    size_t used = 0;
    bool right = true;
    while (right && *at != '\0' && *at != ',') {
        if (*at == '[') {
            at++;
            right = first_of_bracket(&at, host, &used);
        } else {
            right = is_host_character(*at) && used + 1 < HOST_BYTES;
            if (right) host[used++] = *at++;
        }
    }
    if (!right || used == 0 || host[0] == '-') {
        return status_set(STATUS_CONFIG, "expected a list of hosts as node[01-04,7], found \"%s\"",
                          shown(found, list));
    }
    host[used] = '\0';
    memcpy(out, host, used + 1);
    return STATUS_OK;
}

/* ---- the launchers ---- */

/* A variable that is set, if only to nothing, or NULL. */
static const char *variable(const char *name) { return getenv(name); }

/* The names under which a launcher gives the same three numbers. */
struct launcher {
    const char *source, *rank, *world, *local_rank, *local_world;
    bool local_wanted; /* the local rank has no other meaning than none where it is missing */
};

static const struct launcher torchrun = {
    "torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", false,
};
static const struct launcher open_mpi = {
    "Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE", true,
};
static const struct launcher slurm = {
    "Slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", NULL, true,
};

static enum status missing(const char *set, const char *wanted) {
    char found[VALUE_SHOWN];
    return status_set(STATUS_CONFIG, "%s is %s, but %s is not set: set it too, or unset the "
                      "launcher's variables for a run of one rank",
                      set, shown(found, variable(set)), wanted);
}

static enum status below(const char *name, int value, const char *bound_name, int bound) {
    if (value < bound) return STATUS_OK;
    return status_set(STATUS_CONFIG, "%s is %d and %s is %d: expected it from 0 to %d", name, value,
                      bound_name, bound, bound - 1);
}

/* `local_world` 0: not given. */
static enum status read_numbers(const struct launcher *l, struct rank_environment *e,
                                int *local_world) {
    const char *rank = variable(l->rank), *world = variable(l->world);
    const char *local = variable(l->local_rank);
    *local_world = 0;
    if (world == NULL) return missing(rank != NULL ? l->rank : l->local_rank, l->world);
    if (rank == NULL) return missing(l->world, l->rank);
    TRY(rank_number(l->world, world, 1, WORLD_MAX, &e->world));
    TRY(rank_number(l->rank, rank, 0, WORLD_MAX - 1, &e->rank));
    TRY(below(l->rank, e->rank, l->world, e->world));
    if (local == NULL && (l->local_wanted || e->world > 1)) {
        return missing(l->world, l->local_rank);
    }
    if (local != NULL) TRY(rank_number(l->local_rank, local, 0, WORLD_MAX - 1, &e->local_rank));
    TRY(below(l->local_rank, e->local_rank, l->world, e->world));
    if (l->local_world != NULL && variable(l->local_world) != NULL) {
        TRY(rank_number(l->local_world, variable(l->local_world), 1, WORLD_MAX, local_world));
        TRY(below(l->local_rank, e->local_rank, l->local_world, *local_world));
        TRY(below(l->local_world, *local_world, l->world, e->world + 1));
    }
    e->source = l->source;
    return STATUS_OK;
}

/* One number for the run from variables that its launcher gives all ranks alike. */
static uint64_t run_number(const char *const *names, size_t count) {
    uint64_t number = 0;
    for (size_t i = 0; i < count; i++) {
        const char *value = variable(names[i]);
        if (value != NULL) number = XXH3_64bits_withSeed(value, strlen(value), number);
    }
    return number;
}

/* MASTER_ADDR and MASTER_PORT, which every launcher can be given. */
static enum status read_address(struct rank_environment *e) {
    const char *host = variable("MASTER_ADDR"), *port = variable("MASTER_PORT");
    char found[VALUE_SHOWN];
    if (host != NULL) {
        size_t length = 0;
        while (is_host_character(host[length]) || host[length] == ':') length++;
        if (length == 0 || host[length] != '\0' || length >= HOST_BYTES) {
            return status_set(STATUS_CONFIG, "MASTER_ADDR: expected the host name or address of "
                              "rank 0, found \"%s\"", shown(found, host));
        }
        memcpy(e->host, host, length + 1);
    }
    if (port == NULL) return STATUS_OK;
    TRY(rank_number("MASTER_PORT", port, 1, PORT_MAX, &e->port));
    /* torchrun itself may listen there, and says so: the next one is ours */
    const char *taken = variable("TORCHELASTIC_USE_AGENT_STORE");
    if (taken != NULL && strcmp(taken, "True") == 0) {
        e->port = e->port == PORT_MAX ? PORT_FIRST : e->port + 1;
    }
    return STATUS_OK;
}

static void port_from_run(struct rank_environment *e) {
    if (e->port == 0 && e->run != 0) e->port = PORT_FIRST + (int)(e->run % PORT_COUNT);
}

static enum status read_torchrun(struct rank_environment *e) {
    static const char *const names[] = {"DEEPWELL_RUN", "TORCHELASTIC_RUN_ID",
                                        "TORCHELASTIC_RESTART_COUNT"};
    int local_world = 0;
    TRY(read_numbers(&torchrun, e, &local_world));
    TRY(read_address(e));
    e->run = run_number(names, sizeof names / sizeof names[0]);
    if (rank_environment_by_gpus()) e->source = "--gpus";
    return STATUS_OK;
}

static enum status read_open_mpi(struct rank_environment *e) {
    static const char *const names[] = {"PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid",
                                        "OMPI_MCA_orte_hnp_uri"};
    int local_world = 0;
    TRY(read_numbers(&open_mpi, e, &local_world));
    TRY(read_address(e));
    if (e->host[0] == '\0' && local_world == e->world) snprintf(e->host, HOST_BYTES, "127.0.0.1");
    e->run = run_number(names, sizeof names / sizeof names[0]);
    port_from_run(e);
    return STATUS_OK;
}

/* A batch script has the numbers of its job too, but srun did not start what it runs. */
static enum status check_step(const struct rank_environment *e) {
    const char *tasks = variable("SLURM_STEP_NUM_TASKS");
    int step_tasks = 0;
    if (tasks == NULL && variable("SLURM_STEP_ID") == NULL) {
        return status_set(STATUS_CONFIG, "SLURM_NTASKS is %d, but srun did not start this process "
                          "(SLURM_STEP_ID is not set): start it with srun, or with --gpus N",
                          e->world);
    }
    if (tasks == NULL) return STATUS_OK;
    TRY(rank_number("SLURM_STEP_NUM_TASKS", tasks, 1, WORLD_MAX, &step_tasks));
    if (step_tasks == e->world) return STATUS_OK;
    return status_set(STATUS_CONFIG, "SLURM_STEP_NUM_TASKS is %d and SLURM_NTASKS is %d: expected "
                      "the same number", step_tasks, e->world);
}

static enum status read_slurm(struct rank_environment *e) {
    static const char *const names[] = {"SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"};
    int local_world = 0;
    TRY(read_numbers(&slurm, e, &local_world));
    if (e->world > 1) TRY(check_step(e));
    TRY(read_address(e));
    const char *step = variable("SLURM_STEP_NODELIST"), *job = variable("SLURM_JOB_NODELIST");
    if (e->host[0] == '\0' && (step != NULL || job != NULL)) {
        const enum status status = hostlist_first(step != NULL ? step : job, e->host);
        if (status != STATUS_OK) {
            return status_context(status, step != NULL ? "SLURM_STEP_NODELIST"
                                                       : "SLURM_JOB_NODELIST");
        }
    }
    e->run = run_number(names, sizeof names / sizeof names[0]);
    port_from_run(e);
    return STATUS_OK;
}

/* A launcher inside another makes at least as many ranks as it was started times. */
static enum status check_nesting(const struct rank_environment *e) {
    struct rank_environment outer = {.world = 1};
    int local_world = 0;
    if (variable(open_mpi.world) == NULL) return STATUS_OK;
    TRY(read_numbers(&open_mpi, &outer, &local_world));
    if (e->world > outer.world || (e->world == outer.world && e->rank == outer.rank)) {
        return STATUS_OK;
    }
    return status_set(STATUS_CONFIG, "RANK is %d and WORLD_SIZE is %d, but %s is %d and %s is %d: "
                      "unset RANK, WORLD_SIZE and LOCAL_RANK to go by mpirun's", e->rank, e->world,
                      open_mpi.rank, outer.rank, open_mpi.world, outer.world);
}

static bool by_torchrun(void) {
    return variable(torchrun.rank) != NULL || variable(torchrun.world) != NULL ||
           variable(torchrun.local_rank) != NULL;
}

static bool by_open_mpi(void) {
    return variable(open_mpi.rank) != NULL || variable(open_mpi.world) != NULL;
}

/* A batch script of one task has a rank and no number of tasks: it is alone. */
static bool by_slurm(void) {
    return variable(slurm.rank) != NULL &&
           (variable(slurm.world) != NULL || variable("SLURM_STEP_ID") != NULL);
}

bool rank_environment_by_gpus(void) { return variable("DEEPWELL_RUN") != NULL; }

enum status rank_environment_check_alone(void) {
    struct rank_environment e = {.world = 1};
    const char *tasks = variable("SLURM_STEP_NUM_TASKS");
    if (by_torchrun() || by_open_mpi()) {
        TRY(rank_environment_read(&e));
    } else if (tasks != NULL) {
        TRY(rank_number("SLURM_STEP_NUM_TASKS", tasks, 1, WORLD_MAX, &e.world));
        e.source = slurm.source;
    }
    if (e.world == 1) return STATUS_OK;
    return status_set(STATUS_CONFIG, "--gpus starts the ranks of one host by itself, but %s made "
                      "this process one of %d already: leave --gpus out, or start one process",
                      e.source, e.world);
}

enum status rank_environment_read(struct rank_environment *out) {
    struct rank_environment e = {.world = 1, .source = ""};
    if (by_torchrun()) {
        TRY(read_torchrun(&e));
        TRY(check_nesting(&e));
    } else if (by_open_mpi()) {
        TRY(read_open_mpi(&e));
    } else if (by_slurm()) {
        TRY(read_slurm(&e));
    }
    *out = e;
    return STATUS_OK;
}

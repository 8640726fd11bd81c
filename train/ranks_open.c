/* Behind train/ranks_open.h. */
#include "train/ranks_open.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checkpoints/digest.h"
#include "kernels/cuda/inventory.h"
#include "train/comm_nccl.h"
#include "train/ranks_cores.h"
#include "train/star.h"
#include "train/wire.h"

/* A rank on a GPU can end what it waits for and leave; one inside MPI cannot. */
static const double beat_seconds = 1.0, gpu_grace_seconds = 15.0, cpu_grace_seconds = 2.0;

static struct rendezvous_options meeting_options(const struct config *config,
                                                 const struct rank_environment *found,
                                                 uint64_t program, const char *place) {
    return (struct rendezvous_options){
        .rank = found->rank,
        .world = found->world,
        .place = place,
        .run = found->run,
        .program = program,
        .timeout_seconds = (double)config->comm.start_timeout,
        .device = "",
    };
}

static enum status start_watchdog(struct comm_watched *w, const struct config *config,
                                  const struct watchdog_options *how) {
    struct watchdog_options options = *how;
    options.meeting = &w->watched;
    options.timeout_seconds = (double)config->comm.timeout;
    options.beat_seconds = beat_seconds;
    return watchdog_open(&w->watchdog, &options);
}

/* ---- GPUs ---- */

static void break_off(void *context) {
    struct comm_watched *w = context;
    star_break_off(&w->talk);
    comm_nccl_break_off(&w->inner);
}

static void progress(void *context, struct watchdog_progress *p) {
    struct comm_watched *w = context;
    comm_nccl_progress(&w->inner, p);
}

/* Two meetings at one place: connections to talk, and others that only the watchdog uses. */
static enum status open_gpus(struct comm_watched *w, const struct config *config,
                             const struct rank_environment *found, uint64_t program) {
    char place[PATH_BYTES], bus_id[CUDA_BUS_ID_BYTES];
    struct comm_nccl_options nccl = {
        .max_ctas = (int)config->comm.max_ctas,
        .start_seconds = (double)config->comm.start_timeout,
        /* the watchdog breaks off what takes too long for its place */
        .timeout_seconds = (double)(config->comm.timeout + config->comm.save_timeout),
    };
    char nothing = 0;
    TRY(rendezvous_place(place, config->comm.rendezvous, found));
    if (found->rank == 0) TRY(comm_nccl_id(nccl.id));
    struct rendezvous_options options = meeting_options(config, found, program, place);
    cuda_device_bus_id(found->local_rank, bus_id);
    options.device = bus_id;
    TRY(rendezvous_open(&w->talk, &options, nccl.id, sizeof nccl.id));
    options.run++;
    TRY(rendezvous_open(&w->watched, &options, &nothing, sizeof nothing));
    TRY(comm_open_nccl(&w->inner, &nccl, &w->talk));
    return start_watchdog(w, config, &(struct watchdog_options){
        .grace_seconds = gpu_grace_seconds, .progress = progress, .abort = break_off, .context = w,
    });
}

/* ---- CPUs ---- */

/* The first words through MPI, of the same size in every build. */
struct build_note {
    uint64_t program;
    char host[RENDEZVOUS_NAME_BYTES];
};

static enum status check_builds(struct comm *comm, uint64_t program) {
    struct build_note own = {.program = program};
    struct build_note *all = calloc((size_t)comm->world, sizeof *all);
    if (all == NULL) return status_set(STATUS_MEMORY, "out of memory comparing ranks");
    rendezvous_own_host(own.host);
    enum status status = comm_gather_host(comm, all, &own, sizeof own);
    for (int rank = 1; rank < comm->world && status == STATUS_OK; rank++) {
        if (all[rank].program == all[0].program) continue;
        status = rendezvous_other_build(rank, all[rank].host, all[0].host);
    }
    free(all);
    return status;
}

struct place_note {
    char text[HOST_BYTES + 16];
};

/* MPI carries where rank 0 waits for the watchdog's connections: *place, and its *listener. */
static enum status share_place(struct comm *comm, const struct rank_environment *found,
                               struct place_note *place, int *listener) {
    const bool one_host = strcmp(found->host, "127.0.0.1") == 0;
    char host[HOST_BYTES] = "127.0.0.1";
    int port = 0;
    enum status status = STATUS_OK;
    if (!one_host && found->host[0] != '\0') snprintf(host, sizeof host, "%s", found->host);
    else if (!one_host && gethostname(host, sizeof host - 1) != 0) snprintf(host, 8, "?");
    if (found->rank == 0) {
        *listener = wire_listen(host, &port);
        if (*listener < 0) {
            status = status_set(STATUS_CONFIG, "rank 0 cannot listen for the others: %s",
                                strerror(errno));
        }
        snprintf(place->text, sizeof place->text, "%s:%d", host, port);
    }
    TRY(ranks_agree(comm, status));
    return comm_broadcast_host(comm, place, sizeof *place, 0);
}

/* What a rank says that waits inside MPI for others that do not come. */
static char nobody_came[256];

static void give_up(int signal) {
    (void)signal;
    if (write(STDERR_FILENO, nobody_came, strlen(nobody_came)) < 0) {
        /* nobody reads it: that changes nothing */
    }
    _exit(STATUS_RANKS);
}

/* MPI waits for ever; until the watchdog is there, an alarm ends that. */
static enum status start_alarm(const struct config *config, const struct rank_environment *found) {
    const struct sigaction action = {.sa_handler = give_up};
    snprintf(nobody_came, sizeof nobody_came, "deepwell: rank %d of %d: not all ranks came to MPI "
             "within comm.start_timeout, %lld seconds\n", found->rank, found->world,
             (long long)config->comm.start_timeout);
    if (sigaction(SIGALRM, &action, NULL) != 0) {
        return status_set(STATUS_INTERNAL, "sigaction: %s", strerror(errno));
    }
    alarm((unsigned)config->comm.start_timeout);
    return STATUS_OK;
}

/* All that waits inside MPI before the watchdog is there. */
static enum status meet_through_mpi(struct comm *comm, const struct rank_environment *found,
                                    uint64_t program, int *threads, struct place_note *place,
                                    int *listener) {
    TRY(comm_open_mpi(comm, NULL, found->rank, found->world));
    TRY(check_builds(comm, program));
    TRY(ranks_share_cores(comm, threads));
    return share_place(comm, found, place, listener);
}

static enum status open_cpus(struct comm_watched *w, const struct config *config,
                             const struct rank_environment *found, uint64_t program, int *threads) {
    struct place_note place = {.text = ""};
    char nothing = 0;
    int listener = -1;
    w->waits = true;
    TRY(start_alarm(config, found));
    const enum status met = meet_through_mpi(&w->inner, found, program, threads, &place, &listener);
    alarm(0);
    if (met != STATUS_OK && listener >= 0) close(listener);
    TRY(met);
    struct rendezvous_options options = meeting_options(config, found, program, place.text);
    options.listener = listener;
    TRY(rendezvous_open(&w->watched, &options, &nothing, sizeof nothing));
    return start_watchdog(w, config, &(struct watchdog_options){
        .grace_seconds = cpu_grace_seconds,
    });
}

/* ---- the whole ---- */

/* As engine_open_device() decides: `auto` is the CPU only where there is no GPU to speak of. */
static bool on_gpus(const struct config *config) {
    static struct cuda_inventory inventory;
    if (config->device != CONFIG_DEVICE_AUTO) return config->device == CONFIG_DEVICE_CUDA;
    cuda_inventory_count(&inventory);
    return inventory.state != CUDA_NOT_BUILT && inventory.state != CUDA_NO_DRIVER &&
           inventory.state != CUDA_NO_DEVICE;
}

enum status ranks_open(struct ranks *ranks, struct comm *comm, const struct config *config) {
    struct rank_environment found;
    *comm = (struct comm){0};
    TRY(rank_environment_read(&found));
    *ranks = (struct ranks){.rank = found.rank, .world = found.world,
                            .local_rank = found.local_rank};
    if (found.world == 1) {
        comm_open_single(comm, NULL);
        return STATUS_OK;
    }
    uint64_t program = 0;
    /* all ranks must be the same build: what they send each other need not fit otherwise */
    TRY(digest_file_64("/proc/self/exe", &program));
    struct comm_watched *w = calloc(1, sizeof *w);
    if (w == NULL) return status_set(STATUS_MEMORY, "out of memory for communication");
    const enum status status = on_gpus(config)
                                   ? open_gpus(w, config, &found, program)
                                   : open_cpus(w, config, &found, program, &ranks->threads);
    comm_watch(comm, w);
    if (status == STATUS_OK) return STATUS_OK;
    comm_abort(comm, (int)status);
    comm_close(comm);
    return status;
}

/* Behind train/ranks_open.h. */
#include "train/ranks_open.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/cuda/inventory.h"
#include "train/comm_nccl.h"
#include "train/ranks_cores.h"
#include "train/star.h"
#include "train/wire.h"

/* A rank on a GPU can end what it waits for and leave; one inside MPI cannot. */
static const double beat_seconds = 1.0, gpu_grace_seconds = 15.0, cpu_grace_seconds = 2.0;

static struct rendezvous_options meeting_options(const struct config *config,
                                                 const struct rank_environment *found,
                                                 const char *place) {
    return (struct rendezvous_options){
        .rank = found->rank, .world = found->world, .place = place, .run = found->run,
        .timeout_seconds = (double)config->comm.start_timeout, .device = "",
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
                             const struct rank_environment *found) {
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
    struct rendezvous_options options = meeting_options(config, found, place);
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

struct place_note {
    char text[HOST_BYTES + 16];
};

/* MPI is there first, and carries where rank 0 waits for the watchdog's connections. */
static enum status meet_through_mpi(struct comm_watched *w, const struct config *config,
                                    const struct rank_environment *found, bool one_host) {
    struct place_note own = {.text = ""};
    struct place_note *notes = calloc((size_t)found->world, sizeof *notes);
    char host[HOST_BYTES] = "127.0.0.1", nothing = 0;
    int port = 0, listener = -1;
    enum status status = STATUS_OK;
    if (notes == NULL) return status_set(STATUS_MEMORY, "out of memory for the ranks' addresses");
    if (!one_host && found->host[0] != '\0') snprintf(host, sizeof host, "%s", found->host);
    else if (!one_host && gethostname(host, sizeof host - 1) != 0) snprintf(host, 8, "?");
    if (found->rank == 0) {
        listener = wire_listen(host, &port);
        if (listener < 0) {
            status = status_set(STATUS_CONFIG, "rank 0 cannot listen for the others: %s",
                                strerror(errno));
        }
        snprintf(own.text, sizeof own.text, "%s:%d", host, port);
    }
    status = ranks_agree(&w->inner, status);
    if (status == STATUS_OK) status = comm_gather_host(&w->inner, notes, &own, sizeof own);
    alarm(0);
    if (status == STATUS_OK) {
        struct rendezvous_options options = meeting_options(config, found, notes[0].text);
        options.listener = listener;
        status = rendezvous_open(&w->watched, &options, &nothing, sizeof nothing);
    } else if (listener >= 0) {
        close(listener);
    }
    free(notes);
    return status;
}

/* What a rank says that waits inside MPI for others that do not come. */
static char nobody_came[256];

static void give_up(int signal) {
    (void)signal;
    if (write(STDERR_FILENO, nobody_came, strlen(nobody_came)) < 0) _exit(STATUS_RANKS);
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

static enum status open_cpus(struct comm_watched *w, const struct config *config,
                             const struct rank_environment *found, int *threads) {
    w->waits = true;
    TRY(start_alarm(config, found));
    const enum status opened = comm_open_mpi(&w->inner, NULL, found->rank, found->world);
    if (opened != STATUS_OK) alarm(0);
    TRY(opened);
    const bool one_host = strcmp(found->host, "127.0.0.1") == 0;
    TRY(meet_through_mpi(w, config, found, one_host));
    TRY(ranks_share_cores(&w->inner, threads));
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
    struct comm_watched *w = calloc(1, sizeof *w);
    if (w == NULL) return status_set(STATUS_MEMORY, "out of memory for communication");
    const enum status status = on_gpus(config) ? open_gpus(w, config, &found)
                                               : open_cpus(w, config, &found, &ranks->threads);
    comm_watch(comm, w);
    if (status == STATUS_OK) return STATUS_OK;
    comm_abort(comm, (int)status);
    comm_close(comm);
    return status;
}

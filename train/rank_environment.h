/*
 * Which rank of how many this process is, by the environment of what started it: torchrun and
 * `--gpus N` (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), mpirun of Open MPI
 * (OMPI_COMM_WORLD_*), srun of Slurm (SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID,
 * SLURM_JOB_NODELIST). The innermost launcher counts, in this order, since one may start another.
 * Without any of them the process is the one rank of its run.
 *
 * Every value is hostile until parsed. Called by the start of a run of many ranks and by launch.c;
 * owns nothing.
 */
#ifndef DEEPWELL_TRAIN_RANK_ENVIRONMENT_H_
#define DEEPWELL_TRAIN_RANK_ENVIRONMENT_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* A name has at most 253 characters (RFC 1035); the largest world is a bound on arrays, no more. */
enum { HOST_BYTES = 256, WORLD_MAX = 65536 };

struct rank_environment {
    int rank, world;        /* 0 <= rank < world */
    int local_rank;         /* among the ranks of this host: its device */
    char host[HOST_BYTES];  /* of rank 0; "": the environment does not say */
    int port;               /* where rank 0 listens; 0: the environment does not say */
    uint64_t run;           /* the same on all ranks of this run, another for other runs of this
                             * launcher; 0: not known */
    const char *source;     /* "--gpus", "torchrun", "Open MPI", "Slurm"; "": none */
};

/* STATUS_CONFIG with the variables' names and values where one is no number, out of bounds, missing
 * beside others, or contradicts another. */
enum status rank_environment_read(struct rank_environment *out);

/* Whether `--gpus N` of this program started this process as a rank. */
bool rank_environment_by_gpus(void);

/* For one that starts ranks itself: STATUS_CONFIG if a launcher made this process one of several.
 * A batch script of Slurm has the numbers of its job, but is one process. */
enum status rank_environment_check_alone(void);

/* The first host of Slurm's list: "node[07-09,12],login1" is "node07". Ranges keep their zeros; a
 * name may have several brackets. STATUS_CONFIG for what no list is; `out` is a host name (letters,
 * digits, '.', '-', '_') or untouched. */
enum status hostlist_first(const char *list, char out[HOST_BYTES]);

/* A whole number from `least` to `most`, digits alone. STATUS_CONFIG with name and value. */
enum status rank_number(const char *name, const char *text, int64_t least, int64_t most, int *out);

#endif

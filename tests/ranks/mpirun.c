/* Behind tests/ranks/mpirun.h. */
#include "tests/ranks/mpirun.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct unusual mpirun = {.program = "mpirun"};

bool mpi_missing(void) {
    const struct process process = e2e_start(&mpirun, "--version");
    if (e2e_wait(&process)->code == 0) {
        const struct process try = e2e_start(&mpirun, MPI "-n 2 @ --version");
        if (e2e_wait(&try)->code == 0) return false;
    }
    printf("skipped: no mpirun of Open MPI on the PATH (openmpi-bin, docs/build.md)\n");
    return true;
}

struct process mpirun_start_behind(const char *command, int ranks, const char *arguments) {
    char script[512];
    snprintf(script, sizeof script, "[ \"$OMPI_COMM_WORLD_RANK\" = 1 ] && %s\nexec \"$@\"\n",
             command);
    e2e_write("behind", script, strlen(script));
    return e2e_start(&mpirun, MPI "-n %d sh behind @ %s", ranks, arguments);
}

struct process mpirun_start_told(int ranks, const char *arguments) {
    return mpirun_start_behind("echo $$ >pid.new && mv pid.new pid", ranks, arguments);
}

struct process mpirun_start_endless(int ranks) {
    const struct process process = mpirun_start_told(
        ranks, "train config --train.steps 1000000 --checkpoint.every 0 --validation.every 0");
    e2e_await("run/metrics.jsonl", "\"record\":\"step\",\"step\":1,");
    return process;
}

void mpirun_signal_rank_1(int number) {
    size_t bytes = 0;
    char *pid = e2e_read("pid", &bytes);
    assert_int_equal(kill((pid_t)atol(pid), number), 0);
    free(pid);
}

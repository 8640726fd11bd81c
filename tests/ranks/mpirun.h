/* The program under mpirun, for the tests beside this: starts it, and reaches one of its ranks. */
#ifndef DEEPWELL_TESTS_RANKS_MPIRUN_H_
#define DEEPWELL_TESTS_RANKS_MPIRUN_H_

#include "tests/e2e/e2e.h"

extern const struct unusual mpirun;

#define MPI "--allow-run-as-root --oversubscribe --bind-to none "

/* Whether there is no mpirun of Open MPI that this build works with; says so. */
bool mpi_missing(void);

/* `deepwell ARGUMENTS` on so many ranks, rank 1 behind a command of the shell. */
struct process mpirun_start_behind(const char *command, int ranks, const char *arguments);

/* The same with rank 1's process told, so that mpirun_signal_rank_1() may send it a signal. */
struct process mpirun_start_told(int ranks, const char *arguments);
/* So started, and in the midst of the steps of `train config`, which do not end, in run. */
struct process mpirun_start_endless(int ranks);
void mpirun_signal_rank_1(int number);

#endif

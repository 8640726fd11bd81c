/*
 * Which rank a process is. Oracle: the documented meaning of each launcher's variables, as tables
 * of environments with the answer or the words of the refusal; Slurm's host lists by hand.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "train/rank_environment.h"

enum { VARIABLES_MAX = 12 };

static void set_environment(const char *const *pairs) {
    clearenv();
    for (size_t i = 0; pairs[i] != NULL; i++) {
        char name[64];
        const char *equals = strchr(pairs[i], '=');
        assert_non_null(equals);
        assert_true((size_t)(equals - pairs[i]) < sizeof name);
        memcpy(name, pairs[i], (size_t)(equals - pairs[i]));
        name[equals - pairs[i]] = '\0';
        assert_int_equal(setenv(name, equals + 1, 1), 0);
    }
}

static void answers(void **state) {
    (void)state;
    static const struct {
        const char *pairs[VARIABLES_MAX];
        int rank, world, local_rank;
        const char *host;
        int port; /* -1: any from 20000 to 29999 */
        const char *source;
    } cases[] = {
        {{NULL}, 0, 1, 0, "", 0, ""},
        {{"MASTER_ADDR=node1", NULL}, 0, 1, 0, "", 0, ""}, /* says nothing of ranks */
        {{"RANK=0", "WORLD_SIZE=1", NULL}, 0, 1, 0, "", 0, "torchrun"},
        /* comm.rendezvous may say where rank 0 is */
        {{"RANK=0", "WORLD_SIZE=2", "LOCAL_RANK=0", NULL}, 0, 2, 0, "", 0, "torchrun"},
        {{"SLURM_PROCID=0", "SLURM_NTASKS=2", "SLURM_LOCALID=0", "SLURM_STEP_ID=0", NULL},
         0, 2, 0, "", -1, "Slurm"},
        {{"RANK=5", "WORLD_SIZE=8", "LOCAL_RANK=1", "LOCAL_WORLD_SIZE=4", "MASTER_ADDR=10.0.0.1",
          "MASTER_PORT=29500", NULL}, 5, 8, 1, "10.0.0.1", 29500, "torchrun"},
        {{"RANK=1", "WORLD_SIZE=2", "LOCAL_RANK=1", "MASTER_ADDR=fe80::1", "MASTER_PORT=29500",
          "TORCHELASTIC_USE_AGENT_STORE=True", NULL}, 1, 2, 1, "fe80::1", 29501, "torchrun"},
        {{"OMPI_COMM_WORLD_RANK=2", "OMPI_COMM_WORLD_SIZE=3", "OMPI_COMM_WORLD_LOCAL_RANK=2",
          "OMPI_COMM_WORLD_LOCAL_SIZE=3", "PMIX_NAMESPACE=1234.1", NULL},
         2, 3, 2, "127.0.0.1", -1, "Open MPI"},
        {{"OMPI_COMM_WORLD_RANK=2", "OMPI_COMM_WORLD_SIZE=4", "OMPI_COMM_WORLD_LOCAL_RANK=0",
          "OMPI_COMM_WORLD_LOCAL_SIZE=2", NULL}, 2, 4, 0, "", 0, "Open MPI"}, /* several hosts */
        {{"OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_LOCAL_RANK=0",
          "MASTER_ADDR=n1", "MASTER_PORT=7", NULL}, 0, 2, 0, "n1", 7, "Open MPI"},
        {{"SLURM_PROCID=3", "SLURM_NTASKS=4", "SLURM_LOCALID=1", "SLURM_STEP_ID=0",
          "SLURM_STEP_NUM_TASKS=4", "SLURM_JOB_ID=77", "SLURM_JOB_NODELIST=gpu[07-08]", NULL},
         3, 4, 1, "gpu07", -1, "Slurm"},
        {{"SLURM_PROCID=0", "SLURM_NTASKS=1", "SLURM_LOCALID=0", NULL}, 0, 1, 0, "", 0, "Slurm"},
        {{"SLURM_PROCID=0", "SLURM_LOCALID=0", NULL}, 0, 1, 0, "", 0, ""}, /* a batch script */
        /* torchrun once on each of two nodes by srun; mpirun in a batch script */
        {{"SLURM_PROCID=1", "SLURM_NTASKS=2", "SLURM_LOCALID=0", "RANK=7", "WORLD_SIZE=8",
          "LOCAL_RANK=3", "MASTER_ADDR=a", "MASTER_PORT=1", NULL}, 7, 8, 3, "a", 1, "torchrun"},
        {{"SLURM_PROCID=0", "SLURM_NTASKS=8", "SLURM_LOCALID=0", "OMPI_COMM_WORLD_RANK=1",
          "OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_LOCAL_RANK=1", NULL},
         1, 2, 1, "", 0, "Open MPI"},
        {{"OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_LOCAL_RANK=0",
          "RANK=7", "WORLD_SIZE=8", "LOCAL_RANK=3", "MASTER_ADDR=a", "MASTER_PORT=1", NULL},
         7, 8, 3, "a", 1, "torchrun"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct rank_environment e;
        set_environment(cases[i].pairs);
        if (rank_environment_read(&e) != STATUS_OK) fail_msg("%zu: %s", i, status_message());
        assert_int_equal(e.rank, cases[i].rank);
        assert_int_equal(e.world, cases[i].world);
        assert_int_equal(e.local_rank, cases[i].local_rank);
        assert_string_equal(e.source, cases[i].source);
        assert_string_equal(e.host, cases[i].host);
        if (cases[i].port >= 0) assert_int_equal(e.port, cases[i].port);
        if (cases[i].port < 0) assert_in_range(e.port, 20000, 29999);
    }
}

static void refusals(void **state) {
    (void)state;
    static const struct {
        const char *pairs[VARIABLES_MAX];
        const char *words[4]; /* in the message */
    } cases[] = {
        {{"RANK=0", "WORLD_SIZE=0", NULL}, {"WORLD_SIZE", "from 1", "\"0\""}},
        {{"RANK=2", "WORLD_SIZE=2", "LOCAL_RANK=0", NULL}, {"RANK is 2", "WORLD_SIZE is 2"}},
        {{"RANK=1", NULL}, {"RANK is 1", "WORLD_SIZE is not set"}},
        {{"WORLD_SIZE=2", NULL}, {"WORLD_SIZE is 2", "RANK is not set"}},
        {{"LOCAL_RANK=2", NULL}, {"LOCAL_RANK is 2", "WORLD_SIZE is not set"}},
        {{"RANK=0", "WORLD_SIZE=2", NULL}, {"LOCAL_RANK is not set"}},
        {{"RANK=0", "WORLD_SIZE=2", "LOCAL_RANK=0", "MASTER_ADDR=a", "MASTER_PORT=70000", NULL},
         {"MASTER_PORT", "70000"}},
        {{"RANK=0", "WORLD_SIZE=2", "LOCAL_RANK=0", "MASTER_ADDR=a;b", NULL},
         {"MASTER_ADDR", "a;b"}},
        {{"RANK=0", "WORLD_SIZE=2", "LOCAL_RANK=0", "MASTER_ADDR=", NULL}, {"MASTER_ADDR"}},
        {{"RANK=0", "WORLD_SIZE=4", "LOCAL_RANK=2", "LOCAL_WORLD_SIZE=2", NULL},
         {"LOCAL_RANK is 2", "LOCAL_WORLD_SIZE is 2"}},
        {{"RANK=0", "WORLD_SIZE=2", "LOCAL_RANK=0", "LOCAL_WORLD_SIZE=4", NULL},
         {"LOCAL_WORLD_SIZE is 4", "WORLD_SIZE is 3"}},
        {{"RANK=-1", "WORLD_SIZE=2", NULL}, {"RANK", "\"-1\""}},
        {{"RANK= 1", "WORLD_SIZE=2", NULL}, {"RANK", "\" 1\""}},
        {{"RANK=1e0", "WORLD_SIZE=2", NULL}, {"RANK", "1e0"}},
        {{"RANK=", "WORLD_SIZE=2", NULL}, {"RANK", "\"\""}},
        {{"RANK=99999999999999999999999", "WORLD_SIZE=2", NULL}, {"RANK", "9999"}},
        {{"RANK=\033[2J", "WORLD_SIZE=2", NULL}, {"RANK", "\"?[2J\""}},
        {{"OMPI_COMM_WORLD_RANK=4", "OMPI_COMM_WORLD_SIZE=4", "OMPI_COMM_WORLD_LOCAL_RANK=0", NULL},
         {"OMPI_COMM_WORLD_RANK is 4", "OMPI_COMM_WORLD_SIZE is 4"}},
        {{"OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=4", NULL},
         {"OMPI_COMM_WORLD_LOCAL_RANK is not set"}},
        {{"OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=4", "OMPI_COMM_WORLD_LOCAL_RANK=1",
          "RANK=0", "WORLD_SIZE=1", NULL}, {"WORLD_SIZE is 1", "OMPI_COMM_WORLD_SIZE is 4"}},
        {{"OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_LOCAL_RANK=1",
          "RANK=0", "WORLD_SIZE=2", "LOCAL_RANK=0", "MASTER_ADDR=a", "MASTER_PORT=1", NULL},
         {"RANK is 0", "OMPI_COMM_WORLD_RANK is 1"}},
        {{"SLURM_PROCID=0", "SLURM_NTASKS=8", "SLURM_LOCALID=0", "SLURM_JOB_NODELIST=a", NULL},
         {"SLURM_NTASKS is 8", "srun did not start", "--gpus N"}},
        {{"SLURM_PROCID=0", "SLURM_NTASKS=8", "SLURM_LOCALID=0", "SLURM_STEP_NUM_TASKS=4", NULL},
         {"SLURM_STEP_NUM_TASKS is 4", "SLURM_NTASKS is 8"}},
        {{"SLURM_PROCID=0", "SLURM_STEP_ID=0", NULL},
         {"SLURM_PROCID is 0", "SLURM_NTASKS is not set"}},
        {{"SLURM_PROCID=0", "SLURM_NTASKS=2", "SLURM_LOCALID=0", "SLURM_STEP_ID=0",
          "SLURM_JOB_NODELIST=n[1-", NULL}, {"SLURM_JOB_NODELIST", "n[1-"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct rank_environment e = {.world = -7};
        set_environment(cases[i].pairs);
        if (rank_environment_read(&e) != STATUS_CONFIG) fail_msg("case %zu was taken", i);
        assert_int_equal(e.world, -7);
        for (size_t w = 0; w < 4 && cases[i].words[w] != NULL; w++) {
            if (strstr(status_message(), cases[i].words[w]) == NULL) {
                fail_msg("case %zu: no \"%s\" in: %s", i, cases[i].words[w], status_message());
            }
        }
    }
}

static void hostlists(void **state) {
    (void)state;
    static const struct {
        const char *list, *first; /* NULL: refused */
    } cases[] = {
        {"node7", "node7"},
        {"node[01-04,7]", "node01"},
        {"node[7]", "node7"},
        {"node[9,01-04],other", "node9"},
        {"login,node[1-2]", "login"},
        {"rack[1-2]n[003-010]-ib", "rack1n003-ib"},
        {"a.b-c_d.example.org", "a.b-c_d.example.org"},
        {"", NULL}, {",a", NULL}, {"n[", NULL}, {"n[]", NULL}, {"n[1", NULL}, {"n[1-]", NULL},
        {"n[-1]", NULL}, {"n[1,]", NULL}, {"n[1-2-3]", NULL}, {"n[a]", NULL}, {"n]", NULL},
        {"n[1;2]", NULL}, {"-oProxy", NULL}, {"n 1", NULL}, {"n\n", NULL}, {"n/1", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char host[HOST_BYTES] = "untouched";
        const enum status status = hostlist_first(cases[i].list, host);
        assert_int_equal(status, cases[i].first == NULL ? STATUS_CONFIG : STATUS_OK);
        assert_string_equal(host, cases[i].first == NULL ? "untouched" : cases[i].first);
    }
    char long_list[2 * HOST_BYTES], host[HOST_BYTES];
    memset(long_list, 'a', sizeof long_list);
    long_list[HOST_BYTES - 1] = '\0';
    assert_int_equal(hostlist_first(long_list, host), STATUS_OK);
    assert_int_equal(strlen(host), HOST_BYTES - 1);
    long_list[HOST_BYTES - 1] = 'a';
    long_list[HOST_BYTES] = '\0';
    assert_int_equal(hostlist_first(long_list, host), STATUS_CONFIG);
}

/* A launcher in a launcher's rank would make ranks twice; a batch script is one process. */
static void alone(void **state) {
    (void)state;
    static const char *const lone[][VARIABLES_MAX] = {
        {NULL},
        {"SLURM_PROCID=0", "SLURM_NTASKS=8", "SLURM_LOCALID=0", NULL},
        {"SLURM_STEP_NUM_TASKS=1", NULL},
        {"RANK=0", "WORLD_SIZE=1", NULL},
    };
    static const char *const among[][VARIABLES_MAX] = {
        {"SLURM_STEP_NUM_TASKS=2", NULL},
        {"SLURM_STEP_NUM_TASKS=x", NULL},
        {"OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_LOCAL_RANK=1", NULL},
        {"RANK=0", "WORLD_SIZE=2", "LOCAL_RANK=0", "MASTER_ADDR=a", "MASTER_PORT=1", NULL},
        {"RANK=0", NULL},
    };
    for (size_t i = 0; i < sizeof lone / sizeof lone[0]; i++) {
        set_environment(lone[i]);
        assert_int_equal(rank_environment_check_alone(), STATUS_OK);
    }
    for (size_t i = 0; i < sizeof among / sizeof among[0]; i++) {
        set_environment(among[i]);
        assert_int_equal(rank_environment_check_alone(), STATUS_CONFIG);
    }
}

/* Two jobs, and a job and its requeued self, do not meet at one port with one number. */
static void runs_differ(void **state) {
    (void)state;
    const char *first[] = {"SLURM_PROCID=0", "SLURM_NTASKS=2", "SLURM_LOCALID=0",
                           "SLURM_STEP_ID=0", "SLURM_JOB_NODELIST=n1", "SLURM_JOB_ID=1000", NULL,
                           NULL};
    struct rank_environment a, b, c;
    set_environment(first);
    assert_int_equal(rank_environment_read(&a), STATUS_OK);
    first[6] = "SLURM_RESTART_COUNT=1";
    set_environment(first);
    assert_int_equal(rank_environment_read(&b), STATUS_OK);
    first[5] = "SLURM_JOB_ID=1001";
    set_environment(first);
    assert_int_equal(rank_environment_read(&c), STATUS_OK);
    assert_true(a.run != 0 && a.run != b.run && b.run != c.run && a.run != c.run);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers),
        cmocka_unit_test(refusals),
        cmocka_unit_test(hostlists),
        cmocka_unit_test(alone),
        cmocka_unit_test(runs_differ),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

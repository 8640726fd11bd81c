/*
 * How ranks of a host divide its processors. Oracle: cases by hand.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include "train/ranks_cores.h"

enum { RANKS = 4 };

/* Ranks on hosts of these letters, each on processors first to last of its host. */
static void place(struct rank_cores *all, const char *hosts, const int first[RANKS],
                  const int last[RANKS]) {
    for (int r = 0; r < RANKS; r++) {
        all[r] = (struct rank_cores){.threads = last[r] - first[r] + 1};
        snprintf(all[r].host, sizeof all[r].host, "%c", hosts[r]);
        CPU_ZERO(&all[r].processors);
        for (int c = first[r]; c <= last[r]; c++) CPU_SET((size_t)c, &all[r].processors);
    }
}

static void expect(const struct rank_cores *all, const int shares[RANKS]) {
    for (int r = 0; r < RANKS; r++) {
        assert_int_equal(rank_cores_share(all, RANKS, r), shares[r]);
    }
}

static void processors_are_divided(void **state) {
    (void)state;
    struct rank_cores all[RANKS];
    /* four on one host of eight; of two: one each, though that is too many */
    place(all, "aaaa", (int[]){0, 0, 0, 0}, (int[]){7, 7, 7, 7});
    expect(all, (int[]){2, 2, 2, 2});
    place(all, "aaaa", (int[]){0, 0, 0, 0}, (int[]){1, 1, 1, 1});
    expect(all, (int[]){1, 1, 1, 1});
    /* three and one: other hosts' ranks do not count */
    place(all, "aaba", (int[]){0, 0, 0, 0}, (int[]){7, 7, 7, 7});
    expect(all, (int[]){2, 2, 0, 2});
    /* bound to processors of their own; two bound to the same pair */
    place(all, "aaaa", (int[]){0, 2, 4, 6}, (int[]){1, 3, 5, 7});
    expect(all, (int[]){0, 0, 0, 0});
    place(all, "aaaa", (int[]){0, 0, 4, 6}, (int[]){1, 1, 5, 7});
    expect(all, (int[]){1, 1, 0, 0});
    /* OMP_NUM_THREADS was for one process */
    place(all, "aaaa", (int[]){0, 0, 0, 0}, (int[]){7, 7, 7, 7});
    all[1].told = true;
    all[1].threads = 3;
    expect(all, (int[]){2, 0, 2, 2});
}

/* One rank asks itself. */
static void alone_all_are_its_own(void **state) {
    (void)state;
    struct device device;
    struct comm comm;
    int threads = -1;
    assert_int_equal(device_open_cpu(&device, 0), STATUS_OK);
    comm_open_single(&comm, &device);
    assert_int_equal(ranks_share_cores(&comm, &threads), STATUS_OK);
    assert_int_equal(threads, 0);
    comm_close(&comm);
    device_close(&device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(processors_are_divided),
        cmocka_unit_test(alone_all_are_its_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

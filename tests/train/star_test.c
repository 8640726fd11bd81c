/*
 * Host memory between ranks over a star of connections, each rank a thread and each connection a
 * pair of sockets. Oracles: what each rank gives, computed from its number; the rank that went,
 * named.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "train/star.h"

enum { WORLD = 5, BYTES = 100003 }; /* more than a socket takes at once */

static const double seconds = 30.0;

struct rank {
    struct rendezvous talk;
    int connections[WORLD];
    char hosts[WORLD][RENDEZVOUS_NAME_BYTES];
    int root;
    unsigned char data[BYTES];
    int numbers[WORLD];
    enum status status;
    char message[256];
};

static struct rank ranks[WORLD];

static unsigned char given(int rank, size_t i) {
    return (unsigned char)((size_t)(rank + 1) * 37 + i * 11 + i / 251);
}

static int open_star(void **state) {
    (void)state;
    for (int r = 0; r < WORLD; r++) {
        struct rank *rank = &ranks[r];
        rank->talk = (struct rendezvous){
            .rank = r, .world = WORLD, .connections = rank->connections, .hosts = rank->hosts,
        };
        for (int i = 0; i < WORLD; i++) snprintf(rank->hosts[i], sizeof rank->hosts[i], "here");
    }
    ranks[0].connections[0] = -1;
    for (int r = 1; r < WORLD; r++) {
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) != 0) return -1;
        ranks[0].connections[r] = pair[0];
        ranks[r].connections[0] = pair[1];
    }
    return 0;
}

static int close_star(void **state) {
    (void)state;
    for (int r = 1; r < WORLD; r++) {
        close(ranks[0].connections[r]);
        close(ranks[r].connections[0]);
    }
    return 0;
}

/* A broadcast, which waits for nobody but its root, and behind it a gathering. */
static void *run_rank(void *context) {
    struct rank *rank = context;
    const int own = 10 + rank->talk.rank;
    for (size_t i = 0; i < BYTES; i++) rank->data[i] = given(rank->talk.rank, i);
    rank->status = star_broadcast(&rank->talk, rank->data, BYTES, rank->root, seconds);
    if (rank->status == STATUS_OK) {
        rank->status = star_gather(&rank->talk, rank->numbers, &own, sizeof own, seconds);
    }
    snprintf(rank->message, sizeof rank->message, "%s", status_message());
    return NULL;
}

static void run(int first, int root) {
    pthread_t threads[WORLD];
    for (int r = first; r < WORLD; r++) {
        ranks[r].root = root;
        pthread_create(&threads[r], NULL, run_rank, &ranks[r]);
    }
    for (int r = first; r < WORLD; r++) pthread_join(threads[r], NULL);
}

static void all_have_what_the_root_has(void **state) {
    (void)state;
    for (int root = 0; root < WORLD; root++) {
        run(0, root);
        for (int r = 0; r < WORLD; r++) {
            if (ranks[r].status != STATUS_OK) fail_msg("rank %d: %s", r, ranks[r].message);
            for (size_t i = 0; i < BYTES; i++) {
                if (ranks[r].data[i] != given(root, i)) fail_msg("rank %d, byte %zu", r, i);
            }
            for (int other = 0; other < WORLD; other++) {
                assert_int_equal(ranks[r].numbers[other], 10 + other);
            }
        }
    }
}

/* The root leaves before it has said anything: rank 0 names it, the others rank 0, which ends. */
static void a_root_that_goes_is_named(void **state) {
    (void)state;
    enum { ROOT = 3 };
    shutdown(ranks[ROOT].connections[0], SHUT_RDWR);
    assert_int_equal(star_broadcast(&ranks[0].talk, ranks[0].data, BYTES, ROOT, seconds),
                     STATUS_RANKS);
    assert_non_null(strstr(status_message(), "rank 3 on here was lost"));
    star_break_off(&ranks[0].talk);
    run(1, ROOT);
    for (int r = 1; r < WORLD; r++) {
        assert_int_equal(ranks[r].status, STATUS_RANKS);
        assert_non_null(strstr(ranks[r].message, "rank 0 on here was lost"));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(all_have_what_the_root_has, open_star, close_star),
        cmocka_unit_test_setup_teardown(a_root_that_goes_is_named, open_star, close_star),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

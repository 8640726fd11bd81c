/*
 * The meeting of the ranks, with forked processes on the loopback address. Oracle: the contract of
 * rendezvous.h: after a meeting each rank holds rank 0's bytes; after anything wrong each ends, in
 * time, with the documented status and a message that names the ranks and values which this test
 * chose.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "train/rendezvous.h"
#include "train/rendezvous_file.h"
#include "train/wire.h"

enum { RANKS_MAX = 8, BLOB = 128 };

/* What each forked rank reports. */
struct answer {
    int status;
    double seconds;
    bool blob_right, silent; /* silent: after it the connection is there, with nothing to read */
    char message[1024];
};

static struct answer *answers; /* shared (RANKS_MAX) */
static char place[PATH_BYTES], folder[PATH_BYTES - 64];

static void free_place(void) {
    struct wire_address unused;
    int port = 0;
    const int listener = wire_listen("127.0.0.1", &port);
    assert_true(listener >= 0);
    close(listener);
    snprintf(place, sizeof place, "127.0.0.1:%d", port);
    assert_int_equal(wire_address_parse(place, &unused), STATUS_OK);
}

static struct rendezvous_options usual(int rank, int world) {
    return (struct rendezvous_options){
        .rank = rank, .world = world, .place = place, .run = 42, .timeout_seconds = 2.0,
        .device = "",
    };
}

/* One rank in a process of its own, `delay` seconds late; it keeps its connection for a moment. */
static pid_t start(int slot, struct rendezvous_options options, double delay) {
    const pid_t pid = fork();
    if (pid != 0) return pid;
    unsigned char blob[BLOB];
    struct rendezvous r;
    struct answer *a = &answers[slot];
    for (int i = 0; i < BLOB; i++) blob[i] = (unsigned char)(options.rank == 0 ? i + 1 : 0);
    usleep((useconds_t)(delay * 1e6));
    const double begun = clock_seconds();
    a->status = (int)rendezvous_open(&r, &options, blob, sizeof blob);
    a->seconds = clock_seconds() - begun;
    a->blob_right = true;
    for (int i = 0; i < BLOB; i++) a->blob_right = a->blob_right && blob[i] == i + 1;
    snprintf(a->message, sizeof a->message, "%s", a->status == 0 ? "" : status_message());
    if (a->status == 0 && options.rank > 0) {
        char byte;
        a->silent = read(r.connections[0], &byte, 1) < 0;
        wire_send(r.connections[0], &options.rank, sizeof options.rank, clock_seconds() + 1.0);
    }
    if (a->status == 0 && options.rank == 0) { /* each connection is that of its rank */
        a->silent = true;
        for (int i = 1; i < options.world; i++) {
            int said = -1;
            wire_receive(r.connections[i], &said, sizeof said, clock_seconds() + 1.0);
            a->silent = a->silent && said == i;
        }
    }
    rendezvous_close(&r);
    _exit(0);
}

static void wait_for(int count) {
    for (int i = 0; i < count; i++) assert_true(wait(NULL) > 0);
}

static void ended(int slot, enum status status, double seconds_most, const char *words) {
    const struct answer *a = &answers[slot];
    char copy[256], *next = NULL;
    if (a->status != (int)status) fail_msg("%d: status %d: %s", slot, a->status, a->message);
    if (a->seconds > seconds_most) fail_msg("%d: %.1f seconds", slot, a->seconds);
    snprintf(copy, sizeof copy, "%s", words);
    for (char *word = strtok_r(copy, "|", &next); word != NULL; word = strtok_r(NULL, "|", &next)) {
        if (strstr(a->message, word) == NULL) fail_msg("%d: no %s in: %s", slot, word, a->message);
    }
}

static void met(int world) {
    for (int r = 0; r < world; r++) {
        ended(r, STATUS_OK, 3.0, "");
        assert_true(answers[r].blob_right);
        assert_true(answers[r].silent);
    }
}

/* In any order of arrival, also with rank 0 last; one alone meets nobody. */
static void all_meet(void **state) {
    (void)state;
    static const double delays[][4] = {{0, 0, 0, 0}, {0.5, 0, 0.2, 0}, {0, 0.4, 0.2, 0.6}};
    for (size_t i = 0; i < 3; i++) {
        free_place();
        for (int r = 0; r < 4; r++) start(r, usual(r, 4), delays[i][r]);
        wait_for(4);
        met(4);
    }
    struct rendezvous r;
    struct rendezvous_options one = usual(0, 1);
    one.place = "nonsense";
    assert_int_equal(rendezvous_open(&r, &one, NULL, 0), STATUS_OK);
    rendezvous_close(&r);
}

static void through_a_file(void **state) {
    (void)state;
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "%s/meet", folder);
    snprintf(place, sizeof place, "file:%s/meet", folder);
    /* a file that a killed run left: nobody listens there, and its number is another */
    const char *stale = "deepwell rendezvous 1\nrun 00000000000000ff\n127.0.0.1:9\n";
    assert_int_equal(file_write_durable(path, stale, strlen(stale)), STATUS_OK);
    for (int r = 0; r < 3; r++) start(r, usual(r, 3), r == 0 ? 0.4 : 0.0);
    wait_for(3);
    met(3);
    assert_false(path_is_file(path)); /* all are in: it is gone */
    for (int r = 0; r < 3; r++) start(r, usual(r, 3), 0.1 * r);
    wait_for(3);
    met(3);
    /* something else is not overwritten, whichever rank looks */
    assert_int_equal(file_write_durable(path, "my notes\n", 9), STATUS_OK);
    for (int r = 0; r < 2; r++) start(r, usual(r, 2), 0.0);
    wait_for(2);
    ended(0, STATUS_CONFIG, 1.0, "no rendezvous file|meet");
    ended(1, STATUS_CONFIG, 1.0, "no rendezvous file|meet");
    char *text = NULL;
    size_t bytes = 0;
    assert_int_equal(file_read(path, 100, &text, &bytes), STATUS_OK);
    assert_string_equal(text, "my notes\n");
    free(text);
    unlink(path);
    /* a second run through the same file while the first still waits */
    start(0, usual(0, 2), 0.0);
    start(1, usual(0, 2), 0.3);
    wait_for(2);
    ended(0, STATUS_RANKS, 3.0, "rank 1 of 2 did not come");
    ended(1, STATUS_CONFIG, 2.0, "another run starts through");
}

static void missing_ranks_are_named(void **state) {
    (void)state;
    free_place();
    for (int r = 0; r < 2; r++) start(r, usual(r, 4), 0.0);
    wait_for(2);
    for (int r = 0; r < 2; r++) {
        ended(r, STATUS_RANKS, 4.0, "ranks 2 and 3 of 4 did not come|within 2 seconds");
    }
}

static void without_rank_0(void **state) {
    (void)state;
    free_place();
    start(1, usual(1, 2), 0.0);
    struct rendezvous_options unresolved = usual(1, 2);
    unresolved.place = "no-such-host.invalid:29500";
    unresolved.timeout_seconds = 0.5;
    start(2, unresolved, 0.0);
    struct rendezvous_options nowhere = usual(1, 2);
    char path[PATH_BYTES];
    snprintf(path, sizeof path, "file:%s/never", folder);
    nowhere.place = path;
    start(3, nowhere, 0.0);
    wait_for(3);
    ended(1, STATUS_RANKS, 3.0, "rank 1 of 2 found no rank 0 at 127.0.0.1|Connection refused");
    ended(2, STATUS_RANKS, 30.0, "no-such-host.invalid|does not resolve");
    ended(3, STATUS_RANKS, 3.0, "/never within|the file is not there");
}

/* Who listens there is somebody else: silent, or talking. */
static void a_wrong_address(void **state) {
    (void)state;
    int port = 0;
    const int listener = wire_listen("127.0.0.1", &port);
    snprintf(place, sizeof place, "127.0.0.1:%d", port);
    struct rendezvous_options options = usual(1, 2);
    options.timeout_seconds = 1.0;
    start(1, options, 0.0);
    const pid_t stranger = fork();
    if (stranger == 0) {
        static const char rubbish[2048] = "HTTP/1.1 400 Bad Request\r\n\r\n";
        for (;;) {
            const int connection = wire_accept(listener);
            if (connection >= 0) {
                wire_send(connection, rubbish, sizeof rubbish, clock_seconds() + 1.0);
                close(connection);
            }
            usleep(20000);
        }
    }
    assert_true(waitpid(-1, NULL, 0) != stranger);
    ended(1, STATUS_RANKS, 2.0, "no rank 0 of this run");
    start(0, options = usual(0, 2), 0.0); /* and nobody can listen there */
    wait_for(1);
    ended(0, STATUS_CONFIG, 6.0, "cannot listen at port|Address already in use|MASTER_PORT");
    kill(stranger, 9);
    wait_for(1);
    close(listener);
}

static void strangers_do_not_disturb(void **state) {
    (void)state;
    free_place();
    struct wire_address address;
    char reason[WIRE_REASON_BYTES];
    assert_int_equal(wire_address_parse(place, &address), STATUS_OK);
    start(0, usual(0, 3), 0.0);
    usleep(200000);
    int connections[80];
    for (int i = 0; i < 80; i++) {
        connections[i] = wire_connect(&address, clock_seconds() + 1.0, reason);
        assert_true(connections[i] >= 0);
        char rubbish[400];
        memset(rubbish, i, sizeof rubbish);
        /* nothing, some, one greeting's worth, or more of it */
        wire_send(connections[i], rubbish, (size_t)(i % 4) * 112 + (size_t)(i % 2),
                  clock_seconds() + 1.0);
        if (i % 5 == 0) close(connections[i]);
    }
    struct rendezvous_options other_run = usual(1, 3);
    other_run.run = 43; /* the right words, another run: it is not let in, and disturbs nobody */
    other_run.timeout_seconds = 1.0;
    start(3, other_run, 0.0);
    start(1, usual(1, 3), 0.5);
    start(2, usual(2, 3), 0.5);
    wait_for(4);
    met(3);
    ended(3, STATUS_RANKS, 2.5, "found no rank 0");
    for (int i = 0; i < 80; i++) {
        if (i % 5 != 0) close(connections[i]);
    }
}

static void a_rank_twice(void **state) {
    (void)state;
    free_place();
    start(0, usual(0, 3), 0.0);
    start(1, usual(1, 3), 0.1);
    start(2, usual(1, 3), 0.3);
    wait_for(3);
    for (int i = 0; i < 3; i++) ended(i, STATUS_CONFIG, 2.0, "rank 1 came twice");
}

static void worlds_that_differ(void **state) {
    (void)state;
    free_place();
    start(0, usual(0, 2), 0.0);
    start(1, usual(1, 4), 0.0);
    wait_for(2);
    for (int i = 0; i < 2; i++) {
        ended(i, STATUS_CONFIG, 2.0, "rank 1 on|the world has 4 ranks|rank 0 says 2");
    }
}

static void builds_that_differ(void **state) {
    (void)state;
    free_place();
    for (int r = 0; r < 3; r++) {
        struct rendezvous_options options = usual(r, 3);
        options.program = r == 2 ? 8 : 7;
        start(r, options, r == 2 ? 0.3 : 0.0);
    }
    wait_for(3);
    for (int i = 0; i < 3; i++) {
        ended(i, STATUS_CONFIG, 2.0, "rank 2 on|runs another build|than rank 0 on");
    }
}

/* What no build may change: how a greeting begins, and how rank 0 refuses. Written out here. */
struct frozen_greeting {
    uint64_t magic, run, protocol;
    int32_t rank, world;
    char host[64], rest[160]; /* longer than ours */
};
struct frozen_verdict {
    uint64_t magic;
    uint32_t status, blob_bytes;
    char host[64], message[768];
};

static void other_protocols_are_refused_as_such(void **state) {
    (void)state;
    struct wire_address address;
    struct frozen_verdict verdict;
    char reason[WIRE_REASON_BYTES];
    struct frozen_greeting greeting = {.magic = 0x6c6c657770656564,
                                       .run = 42,
                                       .protocol = 2,
                                       .rank = 1,
                                       .world = 2,
                                       .host = "n7"};
    for (size_t bytes = 96; bytes <= sizeof greeting; bytes += 64) { /* cut off, ours, longer */
        free_place();
        assert_int_equal(wire_address_parse(place, &address), STATUS_OK);
        start(0, usual(0, 2), 0.0);
        usleep(200000);
        const int connection = wire_connect(&address, clock_seconds() + 1.0, reason);
        assert_true(wire_send(connection, &greeting, bytes, clock_seconds() + 1.0));
        assert_true(wire_receive(connection, &verdict, sizeof verdict, clock_seconds() + 2.0));
        assert_int_equal(verdict.status, STATUS_CONFIG);
        assert_non_null(strstr(verdict.message, "rank 1 on n7 runs another build"));
        close(connection);
        wait_for(1);
        ended(0, STATUS_CONFIG, 1.5, "rank 1 on n7 runs another build");
    }
}

/* A rank 0 of another build says no more than what all builds say alike. */
static void another_builds_refusal_is_understood(void **state) {
    (void)state;
    int port = 0, connection = -1;
    const struct frozen_verdict verdict = {.magic = 0x74636964726576,
                                           .status = STATUS_CONFIG,
                                           .host = "n3",
                                           .message = "in words of its own"};
    const int listener = wire_listen("127.0.0.1", &port);
    snprintf(place, sizeof place, "127.0.0.1:%d", port);
    start(1, usual(1, 2), 0.0);
    while ((connection = wire_accept(listener)) < 0) usleep(10000);
    assert_true(wire_send(connection, &verdict, sizeof verdict, clock_seconds() + 1.0));
    wait_for(1);
    ended(1, STATUS_CONFIG, 1.5, "in words of its own");
    close(connection);
    close(listener);
}

static void a_device_twice(void **state) {
    (void)state;
    for (int same = 0; same < 2; same++) {
        free_place();
        for (int r = 0; r < 3; r++) {
            struct rendezvous_options options = usual(r, 3);
            options.device = r == 0 ? "0000:4c:00.0" : r == 1 || same ? "0000:5d:00.0" : "0000:5e";
            start(r, options, 0.0);
        }
        wait_for(3);
        if (!same) met(3);
        for (int r = 0; r < 3 && same; r++) {
            ended(r, STATUS_DEVICE, 2.0, "ranks 1 and 2 on|the same device|0000:5d:00.0");
        }
    }
}

/* Killed between its greeting and the verdict. */
static void a_rank_that_dies_waiting(void **state) {
    (void)state;
    free_place();
    start(0, usual(0, 3), 0.0);
    const pid_t victim = start(1, usual(1, 3), 0.0);
    start(2, usual(2, 3), 1.0);
    usleep(400000);
    kill(victim, 9);
    wait_for(3);
    ended(0, STATUS_RANKS, 1.5, "rank 1 on|ended while it waited");
    ended(2, STATUS_RANKS, 2.5, "found no rank 0");
}

static void places(void **state) {
    (void)state;
    char out[PATH_BYTES];
    struct rank_environment e = {.rank = 1, .world = 2, .host = "n1", .port = 5, .source = "Slurm"};
    assert_int_equal(rendezvous_place(out, "", &e), STATUS_OK);
    assert_string_equal(out, "n1:5");
    snprintf(e.host, sizeof e.host, "fe80::1");
    assert_int_equal(rendezvous_place(out, "", &e), STATUS_OK);
    assert_string_equal(out, "[fe80::1]:5");
    assert_int_equal(rendezvous_place(out, "host:77", &e), STATUS_OK);
    assert_string_equal(out, "host:77");
    assert_int_equal(rendezvous_place(out, "file:/x/y", &e), STATUS_OK);
    static const char *const wrong[] = {"host", "host:", ":5", "host:0", "host:65536", "a:b:5",
                                        "[]:5", "host:5x"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_int_equal(rendezvous_place(out, wrong[i], &e), STATUS_CONFIG);
    }
    e.port = 0;
    assert_int_equal(rendezvous_place(out, "", &e), STATUS_CONFIG);
    assert_non_null(strstr(status_message(), "MASTER_ADDR"));
}

static void names_of_ranks(void **state) {
    (void)state;
    char text[RANKS_TEXT_BYTES];
    bool named[64] = {false};
    named[3] = true;
    assert_string_equal(ranks_text(text, named, 64), "rank 3");
    named[60] = true;
    assert_string_equal(ranks_text(text, named, 64), "ranks 3 and 60");
    named[7] = true;
    assert_string_equal(ranks_text(text, named, 64), "ranks 3, 7 and 60");
    memset(named, 1, sizeof named);
    assert_string_equal(ranks_text(text, named, 64), "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 56 more");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_meet),
        cmocka_unit_test(through_a_file),
        cmocka_unit_test(missing_ranks_are_named),
        cmocka_unit_test(without_rank_0),
        cmocka_unit_test(a_wrong_address),
        cmocka_unit_test(strangers_do_not_disturb),
        cmocka_unit_test(a_rank_twice),
        cmocka_unit_test(worlds_that_differ),
        cmocka_unit_test(builds_that_differ),
        cmocka_unit_test(other_protocols_are_refused_as_such),
        cmocka_unit_test(another_builds_refusal_is_understood),
        cmocka_unit_test(a_device_twice),
        cmocka_unit_test(a_rank_that_dies_waiting),
        cmocka_unit_test(places),
        cmocka_unit_test(names_of_ranks),
    };
    const char *base = getenv("TEST_TMPDIR");
    snprintf(folder, sizeof folder, "%s/rendezvous-XXXXXX", base != NULL ? base : "/tmp");
    if (mkdtemp(folder) == NULL) return 1;
    answers = mmap(NULL, RANKS_MAX * sizeof *answers, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (answers == MAP_FAILED) return 1;
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    return folder_remove(folder) == STATUS_OK ? failed : 1;
}

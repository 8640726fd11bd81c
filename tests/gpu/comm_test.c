/*
 * NCCL behind train/comm.h on the one GPU that is here: a world of one rank goes through all of
 * NCCL's calls, streams, recordings and the way out. Oracles: closed form (the sums of one rank are
 * its numbers, known to the last bit), and the counters that the watchdog reads. What only several
 * GPUs can show, this cannot.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tests/gpu/presence.h"
#include "tests/kernels/testing.h"
#include "train/comm_nccl.h"
#include "train/comm_self_test.h"

enum { COUNT = 100003, REPLAYS = 3 };

static struct device gpu;
static struct rendezvous talk;

static void open_comm(struct comm *comm, int max_ctas) {
    const struct rendezvous_options alone = {.rank = 0, .world = 1, .place = "", .device = ""};
    struct comm_nccl_options options = {.max_ctas = max_ctas, .start_seconds = 60.0,
                                        .timeout_seconds = 60.0};
    EXPECT_OK(rendezvous_open(&talk, &alone, NULL, 0));
    EXPECT_OK(comm_nccl_id(options.id));
    EXPECT_OK(comm_open_nccl(comm, &options, &talk));
    comm->device = &gpu;
}

static void close_comm(struct comm *comm) {
    comm_close(comm);
    rendezvous_close(&talk);
}

/* Every collective, with sums that are known. */
static void test_self_test(void **state) {
    static const int ctas[] = {0, 1, 8};
    (void)state;
    for (size_t i = 0; i < sizeof ctas / sizeof ctas[0]; i++) {
        struct comm comm;
        open_comm(&comm, ctas[i]);
        printf("%s, at most %d CTAs\n", comm.name, ctas[i]);
        EXPECT_OK(comm_self_test(&comm));
        EXPECT_OK(comm_barrier(&comm));
        close_comm(&comm);
    }
}

struct buffers {
    struct comm *comm;
    float *a, *b, *c; /* (COUNT) on the device */
};

static enum status ask(void *context) {
    struct buffers *m = context;
    TRY(comm_after_compute(m->comm));
    TRY(comm_all_reduce(m->comm, m->a, COUNT, COMM_F32, COMM_SUM));
    TRY(comm_reduce_scatter(m->comm, m->b, m->a, COUNT, COMM_F32));
    TRY(comm_all_gather(m->comm, m->c, m->b, COUNT * sizeof(float)));
    TRY(comm_broadcast(m->comm, m->c, COUNT * sizeof(float), 0));
    TRY(comm_exchange(m->comm, m->b, m->c, COUNT * sizeof(float)));
    return compute_after_comm(m->comm);
}

static void expect_copied(struct buffers *m, const float *expected) {
    static float found[COUNT];
    EXPECT_OK(device_download(&gpu, found, m->b, sizeof found));
    assert_memory_equal(found, expected, sizeof found);
    EXPECT_OK(device_download(&gpu, found, m->c, sizeof found));
    assert_memory_equal(found, expected, sizeof found);
}

static void expect_progress(struct comm *comm, uint64_t collectives) {
    struct watchdog_progress p = {.entered = 0};
    EXPECT_OK(device_wait(&gpu));
    comm_nccl_progress(comm, &p);
    assert_int_equal(p.entered, collectives);
    assert_int_equal(p.left, collectives);
    assert_string_equal(p.what, "exchange of 390.64 KiB");
}

/* Recorded with the work before and behind it, and run again on other numbers. */
static void test_recording(void **state) {
    static float numbers[COUNT];
    struct comm comm;
    struct buffers m = {.comm = &comm};
    struct device_recording *recording = NULL;
    (void)state;
    open_comm(&comm, 0);
    EXPECT_OK(device_allocate(&gpu, sizeof numbers, (void **)&m.a));
    EXPECT_OK(device_allocate(&gpu, sizeof numbers, (void **)&m.b));
    EXPECT_OK(device_allocate(&gpu, sizeof numbers, (void **)&m.c));
    for (int run = 0; run < 2; run++) { /* as they come, as the step's code does first */
        for (size_t i = 0; i < COUNT; i++) numbers[i] = (float)(i % 1000) + (float)run;
        EXPECT_OK(device_upload(&gpu, m.a, numbers, sizeof numbers));
        EXPECT_OK(ask(&m));
        expect_copied(&m, numbers);
    }
    expect_progress(&comm, 2 * 5);
    EXPECT_OK(device_record_begin(&gpu));
    EXPECT_OK(ask(&m));
    EXPECT_OK(device_record_end(&gpu, &recording));
    for (int run = 0; run < REPLAYS; run++) {
        for (size_t i = 0; i < COUNT; i++) numbers[i] = (float)(i % 777) - (float)run;
        EXPECT_OK(device_upload(&gpu, m.a, numbers, sizeof numbers));
        EXPECT_OK(device_replay(&gpu, recording));
        expect_copied(&m, numbers);
    }
    expect_progress(&comm, (2 + REPLAYS) * 5);
    /* Waits count in each run of the recording: three take longer than one, none longer than all
     * that the device did. */
    double once = 0.0, seconds = 0.0;
    EXPECT_OK(device_mark(&gpu, 0));
    EXPECT_OK(comm_note_waits(&comm, 0));
    for (int run = 0; run < 1 + REPLAYS; run++) {
        EXPECT_OK(device_replay(&gpu, recording));
        if (run == 0) EXPECT_OK(comm_note_waits(&comm, 1));
    }
    EXPECT_OK(comm_note_waits(&comm, 2));
    EXPECT_OK(device_mark(&gpu, 1));
    EXPECT_OK(device_seconds_between(&gpu, 0, 1, &seconds));
    once = comm_waited_seconds(&comm, 0, 1);
    const double all = comm_waited_seconds(&comm, 0, 2);
    printf("waited %.1f us once, %.1f us in %d runs of %.1f us\n", once * 1e6, all * 1e6,
           1 + REPLAYS, seconds * 1e6);
    assert_true(once > 0.0 && all > once && all <= seconds);
    device_recording_close(&gpu, recording);
    device_release(&gpu, m.c, sizeof numbers);
    device_release(&gpu, m.b, sizeof numbers);
    device_release(&gpu, m.a, sizeof numbers);
    close_comm(&comm);
}

/* After an abort every call is refused, nothing hangs, and a new communicator works. */
static void test_abort(void **state) {
    struct comm comm;
    void *memory = NULL;
    (void)state;
    open_comm(&comm, 0);
    EXPECT_OK(device_allocate(&gpu, 4096, &memory));
    EXPECT_OK(comm_all_reduce(&comm, memory, 1024, COMM_F32, COMM_SUM));
    comm_nccl_break_off(&comm);
    expect_status(STATUS_RANKS, comm_all_reduce(&comm, memory, 1024, COMM_F32, COMM_SUM));
    comm_abort(&comm, STATUS_RANKS); /* again: nothing happens */
    close_comm(&comm);
    open_comm(&comm, 0);
    comm_nccl_break_off(&comm); /* before the ranks joined */
    expect_status(STATUS_RANKS, comm_all_reduce(&comm, memory, 1024, COMM_F32, COMM_SUM));
    close_comm(&comm);
    open_comm(&comm, 0);
    EXPECT_OK(comm_self_test(&comm));
    close_comm(&comm);
    device_release(&gpu, memory, 4096);
}

/* The watchdog beside it: collectives that are done disturb nobody. */
static void test_watched(void **state) {
    struct comm comm;
    struct watchdog *w = NULL;
    (void)state;
    open_comm(&comm, 0);
    const struct watchdog_options options = {
        .meeting = &talk, .timeout_seconds = 0.5, .grace_seconds = 1.0, .beat_seconds = 0.05,
        .progress = comm_nccl_progress, .abort = comm_nccl_break_off, .context = &comm,
    };
    EXPECT_OK(watchdog_open(&w, &options));
    EXPECT_OK(comm_self_test(&comm));
    usleep(1500 * 1000); /* longer than the limit of one collective */
    EXPECT_OK(comm_self_test(&comm));
    EXPECT_OK(watchdog_check(w));
    watchdog_close(w, STATUS_OK);
    close_comm(&comm);
}

int main(void) {
    const struct device_options options = {.gemm_effort = GEMM_EFFORT_OFF};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_self_test),
        cmocka_unit_test(test_recording),
        cmocka_unit_test(test_abort),
        cmocka_unit_test(test_watched),
    };
    unsigned char id[COMM_NCCL_ID_BYTES];
    if (gpu_missing()) return 0;
    if (comm_nccl_id(id) != STATUS_OK && strstr(status_message(), "built without") != NULL) {
        printf("skipped: %s\n", status_message());
        return 0;
    }
    gpu_open(&gpu, &options);
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    device_close(&gpu);
    return failed;
}

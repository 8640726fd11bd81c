/*
 * The self-test of communication. Oracle: ranks that are threads and add through shared memory, in
 * plain loops, pass; the same with one number of one collective on one rank changed fail on that
 * rank, with the collective's name.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/tensor.h"
#include "train/comm_self_test.h"

enum { WORLD_MOST = 70 };

enum kind { ALL_REDUCE_F32, ALL_REDUCE_F64, ALL_REDUCE_MAX, REDUCE_SCATTER,
            REDUCE_SCATTER_BF16, ALL_GATHER, EXCHANGE, BROADCAST, GATHER_HOST, BROADCAST_HOST,
            KINDS };

/* What the threads share. */
static struct {
    pthread_barrier_t barrier;
    const void *given[WORLD_MOST];
    enum kind wrong_kind; /* KINDS: none */
    int wrong_rank;
    size_t wrong_byte;
} world;

static void meet(void) { pthread_barrier_wait(&world.barrier); }

/* Everybody's `in` is readable up to the next call of done(). */
static void give(const struct comm *comm, const void *in) {
    world.given[comm->rank] = in;
    meet();
}

static enum status done(const struct comm *comm, void *out, void *result, size_t bytes,
                        enum kind kind) {
    meet(); /* all have read */
    memcpy(out, result, bytes);
    free(result);
    if (kind == world.wrong_kind && comm->rank == world.wrong_rank) {
        ((unsigned char *)out)[world.wrong_byte % bytes] ^= 1;
    }
    meet();
    return STATUS_OK;
}

static void add(void *sum, const void *x, size_t count, enum comm_type type, enum comm_sum how) {
    for (size_t i = 0; i < count; i++) {
        if (type == COMM_F32) ((float *)sum)[i] += ((const float *)x)[i];
        if (type == COMM_F64) ((double *)sum)[i] += ((const double *)x)[i];
        if (type == COMM_BF16) {
            const uint16_t *const b = x;
            uint16_t *const to = sum;
            to[i] = bf16_from_float(float_from_bf16(to[i]) + float_from_bf16(b[i]));
        }
        const uint32_t *u = x;
        uint32_t *s = sum;
        if (type == COMM_U32 && how == COMM_MAX && u[i] > s[i]) s[i] = u[i];
    }
}

static enum status all_reduce(struct comm *comm, void *data, size_t count, enum comm_type type,
                              enum comm_sum how) {
    const size_t bytes = count * comm_type_bytes(type);
    void *sum = calloc(1, bytes);
    give(comm, data);
    for (int r = comm->world; r-- > 0;) add(sum, world.given[r], count, type, how);
    return done(comm, data, sum, bytes,
                type == COMM_F32 ? ALL_REDUCE_F32 : type == COMM_F64 ? ALL_REDUCE_F64
                                                                     : ALL_REDUCE_MAX);
}

static enum status reduce_scatter(struct comm *comm, void *out, const void *in, size_t count,
                                  enum comm_type type) {
    const size_t bytes = count * comm_type_bytes(type);
    void *sum = calloc(1, bytes);
    give(comm, in);
    for (int r = 0; r < comm->world; r++) {
        add(sum, (const char *)world.given[r] + (size_t)comm->rank * bytes, count, type, COMM_SUM);
    }
    return done(comm, out, sum, bytes, type == COMM_BF16 ? REDUCE_SCATTER_BF16 : REDUCE_SCATTER);
}

static enum status gather(struct comm *comm, void *out, const void *in, size_t bytes,
                          size_t offset, enum kind kind) {
    char *all = malloc((size_t)comm->world * bytes);
    give(comm, in);
    for (int r = 0; r < comm->world; r++) {
        memcpy(all + (size_t)r * bytes, (const char *)world.given[r] + offset, bytes);
    }
    return done(comm, out, all, (size_t)comm->world * bytes, kind);
}

static enum status all_gather(struct comm *comm, void *out, const void *in, size_t bytes) {
    return gather(comm, out, in, bytes, 0, ALL_GATHER);
}

static enum status gather_host(struct comm *comm, void *out, const void *in, size_t bytes) {
    return gather(comm, out, in, bytes, 0, GATHER_HOST);
}

static enum status exchange(struct comm *comm, void *out, const void *in, size_t bytes) {
    return gather(comm, out, in, bytes, (size_t)comm->rank * bytes, EXCHANGE);
}

static enum status copy_from(struct comm *comm, void *data, size_t bytes, int root,
                             enum kind kind) {
    void *copy = malloc(bytes);
    give(comm, data);
    memcpy(copy, world.given[root], bytes);
    return done(comm, data, copy, bytes, kind);
}

static enum status broadcast(struct comm *comm, void *data, size_t bytes, int root) {
    return copy_from(comm, data, bytes, root, BROADCAST);
}

static enum status broadcast_host(struct comm *comm, void *data, size_t bytes, int root) {
    return copy_from(comm, data, bytes, root, BROADCAST_HOST);
}

static enum status nothing(struct comm *comm) {
    (void)comm;
    return STATUS_OK;
}

static const struct comm_calls calls = {
    .all_reduce = all_reduce, .reduce_scatter = reduce_scatter, .all_gather = all_gather,
    .exchange = exchange, .broadcast = broadcast, .after_compute = nothing,
    .compute_after = nothing, .gather_host = gather_host, .broadcast_host = broadcast_host,
};

struct rank_thread {
    struct comm comm;
    struct device device;
    enum status status;
    char message[1024];
};

static void *run_rank(void *context) {
    struct rank_thread *t = context;
    t->comm.device = &t->device;
    t->status = comm_self_test(&t->comm);
    snprintf(t->message, sizeof t->message, "%s", t->status == STATUS_OK ? "" : status_message());
    return NULL;
}

static struct rank_thread ranks[WORLD_MOST];

static void run(int count) {
    pthread_t threads[WORLD_MOST];
    pthread_barrier_init(&world.barrier, NULL, (unsigned)count);
    for (int r = 0; r < count; r++) {
        ranks[r] = (struct rank_thread){
            .comm = {.calls = &calls, .rank = r, .world = count, .name = "threads"}};
        assert_int_equal(device_open_cpu(&ranks[r].device, 1), STATUS_OK);
    }
    for (int r = 0; r < count; r++) pthread_create(&threads[r], NULL, run_rank, &ranks[r]);
    for (int r = 0; r < count; r++) pthread_join(threads[r], NULL);
    for (int r = 0; r < count; r++) device_close(&ranks[r].device);
    pthread_barrier_destroy(&world.barrier);
}

static void right_sums_pass(void **state) {
    (void)state;
    static const int worlds[] = {1, 2, 3, 5, 20, 70}; /* 70: not all give BF16 */
    for (size_t i = 0; i < sizeof worlds / sizeof worlds[0]; i++) {
        world.wrong_kind = KINDS;
        run(worlds[i]);
        for (int r = 0; r < worlds[i]; r++) {
            if (ranks[r].status != STATUS_OK) fail_msg("rank %d: %s", r, ranks[r].message);
        }
    }
}

/* A world of one: every error is alone with itself, and nobody waits for one that stopped. */
static void a_wrong_number_is_named(void **state) {
    (void)state;
    static const char *const names[KINDS] = {
        [ALL_REDUCE_F32] = "all_reduce (FP32 sum)", [ALL_REDUCE_F64] = "all_reduce (FP64 sum)",
        [ALL_REDUCE_MAX] = "all_reduce (largest)", [REDUCE_SCATTER] = "reduce_scatter (FP32)",
        [REDUCE_SCATTER_BF16] = "reduce_scatter (BF16)",
        [ALL_GATHER] = "all_gather", [EXCHANGE] = "exchange", [BROADCAST] = "broadcast",
        [GATHER_HOST] = "gather_host", [BROADCAST_HOST] = "broadcast_host",
    };
    static const size_t bytes[] = {0, 1, 1001, 2051, 4106};
    for (int kind = 0; kind < KINDS; kind++) {
        for (size_t b = 0; b < sizeof bytes / sizeof bytes[0]; b++) {
            world.wrong_kind = (enum kind)kind;
            world.wrong_rank = 0;
            world.wrong_byte = bytes[b];
            pthread_barrier_init(&world.barrier, NULL, 1);
            struct device device;
            struct comm comm = {.calls = &calls, .rank = 0, .world = 1, .name = "threads"};
            assert_int_equal(device_open_cpu(&device, 1), STATUS_OK);
            comm.device = &device;
            assert_int_equal(comm_self_test(&comm), STATUS_DEVICE);
            if (strstr(status_message(), names[kind]) == NULL) {
                fail_msg("no %s in: %s", names[kind], status_message());
            }
            device_close(&device);
            pthread_barrier_destroy(&world.barrier);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(right_sums_pass),
        cmocka_unit_test(a_wrong_number_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

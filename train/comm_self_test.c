/* The known sums of train/comm_self_test.h. */
#include "train/comm_self_test.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "kernels/tensor.h"

/* Of each rank; odd, so that no part is aligned to more than a number. */
enum { COUNT = 1027 };

/* The buffers of the tests: (world * COUNT) words each. */
struct self_test {
    struct comm *comm;
    size_t words; /* world * COUNT */
    void *in, *out; /* device */
    uint32_t *host;
};

/* What rank r gives at place i: 1 to 112, so that 2^17 ranks add up below 2^24, exact in FP32. */
static uint32_t given(int rank, size_t i) {
    return (uint32_t)(rank % 16 + 1) * (uint32_t)(i % 7 + 1);
}

/* The sum of given(r, i) over all ranks. */
static uint32_t given_sum(int world, size_t i) {
    uint32_t sum = 0;
    for (int r = 0; r < world; r++) sum += given(r, i);
    return sum;
}

static enum status wrong(const struct comm *comm, const char *what, size_t i, double found,
                         double expected) {
    return status_set(STATUS_DEVICE, "self-test of communication (%s): %s on rank %d of %d gives "
                      "%.17g at place %zu, expected %.17g: the library, a device or the network "
                      "between the ranks is broken (docs/many_ranks.md)", comm->name, what,
                      comm->rank, comm->world, found, i, expected);
}

/* What rank r gives at place i in BF16, whose whole numbers are exact up to 256, and partial sums
 * in any order with them: 1 to 3 from up to 64 ranks, which the place picks among them, 0 from the
 * others. So no sum is above 192. */
static uint32_t given_bf16(int rank, int world, size_t i) {
    const uint32_t step = (uint32_t)world / 64 + (world % 64 != 0);
    if (((size_t)rank + i) % step != 0) return 0;
    return (uint32_t)((i + (size_t)rank) % 3) + 1;
}

/* Fills `to` with what this rank gives, as the type. */
static void fill(void *to, size_t count, enum comm_type type, int rank) {
    for (size_t i = 0; i < count; i++) {
        if (type == COMM_F32) ((float *)to)[i] = (float)given(rank, i);
        if (type == COMM_F64) ((double *)to)[i] = (double)given(rank, i);
        if (type == COMM_U32) ((uint32_t *)to)[i] = given(rank, i);
    }
}

static double number(const void *from, size_t i, enum comm_type type) {
    return type == COMM_F32   ? (double)((const float *)from)[i]
           : type == COMM_F64 ? ((const double *)from)[i]
                              : (double)((const uint32_t *)from)[i];
}

static enum status up(struct self_test *t, void *to, size_t bytes) {
    TRY(device_upload(t->comm->device, to, t->host, bytes));
    return comm_after_compute(t->comm);
}

static enum status down(struct self_test *t, const void *from, size_t bytes) {
    TRY(compute_after_comm(t->comm));
    return device_download(t->comm->device, t->host, from, bytes);
}

static enum status test_all_reduce(struct self_test *t, enum comm_type type, enum comm_sum sum,
                                   const char *what) {
    struct comm *comm = t->comm;
    const size_t count = COUNT / 2, bytes = count * comm_type_bytes(type);
    const int top = comm->world < 16 ? comm->world - 1 : 15; /* a rank that gives the most */
    fill(t->host, count, type, comm->rank);
    TRY(up(t, t->in, bytes));
    TRY(comm_all_reduce(comm, t->in, count, type, sum));
    TRY(down(t, t->in, bytes));
    for (size_t i = 0; i < count; i++) {
        const double found = number(t->host, i, type);
        const uint32_t expected = sum == COMM_MAX ? given(top, i) : given_sum(comm->world, i);
        if (found != (double)expected) return wrong(comm, what, i, found, expected);
    }
    return STATUS_OK;
}

static enum status test_reduce_scatter(struct self_test *t) {
    struct comm *comm = t->comm;
    fill(t->host, t->words, COMM_F32, comm->rank);
    TRY(up(t, t->in, t->words * sizeof(float)));
    TRY(comm_reduce_scatter(comm, t->out, t->in, COUNT, COMM_F32));
    TRY(down(t, t->out, COUNT * sizeof(float)));
    for (size_t i = 0; i < COUNT; i++) {
        const double found = number(t->host, i, COMM_F32);
        const double expected = given_sum(comm->world, (size_t)comm->rank * COUNT + i);
        if (found != expected) return wrong(comm, "reduce_scatter (FP32)", i, found, expected);
    }
    return STATUS_OK;
}

/* Gradients travel so with comm.reduction = bf16. */
static enum status test_reduce_scatter_bf16(struct self_test *t) {
    struct comm *comm = t->comm;
    uint16_t *host = (uint16_t *)t->host;
    for (size_t i = 0; i < t->words; i++) {
        host[i] = bf16_from_float((float)given_bf16(comm->rank, comm->world, i));
    }
    TRY(up(t, t->in, t->words * sizeof *host));
    TRY(comm_reduce_scatter(comm, t->out, t->in, COUNT, COMM_BF16));
    TRY(down(t, t->out, COUNT * sizeof *host));
    for (size_t i = 0; i < COUNT; i++) {
        const double found = (double)float_from_bf16(host[i]);
        uint32_t expected = 0;
        for (int r = 0; r < comm->world; r++) {
            expected += given_bf16(r, comm->world, (size_t)comm->rank * COUNT + i);
        }
        if (found != (double)expected) {
            return wrong(comm, "reduce_scatter (BF16)", i, found, expected);
        }
    }
    return STATUS_OK;
}

/* Of all_gather, exchange and gather_host: part r of what arrived is what rank r gives from place
 * `first` on. */
static enum status check_parts(struct self_test *t, size_t first, const char *what) {
    for (size_t i = 0; i < t->words; i++) {
        const uint32_t expected = given((int)(i / COUNT), first + i % COUNT);
        if (t->host[i] != expected) return wrong(t->comm, what, i, t->host[i], expected);
    }
    return STATUS_OK;
}

static enum status test_all_gather(struct self_test *t) {
    fill(t->host, COUNT, COMM_U32, t->comm->rank);
    TRY(up(t, t->in, COUNT * sizeof(uint32_t)));
    TRY(comm_all_gather(t->comm, t->out, t->in, COUNT * sizeof(uint32_t)));
    TRY(down(t, t->out, t->words * sizeof(uint32_t)));
    return check_parts(t, 0, "all_gather");
}

static enum status test_exchange(struct self_test *t) {
    fill(t->host, t->words, COMM_U32, t->comm->rank);
    TRY(up(t, t->in, t->words * sizeof(uint32_t)));
    TRY(comm_exchange(t->comm, t->out, t->in, COUNT * sizeof(uint32_t)));
    TRY(down(t, t->out, t->words * sizeof(uint32_t)));
    return check_parts(t, (size_t)t->comm->rank * COUNT, "exchange");
}

static enum status test_broadcast(struct self_test *t) {
    const int root = t->comm->world - 1;
    fill(t->host, COUNT, COMM_U32, t->comm->rank);
    TRY(up(t, t->in, COUNT * sizeof(uint32_t)));
    TRY(comm_broadcast(t->comm, t->in, COUNT * sizeof(uint32_t), root));
    TRY(down(t, t->in, COUNT * sizeof(uint32_t)));
    for (size_t i = 0; i < COUNT; i++) {
        if (t->host[i] != given(root, i)) {
            return wrong(t->comm, "broadcast", i, t->host[i], given(root, i));
        }
    }
    return STATUS_OK;
}

static enum status test_gather_host(struct self_test *t) {
    uint32_t own[COUNT];
    fill(own, COUNT, COMM_U32, t->comm->rank);
    TRY(comm_gather_host(t->comm, t->host, own, sizeof own));
    return check_parts(t, 0, "gather_host");
}

static enum status test_broadcast_host(struct self_test *t) {
    const int root = t->comm->world - 1;
    uint32_t own[COUNT];
    fill(own, COUNT, COMM_U32, t->comm->rank);
    TRY(comm_broadcast_host(t->comm, own, sizeof own, root));
    for (size_t i = 0; i < COUNT; i++) {
        if (own[i] != given(root, i)) {
            return wrong(t->comm, "broadcast_host", i, own[i], given(root, i));
        }
    }
    return STATUS_OK;
}

static enum status run(struct self_test *t) {
    TRY(test_gather_host(t));
    TRY(test_broadcast_host(t));
    TRY(test_all_reduce(t, COMM_F32, COMM_SUM, "all_reduce (FP32 sum)"));
    TRY(test_all_reduce(t, COMM_F64, COMM_SUM, "all_reduce (FP64 sum)"));
    TRY(test_all_reduce(t, COMM_U32, COMM_MAX, "all_reduce (largest)"));
    TRY(test_reduce_scatter(t));
    TRY(test_reduce_scatter_bf16(t));
    TRY(test_all_gather(t));
    TRY(test_exchange(t));
    return test_broadcast(t);
}

enum status comm_self_test(struct comm *comm) {
    struct self_test t = {.comm = comm};
    enum status status = STATUS_OK;
    size_t bytes = 0;
    if (!size_mul((size_t)comm->world, COUNT, &t.words) ||
        !size_mul(t.words, sizeof(uint32_t), &bytes)) {
        return status_set(STATUS_INTERNAL, "a self-test of %d ranks", comm->world);
    }
    t.host = malloc(bytes);
    if (t.host == NULL) return status_set(STATUS_MEMORY, "out of memory for the self-test");
    TRY_GOTO(device_allocate(comm->device, bytes, &t.in), cleanup);
    TRY_GOTO(device_allocate(comm->device, bytes, &t.out), cleanup);
    status = run(&t);
cleanup:
    device_release(comm->device, t.out, bytes);
    device_release(comm->device, t.in, bytes);
    free(t.host);
    return status;
}

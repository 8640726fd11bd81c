/*
 * The floor of a step: its GEMMs through the device's own operation, its attention calls, and for
 * every other operation a stream of its least bytes (kernels/traffic.h), in the step's order and
 * nothing else, on operands of its own. It computes nothing of use; its time is what the step
 * would take if everything but GEMMs and attention ran at the speed of memory and nothing came
 * between two operations. It is no bound of nature: an implementation that moves fewer bytes (a
 * fusion that kernels/traffic.h does not know) or whose GEMMs are better goes below it.
 *
 * Quantised operands of narrow recipes are random codes with scales of 1; where the device emulates
 * their products, these are products as training emulates them.
 *
 * Built by `bench floor` and `bench step --floor` from a recorded step (step_trace.h).
 */
#ifndef DEEPWELL_TRAIN_FLOOR_H_
#define DEEPWELL_TRAIN_FLOOR_H_

#include "kernels/arena.h"
#include "train/op_list.h"
#include "train/sustained.h"

enum floor_part { FLOOR_GEMM, FLOOR_ATTENTION, FLOOR_BYTES, FLOOR_PARTS };

/* One operation of the floor; a long stream is several. */
struct floor_call {
    enum floor_part part;
    struct op_call call;  /* GEMM and attention: the step's, on other memory */
    struct stream stream; /* FLOOR_BYTES */
};

struct floor_work {
    size_t calls;
    double flops;
    size_t bytes; /* FLOOR_BYTES: read and written, in whole units of 16 */
};

/* Operands follow each other in a ring that is larger than the caches. */
struct floor_ring {
    char *base;
    size_t bytes, used;
};

enum { FLOOR_FORMATS = FORMAT_E2M1 + 1, FLOOR_MODES = SCALE_NV + 1 };

struct floor {
    struct device *device;
    void *scratch; /* the device's own, and its sizes, which it has back after floor_close */
    size_t scratch_bytes, attention_scratch_bytes;
    struct arena arena;
    struct floor_call *calls;
    size_t count;
    struct floor_work work[FLOOR_PARTS];
    struct floor_ring operands, results; /* random normal numbers, only read; only written */
    struct floor_ring codes[FLOOR_FORMATS]; /* random normal numbers in a format, four standard
                                             * deviations its largest; only read */
    struct floor_ring scales[FLOOR_MODES];  /* of blocks: 1 */
    struct scale_state *scale;              /* of tensors: 1 */
    void *sums;                          /* what GEMMs add to */
    struct tensor qkv, attention_out;    /* of every attention call, forward to backward */
    float *log_sum_exp;
    uint32_t *checksum;
};

/* The least size of a ring, well above any cache, and the most that one stream reads or writes. */
size_t floor_ring_least_bytes(const struct device *device);

/* Lays out and fills the operands on `device`, which must stay open; `dtype` is that of the
 * activations. STATUS_MEMORY with the numbers if they do not fit. */
enum status floor_open(struct floor *floor, struct device *device, const struct op_list *step,
                       size_t scratch_bytes, enum dtype dtype);
void floor_close(struct floor *floor);

struct floor_times {
    struct sustained whole;
    struct sustained parts[FLOOR_PARTS]; /* each alone; runs 0 where a step has none */
};

/* All of it for `seconds`, after half as long to warm up, with `power` watched; then each part
 * alone. */
enum status floor_measure(struct floor *floor, double seconds, struct gpu_power *power,
                          struct floor_times *times);

/* Calls [first, first + count) of it alone, one run being all of them. `warmup_seconds` 0: the
 * device is warm already. */
enum status floor_measure_calls(struct floor *floor, size_t first, size_t count,
                                double warmup_seconds, double seconds, struct gpu_power *power,
                                struct sustained *out);

#endif

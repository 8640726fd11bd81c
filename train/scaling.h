/*
 * What a step will take on many ranks, on paper: times of collectives from their bytes and the
 * link, and what of them backward and forward hide, for each stage of ZeRO (train/exchange.h).
 * docs/many_ranks.md, "Scaling on paper", has the formulas and what they leave out. These are
 * predictions. Called by `deepwell plan --ranks`; plain values, nothing to release.
 */
#ifndef DEEPWELL_TRAIN_SCALING_H_
#define DEEPWELL_TRAIN_SCALING_H_

#include <stdbool.h>
#include <stddef.h>

enum {
    SCALING_STAGES = 4, /* train.zero */
    SCALING_SLOTS = 3,  /* blocks whose weights are there when backward begins: EXCHANGE_SLOTS */
};

/* One rank's share of a step, by itself. */
struct scaling_work {
    double compute_seconds;   /* forward and backward of all its micro-batches */
    double head_seconds;      /* of compute_seconds: the head and its loss, which stand between the
                               * blocks' forward and backward and hide nothing of theirs */
    double update_seconds;    /* norm, clip and AdamW over all parameters */
    size_t micro_batches;
    size_t micro_batch_tokens; /* of one of them */
    size_t layers;
    size_t layer_elements;    /* of one block */
    size_t end_elements;      /* embeddings and the last norm: gradients that are whole only when
                               * backward is, weights that forward wants first */
    size_t weight_bytes_each; /* in the compute type: what is gathered */
    size_t reduce_bytes_each; /* of a gradient on its way */
    bool gather_ahead;        /* updated weights travel while the next forward pass is under way;
                               * else it waits for all of them */
    bool fixed;               /* comm.order: every micro-batch's gradients, losses and squares */
};

struct scaling_link {
    double bytes_per_second;  /* bus rate, as nccl-tests counts: what a rank sends in a ring */
    double latency_seconds;   /* of one hop of a collective */
};

struct scaling_point {
    size_t ranks;
    int stage;
    double step_seconds;
    double exposed_reduce_seconds, exposed_gather_seconds; /* of it: nothing hides them */
    double communication_seconds; /* hidden or not */
    double sent_bytes;            /* by a rank, a step */
    double efficiency;            /* one rank's step alone / step_seconds */
};

/* Seconds and bytes sent of one collective over `bytes` on all ranks together (reduce-scatter of
 * that input, all-gather of that output; all-reduce is one after the other). */
double scaling_collective_seconds(const struct scaling_link *link, size_t ranks, double bytes);
double scaling_collective_bytes(size_t ranks, double bytes);

struct scaling_point scaling_predict(const struct scaling_work *work,
                                     const struct scaling_link *link, size_t ranks, int stage);

#endif

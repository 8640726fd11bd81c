/* The formulas of train/scaling.h, in the order of docs/many_ranks.md. */
#include "train/scaling.h"

#include "kernels/ops.h"

static double larger(double a, double b) { return a > b ? a : b; }

/* ---- collectives ---- */

double scaling_collective_bytes(size_t ranks, double bytes) {
    return (double)(ranks - 1) / (double)ranks * bytes;
}

/* A ring: the trees of NCCL are for all-reduce, not for these two. */
double scaling_collective_seconds(const struct scaling_link *link, size_t ranks, double bytes) {
    if (ranks == 1 || bytes <= 0.0) return 0.0;
    return scaling_collective_bytes(ranks, bytes) / link->bytes_per_second +
           (double)(ranks - 1) * link->latency_seconds;
}

/* ---- what is hidden ---- */

struct times {
    double reduce, gather;                 /* a step */
    double exposed_reduce, exposed_gather; /* of them */
    double sent_bytes;
};

/* Of the blocks, one micro-batch. */
static double forward_seconds(const struct scaling_work *w) {
    return (w->compute_seconds - w->head_seconds) / (double)w->micro_batches / 3.0;
}

static double backward_seconds(const struct scaling_work *w) { return 2.0 * forward_seconds(w); }

static double elements(const struct scaling_work *w) {
    return (double)w->layers * (double)w->layer_elements + (double)w->end_elements;
}

/* Collectives over all blocks, one each, and over the ends. */
struct bucket_times {
    double block, ends;
};

static struct bucket_times bucket_times(const struct scaling_work *w,
                                        const struct scaling_link *link, size_t ranks,
                                        double bytes_each) {
    return (struct bucket_times){
        .block = scaling_collective_seconds(link, ranks,
                                            bytes_each * (double)w->layer_elements),
        .ends = scaling_collective_seconds(link, ranks,
                                           bytes_each * (double)w->end_elements),
    };
}

/* Gradients of one backward pass: each block's go while the next is at work. The last block's have
 * nothing to hide behind, whatever the link; the ends' come behind them all. */
static void add_reduction(struct times *t, const struct scaling_work *w,
                          const struct scaling_link *link, size_t ranks) {
    const double layers = (double)w->layers, each = (double)w->reduce_bytes_each;
    const struct bucket_times b = bucket_times(w, link, ranks, (double)w->reduce_bytes_each);
    const double backward = backward_seconds(w) / layers;
    t->reduce += layers * b.block + b.ends;
    t->exposed_reduce += larger(b.block, layers * b.block - (layers - 1.0) * backward) + b.ends;
    t->sent_bytes += scaling_collective_bytes(ranks, each * elements(w));
}

/* Weights behind an update: those of the ends and of the first block are wanted at once, each other
 * block's come while the one before it is at work in the next forward pass. */
static void add_gather(struct times *t, const struct scaling_work *w,
                       const struct scaling_link *link, size_t ranks) {
    const double layers = (double)w->layers, each = (double)w->weight_bytes_each;
    const struct bucket_times b = bucket_times(w, link, ranks, (double)w->weight_bytes_each);
    const double hidden = w->gather_ahead ? forward_seconds(w) / layers : 0.0;
    t->gather += layers * b.block + b.ends;
    t->exposed_gather += b.ends + b.block + (layers - 1.0) * larger(b.block - hidden, 0.0);
    t->sent_bytes += scaling_collective_bytes(ranks, each * elements(w));
}

/* Stage 0: an update of everything wants all summed gradients, in FP32, and waits for them. */
static void add_sums(struct times *t, const struct scaling_work *w, const struct scaling_link *link,
                     size_t ranks) {
    const struct bucket_times b = bucket_times(w, link, ranks, sizeof(float));
    t->reduce += (double)w->layers * b.block + b.ends;
    t->exposed_reduce += (double)w->layers * b.block + b.ends;
    t->sent_bytes += scaling_collective_bytes(ranks, (double)sizeof(float) * elements(w));
}

/* comm.order = fixed, in every stage: each micro-batch's losses, in FP32, and before the update the
 * squares of gradients, a double for each block of them, bucket by bucket. Both are waited for. */
static void add_fixed(struct times *t, const struct scaling_work *w,
                      const struct scaling_link *link, size_t ranks) {
    static const double square_bytes_each = (double)sizeof(double) / SUMSQ_BLOCK;
    const struct bucket_times b = bucket_times(w, link, ranks, square_bytes_each);
    const double batches = (double)w->micro_batches;
    const double losses = (double)ranks * (double)w->micro_batch_tokens * sizeof(float);
    const double seconds = (double)w->layers * b.block + b.ends +
                           batches * scaling_collective_seconds(link, ranks, losses);
    t->reduce += seconds;
    t->exposed_reduce += seconds;
    t->sent_bytes += scaling_collective_bytes(ranks, square_bytes_each * elements(w) +
                                                         batches * losses);
}

/* Stage 3, one micro-batch: a block's weights come while the block before it is at work, in forward
 * and again in backward but for the last ones, which are still there; in backward the same link
 * also takes the gradients. The ends' weights stay for the step. */
static void add_passes(struct times *t, const struct scaling_work *w,
                       const struct scaling_link *link, size_t ranks, bool first) {
    const double layers = (double)w->layers, again = larger(layers - SCALING_SLOTS, 0.0);
    const struct bucket_times gather = bucket_times(w, link, ranks, (double)w->weight_bytes_each),
                              reduce = bucket_times(w, link, ranks, (double)w->reduce_bytes_each);
    const double forward = forward_seconds(w) / layers, backward = backward_seconds(w) / layers;
    const double late = larger(gather.block - backward, 0.0);
    t->gather += (layers + again) * gather.block + (first ? gather.ends : 0.0);
    t->reduce += layers * reduce.block + reduce.ends;
    /* nothing can be done before the first block is there, or while the last gradients go */
    t->exposed_gather += (first ? gather.ends : 0.0) + gather.block +
                         (layers - 1.0) * larger(gather.block - forward, 0.0) + again * late;
    t->exposed_reduce += reduce.block + reduce.ends +
                         again * (larger(gather.block + reduce.block - backward, 0.0) - late) +
                         larger(layers - 1.0 - again, 0.0) * larger(reduce.block - backward, 0.0);
    const double blocks = (layers + again) * (double)w->layer_elements,
                 ends = first ? (double)w->end_elements : 0.0;
    t->sent_bytes += scaling_collective_bytes(ranks,
                                              (blocks + ends) * (double)w->weight_bytes_each +
                                                  elements(w) * (double)w->reduce_bytes_each);
}

static struct times communication(const struct scaling_work *w, const struct scaling_link *link,
                                  size_t ranks, int stage) {
    struct times t = {0};
    if (ranks == 1) return t;
    /* stages 0 and 1 keep gradients and send the last micro-batch's, unless sums are in order */
    const bool each = w->fixed || stage >= 2;
    for (size_t i = each ? 0 : w->micro_batches - 1; i < w->micro_batches; i++) {
        if (stage < 3) add_reduction(&t, w, link, ranks);
        else add_passes(&t, w, link, ranks, i == 0);
    }
    if (w->fixed) add_fixed(&t, w, link, ranks);
    if (stage == 0) add_sums(&t, w, link, ranks);
    if (stage == 1 || stage == 2) add_gather(&t, w, link, ranks);
    return t;
}

/* ---- the whole ---- */

struct scaling_point scaling_predict(const struct scaling_work *w, const struct scaling_link *link,
                                     size_t ranks, int stage) {
    const struct times t = communication(w, link, ranks, stage);
    const double update = stage == 0 ? w->update_seconds : w->update_seconds / (double)ranks;
    const double step = w->compute_seconds + update + t.exposed_reduce + t.exposed_gather;
    return (struct scaling_point){
        .ranks = ranks,
        .stage = stage,
        .step_seconds = step,
        .exposed_reduce_seconds = t.exposed_reduce,
        .exposed_gather_seconds = t.exposed_gather,
        .communication_seconds = t.reduce + t.gather,
        .sent_bytes = t.sent_bytes,
        .efficiency = (w->compute_seconds + w->update_seconds) / step,
    };
}

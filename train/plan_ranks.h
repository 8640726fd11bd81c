/* The part of `deepwell plan` that speaks of many ranks; called by command_plan.c. */
#ifndef DEEPWELL_TRAIN_PLAN_RANKS_H_
#define DEEPWELL_TRAIN_PLAN_RANKS_H_

#include "train/engine.h"
#include "train/flops.h"
#include "train/op_trace.h"

/* As given on the command line; 0: not given. */
struct plan_ranks {
    int64_t ranks;
    double link_GBps, latency_us;
    double step_ms;     /* measured: one rank's share of a step, alone */
    double memory_GBps; /* at which an update runs */
};

/* Whether the options go together and the batch can be shared out. Sets config.train.batch to one
 * rank's share. */
enum status plan_ranks_check(const struct plan_ranks *options, struct config *config);

/* The tables. `trace` is that of one rank alone with its share. STATUS_CONFIG if
 * neither a measured step nor the device's peak tells how long a step takes. */
enum status plan_ranks_print(const struct plan_ranks *options, const struct config *config,
                             const struct engine *engine, const struct op_trace *trace,
                             const struct flops *flops);

#endif

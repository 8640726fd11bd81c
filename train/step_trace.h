/*
 * The operations of a configuration's optimizer step, from the code that trains: recorded, not
 * run. Used by plan (counts) and bench (lists).
 */
#ifndef DEEPWELL_TRAIN_STEP_TRACE_H_
#define DEEPWELL_TRAIN_STEP_TRACE_H_

#include "train/engine.h"
#include "train/flops.h"
#include "train/op_trace.h"

/* Asks for a whole step, all micro-batches, while `trace` stands in place of the device's
 * operations. `list` (NULL: not wanted) receives the calls in order; op_list_close() it, also
 * after a failure. No memory of the engine is touched, so it may be ENGINE_RESERVED; the calls
 * point into it all the same. */
enum status step_trace(struct engine *engine, const struct config *config, struct op_trace *trace,
                       struct op_list *list);

/* The same for a configuration that no engine is open for. *scratch_bytes: what its operations
 * need. */
struct step_work {
    struct op_list calls;
    struct flops flops;   /* of a token, by the formula */
    struct speed_limit limit; /* of the step */
    size_t scratch_bytes;
};
enum status step_work_open(struct step_work *work, const struct config *config);
void step_work_close(struct step_work *work);

#endif

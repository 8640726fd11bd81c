/* The tables that plan and bench print from a trace. */
#ifndef DEEPWELL_TRAIN_OP_REPORT_H_
#define DEEPWELL_TRAIN_OP_REPORT_H_

#include "train/op_trace.h"

/* One line an operation, then one line a shape of GEMM; numbers of one step: those of the trace
 * divided by `steps`. With times: milliseconds, GFLOPS and GB/s stand in the table too, the
 * part of `step_seconds` that no operation explains, and the step, which they add up to.
 * step_seconds 0: the trace has no times. */
void op_report_print(const struct op_trace *trace, double steps, double step_seconds);

#endif

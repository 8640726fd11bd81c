/* Tables of operations. */
#include "train/op_report.h"

#include <stdio.h>
#include <string.h>

static void print_row(const struct op_total *total, const char *name, double steps,
                      double step_seconds) {
    const double flops = total->flops / steps, bytes = total->bytes / steps;
    const double seconds = total->seconds / steps;
    printf("  %-44s %7.0f %11.3f %11.2f", name, (double)total->calls / steps, flops / 1e9,
           bytes / 1e6);
    if (step_seconds > 0.0) {
        printf(" %9.2f %6.1f%% %8.1f %8.2f", seconds * 1e3, 100.0 * seconds / step_seconds,
               seconds > 0.0 ? flops / seconds / 1e9 : 0.0,
               seconds > 0.0 ? bytes / seconds / 1e9 : 0.0);
    }
    printf("\n");
}

static void print_header(const char *title, bool timed) {
    printf("%-46s %7s %11s %11s", title, "calls", "GFLOP", "MB");
    if (timed) printf(" %9s %7s %8s %8s", "ms", "share", "GFLOPS", "GB/s");
    printf("\n");
}

void op_report_print(const struct op_trace *trace, double steps, double step_seconds) {
    const bool timed = step_seconds > 0.0;
    print_header("operations of a step", timed);
    for (size_t i = 0; i < trace->op_count; i++) {
        print_row(&trace->ops[i], trace->ops[i].name, steps, step_seconds);
    }
    if (timed) {
        printf("  %-44s %7s %11s %11s %9.2f %6.1f%%\n", "the step", "", "", "", step_seconds * 1e3,
               100.0);
    }
    print_header("its GEMMs, m x n x k", timed);
    for (size_t i = 0; i < trace->gemm_count; i++) {
        const struct gemm_total *g = &trace->gemms[i];
        char name[96];
        const bool alike = strcmp(g->a, g->b) == 0;
        snprintf(name, sizeof name, "%zu x %zu x %zu %s%s %s%s%s -> %s", g->m, g->n, g->k,
                 g->transpose_a ? "T" : "N", g->transpose_b ? "T" : "N", g->a, alike ? "" : " ",
                 alike ? "" : g->b, dtype_name(g->c));
        print_row(&g->total, name, steps, step_seconds);
    }
}

/*
 * What a device can do at most by its vendor's data sheet, dense, and the share of it that a run
 * reached. A device that is not in the table has no peak: the share is n/a, never computed against
 * another device's. A share above 100 % cannot be: it is an error in the measurement and is
 * reported as one.
 *
 * Called by train, plan and bench.
 */
#ifndef DEEPWELL_TRAIN_PEAK_H_
#define DEEPWELL_TRAIN_PEAK_H_

#include <stdbool.h>
#include <stddef.h>

enum peak_type {
    PEAK_FP32, PEAK_TF32, PEAK_BF16, PEAK_FP16, PEAK_FP8, PEAK_FP4, PEAK_TYPE_COUNT,
};
const char *peak_type_name(enum peak_type type); /* "FP32", "TF32", "BF16", ... */

struct peak {
    const char *name;              /* the last words of the device's name, any case: "H100 PCIe" */
    int capability;                /* compute capability: 90 for 9.0 */
    double tflops[PEAK_TYPE_COUNT]; /* dense; 0: not known or not supported */
    const char *source;
};

/* The row of a device, or NULL. `capability` 0: not asked. The name must end with the row's words,
 * so that "H200" finds "NVIDIA H200" but neither "GH200", nor "H200 NVL", nor a MIG slice of it. */
const struct peak *peak_find(const char *device_name, int capability);

/* Row i of the table, NULL past the end: for its test. */
const struct peak *peak_row(size_t i);

enum mfu_state {
    MFU_UNKNOWN = 0,           /* no peak: n/a */
    MFU_KNOWN = 1,
    MFU_MEASUREMENT_ERROR = 2, /* above the peak, or no number */
};

/* What a run's TFLOPS are held against. Where one type does all the work that is its peak. Where
 * linears multiply narrow numbers and the rest wider ones, no single peak is: the speed of light of
 * the mixture is that of its parts one after the other, each at its own peak. */
struct speed_limit {
    double tflops;  /* 0: unknown */
    unsigned types; /* bit 1 << enum peak_type: who takes part */
    bool mixed;
    bool emulated;  /* the device emulates the recipe: no figure of speed */
};

/* The limit of work of which share[type] is done in each type; the shares add up to 1. `peak` NULL,
 * or without a figure for one that takes part: unknown. */
struct speed_limit speed_limit_mixed(const struct peak *peak, const double share[PEAK_TYPE_COUNT]);

/* Model FLOPs utilisation, achieved / peak; or of a mixed limit the share of the speed of light,
 * sum over types of FLOPs / peak, over the time. */
struct mfu {
    enum mfu_state state;
    double share;       /* in [0, 1]; only if MFU_KNOWN */
    double tflops;      /* achieved */
    struct speed_limit limit;
};

struct mfu mfu_against(double tflops, const struct speed_limit *limit);

/* "mfu 51.2% of 989.5 (BF16 dense)", "speed of light 43.1% (FP8 + BF16 dense)", "mfu n/a",
 * "emulated", or "mfu: measurement error, 1200.0 TFLOPS measured, the peak is 989.5 (BF16 dense)".
 * Writes into `text` and returns it. */
enum { MFU_TEXT_BYTES = 160 };
const char *mfu_text(char text[MFU_TEXT_BYTES], const struct mfu *mfu);

#endif

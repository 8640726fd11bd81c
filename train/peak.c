/* The table of vendor peaks and what is computed from it; see train/peak.h. */
#include "train/peak.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

/* A row goes in only with a vendor document behind every figure. Dense: where a document prints
 * figures "with sparsity" alone, they are halved. Tensor figures are with FP32 accumulation. */
#define HALVED "; figures with sparsity, halved"
#define ADA "NVIDIA Ada GPU architecture white paper, appendix A; dense, FP32 accumulation"
#define A100 "NVIDIA A100 data sheet; dense"
#define H100_SXM "NVIDIA H100 data sheet, SXM" HALVED
#define H200_SXM "NVIDIA H200 data sheet, SXM" HALVED

#define TFLOPS(fp32, tf32, bf16, fp16, fp8)                                                     \
    TFLOPS_FP4(fp32, tf32, bf16, fp16, fp8, 0)
#define TFLOPS_FP4(fp32, tf32, bf16, fp16, fp8, fp4)                                            \
    {[PEAK_FP32] = fp32, [PEAK_TF32] = tf32, [PEAK_BF16] = bf16, [PEAK_FP16] = fp16,            \
     [PEAK_FP8] = fp8, [PEAK_FP4] = fp4}

static const struct peak peaks[] = {
    {"V100-SXM2-16GB", 70, TFLOPS(15.7, 0, 0, 125, 0), "NVIDIA V100 data sheet, SXM2"},
    {"V100-SXM2-32GB", 70, TFLOPS(15.7, 0, 0, 125, 0), "NVIDIA V100 data sheet, SXM2"},
    {"T4", 75, TFLOPS(8.1, 0, 0, 65, 0), "NVIDIA T4 data sheet"},
    {"A100-SXM4-40GB", 80, TFLOPS(19.5, 156, 312, 312, 0), A100},
    {"A100-SXM4-80GB", 80, TFLOPS(19.5, 156, 312, 312, 0), A100},
    {"A100-PCIE-40GB", 80, TFLOPS(19.5, 156, 312, 312, 0), A100},
    {"A100 80GB PCIe", 80, TFLOPS(19.5, 156, 312, 312, 0), A100},
    {"A10", 86, TFLOPS(31.2, 62.5, 125, 125, 0), "NVIDIA A10 data sheet; dense"},
    {"GeForce RTX 3090", 86, TFLOPS(35.6, 35.6, 71, 71, 0),
     "NVIDIA Ampere GA102 white paper, table 9; dense, FP32 accumulation"},
    {"GeForce RTX 4090", 89, TFLOPS(82.6, 82.6, 165.2, 165.2, 330.3), ADA},
    {"L4", 89, TFLOPS(30.3, 60, 121, 121, 242.5), "NVIDIA L4 data sheet" HALVED},
    {"L40", 89, TFLOPS(90.5, 90.5, 181.05, 181.05, 362), "NVIDIA L40 data sheet; dense"},
    {"L40S", 89, TFLOPS(91.6, 183, 362.05, 362.05, 733), "NVIDIA L40S data sheet; dense"},
    {"H100 80GB HBM3", 90, TFLOPS(67, 494.5, 989.5, 989.5, 1979), H100_SXM},
    {"H100 PCIe", 90, TFLOPS(51, 378, 756.5, 756.5, 1513),
     "NVIDIA H100 PCIe data sheet (2022)" HALVED},
    {"H100 NVL", 90, TFLOPS(60, 417.5, 835.5, 835.5, 1670.5), "NVIDIA H100 data sheet, NVL" HALVED},
    {"H200", 90, TFLOPS(67, 494.5, 989.5, 989.5, 1979), H200_SXM},
    {"H200 NVL", 90, TFLOPS(60, 417.5, 835.5, 835.5, 1670.5), "NVIDIA H200 data sheet, NVL" HALVED},
    {"B200", 100, TFLOPS_FP4(75, 1100, 2250, 2250, 4500, 9000), /* FP4: 18 PFLOPS with sparsity */
     "NVIDIA Blackwell data sheet, HGX B200" HALVED},
};

static const size_t peak_count = sizeof peaks / sizeof peaks[0];

const char *peak_type_name(enum peak_type type) {
    static const char *const names[PEAK_TYPE_COUNT] = {
        [PEAK_FP32] = "FP32", [PEAK_TF32] = "TF32", [PEAK_BF16] = "BF16", [PEAK_FP16] = "FP16",
        [PEAK_FP8] = "FP8", [PEAK_FP4] = "FP4"};
    return names[type];
}

const struct peak *peak_row(size_t i) { return i < peak_count ? &peaks[i] : NULL; }

/* `name` ends with `words`, which start at its beginning or after something that is no letter or
 * digit. */
static bool ends_with_words(const char *name, const char *words) {
    const size_t length = strlen(name), wanted = strlen(words);
    if (length < wanted || strcasecmp(name + length - wanted, words) != 0) return false;
    return length == wanted || !isalnum((unsigned char)name[length - wanted - 1]);
}

const struct peak *peak_find(const char *device_name, int capability) {
    for (size_t i = 0; i < peak_count; i++) {
        if (!ends_with_words(device_name, peaks[i].name)) continue;
        if (capability == 0 || capability == peaks[i].capability) return &peaks[i];
    }
    return NULL;
}

struct speed_limit speed_limit_mixed(const struct peak *peak, const double share[PEAK_TYPE_COUNT]) {
    struct speed_limit limit = {.mixed = true};
    double seconds = 0.0; /* of a TFLOP */
    bool known = peak != NULL;
    for (unsigned type = 0; type < PEAK_TYPE_COUNT; type++) {
        if (share[type] <= 0.0) continue;
        limit.types |= 1u << type;
        known = known && peak->tflops[type] > 0.0;
        if (known) seconds += share[type] / peak->tflops[type];
    }
    if (known && seconds > 0.0) limit.tflops = 1.0 / seconds;
    return limit;
}

struct mfu mfu_against(double tflops, const struct speed_limit *limit) {
    struct mfu mfu = {.state = MFU_UNKNOWN, .tflops = tflops, .limit = *limit};
    if (limit->tflops <= 0.0) return mfu;
    const double share = tflops / limit->tflops;
    if (!(share >= 0.0 && share <= 1.0)) { /* also NaN */
        mfu.state = MFU_MEASUREMENT_ERROR;
        return mfu;
    }
    mfu.state = MFU_KNOWN;
    mfu.share = share;
    return mfu;
}

/* "FP8 + BF16" */
static const char *types_text(char text[32], unsigned types) {
    size_t used = 0;
    text[0] = '\0';
    for (unsigned type = PEAK_TYPE_COUNT; type-- > 0;) {
        if ((types & (1u << type)) == 0) continue;
        snprintf(text + used, 32 - used, "%s%s", used > 0 ? " + " : "",
                 peak_type_name((enum peak_type)type));
        used = strlen(text);
    }
    return text;
}

const char *mfu_text(char text[MFU_TEXT_BYTES], const struct mfu *mfu) {
    const char *what = mfu->limit.mixed ? "speed of light" : "mfu";
    char types[32];
    types_text(types, mfu->limit.types);
    if (mfu->state == MFU_MEASUREMENT_ERROR) {
        snprintf(text, MFU_TEXT_BYTES,
                 "%s: measurement error, %.1f TFLOPS measured, the peak is %.1f (%s dense)", what,
                 mfu->tflops, mfu->limit.tflops, types);
    } else if (mfu->limit.emulated) {
        snprintf(text, MFU_TEXT_BYTES, "emulated");
    } else if (mfu->state == MFU_UNKNOWN) {
        snprintf(text, MFU_TEXT_BYTES, "%s n/a", what);
    } else if (mfu->limit.mixed) {
        snprintf(text, MFU_TEXT_BYTES, "%s %.1f%% (%s dense)", what, 100.0 * mfu->share, types);
    } else {
        snprintf(text, MFU_TEXT_BYTES, "%s %.1f%% of %.1f (%s dense)", what, 100.0 * mfu->share,
                 mfu->limit.tflops, types);
    }
    return text;
}

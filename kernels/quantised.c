/* Names and sizes of quantised matrices, behind kernels/quantised.h. */
#include "kernels/quantised.h"

#include "base/checked.h"

const char *scale_mode_name(enum scale_mode mode) {
    switch (mode) {
    case SCALE_TENSOR: return "tensor";
    case SCALE_1X128: return "1x128";
    case SCALE_128X128: return "128x128";
    case SCALE_MX: return "mx 1x32";
    case SCALE_NV: return "nv 1x16";
    }
    return "unknown";
}

size_t operand_code_bytes(const struct operand *operand) {
    const size_t count = operand->rows * operand->columns;
    return operand->format == FORMAT_E2M1 ? count / 2 : count;
}

size_t operand_scale_bytes(const struct operand *o) {
    const size_t tile_rows = ceil_div(o->rows, 128);
    switch (o->mode) {
    case SCALE_TENSOR: return 0;
    case SCALE_1X128: return ceil_div(o->columns, 128) * o->rows * sizeof(float);
    case SCALE_128X128: return tile_rows * align_up(ceil_div(o->columns, 128), 4) * sizeof(float);
    case SCALE_MX: return tile_rows * ceil_div(o->columns / 32, 4) * 512;
    case SCALE_NV: return tile_rows * ceil_div(o->columns / 16, 4) * 512;
    }
    return 0;
}

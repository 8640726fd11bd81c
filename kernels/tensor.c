/* Number formats one value at a time, behind kernels/tensor.h. */
#include "kernels/tensor.h"

#include "kernels/float_bits.h"

const char *dtype_name(enum dtype type) {
    switch (type) {
    case DTYPE_F32: return "fp32";
    case DTYPE_BF16: return "bf16";
    case DTYPE_F16: return "fp16";
    }
    return "unknown";
}

uint16_t bf16_from_float(float value) { return bf16_bits_from_float(value); }
float float_from_bf16(uint16_t bits) { return float_from_bf16_bits(bits); }
uint16_t f16_from_float(float value) { return f16_bits_from_float(value); }
float float_from_f16(uint16_t bits) { return float_from_f16_bits(bits); }

float dtype_round(enum dtype type, float value) {
    switch (type) {
    case DTYPE_F32: return value;
    case DTYPE_BF16: return float_from_bf16(bf16_from_float(value));
    case DTYPE_F16: return float_from_f16(f16_from_float(value));
    }
    return value;
}

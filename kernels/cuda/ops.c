/* The table of operations of an NVIDIA GPU. */
#include "base/checked.h"
#include "kernels/cuda/cuda.h"

/* Two-byte rows that are no multiple of 16 bytes leave cuBLASLt its slow algorithms. */
static enum status check_gemms(const struct op_limits *limits) {
    const size_t width = limits->model_width;
    if (limits->dtype == DTYPE_F32 || width % 8 == 0) return STATUS_OK;
    return status_set(STATUS_DEVICE,
                      "expected a width that is a multiple of 8 for GEMMs in %s on a GPU, found "
                      "%zu: change model.width, or set precision.recipe = fp32",
                      dtype_name(limits->dtype), width);
}

static enum status cuda_check_limits(const struct device *device, const struct op_limits *limits,
                                     bool backward) {
    TRY(check_gemms(limits));
    TRY(cuda_norm_check(device, limits->model_width, limits->scale_modes & 1u << SCALE_TENSOR));
    return cuda_attention_check(device, limits, backward);
}

static size_t cuda_scratch_bytes(const struct device *device, const struct op_limits *limits) {
    size_t bytes = cuda_quantised_gemm_scratch_bytes(device, limits); /* the plain ones' too */
    bytes = size_max(bytes, cuda_column_scratch_bytes(device, limits));
    bytes = size_max(bytes, cuda_norm_scratch_bytes(limits));
    bytes = size_max(bytes, cuda_embedding_scratch_bytes(limits));
    bytes = size_max(bytes, cuda_reduce_scratch_bytes());
    bytes = size_max(bytes, cuda_cross_entropy_scratch_bytes(limits));
    return size_max(bytes, cuda_attention_scratch_bytes(device, limits));
}

const struct ops cuda_ops = {
    .check = cuda_check_limits,
    .scale_support = cuda_scale_support,
    .scratch_bytes = cuda_scratch_bytes,
    .gemm = cuda_gemm,
    .quantised_gemm = cuda_quantised_gemm,
    .quantise = cuda_quantise,
    .embedding_forward = cuda_embedding_forward,
    .embedding_backward = cuda_embedding_backward,
    .norm_forward = cuda_norm_forward,
    .norm_backward = cuda_norm_backward,
    .attention_forward = cuda_attention_forward,
    .attention_backward = cuda_attention_backward,
    .attention_cached = cuda_attention_cached,
    .gelu_forward = cuda_gelu_forward,
    .gelu_backward = cuda_gelu_backward,
    .bias_backward = cuda_bias_backward,
    .cross_entropy = cuda_cross_entropy,
    .convert = cuda_convert,
    .loss_sum = cuda_loss_sum,
    .gradient_sumsq = cuda_gradient_sumsq,
    .sum_parts = cuda_sum_parts,
    .block_sumsq = cuda_block_sumsq,
    .total_sumsq = cuda_total_sumsq,
    .step_begin = cuda_step_begin,
    .scales_begin = cuda_scales_begin,
    .scales_update = cuda_scales_update,
    .step_decide = cuda_step_decide,
    .adamw = cuda_adamw,
    .stream = cuda_stream,
    .find_nonfinite = cuda_find_nonfinite,
};

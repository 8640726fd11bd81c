/* Measured ceilings, behind train/ceiling.h: a floor of one operation. */
#include "train/ceiling.h"

#include "train/floor.h"

static enum status measure_call(struct device *device, const struct op_call *call, enum dtype dtype,
                                size_t scratch_bytes, double warmup_seconds, double seconds,
                                struct gpu_power *power, struct sustained *times) {
    struct op_list list = {0};
    struct floor floor = {.device = device};
    enum status status = STATUS_OK;
    TRY_GOTO(op_list_add(&list, call), cleanup);
    TRY_GOTO(floor_open(&floor, device, &list, scratch_bytes, dtype), cleanup);
    status = floor_measure_calls(&floor, 0, floor.count, warmup_seconds, seconds, power, times);
    floor_close(&floor);
cleanup:
    op_list_close(&list);
    return status;
}

enum status ceiling_copy(struct device *device, double seconds, struct gpu_power *power,
                         double *bytes_per_s) {
    const size_t bytes = device->kind == DEVICE_CPU ? (size_t)64 << 20 : (size_t)2 << 30;
    const struct op_call copy = {
        .kind = OP_CONVERT, .name = "copy", .bytes = 2 * bytes, .written_bytes = bytes,
    };
    struct sustained times;
    TRY(measure_call(device, &copy, DTYPE_BF16, 0, 0.0, seconds, power, &times));
    *bytes_per_s = (double)copy.bytes / times.run_seconds;
    return STATUS_OK;
}

enum status ceiling_gemm(struct device *device, enum dtype dtype, double seconds,
                         struct gpu_power *power, double *tflops, size_t *side) {
    const bool cpu = device->kind == DEVICE_CPU;
    const size_t n = cpu ? 1536 : 8192;
    const struct tensor square = tensor_make(NULL, dtype, n, n);
    const struct op_limits limits = {.tokens = n, .width = n, .sequence_length = 1, .heads = 1,
                                     .head_width = 1, .dtype = dtype};
    const struct op_call call = {
        .kind = OP_GEMM, .name = "gemm", .flops = 2.0 * (double)n * (double)n * (double)n,
        .bytes = 3 * tensor_bytes(square), .written_bytes = tensor_bytes(square),
        .args.gemm = {.c = square, .a = square, .b = square, .transpose_b = true},
    };
    struct sustained times;
    TRY(measure_call(device, &call, dtype, device->ops->scratch_bytes(device, &limits),
                     cpu ? 0.0 : seconds, seconds, power, &times));
    *tflops = call.flops / times.run_seconds * 1e-12;
    *side = n;
    return STATUS_OK;
}

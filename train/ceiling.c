/* Ceilings, behind train/ceiling.h; measured ones are a floor of one operation. */
#include "train/ceiling.h"

#include "train/engine.h"
#include "train/floor.h"
#include "train/op_trace.h"

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
    const size_t bytes = floor_ring_least_bytes(device);
    const struct op_call copy = {
        .kind = OP_CONVERT, .name = "copy", .bytes = 2 * bytes, .written_bytes = bytes,
    };
    struct sustained times;
    TRY(measure_call(device, &copy, DTYPE_BF16, 0, 0.0, seconds, power, &times));
    *bytes_per_s = (double)copy.bytes / times.run_seconds;
    return STATUS_OK;
}

struct op_call ceiling_recipe_gemm(const struct recipe *recipe, size_t m, size_t n, size_t k) {
    const struct recipe_form *a = &recipe->input, *b = &recipe->weight;
    const struct quantised_gemm gemm = {
        .c = tensor_make(NULL, recipe->dtype, m, n),
        .a = {.format = a->format, .mode = a->mode, .rows = m, .columns = k},
        .b = {.format = b->format, .mode = b->mode, .rows = n, .columns = k},
        .fast = recipe->fast_fprop,
    };
    return op_call_of_quantised_gemm(&gemm);
}

size_t ceiling_scratch_bytes(const struct device *device, const struct op_call *gemm) {
    struct op_limits limits = {.tokens = 1, .width = 1, .model_width = 1, .sequence_length = 1};
    if (gemm->kind == OP_GEMM) {
        limits.dtype = gemm->args.gemm.a.dtype;
    } else {
        const struct operand *a = &gemm->args.quantised_gemm.a, *b = &gemm->args.quantised_gemm.b;
        limits.dtype = DTYPE_BF16;
        limits.scale_modes = 1u << a->mode | 1u << b->mode;
        limits.quantised_a = a->rows * a->columns;
        limits.quantised_b = b->rows * b->columns;
    }
    return device->ops->scratch_bytes(device, &limits);
}

enum status ceiling_gemm(struct device *device, const struct recipe *recipe, double seconds,
                         struct gpu_power *power, double *tflops, struct op_call *call) {
    const bool cpu = device->kind == DEVICE_CPU;
    const size_t n = cpu ? 1536 : 8192;
    const struct tensor square = tensor_make(NULL, recipe->dtype, n, n);
    const struct gemm plain = {.c = square, .a = square, .b = square, .transpose_b = true};
    struct sustained times;
    *call = recipe->narrow ? ceiling_recipe_gemm(recipe, n, n, n) : op_call_of_gemm(&plain);
    TRY(measure_call(device, call, recipe->dtype, ceiling_scratch_bytes(device, call),
                     cpu ? 0.0 : seconds, seconds, power, &times));
    *tflops = call->flops / times.run_seconds * 1e-12;
    return STATUS_OK;
}

/* In a narrow recipe mfu.peak is that of its mixture, of no one GEMM. */
static double peak_of(const struct device *device, const struct config *config,
                      enum peak_type type) {
    const struct precision precision = engine_precision(config);
    const struct peak *peak = engine_peak(device);
    if (config->mfu.peak > 0.0 && !precision_narrow(&precision)) return config->mfu.peak;
    return peak == NULL ? 0.0 : peak->tflops[type];
}

/* How the device multiplies operands of this type as they are: as the recipe that has them. */
static enum support plain_support(const struct device *device, enum dtype dtype) {
    int kind = 0;
    while (recipe_row((enum recipe_kind)kind)->dtype != dtype) kind++;
    return recipe_support(device, (enum recipe_kind)kind);
}

struct speed_limit ceiling_of_gemm(const struct device *device, const struct config *config,
                                   const struct op_call *gemm) {
    const struct operand *a = &gemm->args.quantised_gemm.a, *b = &gemm->args.quantised_gemm.b;
    enum peak_type type = PEAK_FP8;
    bool native = true;
    if (gemm->kind == OP_GEMM) {
        type = engine_peak_type(gemm->args.gemm.a.dtype);
        native = plain_support(device, gemm->args.gemm.a.dtype) == SUPPORT_NATIVE;
    } else {
        if (a->format == FORMAT_E2M1) type = PEAK_FP4;
        native = device->ops->scale_support(device, a->mode) == SUPPORT_NATIVE &&
                 device->ops->scale_support(device, b->mode) == SUPPORT_NATIVE;
    }
    return (struct speed_limit){
        .tflops = peak_of(device, config, type), .types = 1u << type, .emulated = !native,
    };
}

struct speed_limit ceiling_of_gemms(const struct device *device, const struct config *config,
                                    const struct op_list *list) {
    struct speed_limit all = {0};
    double flops = 0.0, seconds = 0.0; /* of a TFLOPS */
    bool known = true;
    for (size_t i = 0; i < list->count; i++) {
        if (!op_call_is_gemm(&list->calls[i])) continue;
        const struct speed_limit one = ceiling_of_gemm(device, config, &list->calls[i]);
        all.mixed = all.mixed || (all.types != 0 && all.types != one.types);
        all.types |= one.types;
        all.emulated = all.emulated || one.emulated;
        known = known && one.tflops > 0.0;
        flops += list->calls[i].flops;
        if (known) seconds += list->calls[i].flops / one.tflops;
    }
    if (known && seconds > 0.0) all.tflops = flops / seconds;
    return all;
}

/*
 * Recorded steps, and the floor made of one. Oracles: bit equality of a replayed list with the
 * step that it was recorded from; FLOPs by train/flops.h and bytes by the sums of the list,
 * exactly; the definition of a ring (no operand of one operation overlaps another, none lies
 * outside).
 */
#include <stdio.h>

#include "base/clock.h"
#include "kernels/traffic.h"
#include "tests/train/small_run.h"
#include "train/ceiling.h"
#include "train/flops.h"
#include "train/floor.h"
#include "train/step_trace.h"

/* One micro-batch, so that no tokens come in between. */
static void whole_config(struct config *config, enum config_recipe recipe) {
    small_config(config, recipe);
    config->train.micro_batch = BATCH;
}

/* Every kind of operation of a step, with its own arguments, where they were recorded. */
static void a_replayed_list_is_the_step(void **state) {
    (void)state;
    for (int recompute = CONFIG_RECOMPUTE_NONE; recompute <= CONFIG_RECOMPUTE_BLOCK; recompute++) {
        struct snapshot snapshots[2];
        for (int replayed = 0; replayed < 2; replayed++) {
            struct small_run run;
            struct op_list list = {0};
            static struct op_trace trace;
            whole_config(&run.config, CONFIG_RECIPE_BF16);
            run.config.train.recompute = recompute;
            small_run_open(&run, ENGINE_TRAIN);
            const struct step_policy policy = step_policy(&run.config, 0);
            if (replayed) {
                small_run_gradients(&run,
                                    &policy); /* for its tokens; the list overwrites the rest */
                EXPECT_OK(step_trace(&run.engine, &run.config, &trace, &list));
                for (size_t i = 0; i < list.count; i++) {
                    EXPECT_OK(op_call_run(&run.engine.device, &list.calls[i]));
                }
                assert_true(list.count > 40);
            } else {
                small_run_step(&run, &policy);
            }
            snapshots[replayed] = snapshot_of(&run);
            op_list_close(&list);
            small_run_close(&run);
        }
        assert_true(snapshot_equal(snapshots[0], snapshots[1]));
        free(snapshots[0].memory);
        free(snapshots[1].memory);
    }
}

/* What narrow recipes are tested on: their blocks divide it. */
enum { WIDTH = 64, TOKENS = 32 };
struct narrow_variant {
    enum config_recipe recipe, lm_head; /* fp32, not narrow, is like bf16 there */
    enum config_fp8_scaling scaling;
};
static const struct narrow_variant narrow_variants[] = {
    {CONFIG_RECIPE_FP8, CONFIG_RECIPE_FP8, CONFIG_FP8_DELAYED},
    {CONFIG_RECIPE_FP8, CONFIG_RECIPE_FP32, CONFIG_FP8_CURRENT},
    {CONFIG_RECIPE_FP8_BLOCK, CONFIG_RECIPE_FP32, 0},
    {CONFIG_RECIPE_MXFP8, CONFIG_RECIPE_MXFP8, 0},
    {CONFIG_RECIPE_NVFP4, CONFIG_RECIPE_FP32, 0},
};
enum { NARROW_VARIANTS = sizeof narrow_variants / sizeof narrow_variants[0] };

static void narrow_config(struct config *config, const struct narrow_variant *v) {
    whole_config(config, v->recipe);
    config->model.width = WIDTH;
    config->model.heads = 2;
    config->model.context = config->train.sequence_length = TOKENS;
    config->precision.lm_head = (int)v->lm_head;
    config->precision.scaling = (int)v->scaling;
}

/* One step, always on the same tokens. */
static void narrow_step(struct small_run *run) {
    struct gpt_training *t = &run->engine.training;
    const struct step_policy policy = step_policy(&run->config, 0);
    small_tokens(t->inputs, BATCH * TOKENS, 3);
    small_tokens(t->targets, BATCH * TOKENS, 4);
    EXPECT_OK(step_begin(&run->engine, &policy));
    EXPECT_OK(step_micro_batch(&run->engine, &policy, true));
    EXPECT_OK(step_update(&run->engine, &run->config));
}

/* The second step: under delayed scaling that is the first with scales known before. */
static void a_replayed_list_is_the_step_of_narrow_recipes(void **state) {
    (void)state;
    for (size_t v = 0; v < NARROW_VARIANTS; v++) {
        struct small_run runs[2];
        struct op_list list = {0};
        static struct op_trace trace;
        size_t quantised = 0;
        for (size_t i = 0; i < 2; i++) {
            narrow_config(&runs[i].config, &narrow_variants[v]);
            small_run_open(&runs[i], ENGINE_TRAIN);
            narrow_step(&runs[i]);
        }
        narrow_step(&runs[0]);
        EXPECT_OK(step_trace(&runs[1].engine, &runs[1].config, &trace, &list));
        for (size_t i = 0; i < list.count; i++) {
            quantised += list.calls[i].kind == OP_QUANTISED_GEMM;
            EXPECT_OK(op_call_run(&runs[1].engine.device, &list.calls[i]));
        }
        assert_int_equal(quantised, narrow_variants[v].lm_head == CONFIG_RECIPE_FP32 ? 24 : 27);
        const struct snapshot stepped = snapshot_of(&runs[0]), replayed = snapshot_of(&runs[1]);
        assert_true(snapshot_equal(stepped, replayed));
        assert_memory_equal(runs[0].engine.scales, runs[1].engine.scales,
                            gpt_scale_count(&runs[0].engine.gpt) * sizeof(struct scale_state));
        free(stepped.memory);
        free(replayed.memory);
        op_list_close(&list);
        small_run_close(&runs[0]);
        small_run_close(&runs[1]);
    }
}

static double streamed_bytes(int64_t layers, int64_t batch, enum config_fp8_scaling scaling) {
    const struct narrow_variant v = {CONFIG_RECIPE_FP8, CONFIG_RECIPE_FP32, scaling};
    struct config config;
    struct step_work work;
    double bytes = 0.0;
    narrow_config(&config, &v);
    config.model.layers = layers;
    config.train.batch = config.train.micro_batch = batch;
    EXPECT_OK(step_work_open(&work, &config));
    for (size_t i = 0; i < work.calls.count; i++) {
        const struct op_call *call = &work.calls.calls[i];
        const bool attention = strncmp(call->name, "attention", 9) == 0;
        if (!attention && !op_call_is_gemm(call)) bytes += (double)call->bytes;
    }
    step_work_close(&work);
    return bytes;
}

/* Bytes a token a layer in fp8, from two depths and two numbers of tokens, by hand in units of the
 * width C. Delayed: two norms of residual, branch, new residual in BF16 and two copies, 16; two
 * norms back of three reads, a write and two copies, 20; GELU and back 16 and 24; attention's
 * output and the gradient of query, key and value read and copied, 4 and 12; 92 in all. Current:
 * norms, GELU and its gradient are written in BF16 and read again, 8, 16 and 16; a residual's
 * gradient is read again, 4; what attention made is read for its amax first, 2 and 6. Beside
 * these mean and rstd of two norms in FP32, there and back. */
static void bytes_are_those_by_hand(void **state) {
    static const double widths[] = {[CONFIG_FP8_DELAYED] = 92.0, [CONFIG_FP8_CURRENT] = 144.0};
    (void)state;
    for (int scaling = CONFIG_FP8_DELAYED; scaling <= CONFIG_FP8_CURRENT; scaling++) {
        const enum config_fp8_scaling s = (enum config_fp8_scaling)scaling;
        const double three = streamed_bytes(3, 6, s) - streamed_bytes(3, 4, s);
        const double two = streamed_bytes(2, 6, s) - streamed_bytes(2, 4, s);
        const double expected = widths[scaling] * WIDTH + 4 * 2 * sizeof(float);
        assert_true((three - two) / (2.0 * TOKENS) == expected);
    }
}

static void equal_work_is_found(void **state) {
    struct step_work work;
    struct config config;
    char text[OP_CALL_TEXT_BYTES];
    size_t gemms = 0, norms = 0;
    (void)state;
    small_config(&config, CONFIG_RECIPE_BF16);
    EXPECT_OK(step_work_open(&work, &config));
    for (size_t i = 0; i < work.calls.count; i++) {
        const struct op_call *call = &work.calls.calls[i];
        if (op_list_first_same(&work.calls, i) != i) continue;
        gemms += call->kind == OP_GEMM;
        norms += call->kind == OP_NORM_FORWARD;
    }
    /* 15 shapes (op_trace_test.c); the four weight gradients of a block and the head's also add,
     * in the second micro-batch */
    assert_int_equal(gemms, 15 + 5);
    assert_int_equal(norms, 2); /* the first has no branch to add */
    op_call_text(text, &work.calls.calls[2]);
    assert_string_equal(work.calls.calls[2].name, "norm_forward");
    op_call_text(text, &work.calls.calls[3]); /* query, key and value: N = 14, C = 24 */
    assert_string_equal(text, "gemm 14 x 72 x 24 NT bf16 -> bf16, bias");
    step_work_close(&work);
}

/* [begin, end) of an operand that lies in one of the floor's rings, or nowhere. */
static void assert_inside(const struct floor_ring *ring, const void *data, size_t bytes) {
    const char *begin = data;
    assert_true(begin >= ring->base && begin + bytes <= ring->base + ring->bytes);
    assert_int_equal((size_t)(begin - ring->base) % ARENA_ALIGNMENT, 0);
}

static void check_gemm(const struct floor *floor, const struct op_call *call) {
    const struct gemm *g = &call->args.gemm;
    assert_inside(&floor->operands, g->a.data, tensor_bytes(g->a));
    assert_inside(&floor->operands, g->b.data, tensor_bytes(g->b));
    assert_true((char *)g->a.data + tensor_bytes(g->a) <= (char *)g->b.data);
    const void *bias = op_call_bias(call).data;
    if (bias != NULL) assert_true((char *)g->b.data + tensor_bytes(g->b) <= (const char *)bias);
}

static void check_operand(const struct floor *floor, const struct operand *o) {
    const bool tensor = o->mode == SCALE_TENSOR || o->mode == SCALE_NV;
    assert_inside(&floor->codes[o->format], o->codes, operand_code_bytes(o));
    assert_ptr_equal(o->state, tensor ? floor->scale : NULL);
    if (o->mode == SCALE_TENSOR) assert_null(o->scales);
    else assert_inside(&floor->scales[o->mode], o->scales, operand_scale_bytes(o));
}

static void check_quantised_gemm(const struct floor *floor, const struct op_call *call) {
    const struct quantised_gemm *g = &call->args.quantised_gemm;
    check_operand(floor, &g->a);
    check_operand(floor, &g->b);
    if (g->a.format == g->b.format) {
        assert_true((char *)g->a.codes + operand_code_bytes(&g->a) <= (char *)g->b.codes);
    }
    if (g->a.mode == g->b.mode && g->a.mode != SCALE_TENSOR) {
        assert_true((char *)g->a.scales + operand_scale_bytes(&g->a) <= (char *)g->b.scales);
    }
}

static void check_bias_and_result(const struct floor *floor, const struct op_call *call) {
    const struct tensor bias = op_call_bias(call), c = op_call_result(call);
    if (bias.data != NULL) assert_inside(&floor->operands, bias.data, tensor_bytes(bias));
    if (op_call_adds(call)) assert_ptr_equal(c.data, floor->sums);
    else assert_inside(&floor->results, c.data, tensor_bytes(c));
}

static void check_call(const struct floor *floor, const struct floor_call *call) {
    const struct stream *s = &call->stream;
    switch (call->part) {
    case FLOOR_GEMM:
        if (call->call.kind == OP_GEMM) check_gemm(floor, &call->call);
        else check_quantised_gemm(floor, &call->call);
        check_bias_and_result(floor, &call->call);
        break;
    case FLOOR_ATTENTION: break;
    default:
        assert_inside(&floor->operands, s->in, s->read_units * STREAM_UNIT_BYTES);
        assert_inside(&floor->results, s->out, s->write_units * STREAM_UNIT_BYTES);
        break;
    }
}

static void check_floor(const struct config *config) {
    struct step_work work;
    struct device device;
    struct floor floor;
    char own[128];
    size_t calls[FLOOR_PARTS] = {0}, units = 0;
    EXPECT_OK(step_work_open(&work, config));
    EXPECT_OK(device_open_cpu(&device, 2));
    device_set_scratch(&device, own, sizeof own);
    device_share_scratch(&device, 64);
    EXPECT_OK(floor_open(&floor, &device, &work.calls, work.scratch_bytes, engine_dtype(config)));
    for (size_t i = 0; i < work.calls.count; i++) {
        const struct op_call *call = &work.calls.calls[i];
        const bool attention = strncmp(call->name, "attention", 9) == 0;
        const enum floor_part part = op_call_is_gemm(call) ? FLOOR_GEMM
                                     : attention           ? FLOOR_ATTENTION : FLOOR_BYTES;
        calls[part]++;
        if (part != FLOOR_BYTES) continue;
        units += (call->bytes - call->written_bytes + 15) / 16 + (call->written_bytes + 15) / 16;
    }
    for (size_t part = 0; part < FLOOR_PARTS; part++) {
        assert_int_equal(floor.work[part].calls, calls[part]);
    }
    assert_int_equal(floor.work[FLOOR_BYTES].bytes, units * STREAM_UNIT_BYTES);
    const double tokens = (double)step_tokens(config);
    const double padding = (128.0 - VOCABULARY) * 6.0 * (double)config->model.width *
                           tokens; /* of the head, multiplied too */
    assert_true(floor.work[FLOOR_GEMM].flops - padding + floor.work[FLOOR_ATTENTION].flops ==
                (double)work.flops.total * tokens);
    for (size_t i = 0; i < floor.count; i++) check_call(&floor, &floor.calls[i]);
    floor_close(&floor);
    assert_true(device.scratch == own && device.scratch_bytes == 64); /* as before */
    assert_int_equal(device.attention_scratch_bytes, sizeof own);
    device_close(&device);
    step_work_close(&work);
}

/* What the floor does is what the step asked for: FLOPs and calls equal, bytes rounded up to
 * units. */
static void the_floor_does_the_work_of_the_step(void **state) {
    struct config config;
    (void)state;
    for (int recipe = CONFIG_RECIPE_FP32; recipe <= CONFIG_RECIPE_FP16; recipe++) {
        small_config(&config, (enum config_recipe)recipe);
        check_floor(&config);
    }
    for (size_t i = 0; i < NARROW_VARIANTS; i++) {
        narrow_config(&config, &narrow_variants[i]);
        check_floor(&config);
    }
}

/* Codes and scales are numbers: what quantised GEMMs add up is finite, and not zero. */
static void the_floor_runs_in_narrow_recipes(void **state) {
    (void)state;
    for (size_t i = 0; i < NARROW_VARIANTS; i++) {
        struct config config;
        struct step_work work;
        struct device device;
        struct floor floor;
        struct sustained times;
        size_t bad = 0;
        narrow_config(&config, &narrow_variants[i]);
        config.train.micro_batch = BATCH / 2; /* the second adds */
        EXPECT_OK(step_work_open(&work, &config));
        EXPECT_OK(device_open_cpu(&device, 2));
        EXPECT_OK(floor_open(&floor, &device, &work.calls, work.scratch_bytes, DTYPE_BF16));
        EXPECT_OK(floor_measure_calls(&floor, 0, floor.count, 0.0, 0.005, NULL, &times));
        const float *sums = floor.sums;
        for (size_t j = 0; j < WIDTH * WIDTH; j++) bad += !isfinite(sums[j]) || sums[j] == 0.0f;
        assert_int_equal(bad, 0);
        floor_close(&floor);
        device_close(&device);
        step_work_close(&work);
    }
}

/* It runs, every part of it, and its GEMMs multiply numbers: none of what they add to is left
 * zero or not finite. */
static void the_floor_runs(void **state) {
    struct config config;
    struct step_work work;
    struct device device;
    struct floor floor;
    struct floor_times times;
    struct gpu_power power;
    size_t bad = 0;
    (void)state;
    small_config(&config, CONFIG_RECIPE_BF16);
    EXPECT_OK(step_work_open(&work, &config));
    EXPECT_OK(device_open_cpu(&device, 2));
    EXPECT_OK(floor_open(&floor, &device, &work.calls, work.scratch_bytes, DTYPE_BF16));
    gpu_power_open(&power, "");
    EXPECT_OK(floor_measure(&floor, 0.02, &power, &times));
    assert_true(times.whole.runs > 0 && times.whole.run_seconds > 0.0);
    assert_true(times.whole.seconds >= 0.02);
    for (size_t part = 0; part < FLOOR_PARTS; part++)
        assert_true(times.parts[part].run_seconds > 0.0);
    const float *sums = floor.sums;
    for (size_t i = 0; i < 24 * 24; i++) bad += !isfinite(sums[i]) || sums[i] == 0.0f;
    assert_int_equal(bad, 0);
    EXPECT_OK(device.ops->find_nonfinite(
        &device, tensor_make(floor.attention_out.data, DTYPE_BF16, 14, 24), &bad));
    assert_true(bad == SIZE_MAX);
    gpu_power_close(&power);
    floor_close(&floor);
    device_close(&device);
    step_work_close(&work);
}

/* A stream longer than a ring is several, of the same bytes together; a GEMM-less list has no
 * GEMMs. */
static void long_streams_are_cut(void **state) {
    const struct op_call call = {
        .kind = OP_ADAMW, .name = "adamw", .bytes = (300 << 20) + 40, .written_bytes = 40,
    };
    struct op_list list = {0};
    struct device device;
    struct floor floor;
    struct floor_times times;
    size_t reads = 0, writes = 0;
    (void)state;
    EXPECT_OK(op_list_add(&list, &call));
    EXPECT_OK(device_open_cpu(&device, 2));
    EXPECT_OK(floor_open(&floor, &device, &list, 0, DTYPE_F32));
    assert_int_equal(floor.count, 5); /* of at most 64 MiB */
    for (size_t i = 0; i < floor.count; i++) {
        check_call(&floor, &floor.calls[i]);
        reads += floor.calls[i].stream.read_units;
        writes += floor.calls[i].stream.write_units;
    }
    assert_int_equal(reads, (300 << 20) / 16);
    assert_int_equal(writes, 3);
    EXPECT_OK(floor_measure(&floor, 0.01, NULL, &times));
    assert_true(times.parts[FLOOR_BYTES].runs > 0 && times.parts[FLOOR_GEMM].runs == 0);
    floor_close(&floor);
    device_close(&device);
    op_list_close(&list);
}

/* A device on which a run takes a second, and every tenth batch two, by a clock that stands
 * still but for runs. */
static double slow_marks[DEVICE_MARKS], slow_seconds;
static size_t slow_batches;

static enum status slow_run(struct device *device, void *context) {
    (void)device;
    (void)context;
    slow_seconds += slow_batches % 10 == 0 ? 2.0 : 1.0;
    return STATUS_OK;
}

static enum status slow_mark(struct device *device, size_t index) {
    (void)device;
    slow_marks[index] = slow_seconds;
    slow_batches++;
    return STATUS_OK;
}

static enum status slow_between(struct device *device, size_t first, size_t second,
                                double *seconds) {
    (void)device;
    *seconds = slow_marks[second] - slow_marks[first];
    return STATUS_OK;
}

/* It goes on for as long as was asked, though batches outnumber the device's marks. */
static void long_measurements_go_on(void **state) {
    (void)state;
    struct device device;
    struct sustained out;
    EXPECT_OK(device_open_cpu(&device, 1));
    const struct device_calls *const own = device.calls;
    struct device_calls wrapped = *own;
    wrapped.mark = slow_mark;
    wrapped.seconds_between = slow_between;
    device.calls = &wrapped;
    const double begun = clock_seconds();
    EXPECT_OK(sustained_run(&device, slow_run, NULL, 0.2, NULL, &out));
    assert_true(clock_seconds() - begun >= 0.2);
    assert_true(out.runs > DEVICE_MARKS);
    assert_true(out.median_seconds == 1.0);
    assert_true(out.seconds > 1.09 * (double)out.runs && out.seconds < 1.11 * (double)out.runs);
    assert_true(out.run_seconds == out.seconds / (double)out.runs);
    device.calls = own;
    device_close(&device);
}

static void ceilings_are_measured(void **state) {
    struct device device;
    double rate = 0.0;
    (void)state;
    EXPECT_OK(device_open_cpu(&device, 2));
    EXPECT_OK(ceiling_copy(&device, 0.01, NULL, &rate));
    assert_true(rate > 0.0);
    for (int kind = 0; kind < RECIPE_COUNT; kind++) {
        const struct recipe *recipe = recipe_row((enum recipe_kind)kind);
        struct op_call call;
        double tflops = 0.0;
        EXPECT_OK(ceiling_gemm(&device, recipe, 0.01, NULL, &tflops, &call));
        assert_true(tflops > 0.0);
        assert_int_equal(call.kind, recipe->narrow ? OP_QUANTISED_GEMM : OP_GEMM);
    }
    device_close(&device);
}

/* Linears in FP8 and the head in BF16, at the data sheet's figures for B200, by hand. */
static void gemms_have_the_peaks_of_their_types(void **state) {
    const struct narrow_variant v = {CONFIG_RECIPE_FP8, CONFIG_RECIPE_FP32, CONFIG_FP8_DELAYED};
    struct config config;
    struct step_work work;
    struct device device;
    double narrow = 0.0, wide = 0.0;
    (void)state;
    narrow_config(&config, &v);
    EXPECT_OK(step_work_open(&work, &config));
    EXPECT_OK(device_open_cpu(&device, 1));
    for (size_t i = 0; i < work.calls.count; i++) {
        const struct op_call *call = &work.calls.calls[i];
        if (call->kind == OP_QUANTISED_GEMM) narrow += call->flops;
        if (call->kind == OP_GEMM) wide += call->flops;
    }
    struct speed_limit limit = ceiling_of_gemms(&device, &config, &work.calls);
    assert_true(limit.tflops == 0.0 && limit.emulated && limit.mixed);
    device.kind = DEVICE_CUDA; /* in name alone: nothing runs on it */
    snprintf(device.name, sizeof device.name, "NVIDIA B200");
    limit = ceiling_of_gemms(&device, &config, &work.calls);
    const double expected = (narrow + wide) / (narrow / 4500.0 + wide / 2250.0);
    assert_true(fabs(limit.tflops - expected) < 1e-9 * expected && limit.mixed);
    assert_int_equal(limit.types, 1u << PEAK_FP8 | 1u << PEAK_BF16);
    device.kind = DEVICE_CPU;
    device_close(&device);
    step_work_close(&work);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_replayed_list_is_the_step),
        cmocka_unit_test(a_replayed_list_is_the_step_of_narrow_recipes),
        cmocka_unit_test(bytes_are_those_by_hand),
        cmocka_unit_test(equal_work_is_found),
        cmocka_unit_test(the_floor_does_the_work_of_the_step),
        cmocka_unit_test(the_floor_runs),
        cmocka_unit_test(the_floor_runs_in_narrow_recipes),
        cmocka_unit_test(long_streams_are_cut),
        cmocka_unit_test(long_measurements_go_on),
        cmocka_unit_test(ceilings_are_measured),
        cmocka_unit_test(gemms_have_the_peaks_of_their_types),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

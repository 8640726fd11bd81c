/* Building and running the floor, behind train/floor.h. */
#include "train/floor.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/random.h"
#include "train/recording.h"

size_t floor_ring_least_bytes(const struct device *device) {
    return device->kind == DEVICE_CPU ? (size_t)64 << 20 : (size_t)2 << 30;
}

/* What operands repeat, of numbers and of codes: sizes that no row of a matrix divides. */
enum {
    PATTERN_BYTES = (4 << 20) + 17 * ARENA_ALIGNMENT,
    CODE_PATTERN_BYTES = (1 << 20) + 17 * ARENA_ALIGNMENT,
};

static size_t aligned(size_t bytes) { return align_up(bytes, ARENA_ALIGNMENT); }

static enum floor_part part_of(const struct op_call *call) {
    if (op_call_is_gemm(call)) return FLOOR_GEMM;
    const bool attention = call->kind == OP_ATTENTION_FORWARD ||
                           call->kind == OP_ATTENTION_BACKWARD;
    return attention ? FLOOR_ATTENTION : FLOOR_BYTES;
}

static size_t units_of(size_t bytes) { return ceil_div(bytes, STREAM_UNIT_BYTES); }

/* What the operands of the step need: the rings' largest customers, and the rest. */
struct floor_needs {
    size_t operands, results, sums, qkv, attention_out, log_sum_exp; /* bytes */
    size_t codes[FLOOR_FORMATS], scales[FLOOR_MODES];
    size_t calls;
};

/* Bytes of a GEMM's operands in a ring: of each, and of both if they follow each other there. */
struct floor_pair {
    size_t a, b;
    bool together;
};

static struct floor_pair codes_of(const struct quantised_gemm *g) {
    return (struct floor_pair){aligned(operand_code_bytes(&g->a)),
                               aligned(operand_code_bytes(&g->b)), g->a.format == g->b.format};
}

static struct floor_pair scales_of(const struct quantised_gemm *g) {
    return (struct floor_pair){aligned(operand_scale_bytes(&g->a)),
                               aligned(operand_scale_bytes(&g->b)), g->a.mode == g->b.mode};
}

/* At least `least` bytes, so that an operand is in no cache when its turn comes again. */
static void need_pair(size_t *a, size_t *b, struct floor_pair pair, size_t least) {
    if (pair.a + pair.b == 0) return;
    *a = size_max(size_max(*a, least), pair.a + (pair.together ? pair.b : 0));
    *b = size_max(size_max(*b, least), pair.b);
}

static void need_quantised_gemm(struct floor_needs *needs, const struct quantised_gemm *g,
                                size_t least_bytes) {
    const size_t share = 32; /* of a scale's bytes to its codes', or more */
    need_pair(&needs->codes[g->a.format], &needs->codes[g->b.format], codes_of(g), least_bytes);
    need_pair(&needs->scales[g->a.mode], &needs->scales[g->b.mode], scales_of(g),
              aligned(least_bytes / share));
}

static void need_gemm(struct floor_needs *needs, const struct op_call *call, size_t least_bytes) {
    const struct tensor c = op_call_result(call), bias = op_call_bias(call);
    const struct gemm *g = &call->args.gemm;
    size_t operands = bias.data == NULL ? 0 : aligned(tensor_bytes(bias));
    if (call->kind == OP_GEMM) {
        operands += aligned(tensor_bytes(g->a)) + aligned(tensor_bytes(g->b));
    } else {
        need_quantised_gemm(needs, &call->args.quantised_gemm, least_bytes);
    }
    needs->operands = size_max(needs->operands, operands);
    size_t *results = op_call_adds(call) ? &needs->sums : &needs->results;
    *results = size_max(*results, aligned(tensor_bytes(c)));
}

static void need_attention(struct floor_needs *needs, const struct op_call *call) {
    const struct attention_forward *f = &call->args.attention_forward;
    const struct attention_backward *b = &call->args.attention_backward;
    const bool backward = call->kind == OP_ATTENTION_BACKWARD;
    const struct tensor qkv = backward ? b->qkv : f->qkv, out = backward ? b->out : f->out;
    const size_t heads = backward ? b->heads : f->heads;
    needs->qkv = size_max(needs->qkv, tensor_bytes(qkv));
    needs->attention_out = size_max(needs->attention_out, tensor_bytes(out));
    needs->log_sum_exp = size_max(needs->log_sum_exp, heads * out.rows * sizeof(float));
    if (!backward) return;
    needs->operands = size_max(needs->operands, aligned(tensor_bytes(b->out_gradient)));
    needs->results = size_max(needs->results, aligned(tensor_bytes(b->qkv_gradient)));
}

/* Into how many streams an operation's bytes are cut. */
static size_t stream_count(const struct op_call *call, size_t piece_bytes) {
    const size_t read = call->bytes - call->written_bytes;
    return size_max(1, ceil_div(size_max(read, call->written_bytes), piece_bytes));
}

static struct floor_needs needs_of(const struct op_list *step, size_t least_bytes) {
    struct floor_needs needs = {.operands = least_bytes, .results = least_bytes};
    for (size_t i = 0; i < step->count; i++) {
        const struct op_call *call = &step->calls[i];
        switch (part_of(call)) {
        case FLOOR_GEMM: need_gemm(&needs, call, least_bytes); break;
        case FLOOR_ATTENTION: need_attention(&needs, call); break;
        default: needs.calls += stream_count(call, least_bytes) - 1; break;
        }
        needs.calls++;
    }
    return needs;
}

static enum status take_ring(struct arena *arena, size_t bytes, struct floor_ring *ring) {
    void *base = NULL;
    *ring = (struct floor_ring){.bytes = bytes};
    if (bytes == 0) return STATUS_OK;
    TRY(arena_take(arena, bytes, 1, &base));
    ring->base = base;
    return STATUS_OK;
}

static enum status lay_out(struct floor *floor, struct arena *arena,
                           const struct floor_needs *needs, size_t scratch_bytes, void **scratch) {
    void *lse = NULL, *checksum = NULL, *scale = NULL;
    TRY(take_ring(arena, needs->operands, &floor->operands));
    TRY(arena_take(arena, needs->qkv, 1,
                   &floor->qkv.data)); /* behind the operands: filled with them */
    for (size_t i = 0; i < FLOOR_FORMATS; i++) {
        TRY(take_ring(arena, needs->codes[i], &floor->codes[i]));
    }
    for (size_t i = 0; i < FLOOR_MODES; i++) {
        TRY(take_ring(arena, needs->scales[i], &floor->scales[i]));
    }
    TRY(take_ring(arena, needs->results, &floor->results));
    TRY(arena_take(arena, needs->sums, 1, &floor->sums));
    TRY(arena_take(arena, needs->attention_out, 1, &floor->attention_out.data));
    TRY(arena_take(arena, needs->log_sum_exp, 1, &lse));
    TRY(arena_take(arena, 1, sizeof *floor->checksum, &checksum));
    TRY(arena_take(arena, 1, sizeof *floor->scale, &scale));
    TRY(arena_take(arena, scratch_bytes, 1, scratch));
    floor->log_sum_exp = lse;
    floor->checksum = checksum;
    floor->scale = scale;
    return STATUS_OK;
}

/* [base, base + bytes): the pattern, then copies of what is there. */
static enum status repeat(struct floor *floor, char *base, size_t bytes, const void *pattern,
                          size_t pattern_bytes) {
    size_t filled = size_min(bytes, pattern_bytes);
    TRY(device_upload(floor->device, base, pattern, filled));
    while (filled < bytes) {
        const size_t units = size_min(filled, bytes - filled) / STREAM_UNIT_BYTES;
        const struct stream copy = {base + filled, base, units, units, floor->checksum};
        TRY(floor->device->ops->stream(floor->device, &copy));
        filled += units * STREAM_UNIT_BYTES;
    }
    return STATUS_OK;
}

static void draw_numbers(void *pattern, enum dtype dtype) {
    for (size_t i = 0; i < PATTERN_BYTES / dtype_bytes(dtype); i++) {
        const float x = random_normal(1, RANDOM_TEST, i);
        switch (dtype) {
        case DTYPE_F32: ((float *)pattern)[i] = x; break;
        case DTYPE_BF16: ((uint16_t *)pattern)[i] = bf16_from_float(x); break;
        case DTYPE_F16: ((uint16_t *)pattern)[i] = f16_from_float(x); break;
        }
    }
}

static void draw_codes(uint8_t *pattern, enum number_format format) {
    const float factor = format_max(format) / 4.0f;
    for (size_t i = 0; i < CODE_PATTERN_BYTES; i++) {
        pattern[i] = format_encode(format, factor * random_normal(1, RANDOM_TEST, i));
        if (format != FORMAT_E2M1) continue;
        const float other = factor * random_normal(2, RANDOM_TEST, i);
        pattern[i] = (uint8_t)(pattern[i] | format_encode(format, other) << 4);
    }
}

/* 1 in what each mode has for scales. */
static void draw_ones(void *pattern, enum scale_mode mode) {
    const float one = 1.0f;
    if (mode == SCALE_MX || mode == SCALE_NV) {
        memset(pattern, mode == SCALE_MX ? (int)UE8M0_ONE : e4m3_from_float(one),
               CODE_PATTERN_BYTES);
        return;
    }
    for (size_t i = 0; i < CODE_PATTERN_BYTES / sizeof one; i++) ((float *)pattern)[i] = one;
}

static enum status fill_narrow(struct floor *floor, void *pattern) {
    const struct scale_state one = {.scale = 1.0f, .inverse = 1.0f, .largest = 1.0f};
    for (int i = 0; i < FLOOR_FORMATS; i++) {
        if (floor->codes[i].bytes == 0) continue;
        draw_codes(pattern, (enum number_format)i);
        TRY(repeat(floor, floor->codes[i].base, floor->codes[i].bytes, pattern,
                   CODE_PATTERN_BYTES));
    }
    for (int i = 0; i < FLOOR_MODES; i++) {
        if (floor->scales[i].bytes == 0) continue;
        draw_ones(pattern, (enum scale_mode)i);
        TRY(repeat(floor, floor->scales[i].base, floor->scales[i].bytes, pattern,
                   CODE_PATTERN_BYTES));
    }
    return device_upload(floor->device, floor->scale, &one, sizeof one);
}

static enum status fill(struct floor *floor, size_t operand_bytes, enum dtype dtype) {
    void *pattern = malloc(PATTERN_BYTES);
    if (pattern == NULL) return status_set(STATUS_MEMORY, "out of memory for random operands");
    draw_numbers(pattern, dtype);
    enum status status = repeat(floor, floor->operands.base, operand_bytes, pattern,
                                PATTERN_BYTES);
    if (status == STATUS_OK) status = fill_narrow(floor, pattern);
    free(pattern);
    return status;
}

static void *ring_take(struct floor_ring *ring, size_t bytes) {
    if (ring->used + aligned(bytes) > ring->bytes) ring->used = 0;
    void *taken = ring->base + ring->used;
    ring->used += aligned(bytes);
    return taken;
}

static struct floor_call *add_call(struct floor *floor, enum floor_part part, double flops,
                                   size_t bytes) {
    struct floor_call *call = &floor->calls[floor->count++];
    call->part = part;
    floor->work[part].calls++;
    floor->work[part].flops += flops;
    floor->work[part].bytes += bytes;
    return call;
}

/* a, b and the bias of one GEMM follow each other: the ring holds them all at once. */
static void place_gemm(struct floor *floor, struct op_call *call) {
    struct gemm *g = &call->args.gemm;
    const size_t bias = g->bias == NULL ? 0 : aligned(tensor_bytes(call->pointees[0]));
    char *operands = ring_take(&floor->operands, aligned(tensor_bytes(g->a)) +
                                                     aligned(tensor_bytes(g->b)) + bias);
    g->a.data = operands;
    g->b.data = operands + aligned(tensor_bytes(g->a));
    if (bias > 0) call->pointees[0].data = (char *)g->b.data + aligned(tensor_bytes(g->b));
}

static void take_pair(struct floor_ring *a_ring, struct floor_ring *b_ring, struct floor_pair pair,
                      void **a, void **b) {
    *a = *b = NULL;
    if (pair.a + pair.b == 0) return; /* scales of whole tensors */
    char *first = ring_take(a_ring, pair.a + (pair.together ? pair.b : 0));
    *a = first;
    *b = pair.together ? first + pair.a : ring_take(b_ring, pair.b);
}

static void place_quantised_gemm(struct floor *floor, struct op_call *call) {
    struct quantised_gemm *g = &call->args.quantised_gemm;
    struct operand *const both[2] = {&g->a, &g->b};
    take_pair(&floor->codes[g->a.format], &floor->codes[g->b.format], codes_of(g), &g->a.codes,
              &g->b.codes);
    take_pair(&floor->scales[g->a.mode], &floor->scales[g->b.mode], scales_of(g), &g->a.scales,
              &g->b.scales);
    for (size_t i = 0; i < 2; i++) {
        const bool tensor = both[i]->mode == SCALE_TENSOR || both[i]->mode == SCALE_NV;
        both[i]->state = tensor ? floor->scale : NULL;
    }
    if (g->bias != NULL) {
        struct tensor *bias = &call->pointees[0];
        bias->data = ring_take(&floor->operands, tensor_bytes(*bias));
    }
}

static void add_gemm(struct floor *floor, const struct op_call *from) {
    struct op_call *to = &add_call(floor, FLOOR_GEMM, from->flops, from->bytes)->call;
    const bool plain = from->kind == OP_GEMM;
    *to = *from;
    if (plain) place_gemm(floor, to);
    else place_quantised_gemm(floor, to);
    struct tensor *c = plain ? &to->args.gemm.c : &to->args.quantised_gemm.c;
    c->data = op_call_adds(from) ? floor->sums : ring_take(&floor->results, tensor_bytes(*c));
}

static void add_attention(struct floor *floor, const struct op_call *from) {
    struct op_call *to = &add_call(floor, FLOOR_ATTENTION, from->flops, from->bytes)->call;
    *to = *from;
    if (to->kind == OP_ATTENTION_FORWARD) {
        struct attention_forward *f = &to->args.attention_forward;
        f->qkv.data = floor->qkv.data;
        f->out.data = floor->attention_out.data;
        f->log_sum_exp = floor->log_sum_exp;
        return;
    }
    struct attention_backward *b = &to->args.attention_backward;
    b->qkv.data = floor->qkv.data;
    b->out.data = floor->attention_out.data;
    b->log_sum_exp = floor->log_sum_exp;
    b->out_gradient.data = ring_take(&floor->operands, tensor_bytes(b->out_gradient));
    b->qkv_gradient.data = ring_take(&floor->results, tensor_bytes(b->qkv_gradient));
}

static void add_streams(struct floor *floor, const struct op_call *from, size_t piece_bytes) {
    const size_t pieces = stream_count(from, piece_bytes);
    size_t reads = units_of(from->bytes - from->written_bytes),
           writes = units_of(from->written_bytes);
    for (size_t left = pieces; left > 0; left--) {
        struct stream s = {
            .read_units = reads / left, .write_units = writes / left, .checksum = floor->checksum,
        };
        s.in = ring_take(&floor->operands, s.read_units * STREAM_UNIT_BYTES);
        s.out = ring_take(&floor->results, s.write_units * STREAM_UNIT_BYTES);
        reads -= s.read_units;
        writes -= s.write_units;
        const size_t bytes = (s.read_units + s.write_units) * STREAM_UNIT_BYTES;
        add_call(floor, FLOOR_BYTES, 0.0, bytes)->stream = s;
    }
}

/* Calls [first, first + count) that are of this part; FLOOR_PARTS: of any. */
struct floor_run {
    struct floor *floor;
    size_t first, count;
    enum floor_part part;
    struct device_recording *recording; /* NULL: run as they come */
};

static enum status run_calls(void *context) {
    const struct floor_run *run = context;
    struct device *device = run->floor->device;
    for (size_t i = run->first; i < run->first + run->count; i++) {
        const struct floor_call *c = &run->floor->calls[i];
        if (run->part != FLOOR_PARTS && run->part != c->part) continue;
        TRY(c->part == FLOOR_BYTES ? device->ops->stream(device, &c->stream)
                                   : op_call_run(device, &c->call));
    }
    return STATUS_OK;
}

static enum status open_all(struct floor *floor, const struct op_list *step, size_t scratch_bytes,
                            enum dtype dtype) {
    struct device *device = floor->device;
    const size_t least = floor_ring_least_bytes(device);
    const struct floor_needs needs = needs_of(step, least);
    struct arena measured = arena_measure("floor");
    void *scratch = NULL;
    floor->calls = calloc(size_max(needs.calls, 1), sizeof *floor->calls);
    if (floor->calls == NULL)
        return status_set(STATUS_MEMORY, "out of memory for the floor's list");
    TRY(lay_out(floor, &measured, &needs, scratch_bytes, &scratch));
    TRY(arena_open(&floor->arena, "floor", device, measured.used_bytes));
    TRY(lay_out(floor, &floor->arena, &needs, scratch_bytes, &scratch));
    device_set_scratch(device, scratch, scratch_bytes);
    TRY(fill(floor, aligned(needs.operands) + aligned(needs.qkv), dtype));
    for (size_t i = 0; i < step->count; i++) {
        switch (part_of(&step->calls[i])) {
        case FLOOR_GEMM: add_gemm(floor, &step->calls[i]); break;
        case FLOOR_ATTENTION: add_attention(floor, &step->calls[i]); break;
        default: add_streams(floor, &step->calls[i], least); break;
        }
    }
    return STATUS_OK;
}

enum status floor_open(struct floor *floor, struct device *device, const struct op_list *step,
                       size_t scratch_bytes, enum dtype dtype) {
    *floor = (struct floor){
        .device = device,
        .scratch = device->scratch,
        .scratch_bytes = device->scratch_bytes,
        .attention_scratch_bytes = device->attention_scratch_bytes,
    };
    const enum status status = open_all(floor, step, scratch_bytes, dtype);
    if (status != STATUS_OK) floor_close(floor);
    return status;
}

void floor_close(struct floor *floor) {
    if (floor->arena.base != NULL) {
        device_set_scratch(floor->device, floor->scratch, floor->attention_scratch_bytes);
        device_share_scratch(floor->device, floor->scratch_bytes);
        arena_close(&floor->arena);
    }
    free(floor->calls);
    *floor = (struct floor){.device = floor->device};
}

static enum status run_once(struct device *device, void *context) {
    struct floor_run *run = context;
    return run->recording != NULL ? device_replay(device, run->recording) : run_calls(run);
}

/* Once as it comes, which chooses algorithms; then recorded, where the device records. */
static enum status record(struct floor_run *run) {
    struct device *device = run->floor->device;
    TRY(run_calls(run));
    TRY(device_wait(device));
    return device_records(device) ? recording_make(device, run_calls, run, &run->recording)
                                  : STATUS_OK;
}

/* `warmup_seconds` 0: the device is warm. */
static enum status measure(struct floor_run *run, double warmup_seconds, double seconds,
                           struct gpu_power *power, struct sustained *out) {
    struct device *device = run->floor->device;
    enum status status = record(run);
    if (status == STATUS_OK && warmup_seconds > 0.0) {
        status = sustained_run(device, run_once, run, warmup_seconds, NULL, out);
    }
    if (status == STATUS_OK) status = sustained_run(device, run_once, run, seconds, power, out);
    device_recording_close(device, run->recording);
    return status;
}

enum status floor_measure(struct floor *floor, double seconds, struct gpu_power *power,
                          struct floor_times *times) {
    static const double shares[FLOOR_PARTS] = {
        [FLOOR_GEMM] = 0.4, [FLOOR_ATTENTION] = 0.2, [FLOOR_BYTES] = 0.2,
    };
    struct floor_run whole = {.floor = floor, .count = floor->count, .part = FLOOR_PARTS};
    *times = (struct floor_times){0};
    TRY(measure(&whole, 0.5 * seconds, seconds, power, &times->whole));
    for (int part = 0; part < FLOOR_PARTS; part++) {
        struct floor_run alone = whole;
        alone.part = (enum floor_part)part;
        alone.recording = NULL;
        if (floor->work[part].calls == 0) continue;
        TRY(measure(&alone, 0.0, shares[part] * seconds, NULL, &times->parts[part]));
    }
    return STATUS_OK;
}

enum status floor_measure_calls(struct floor *floor, size_t first, size_t count,
                                double warmup_seconds, double seconds, struct gpu_power *power,
                                struct sustained *out) {
    struct floor_run run = {.floor = floor, .first = first, .count = count, .part = FLOOR_PARTS};
    return measure(&run, warmup_seconds, seconds, power, out);
}

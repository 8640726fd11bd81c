/* Building and running the floor, behind train/floor.h. */
#include "train/floor.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"
#include "base/random.h"
#include "train/recording.h"

/* The least size of a ring, well above any cache, and the most that one stream reads or writes. */
static size_t ring_least_bytes(const struct device *device) {
    return device->kind == DEVICE_CPU ? (size_t)64 << 20 : (size_t)2 << 30;
}

/* The numbers that operands repeat: a size that no row of a matrix divides. */
enum { PATTERN_BYTES = (4 << 20) + 17 * ARENA_ALIGNMENT };

static size_t aligned(size_t bytes) { return align_up(bytes, ARENA_ALIGNMENT); }

static enum floor_part part_of(const struct op_call *call) {
    if (call->kind == OP_GEMM) return FLOOR_GEMM;
    const bool attention = call->kind == OP_ATTENTION_FORWARD ||
                           call->kind == OP_ATTENTION_BACKWARD;
    return attention ? FLOOR_ATTENTION : FLOOR_BYTES;
}

static size_t units_of(size_t bytes) { return ceil_div(bytes, STREAM_UNIT_BYTES); }

/* What the operands of the step need: the rings' largest customers, and the rest. */
struct floor_needs {
    size_t operands, results, sums, qkv, attention_out, log_sum_exp; /* bytes */
    size_t calls;
};

static void need_gemm(struct floor_needs *needs, const struct op_call *call) {
    const struct gemm *g = &call->args.gemm;
    const size_t bias = g->bias == NULL ? 0 : aligned(tensor_bytes(call->pointees[0]));
    needs->operands = size_max(needs->operands,
                               aligned(tensor_bytes(g->a)) + aligned(tensor_bytes(g->b)) + bias);
    size_t *c = g->accumulate ? &needs->sums : &needs->results;
    *c = size_max(*c, aligned(tensor_bytes(g->c)));
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
        case FLOOR_GEMM: need_gemm(&needs, call); break;
        case FLOOR_ATTENTION: need_attention(&needs, call); break;
        default: needs.calls += stream_count(call, least_bytes) - 1; break;
        }
        needs.calls++;
    }
    return needs;
}

static enum status lay_out(struct floor *floor, struct arena *arena,
                           const struct floor_needs *needs, size_t scratch_bytes, void **scratch) {
    void *operands = NULL, *results = NULL, *lse = NULL, *checksum = NULL;
    TRY(arena_take(arena, needs->operands, 1, &operands));
    TRY(arena_take(arena, needs->qkv, 1,
                   &floor->qkv.data)); /* behind the operands: filled with them */
    TRY(arena_take(arena, needs->results, 1, &results));
    TRY(arena_take(arena, needs->sums, 1, &floor->sums));
    TRY(arena_take(arena, needs->attention_out, 1, &floor->attention_out.data));
    TRY(arena_take(arena, needs->log_sum_exp, 1, &lse));
    TRY(arena_take(arena, 1, sizeof *floor->checksum, &checksum));
    TRY(arena_take(arena, scratch_bytes, 1, scratch));
    floor->operands = (struct floor_ring){.base = operands, .bytes = needs->operands};
    floor->results = (struct floor_ring){.base = results, .bytes = needs->results};
    floor->log_sum_exp = lse;
    floor->checksum = checksum;
    return STATUS_OK;
}

/* Random normal numbers over [base, base + bytes): one pattern, then copies of what is there. */
static enum status fill(struct floor *floor, char *base, size_t bytes, enum dtype dtype) {
    size_t filled = size_min(bytes, PATTERN_BYTES);
    const size_t count = filled / dtype_bytes(dtype);
    void *pattern = malloc(filled);
    if (pattern == NULL) return status_set(STATUS_MEMORY, "out of memory for random operands");
    for (size_t i = 0; i < count; i++) {
        const float x = random_normal(1, RANDOM_TEST, i);
        switch (dtype) {
        case DTYPE_F32: ((float *)pattern)[i] = x; break;
        case DTYPE_BF16: ((uint16_t *)pattern)[i] = bf16_from_float(x); break;
        case DTYPE_F16: ((uint16_t *)pattern)[i] = f16_from_float(x); break;
        }
    }
    const enum status uploaded = device_upload(floor->device, base, pattern, filled);
    free(pattern);
    TRY(uploaded);
    while (filled < bytes) {
        const size_t units = size_min(filled, bytes - filled) / STREAM_UNIT_BYTES;
        const struct stream copy = {base + filled, base, units, units, floor->checksum};
        TRY(floor->device->ops->stream(floor->device, &copy));
        filled += units * STREAM_UNIT_BYTES;
    }
    return STATUS_OK;
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

static void add_gemm(struct floor *floor, const struct op_call *from) {
    struct op_call *to = &add_call(floor, FLOOR_GEMM, from->flops, from->bytes)->call;
    *to = *from;
    struct gemm *g = &to->args.gemm;
    /* a, b and the bias of one GEMM follow each other: the ring holds them all at once */
    const size_t bias = g->bias == NULL ? 0 : aligned(tensor_bytes(to->pointees[0]));
    char *operands = ring_take(&floor->operands, aligned(tensor_bytes(g->a)) +
                                                     aligned(tensor_bytes(g->b)) + bias);
    g->a.data = operands;
    g->b.data = operands + aligned(tensor_bytes(g->a));
    if (bias > 0) to->pointees[0].data = (char *)g->b.data + aligned(tensor_bytes(g->b));
    g->c.data = g->accumulate ? floor->sums : ring_take(&floor->results, tensor_bytes(g->c));
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
    const size_t least = ring_least_bytes(device);
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
    TRY(fill(floor, floor->operands.base, aligned(needs.operands) + aligned(needs.qkv), dtype));
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
    *floor = (struct floor){.device = device};
    const enum status status = open_all(floor, step, scratch_bytes, dtype);
    if (status != STATUS_OK) floor_close(floor);
    return status;
}

void floor_close(struct floor *floor) {
    if (floor->arena.base != NULL) {
        device_set_scratch(floor->device, NULL, 0);
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

/*
 * Quantisation of matrices: the reference for the CUDA quantisers, bit for bit. A matrix is walked
 * in strips as high as its blocks, so that both copies come out of one pass over it: a strip's rows
 * are encoded as they lie, and its columns after a transposition in the cache.
 */
#include <math.h>
#include <string.h>

#include "base/checked.h"
#include "base/random.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/quantise.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vector.h"

/* A tile of the transposition: columns of the matrix by rows of a strip, on the stack. */
enum { STRIP_MAX = 128, TILE_COLUMNS = 64, TENSOR_STRIP = 32 };

VECTOR_CLONES
static void encode_e4m3(uint8_t *codes, const float *x, float factor, size_t count) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) codes[i] = e4m3_from_float(x[i] * factor);
}

VECTOR_CLONES
static void encode_e5m2(uint8_t *codes, const float *x, float factor, size_t count) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) codes[i] = e5m2_from_float(x[i] * factor);
}

void encode_row(enum number_format format, uint8_t *codes, const float *x, float factor,
                size_t count) {
    if (format == FORMAT_E4M3) encode_e4m3(codes, x, factor, count);
    else encode_e5m2(codes, x, factor, count);
}

VECTOR_CLONES
uint32_t amax_bits_row(const float *x, uint32_t start, size_t count) {
    uint32_t most = start;
#pragma omp simd reduction(max : most)
    for (size_t i = 0; i < count; i++) {
        const uint32_t size = bits_of_float(x[i]) & 0x7FFFFFFFu;
        most = size > most ? size : most;
    }
    return most;
}

static float amax_row(const float *x, size_t count) {
    return float_of_bits(amax_bits_row(x, 0, count));
}

static void state_raise(struct scale_state *state, uint32_t amax_bits) {
    if (amax_bits > state->amax_bits) state->amax_bits = amax_bits;
}

/* What encodes one block of a copy. */
struct block_writer {
    const struct quantise *op;
    const struct operand *copy;
    bool transposed;
    float tensor_factor; /* TENSOR and NV */
};

static void random_words_at(const struct block_writer *w, size_t element, uint32_t words[4]) {
    random_words(w->op->seed, rounding_stream(w->op->tensor),
                 rounding_index(w->copy->state->draws, w->transposed, element), words);
}

/* A block of E2M1 under its scale; `count` is a multiple of 4. */
static void encode_e2m1(const struct block_writer *w, size_t element, const float *x, float scale,
                        size_t count) {
    uint8_t *codes = (uint8_t *)w->copy->codes + element / 2;
    uint32_t words[4];
    for (size_t i = 0; i < count; i++) {
        const float scaled = nvfp4_scaled(x[i], w->tensor_factor, scale);
        uint8_t code = e2m1_from_float(scaled);
        if (w->op->stochastic) {
            if (i % 4 == 0) random_words_at(w, element + i, words);
            code = format_encode_stochastic(FORMAT_E2M1, scaled, words[i % 4]);
        }
        codes[i / 2] = (uint8_t)(i % 2 == 0 ? code : codes[i / 2] | code << 4);
    }
}

/* The numbers of one block at (row, column) of the copy; `amax` is that of all that share its
 * scale. */
static void write_block(const struct block_writer *w, size_t row, size_t column, const float *x,
                        size_t count, float amax) {
    const struct operand *c = w->copy;
    const size_t element = row * c->columns + column;
    const size_t at = scale_index(c->mode, c->rows, c->columns, row, column);
    float factor = w->tensor_factor;
    uint8_t code;
    switch (c->mode) {
    case SCALE_TENSOR: break;
    case SCALE_1X128:
    case SCALE_128X128:
        factor = scale_from_amax(amax, format_max(c->format));
        ((float *)c->scales)[at] = scale_inverse(factor);
        break;
    case SCALE_MX:
        code = ue8m0_from_amax(amax);
        ((uint8_t *)c->scales)[at] = code;
        factor = ue8m0_factor(code);
        break;
    case SCALE_NV:
        code = nvfp4_block_scale(amax, w->tensor_factor);
        ((uint8_t *)c->scales)[at] = code;
        encode_e2m1(w, element, x, float_from_e4m3(code), count);
        return;
    }
    encode_row(c->format, (uint8_t *)c->codes + element, x, factor, count);
}

/* Rows [first, first + rows) of the matrix. */
struct strip {
    size_t first, rows;
};

/* One scale for a square of the matrix, not for a row of it. */
static bool shares_square(const struct quantise *op) {
    return op->square || op->out.row.mode == SCALE_128X128 ||
           op->out.transposed.mode == SCALE_128X128;
}

static float square_amax(const struct tensor *in, struct strip strip, size_t column, size_t count) {
    uint32_t bits = 0;
    for (size_t n = strip.first; n < strip.first + strip.rows; n++) {
        float buffer[STRIP_MAX];
        bits = amax_bits_row(row_read(in, n * in->columns + column, count, buffer), bits, count);
    }
    return float_of_bits(bits);
}

static void write_rows(const struct block_writer *w, const struct tensor *in, struct strip strip,
                       size_t block, bool square) {
    for (size_t column = 0; column < in->columns; column += block) {
        const size_t count = size_min(block, in->columns - column);
        const float shared = square ? square_amax(in, strip, column, count) : 0.0f;
        for (size_t n = strip.first; n < strip.first + strip.rows; n++) {
            float buffer[ROW_TILE];
            const float *x = row_read(in, n * in->columns + column, count, buffer);
            write_block(w, n, column, x, count, square ? shared : amax_row(x, count));
        }
    }
}

/* Columns [column, column + columns) of a strip, as rows of `tile`, transformed if asked. */
static void read_columns(const struct tensor *in, struct strip strip, size_t column, size_t columns,
                         bool hadamard, float tile[TILE_COLUMNS][STRIP_MAX]) {
    for (size_t n = 0; n < strip.rows; n++) {
        float buffer[TILE_COLUMNS];
        const float *x = row_read(in, (strip.first + n) * in->columns + column, columns, buffer);
        for (size_t i = 0; i < columns; i++) tile[i][n] = x[i];
    }
    if (!hadamard) return;
    for (size_t i = 0; i < columns; i++) hadamard_transform(tile[i]);
}

static void write_columns(const struct block_writer *w, const struct tensor *in, struct strip strip,
                          size_t block, bool square) {
    float tile[TILE_COLUMNS][STRIP_MAX], amax = 0.0f;
    for (size_t column = 0; column < in->columns; column += TILE_COLUMNS) {
        const size_t columns = size_min(TILE_COLUMNS, in->columns - column);
        read_columns(in, strip, column, columns, w->op->hadamard, tile);
        for (size_t i = 0; i < columns; i++) {
            if (square) {
                if ((column + i) % block == 0) {
                    amax = square_amax(in, strip, column + i,
                                       size_min(block, in->columns - column - i));
                }
            } else if (w->copy->mode != SCALE_TENSOR) {
                amax = amax_row(tile[i], strip.rows);
            }
            write_block(w, column + i, strip.first, tile[i], strip.rows, amax);
        }
    }
}

static uint32_t tensor_amax(const struct device *device, const struct tensor *in) {
    const size_t elements = tensor_count(*in);
    uint32_t most = 0;
#pragma omp parallel for schedule(static) num_threads(device->threads) reduction(max : most)
    for (size_t first = 0; first < elements; first += ROW_TILE) {
        float buffer[ROW_TILE];
        const size_t count = size_min(ROW_TILE, elements - first);
        most = amax_bits_row(row_read(in, first, count, buffer), most, count);
    }
    return most;
}

/* The same of the transformed columns. */
static uint32_t hadamard_amax(const struct device *device, const struct tensor *in) {
    uint32_t most = 0;
#pragma omp parallel for schedule(static) num_threads(device->threads) reduction(max : most)
    for (size_t first = 0; first < in->rows; first += HADAMARD_SIZE) {
        float tile[TILE_COLUMNS][STRIP_MAX];
        const struct strip strip = {first, HADAMARD_SIZE};
        for (size_t column = 0; column < in->columns; column += TILE_COLUMNS) {
            const size_t columns = size_min(TILE_COLUMNS, in->columns - column);
            read_columns(in, strip, column, columns, true, tile);
            for (size_t i = 0; i < columns; i++) {
                most = amax_bits_row(tile[i], most, HADAMARD_SIZE);
            }
        }
    }
    return most;
}

/* Scale states before the first number is encoded. */
static void prepare_states(const struct device *device, const struct quantise *op) {
    const struct operand *row = &op->out.row, *transposed = &op->out.transposed;
    const struct operand *either = row->codes != NULL ? row : transposed;
    if (either->mode == SCALE_TENSOR) {
        const bool current = op->scaling == SCALING_CURRENT;
        if (!current || !op->amax_known) state_raise(either->state, tensor_amax(device, &op->in));
        if (current) scale_state_current(either->state);
    } else if (either->mode == SCALE_NV) {
        if (row->codes != NULL) {
            row->state->amax_bits = tensor_amax(device, &op->in);
            scale_state_current(row->state);
        }
        if (transposed->codes != NULL) {
            transposed->state->amax_bits =
                op->hadamard ? hadamard_amax(device, &op->in) : tensor_amax(device, &op->in);
            scale_state_current(transposed->state);
        }
    }
}

static float writer_factor(const struct operand *copy) {
    return copy->codes != NULL && copy->state != NULL ? copy->state->scale : 1.0f;
}

static enum status check_copy(const struct quantise *op, const struct operand *o, bool transposed) {
    const size_t rows = transposed ? op->in.columns : op->in.rows;
    const size_t columns = transposed ? op->in.rows : op->in.columns;
    const size_t block = scale_block(o->mode);
    const bool packed = o->mode == SCALE_MX || o->mode == SCALE_NV;
    const bool scaled = o->mode == SCALE_TENSOR || o->mode == SCALE_NV;
    if (o->rows == rows && o->columns == columns && (!packed || columns % block == 0) &&
        (o->mode == SCALE_NV) == (o->format == FORMAT_E2M1) &&
        (scaled ? o->state != NULL : true) && (o->mode == SCALE_TENSOR || o->scales != NULL)) {
        return STATUS_OK;
    }
    return status_set(STATUS_INTERNAL, "quantise: (%zu, %zu) into a%s copy (%zu, %zu) of %s, %s",
                      op->in.rows, op->in.columns, transposed ? " transposed" : "", o->rows,
                      o->columns, format_name(o->format), scale_mode_name(o->mode));
}

static void clear_padding(const struct operand *o) {
    if (o->codes != NULL && o->scales != NULL) memset(o->scales, 0, operand_scale_bytes(o));
}

static enum status quantise_one(struct device *device, const struct quantise *op) {
    const struct operand *row = &op->out.row, *transposed = &op->out.transposed;
    if (row->codes != NULL) TRY(check_copy(op, row, false));
    if (transposed->codes != NULL) TRY(check_copy(op, transposed, true));
    prepare_states(device, op);
    const enum scale_mode mode = row->codes != NULL ? row->mode : transposed->mode;
    const size_t height = mode == SCALE_TENSOR ? TENSOR_STRIP : scale_block(mode);
    const size_t width = mode == SCALE_TENSOR ? ROW_TILE : scale_block(mode);
    const bool square = shares_square(op);
    clear_padding(row);
    clear_padding(transposed);
    const struct block_writer rows = {op, row, false, writer_factor(row)};
    const struct block_writer columns = {op, transposed, true, writer_factor(transposed)};
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (size_t first = 0; first < op->in.rows; first += height) {
        const struct strip strip = {first, size_min(height, op->in.rows - first)};
        if (row->codes != NULL) write_rows(&rows, &op->in, strip, width, square);
        if (transposed->codes != NULL) write_columns(&columns, &op->in, strip, width, square);
    }
    if (op->bias_gradient == NULL) return STATUS_OK;
    const struct bias_backward bias = {
        .bias_gradient = op->bias_gradient, .out_gradient = op->in, .accumulate = op->accumulate,
    };
    return cpu_bias_backward(device, &bias);
}

enum status cpu_quantise(struct device *device, const struct quantise *ops, size_t count) {
    for (size_t i = 0; i < count; i++) TRY(quantise_one(device, &ops[i]));
    return STATUS_OK;
}

/* The transposed copy from the codes of the row copy. */
static void transpose_codes(const struct device *device, const struct quantised *copies) {
    const uint8_t *from = copies->row.codes;
    uint8_t *to = copies->transposed.codes;
    const size_t rows = copies->row.rows, columns = copies->row.columns;
    enum { TILE = 64 };
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (size_t first = 0; first < rows; first += TILE) {
        const size_t end = size_min(rows, first + TILE);
        for (size_t column = 0; column < columns; column++) {
            for (size_t n = first; n < end; n++) to[column * rows + n] = from[n * columns + column];
        }
    }
}

enum status quantise_output_check(const char *operation, const struct quantise_output *output,
                                  bool only, size_t rows, size_t columns) {
    const struct quantised *copies = output->copies;
    if (copies == NULL && !only) return STATUS_OK;
    if (copies == NULL) return status_set(STATUS_INTERNAL, "%s: no result is wanted", operation);
    const struct operand *row = &copies->row, *transposed = &copies->transposed;
    const bool fits = row->codes != NULL && row->rows == rows && row->columns == columns &&
                      row->mode == SCALE_TENSOR && row->state != NULL;
    const bool other = transposed->codes == NULL ||
                       (transposed->rows == columns && transposed->columns == rows &&
                        transposed->mode == SCALE_TENSOR && transposed->format == row->format);
    if (fits && other && output->amax == NULL) return STATUS_OK;
    return status_set(STATUS_INTERNAL, "%s: copies (%zu, %zu) of %s, %s for (%zu, %zu)", operation,
                      row->rows, row->columns, format_name(row->format),
                      scale_mode_name(row->mode), rows, columns);
}

uint32_t quantise_output_row(const struct quantise_output *output, const struct tensor *stored,
                             size_t first, const float *x, size_t count, uint32_t amax) {
    if (output->copies != NULL) {
        const struct operand *row = &output->copies->row;
        encode_row(row->format, (uint8_t *)row->codes + first, x, row->state->scale, count);
        return amax_bits_row(x, amax, count);
    }
    if (output->amax == NULL) return amax;
    for (size_t j = 0; j < count; j += ROW_TILE) { /* as stored */
        float buffer[ROW_TILE];
        const size_t some = size_min(ROW_TILE, count - j);
        amax = amax_bits_row(row_read(stored, first + j, some, buffer), amax, some);
    }
    return amax;
}

void quantise_output_finish(const struct device *device, const struct quantise_output *output,
                            uint32_t amax) {
    if (output->amax != NULL) state_raise(output->amax, amax);
    if (output->copies == NULL) return;
    state_raise(output->copies->row.state, amax);
    if (output->copies->transposed.codes != NULL) transpose_codes(device, output->copies);
}

enum status cpu_scales_begin(struct device *device, struct scale_state *states, size_t count,
                             bool clear_amax) {
    (void)device;
    for (size_t i = 0; i < count; i++) scale_state_begin(&states[i], clear_amax);
    return STATUS_OK;
}

enum status cpu_scales_update(struct device *device, struct step_state *state,
                              struct scale_state *states, size_t count, bool enter) {
    bool finite = !state->halted && isfinite(state->gradient_sumsq) && isfinite(state->loss_sum);
    (void)device;
    for (size_t i = 0; i < count; i++) finite = finite && states[i].amax_bits < 0x7F800000u;
    if (!finite) state->gradient_sumsq = (double)NAN;
    for (size_t i = 0; i < count; i++) {
        if (finite) scale_state_end(&states[i], enter);
        else scale_state_drop(&states[i]);
    }
    return STATUS_OK;
}

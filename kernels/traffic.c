/* The formulas behind kernels/traffic.h. */
#include "kernels/traffic.h"

/* FP32 numbers, each written and, if added to, read. */
static size_t output_bytes(size_t count, bool accumulate) {
    return count * sizeof(float) * (accumulate ? 2 : 1);
}

static size_t optional_bytes(const struct tensor *t) { return t == NULL ? 0 : tensor_bytes(*t); }

size_t gemm_bytes(const struct gemm *op) {
    return tensor_bytes(op->a) + tensor_bytes(op->b) + optional_bytes(op->bias) +
           tensor_bytes(op->c) * (op->accumulate ? 2 : 1);
}

static size_t operand_bytes(const struct operand *o) {
    if (o->codes == NULL) return 0;
    return operand_code_bytes(o) + operand_scale_bytes(o);
}

static size_t copies_bytes(const struct quantised *copies) {
    return operand_bytes(&copies->row) + operand_bytes(&copies->transposed);
}

static size_t output_copies_bytes(const struct quantise_output *output) {
    return output->copies == NULL ? 0 : copies_bytes(output->copies);
}

/* A result that is not wanted where its copies are. */
static size_t result_bytes(struct tensor t, const struct quantise_output *output) {
    return t.data == NULL && output->copies != NULL ? 0 : tensor_bytes(t);
}

size_t quantised_gemm_bytes(const struct quantised_gemm *op) {
    return operand_bytes(&op->a) + operand_bytes(&op->b) + optional_bytes(op->bias) +
           tensor_bytes(op->c) * (op->accumulate ? 2 : 1);
}

size_t quantise_bytes(const struct quantise *op) {
    const enum scale_mode mode = op->out.row.codes != NULL ? op->out.row.mode
                                                           : op->out.transposed.mode;
    const bool searched = mode == SCALE_NV || (mode == SCALE_TENSOR && !op->amax_known &&
                                               op->scaling == SCALING_CURRENT);
    return tensor_bytes(op->in) * (searched ? 2 : 1) + copies_bytes(&op->out) +
           (op->bias_gradient == NULL ? 0 : output_bytes(op->in.columns, op->accumulate));
}

size_t scales_bytes(size_t count) { return 2 * count * sizeof(struct scale_state); }

/* Each position is read once, each token's row once a token. */
size_t embedding_forward_bytes(const struct embedding_forward *op) {
    const size_t tokens = op->out.rows, width = op->out.columns;
    return tensor_bytes(op->out) + tokens * sizeof *op->tokens +
           tokens * width * dtype_bytes(op->token_weight.dtype) +
           op->sequence_length * width * dtype_bytes(op->position_weight.dtype);
}

size_t embedding_backward_bytes(const struct embedding_backward *op) {
    const size_t tokens = op->out_gradient.rows, width = op->out_gradient.columns;
    const size_t positions = op->accumulate ? op->sequence_length : op->position_gradient.rows;
    return tensor_bytes(op->out_gradient) + tokens * sizeof *op->tokens +
           output_bytes(tokens * width, true) + output_bytes(positions * width, op->accumulate);
}

size_t norm_forward_bytes(const struct norm_forward *op) {
    return result_bytes(op->out, &op->quantise) + output_copies_bytes(&op->quantise) +
           tensor_bytes(op->residual_in) + optional_bytes(op->delta) +
           optional_bytes(op->delta_bias) + (op->delta == NULL ? 0 : tensor_bytes(op->residual)) +
           tensor_bytes(op->weight) + tensor_bytes(op->bias) +
           output_bytes(2 * op->out.rows, false);
}

size_t norm_backward_bytes(const struct norm_backward *op) {
    const size_t sums = op->delta_bias_gradient == NULL ? 2 : 3;
    return tensor_bytes(op->residual_gradient) * (op->overwrite_residual_gradient ? 1 : 2) +
           tensor_bytes(op->out_gradient) + tensor_bytes(op->residual) + tensor_bytes(op->weight) +
           2 * op->residual.rows * sizeof(float) +
           output_bytes(sums * op->residual.columns, op->accumulate) +
           output_copies_bytes(&op->quantise);
}

size_t attention_forward_bytes(const struct attention_forward *op) {
    return tensor_bytes(op->qkv) + tensor_bytes(op->out) + op->heads * op->out.rows * sizeof(float);
}

size_t attention_backward_bytes(const struct attention_backward *op) {
    return tensor_bytes(op->qkv) + tensor_bytes(op->qkv_gradient) + tensor_bytes(op->out) +
           tensor_bytes(op->out_gradient) + op->heads * op->out.rows * sizeof(float);
}

/* The past is read; the new keys and values come with qkv and are written. */
size_t attention_cached_bytes(const struct attention_cached *op) {
    const size_t cached = op->batch * (op->past + op->sequence_length) * op->out.columns;
    return tensor_bytes(op->qkv) + tensor_bytes(op->out) +
           cached * (dtype_bytes(op->keys.dtype) + dtype_bytes(op->values.dtype));
}

size_t gelu_forward_bytes(const struct gelu_forward *op) {
    return result_bytes(op->out, &op->quantise) + output_copies_bytes(&op->quantise) +
           tensor_bytes(op->x) + tensor_bytes(op->bias);
}

size_t gelu_backward_bytes(const struct gelu_backward *op) {
    return result_bytes(op->x_gradient, &op->quantise) + output_copies_bytes(&op->quantise) +
           tensor_bytes(op->out_gradient) + tensor_bytes(op->x) +
           tensor_bytes(op->bias) + output_bytes(op->x.columns, op->accumulate);
}

size_t bias_backward_bytes(const struct bias_backward *op) {
    return tensor_bytes(op->out_gradient) + output_bytes(op->out_gradient.columns, op->accumulate);
}

static size_t logits_gradient_bytes(const struct cross_entropy *op) {
    if (!op->write_gradient) return 0;
    return op->quantise.copies != NULL ? output_copies_bytes(&op->quantise)
                                       : tensor_bytes(op->logits);
}

/* The gradient is written over the padding too; the logits are read over the vocabulary alone. */
size_t cross_entropy_bytes(const struct cross_entropy *op) {
    const size_t tokens = op->logits.rows;
    return tokens * op->vocabulary * dtype_bytes(op->logits.dtype) +
           tokens * (sizeof *op->targets + sizeof *op->losses) + logits_gradient_bytes(op);
}

size_t convert_bytes(struct tensor out, struct tensor in) {
    return tensor_bytes(out) + tensor_bytes(in);
}

size_t loss_sum_bytes(size_t count) { return count * sizeof(float); }

size_t gradient_sumsq_bytes(size_t count) { return count * sizeof(float); }

size_t sum_parts_bytes(struct tensor parts, bool accumulate) {
    return tensor_bytes(parts) + output_bytes(parts.columns, accumulate);
}

size_t block_sumsq_bytes(size_t count) {
    return count * sizeof(float) + count / SUMSQ_BLOCK * sizeof(double);
}

size_t total_sumsq_bytes(size_t count) { return count * sizeof(double); }

static size_t adamw_count(const struct adamw *op) {
    size_t count = 0;
    for (size_t i = 0; i < op->range_count; i++) count += op->ranges[i].count;
    return count;
}

/* Gradient read; master and both moments read and written; weights written. */
size_t adamw_bytes(const struct adamw *op) {
    return adamw_count(op) * 4 * sizeof(float) + adamw_written_bytes(op);
}

size_t stream_bytes(const struct stream *op) {
    return (op->read_units + op->write_units) * STREAM_UNIT_BYTES;
}

size_t gemm_written_bytes(const struct gemm *op) { return tensor_bytes(op->c); }

size_t quantised_gemm_written_bytes(const struct quantised_gemm *op) {
    return tensor_bytes(op->c);
}

size_t quantise_written_bytes(const struct quantise *op) {
    return copies_bytes(&op->out) +
           (op->bias_gradient == NULL ? 0 : output_bytes(op->in.columns, false));
}

size_t scales_written_bytes(size_t count) { return count * sizeof(struct scale_state); }

size_t embedding_forward_written_bytes(const struct embedding_forward *op) {
    return tensor_bytes(op->out);
}

size_t embedding_backward_written_bytes(const struct embedding_backward *op) {
    const size_t tokens = op->out_gradient.rows, width = op->out_gradient.columns;
    const size_t positions = op->accumulate ? op->sequence_length : op->position_gradient.rows;
    return output_bytes((tokens + positions) * width, false);
}

size_t norm_forward_written_bytes(const struct norm_forward *op) {
    return result_bytes(op->out, &op->quantise) + output_copies_bytes(&op->quantise) +
           (op->delta == NULL ? 0 : tensor_bytes(op->residual)) +
           output_bytes(2 * op->out.rows, false);
}

size_t norm_backward_written_bytes(const struct norm_backward *op) {
    const size_t sums = op->delta_bias_gradient == NULL ? 2 : 3;
    return tensor_bytes(op->residual_gradient) + output_bytes(sums * op->residual.columns, false) +
           output_copies_bytes(&op->quantise);
}

size_t attention_forward_written_bytes(const struct attention_forward *op) {
    return tensor_bytes(op->out) + output_bytes(op->heads * op->out.rows, false);
}

size_t attention_backward_written_bytes(const struct attention_backward *op) {
    return tensor_bytes(op->qkv_gradient);
}

size_t attention_cached_written_bytes(const struct attention_cached *op) {
    const size_t fresh = op->batch * op->sequence_length * op->out.columns;
    return tensor_bytes(op->out) +
           fresh * (dtype_bytes(op->keys.dtype) + dtype_bytes(op->values.dtype));
}

size_t gelu_forward_written_bytes(const struct gelu_forward *op) {
    return result_bytes(op->out, &op->quantise) + output_copies_bytes(&op->quantise);
}

size_t gelu_backward_written_bytes(const struct gelu_backward *op) {
    return result_bytes(op->x_gradient, &op->quantise) + output_copies_bytes(&op->quantise) +
           output_bytes(op->x.columns, false);
}

size_t bias_backward_written_bytes(const struct bias_backward *op) {
    return output_bytes(op->out_gradient.columns, false);
}

size_t cross_entropy_written_bytes(const struct cross_entropy *op) {
    return op->logits.rows * sizeof *op->losses + logits_gradient_bytes(op);
}

size_t adamw_written_bytes(const struct adamw *op) {
    const size_t weight_bytes = op->weights.data == NULL ? 0 : dtype_bytes(op->weights.dtype);
    return adamw_count(op) * (3 * sizeof(float) + weight_bytes);
}

/*
 * Every operation but GEMM (OpenBLAS divides its sums by threads) gives the same bits on 1, 2 and 3
 * threads: losses and gradients of a run do not depend on the machine's number of cores through
 * them. Oracle: bit equality. Shapes: several chunks of rows, several stretches of a row, none
 * round.
 */
#include "tests/kernels/testing.h"

enum { BATCH = 5, LENGTH = 31, TOKENS = BATCH * LENGTH, HEADS = 3, WIDTH = 1101, THREADS = 3 };

static const struct op_limits limits = {
    .tokens = TOKENS, .width = 3 * WIDTH, .sequence_length = LENGTH, .heads = HEADS,
    .head_width = WIDTH / HEADS, .dtype = DTYPE_BF16};

/* Runs `body` on each number of threads and compares all that it leaves in `outputs`, which starts
 * from the same random numbers each time. */
static void check(enum dtype type, size_t rows, size_t columns,
                  void (*body)(struct device *, enum dtype, struct tensor)) {
    struct tensor first = {0};
    for (int threads = 1; threads <= THREADS; threads++) {
        struct device device = test_device_open(threads, &limits);
        struct tensor outputs = random_tensor(type, rows, columns, 99, 0.0, 1.0);
        body(&device, type, outputs);
        if (threads == 1) {
            first = outputs;
        } else {
            assert_memory_equal(outputs.data, first.data, tensor_bytes(first));
            FREE_TENSORS(&outputs);
        }
        test_device_close(&device);
    }
    FREE_TENSORS(&first);
}

static void norms(struct device *device, enum dtype type, struct tensor outputs) {
    struct tensor x = random_tensor(type, TOKENS, WIDTH, 1, 0.0, 1.0);
    struct tensor weight = random_tensor(type, 1, WIDTH, 2, 1.0, 1.0);
    struct tensor statistics = filled_tensor(DTYPE_F32, 2, TOKENS, 0.0);
    struct tensor sums = random_tensor(DTYPE_F32, 3, WIDTH, 3, 0.0, 1.0);
    struct tensor out = tensor_rows(outputs, 0, TOKENS);
    struct tensor gradient = tensor_rows(outputs, TOKENS, TOKENS);
    float *mean = statistics.data, *sum = sums.data;
    const struct norm_forward forward = {
        .out = out, .residual = x, .residual_in = x, .delta = &x, .delta_bias = &weight,
        .weight = weight, .bias = weight, .mean = mean, .rstd = mean + TOKENS};
    const struct norm_backward backward = {
        .residual_gradient = gradient, .out_gradient = out, .residual = x, .weight = weight,
        .mean = mean, .rstd = mean + TOKENS, .weight_gradient = sum, .bias_gradient = sum + WIDTH,
        .delta_bias_gradient = sum + 2 * WIDTH, .accumulate = true};
    EXPECT_OK(device->ops->norm_forward(device, &forward));
    EXPECT_OK(device->ops->norm_backward(device, &backward));
    EXPECT_OK(device->ops->convert(device, tensor_rows(outputs, 2 * TOKENS, 3), sums));
    FREE_TENSORS(&x, &weight, &statistics, &sums);
}

static void elementwise(struct device *device, enum dtype type, struct tensor outputs) {
    struct tensor x = random_tensor(type, TOKENS, WIDTH, 1, 0.0, 1.0);
    struct tensor bias = random_tensor(type, 1, WIDTH, 2, 0.0, 1.0);
    struct tensor sums = random_tensor(DTYPE_F32, 2, WIDTH, 3, 0.0, 1.0);
    struct tensor out = tensor_rows(outputs, 0, TOKENS);
    struct tensor gradient = tensor_rows(outputs, TOKENS, TOKENS);
    float *sum = sums.data;
    const struct gelu_forward forward = {.out = out, .x = x, .bias = bias};
    const struct gelu_backward backward = {
        .x_gradient = gradient, .out_gradient = out, .x = x, .bias = bias, .bias_gradient = sum,
        .accumulate = true};
    const struct bias_backward column_sums = {sum + WIDTH, out, true};
    EXPECT_OK(device->ops->gelu_forward(device, &forward));
    EXPECT_OK(device->ops->gelu_backward(device, &backward));
    EXPECT_OK(device->ops->bias_backward(device, &column_sums));
    EXPECT_OK(device->ops->convert(device, tensor_rows(outputs, 2 * TOKENS, 2), sums));
    FREE_TENSORS(&x, &bias, &sums);
}

static void attention(struct device *device, enum dtype type, struct tensor outputs) {
    struct tensor qkv = random_tensor(type, TOKENS, 3 * WIDTH, 1, 0.0, 1.0);
    struct tensor gradient = filled_tensor(type, TOKENS, 3 * WIDTH, 0.0);
    struct tensor cache = filled_tensor(type, 2 * TOKENS, WIDTH, 0.0);
    struct tensor log_sum_exp = filled_tensor(DTYPE_F32, 1, BATCH * LENGTH * HEADS, 0.0);
    struct tensor out = tensor_rows(outputs, 0, TOKENS);
    const struct attention_forward forward = {out, log_sum_exp.data, qkv, BATCH, LENGTH, HEADS};
    const struct attention_backward backward = {gradient, out, qkv, out, log_sum_exp.data, BATCH,
                                                LENGTH, HEADS};
    const struct attention_cached cached = {
        tensor_rows(outputs, 4 * TOKENS, TOKENS), qkv, tensor_rows(cache, 0, TOKENS),
        tensor_rows(cache, TOKENS, TOKENS), BATCH, LENGTH, HEADS, 0, LENGTH};
    EXPECT_OK(device->ops->attention_forward(device, &forward));
    EXPECT_OK(device->ops->attention_backward(device, &backward));
    EXPECT_OK(device->ops->attention_cached(device, &cached));
    EXPECT_OK(device->ops->convert(device, tensor_rows(outputs, TOKENS, 3 * TOKENS), gradient));
    FREE_TENSORS(&qkv, &gradient, &cache, &log_sum_exp);
}

static void ends(struct device *device, enum dtype type, struct tensor outputs) {
    int32_t tokens[TOKENS];
    struct tensor weight = random_tensor(type, 50, WIDTH, 1, 0.0, 1.0);
    struct tensor gradients = random_tensor(DTYPE_F32, 100, WIDTH, 2, 0.0, 1.0);
    struct tensor losses = filled_tensor(DTYPE_F32, 1, TOKENS, 0.0);
    struct tensor logits = tensor_rows(outputs, 0, TOKENS);
    const float scale = 1.0f;
    for (size_t n = 0; n < TOKENS; n++) tokens[n] = (int32_t)(n * n % 50);
    const struct embedding_forward forward = {tensor_rows(outputs, TOKENS, TOKENS), tokens, weight,
                                              weight, LENGTH, 3};
    const struct cross_entropy loss = {
        .logits = logits, .targets = tokens, .losses = losses.data, .vocabulary = WIDTH - 5,
        .write_gradient = true, .gradient_scale = 1.0f, .loss_scale = &scale};
    const struct embedding_backward backward = {tensor_rows(gradients, 0, 50),
                                                tensor_rows(gradients, 50, 50), logits, tokens,
                                                LENGTH, true};
    EXPECT_OK(device->ops->embedding_forward(device, &forward));
    EXPECT_OK(device->ops->cross_entropy(device, &loss));
    EXPECT_OK(device->ops->embedding_backward(device, &backward));
    EXPECT_OK(device->ops->convert(device, tensor_rows(outputs, 2 * TOKENS, 100), gradients));
    EXPECT_OK(device->ops->convert(
        device, tensor_make(tensor_rows(outputs, 2 * TOKENS + 100, 1).data, type, 1, TOKENS),
        losses));
    FREE_TENSORS(&weight, &gradients, &losses);
}

static void optimizer(struct device *device, enum dtype type, struct tensor outputs) {
    float *flat = outputs.data;
    const size_t count = tensor_count(outputs) / 4;
    const struct adamw_range range = {0, count, 0.1f};
    struct step_state state = {.updates = 1, .learning_rate = 0.1f};
    (void)type;
    EXPECT_OK(device->ops->gradient_sumsq(device, &state, flat, count));
    state.gradient_multiplier = (float)(1.0 / state.gradient_sumsq);
    for (size_t i = 0; i < count; i++) flat[2 * count + i] *= flat[2 * count + i]; /* v >= 0 */
    const struct adamw op = {
        .masters = flat, .moments1 = flat + count, .moments2 = flat + 2 * count,
        .gradients = flat + 3 * count, .ranges = &range, .range_count = 1, .beta1 = 0.9f,
        .beta2 = 0.95f, .epsilon = 1e-8f, .state = &state};
    EXPECT_OK(device->ops->adamw(device, &op));
    memcpy(flat + 3 * count, &state.gradient_sumsq, sizeof state.gradient_sumsq);
}

static void test_threads(void **state) {
    (void)state;
    for (int type = 0; type < 2; type++) { /* FP32 in place, BF16 through buffers */
        check(test_dtypes[type], 2 * TOKENS + 3, WIDTH, norms);
        check(test_dtypes[type], 2 * TOKENS + 2, WIDTH, elementwise);
        check(test_dtypes[type], 5 * TOKENS, WIDTH, attention);
        check(test_dtypes[type], 2 * TOKENS + 101, WIDTH, ends);
    }
    check(DTYPE_F32, 4, 70001, optimizer);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_threads)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

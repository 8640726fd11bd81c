/*
 * Each layer alone in FP32: forward, and every gradient of sum(out * out_gradient).
 * Oracle: reference.c in FP64, and its central differences; bit equality where a layer runs again.
 *
 * Tolerance: as derived in gpt_gradient_test.c, 1.2 sqrt(s K) 2^-23 times the largest number of the
 * tensor, where s results follow each other, each a sum of at most K products. All data are of
 * order 1. Parameter gradients are checked twice: written over NaN, and added to that (twice the
 * slope).
 */
#include "layers/attention.h"
#include "layers/embedding.h"
#include "layers/loss.h"
#include "layers/mlp.h"
#include "layers/norm.h"
#include "tests/layers/fixture.h"
#include "tests/layers/reference.h"

enum { TOKENS = BATCH * LENGTH, PADDED = 128 };

static double tolerance(size_t results, size_t products, double size) {
    return 1.2 * sqrt((double)(results * products)) * 0x1p-23 * size;
}

static struct tensor normal(size_t rows, size_t columns, uint64_t key, double std) {
    return random_tensor(DTYPE_F32, rows, columns, key, 0.0, std);
}

static struct tensor unwritten(size_t rows, size_t columns) {
    return filled_tensor(DTYPE_F32, rows, columns, NAN);
}

static struct device open_device(void) {
    return test_device_open(2, &(struct op_limits){
        .tokens = TOKENS, .width = 4 * WIDTH, .sequence_length = LENGTH, .heads = HEADS,
        .head_width = WIDTH / HEADS, .dtype = DTYPE_F32});
}

static double dot(const double *a, const double *b, size_t count) {
    double sum = 0.0;
    for (size_t i = 0; i < count; i++) sum += a[i] * b[i];
    return sum;
}

static double largest(const double *x, size_t count) {
    double most = 0.0;
    for (size_t i = 0; i < count; i++) most = fmax(most, fabs(x[i]));
    return most;
}

/* A tensor that the loss depends on: its numbers in FP64, and what the layer says is its
 * gradient. */
struct leaf {
    const char *what;
    double *x;
    struct tensor gradient;
    double times; /* 2 after it was added to */
};

struct bound {
    size_t results, products;
};

/* The loss's own size bounds what the central differences are off by. */
static void check_leaf(const struct leaf *leaf, double (*loss)(const void *), const void *context,
                       struct bound bound) {
    const size_t count = tensor_count(leaf->gradient);
    double *slopes = test_memory(count * sizeof *slopes);
    for (size_t i = 0; i < count; i++) {
        slopes[i] = leaf->times * reference_slope(&leaf->x[i], loss, context);
    }
    const double absolute =
        leaf->times * reference_slope_error(fmax(1.0, fabs(loss(context)))) +
        tolerance(bound.results, bound.products, largest(slopes, count));
    struct comparison c = {.what = leaf->what};
    for (size_t i = 0; i < count; i++) {
        compare(&c, i, value_at(leaf->gradient, i), slopes[i], absolute);
    }
    compare_end(&c);
    free(slopes);
}

static void check_out(const char *what, struct tensor out, const double *expected,
                      struct bound bound) {
    compare_tensor(what, out, expected,
                   tolerance(bound.results, bound.products, largest(expected, tensor_count(out))));
}

/* ---- linear ---- */

/* An operand without copies. */
static struct linear_operand plain(struct tensor values) {
    return (struct linear_operand){.values = values};
}

struct linear_problem {
    double *in, *weight, *bias, *out_gradient, *out;
};

static double linear_loss(const void *context) {
    const struct linear_problem *p = context;
    reference_linear(p->out, p->in, p->weight, p->bias, TOKENS, WIDTH, VOCABULARY);
    return dot(p->out, p->out_gradient, TOKENS * VOCABULARY);
}

static void check_linear(bool with_bias) {
    struct device device = open_device();
    struct tensor in = normal(TOKENS, WIDTH, 1, 1.0), weight = normal(VOCABULARY, WIDTH, 2, 0.2);
    struct tensor bias = normal(1, VOCABULARY, 3, 1.0),
                  out_gradient = normal(TOKENS, VOCABULARY, 4, 1.0);
    struct tensor out = unwritten(TOKENS, VOCABULARY), in_gradient = unwritten(TOKENS, WIDTH);
    struct tensor weight_gradient = unwritten(VOCABULARY, WIDTH);
    struct tensor bias_gradient = unwritten(1, VOCABULARY);
    const struct linear layer = {
        .weight = weight, .bias = with_bias ? bias : (struct tensor){0},
        .weight_gradient = weight_gradient.data, .bias_gradient = bias_gradient.data,
    };
    const struct linear_problem p = {doubles_of(in), doubles_of(weight),
                                     with_bias ? doubles_of(bias) : NULL, doubles_of(out_gradient),
                                     test_memory(TOKENS * VOCABULARY * sizeof(double))};
    EXPECT_OK(linear_forward(&device, &layer, out, plain(in)));
    linear_loss(&p);
    check_out("out", out, p.out, (struct bound){1, WIDTH + 1});
    for (int times = 1; times <= 2; times++) {
        EXPECT_OK(linear_backward(&device, &layer, in_gradient, plain(out_gradient), plain(in),
                                  times > 1));
        check_leaf(&(struct leaf){"in gradient", p.in, in_gradient, 1.0}, linear_loss, &p,
                   (struct bound){1, VOCABULARY});
        check_leaf(&(struct leaf){"weight gradient", p.weight, weight_gradient, times}, linear_loss,
                   &p, (struct bound){2, TOKENS});
        if (!with_bias) continue;
        check_leaf(&(struct leaf){"bias gradient", p.bias, bias_gradient, times}, linear_loss, &p,
                   (struct bound){2, TOKENS});
    }
    if (!with_bias) assert_true(isnan(value_at(bias_gradient, 0))); /* another operation's */
    free(p.in);
    free(p.weight);
    free(p.bias);
    free(p.out_gradient);
    free(p.out);
    FREE_TENSORS(&in, &weight, &bias, &out_gradient, &out, &in_gradient, &weight_gradient,
                 &bias_gradient);
    test_device_close(&device);
}

static void test_linear(void **state) {
    (void)state;
    check_linear(true);
    check_linear(false);
}

/* ---- norm with the branch before it ---- */

struct norm_problem {
    double *in, *delta, *branch_bias, *weight, *bias, *out_gradient, *past_gradient, *residual,
        *out;
    bool branch;
};

/* The residual goes on past the norm too, unless the norm is the last. */
static double norm_loss(const void *context) {
    const struct norm_problem *p = context;
    for (size_t i = 0; i < TOKENS * WIDTH; i++) {
        p->residual[i] = p->in[i] + (p->branch ? p->delta[i] + p->branch_bias[i % WIDTH] : 0.0);
    }
    reference_norm(p->out, p->residual, p->weight, p->bias, TOKENS, WIDTH);
    return dot(p->out, p->out_gradient, TOKENS * WIDTH) +
           (p->branch ? dot(p->residual, p->past_gradient, TOKENS * WIDTH) : 0.0);
}

static void check_norm(bool branch) {
    struct device device = open_device();
    struct tensor in = normal(TOKENS, WIDTH, 1, 1.0), delta = normal(TOKENS, WIDTH, 2, 1.0);
    struct tensor branch_bias = normal(1, WIDTH, 3, 1.0), weight = normal(1, WIDTH, 4, 1.0);
    struct tensor bias = normal(1, WIDTH, 5, 1.0), out_gradient = normal(TOKENS, WIDTH, 6, 1.0);
    struct tensor past_gradient = normal(TOKENS, WIDTH, 7, 1.0);
    struct tensor fresh = unwritten(TOKENS, WIDTH), out = unwritten(TOKENS, WIDTH);
    struct tensor mean = unwritten(1, TOKENS), rstd = unwritten(1, TOKENS);
    struct tensor gradients = unwritten(3, WIDTH);
    float *weight_gradient = gradients.data, *bias_gradient = weight_gradient + WIDTH;
    const struct norm layer = {weight, bias, weight_gradient, bias_gradient};
    const struct norm_activations activations = {
        .out = out, .residual = branch ? fresh : in, .mean = mean.data, .rstd = rstd.data};
    const struct branch before = {in, branch ? delta : (struct tensor){0}, branch_bias, NULL};
    const struct norm_problem p = {doubles_of(in),
                                   doubles_of(delta),
                                   doubles_of(branch_bias),
                                   doubles_of(weight),
                                   doubles_of(bias),
                                   doubles_of(out_gradient),
                                   doubles_of(past_gradient),
                                   doubles_of(in),
                                   doubles_of(in),
                                   branch};
    const struct bound forward = {4, 4}, backward = {8, WIDTH};

    EXPECT_OK(norm_layer_forward(&device, &layer, &activations, &before));
    norm_loss(&p);
    check_out("residual", activations.residual, p.residual, forward);
    check_out("out", out, p.out, forward);
    for (int times = 1; times <= 2; times++) {
        struct tensor residual_gradient = branch ? copied_tensor(past_gradient)
                                                 : unwritten(TOKENS, WIDTH);
        EXPECT_OK(norm_layer_backward(&device, &layer, &activations, residual_gradient, NULL,
                                      out_gradient, branch ? bias_gradient + WIDTH : NULL, !branch,
                                      times > 1));
        check_leaf(&(struct leaf){"in gradient", p.in, residual_gradient, 1.0}, norm_loss, &p,
                   backward);
        check_leaf(&(struct leaf){"weight gradient", p.weight, tensor_rows(gradients, 0, 1), times},
                   norm_loss, &p, backward);
        check_leaf(&(struct leaf){"bias gradient", p.bias, tensor_rows(gradients, 1, 1), times},
                   norm_loss, &p, backward);
        if (branch) {
            check_leaf(&(struct leaf){"delta gradient", p.delta, residual_gradient, 1.0}, norm_loss,
                       &p, backward);
            check_leaf(&(struct leaf){"branch bias gradient", p.branch_bias,
                                      tensor_rows(gradients, 2, 1), times},
                       norm_loss, &p, backward);
        }
        free(residual_gradient.data);
    }
    double *const all[] = {p.in, p.delta, p.branch_bias, p.weight, p.bias, p.out_gradient,
                           p.past_gradient, p.residual, p.out};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
    FREE_TENSORS(&in, &delta, &branch_bias, &weight, &bias, &out_gradient, &past_gradient, &fresh,
                 &out, &mean, &rstd, &gradients);
    test_device_close(&device);
}

static void test_norm(void **state) {
    (void)state;
    check_norm(true);
    check_norm(false);
}

/* ---- attention ---- */

struct attention_problem {
    double *in, *qkv_weight, *qkv_bias, *projection, *out_gradient, *qkv, *heads, *out;
};

static double attention_loss(const void *context) {
    const struct attention_problem *p = context;
    reference_linear(p->qkv, p->in, p->qkv_weight, p->qkv_bias, TOKENS, WIDTH, 3 * WIDTH);
    reference_attention(p->heads, p->qkv, BATCH, LENGTH, HEADS, WIDTH);
    reference_linear(p->out, p->heads, p->projection, NULL, TOKENS, WIDTH, WIDTH);
    return dot(p->out, p->out_gradient, TOKENS * WIDTH);
}

static void test_attention(void **state) {
    (void)state;
    struct device device = open_device();
    struct tensor in = normal(TOKENS, WIDTH, 1, 1.0), qkv_weight = normal(3 * WIDTH, WIDTH, 2, 0.2);
    struct tensor qkv_bias = normal(1, 3 * WIDTH, 3, 1.0),
                  projection = normal(WIDTH, WIDTH, 4, 0.2);
    struct tensor out_gradient = normal(TOKENS, WIDTH, 5, 1.0), out = unwritten(TOKENS, WIDTH);
    struct tensor qkv = unwritten(TOKENS, 3 * WIDTH), heads = unwritten(TOKENS, WIDTH);
    struct tensor log_sum_exp = unwritten(BATCH * HEADS, LENGTH),
                  wide = unwritten(TOKENS, 4 * WIDTH);
    struct tensor in_gradient = unwritten(TOKENS, WIDTH);
    struct tensor qkv_gradient = unwritten(3 * WIDTH, WIDTH),
                  bias_gradient = unwritten(1, 3 * WIDTH);
    struct tensor projection_gradient = unwritten(WIDTH, WIDTH);
    const struct attention layer = {
        .qkv = {.weight = qkv_weight, .bias = qkv_bias, .weight_gradient = qkv_gradient.data,
                .bias_gradient = bias_gradient.data},
        .projection = {.weight = projection, .weight_gradient = projection_gradient.data},
        .heads = HEADS,
    };
    const struct attention_activations activations = {
        .qkv = qkv, .out = heads, .log_sum_exp = log_sum_exp.data};
    const struct attention_problem p = {
        doubles_of(in), doubles_of(qkv_weight), doubles_of(qkv_bias), doubles_of(projection),
        doubles_of(out_gradient), doubles_of(qkv), doubles_of(heads), doubles_of(out)};
    const struct bound forward = {6, WIDTH}, backward = {12, 3 * WIDTH};

    EXPECT_OK(attention_layer_forward(&device, &layer, &activations, out, plain(in), BATCH,
                                      LENGTH));
    attention_loss(&p);
    check_out("out", out, p.out, forward);
    for (int times = 1; times <= 2; times++) {
        EXPECT_OK(attention_layer_backward(&device, &layer, &activations, in_gradient, wide,
                                           out_gradient, plain(in), BATCH, LENGTH, times > 1));
        const struct leaf leaves[] = {
            {"in gradient", p.in, in_gradient, 1.0},
            {"query, key and value weight gradient", p.qkv_weight, qkv_gradient, times},
            {"query, key and value bias gradient", p.qkv_bias, bias_gradient, times},
            {"projection gradient", p.projection, projection_gradient, times},
        };
        for (size_t i = 0; i < 4; i++) check_leaf(&leaves[i], attention_loss, &p, backward);
    }
    double *const all[] = {p.in,           p.qkv_weight, p.qkv_bias, p.projection,
                           p.out_gradient, p.qkv,        p.heads,    p.out};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
    FREE_TENSORS(&in, &qkv_weight, &qkv_bias, &projection, &out_gradient, &out, &qkv, &heads,
                 &log_sum_exp, &wide, &in_gradient, &qkv_gradient, &bias_gradient,
                 &projection_gradient);
    test_device_close(&device);
}

/* ---- MLP ---- */

struct mlp_problem {
    double *in, *fc, *fc_bias, *projection, *out_gradient, *wide, *out;
};

static double mlp_loss(const void *context) {
    const struct mlp_problem *p = context;
    reference_linear(p->wide, p->in, p->fc, p->fc_bias, TOKENS, WIDTH, 4 * WIDTH);
    reference_gelu(p->wide, TOKENS * 4 * WIDTH);
    reference_linear(p->out, p->wide, p->projection, NULL, TOKENS, 4 * WIDTH, WIDTH);
    return dot(p->out, p->out_gradient, TOKENS * WIDTH);
}

static void test_mlp(void **state) {
    (void)state;
    struct device device = open_device();
    struct tensor in = normal(TOKENS, WIDTH, 1, 1.0), fc = normal(4 * WIDTH, WIDTH, 2, 0.2);
    struct tensor fc_bias = normal(1, 4 * WIDTH, 3, 1.0),
                  projection = normal(WIDTH, 4 * WIDTH, 4, 0.1);
    struct tensor out_gradient = normal(TOKENS, WIDTH, 5, 1.0), out = unwritten(TOKENS, WIDTH);
    struct tensor fc_out = unwritten(TOKENS, 4 * WIDTH), gelu = unwritten(TOKENS, 4 * WIDTH);
    struct tensor wide = unwritten(TOKENS, 4 * WIDTH), in_gradient = unwritten(TOKENS, WIDTH);
    struct tensor fc_gradient = unwritten(4 * WIDTH, WIDTH),
                  bias_gradient = unwritten(1, 4 * WIDTH);
    struct tensor projection_gradient = unwritten(WIDTH, 4 * WIDTH);
    const struct mlp layer = {
        .fc = {.weight = fc, .weight_gradient = fc_gradient.data},
        .fc_bias = fc_bias,
        .fc_bias_gradient = bias_gradient.data,
        .projection = {.weight = projection, .weight_gradient = projection_gradient.data},
    };
    const struct mlp_activations activations = {.fc = fc_out, .gelu = gelu};
    const struct mlp_problem p = {
        doubles_of(in),           doubles_of(fc),   doubles_of(fc_bias), doubles_of(projection),
        doubles_of(out_gradient), doubles_of(wide), doubles_of(out)};
    const struct bound forward = {4, 4 * WIDTH}, backward = {8, 4 * WIDTH};

    EXPECT_OK(mlp_layer_expand(&device, &layer, &activations, plain(in)));
    EXPECT_OK(mlp_layer_contract(&device, &layer, &activations, out));
    mlp_loss(&p);
    check_out("out", out, p.out, forward);
    struct tensor kept = copied_tensor(gelu);
    for (size_t i = 0; i < tensor_count(gelu); i++) value_set(gelu, i, NAN);
    EXPECT_OK(mlp_layer_gelu(&device, &layer, &activations));
    assert_memory_equal(gelu.data, kept.data, tensor_bytes(gelu));
    for (int times = 1; times <= 2; times++) {
        EXPECT_OK(mlp_layer_backward(&device, &layer, &activations, in_gradient, wide, out_gradient,
                                     plain(in), times > 1));
        const struct leaf leaves[] = {
            {"in gradient", p.in, in_gradient, 1.0},
            {"fc gradient", p.fc, fc_gradient, times},
            {"fc bias gradient", p.fc_bias, bias_gradient, times},
            {"projection gradient", p.projection, projection_gradient, times},
        };
        for (size_t i = 0; i < 4; i++) check_leaf(&leaves[i], mlp_loss, &p, backward);
    }
    double *const all[] = {p.in, p.fc, p.fc_bias, p.projection, p.out_gradient, p.wide, p.out};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
    FREE_TENSORS(&in, &fc, &fc_bias, &projection, &out_gradient, &out, &fc_out, &gelu, &wide,
                 &in_gradient, &fc_gradient, &bias_gradient, &projection_gradient, &kept);
    test_device_close(&device);
}

/* ---- embedding ---- */

struct embedding_problem {
    double *token_weight, *position_weight, *out_gradient, *out;
    const int32_t *tokens;
};

static double embedding_loss(const void *context) {
    const struct embedding_problem *p = context;
    reference_embedding(p->out, p->token_weight, p->position_weight, p->tokens, TOKENS, LENGTH,
                        WIDTH);
    return dot(p->out, p->out_gradient, TOKENS * WIDTH);
}

static void test_embedding(void **state) {
    (void)state;
    struct device device = open_device();
    struct tensor token_weight = normal(PADDED, WIDTH, 1, 1.0);
    struct tensor position_weight = normal(CONTEXT, WIDTH, 2, 1.0);
    struct tensor out_gradient = normal(TOKENS, WIDTH, 3, 1.0), out = unwritten(TOKENS, WIDTH);
    struct tensor token_gradient = filled_tensor(DTYPE_F32, PADDED, WIDTH, 0.0);
    struct tensor position_gradient = unwritten(CONTEXT, WIDTH);
    const struct embedding layer = {token_weight, position_weight, token_gradient.data,
                                    position_gradient.data};
    static const int32_t tokens[TOKENS] = {3, 36, 3, 0, 3, 12, 12, 0, 5, 36, 3, 0, 7, 1};
    const struct embedding_problem p = {doubles_of(token_weight), doubles_of(position_weight),
                                        doubles_of(out_gradient), doubles_of(out), tokens};

    /* One sum of two numbers: the bits of it. Shifted positions are the reference's rows moved
     * up. */
    for (size_t first = 0; first <= CONTEXT - LENGTH; first++) {
        EXPECT_OK(embedding_layer_forward(&device, &layer, out, tokens, LENGTH, first));
        reference_embedding(p.out, p.token_weight, p.position_weight + first * WIDTH, tokens,
                            TOKENS, LENGTH, WIDTH);
        for (size_t i = 0; i < TOKENS * WIDTH; i++) {
            assert_true(value_at(out, i) == (double)(float)p.out[i]);
        }
    }
    for (int times = 1; times <= 2; times++) {
        EXPECT_OK(
            embedding_layer_backward(&device, &layer, out_gradient, tokens, LENGTH, times > 1));
        check_leaf(&(struct leaf){"token gradient", p.token_weight, token_gradient, times},
                   embedding_loss, &p, (struct bound){2, TOKENS});
        check_leaf(&(struct leaf){"position gradient", p.position_weight, position_gradient, times},
                   embedding_loss, &p, (struct bound){2, BATCH});
    }
    free(p.token_weight);
    free(p.position_weight);
    free(p.out_gradient);
    free(p.out);
    FREE_TENSORS(&token_weight, &position_weight, &out_gradient, &out, &token_gradient,
                 &position_gradient);
    test_device_close(&device);
}

/* ---- head and loss ---- */

struct loss_problem {
    double *in, *head, *logits, *losses;
    const int32_t *targets;
    double scale;
};

static double loss_loss(const void *context) {
    const struct loss_problem *p = context;
    double sum = 0.0;
    reference_linear(p->logits, p->in, p->head, NULL, TOKENS, WIDTH, VOCABULARY);
    reference_cross_entropy(p->losses, p->logits, p->targets, TOKENS, VOCABULARY);
    for (size_t n = 0; n < TOKENS; n++) sum += p->losses[n] * p->scale;
    return sum;
}

static void check_loss(size_t chunk) {
    struct device device = open_device();
    struct tensor in = normal(TOKENS, WIDTH, 1, 1.0), head = normal(PADDED, WIDTH, 2, 0.3);
    struct tensor logits = unwritten(chunk, PADDED), losses = unwritten(1, TOKENS);
    struct tensor in_gradient = unwritten(TOKENS, WIDTH), head_gradient = unwritten(PADDED, WIDTH);
    static const int32_t targets[TOKENS] = {3, 36, -1, 0, 3, 12, 12, 0, 5, 36, 3, -1, 7, 1};
    const float loss_scale = 8.0f;
    struct loss_layer layer = {
        .head = {.weight = head, .weight_gradient = head_gradient.data},
        .vocabulary = VOCABULARY,
        .logits = logits,
    };
    struct loss_request request = {
        .in = in, .targets = targets, .losses = losses.data, .in_gradient = in_gradient,
        .gradient_scale = 0.5f, .loss_scale = &loss_scale,
    };
    const struct loss_problem p = {
        doubles_of(in),     doubles_of(head), test_memory(TOKENS * VOCABULARY * sizeof(double)),
        doubles_of(losses), targets,          4.0};
    const struct bound bound = {8, 2 * VOCABULARY};
    loss_loss(&p);
    for (int times = 1; times <= 2; times++) {
        request.accumulate = times > 1;
        EXPECT_OK(loss_layer_run(&device, &layer, &request));
        check_out("losses", losses, p.losses, bound);
        check_leaf(&(struct leaf){"in gradient", p.in, in_gradient, 1.0}, loss_loss, &p, bound);
        check_leaf(&(struct leaf){"head gradient", p.head, head_gradient, times}, loss_loss, &p,
                   bound);
        for (size_t i = VOCABULARY * WIDTH; i < PADDED * WIDTH; i++) {
            assert_true(value_at(head_gradient, i) == 0.0);
        }
    }
    /* Losses only: the same bits, and no gradient is touched. */
    struct tensor kept = copied_tensor(losses), kept_gradient = copied_tensor(head_gradient);
    request.in_gradient = (struct tensor){0};
    EXPECT_OK(loss_layer_run(&device, &layer, &request));
    assert_memory_equal(losses.data, kept.data, tensor_bytes(losses));
    assert_memory_equal(head_gradient.data, kept_gradient.data, tensor_bytes(head_gradient));
    free(p.in);
    free(p.head);
    free(p.logits);
    free(p.losses);
    FREE_TENSORS(&in, &head, &logits, &losses, &in_gradient, &head_gradient, &kept, &kept_gradient);
    test_device_close(&device);
}

static void test_loss(void **state) {
    (void)state;
    static const size_t chunks[] = {1, 3, 7, TOKENS};
    for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) check_loss(chunks[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear),    cmocka_unit_test(test_norm),
        cmocka_unit_test(test_attention), cmocka_unit_test(test_mlp),
        cmocka_unit_test(test_embedding), cmocka_unit_test(test_loss),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

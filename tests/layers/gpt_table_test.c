/*
 * GPT-2's tensor table, its shapes and its binding. Oracles: the published parameter counts;
 * Hugging Face's names of GPT2LMHeadModel written out for one layer; closed forms.
 */
#include "tests/layers/fixture.h"

/* Counts of all parameters, the tied head once (the published checkpoints, transformers'
 * num_parameters()). */
static void test_published_counts(void **state) {
    (void)state;
    static const struct {
        size_t layers, heads, width, parameters;
    } cases[] = {
        {12, 12, 768, 124439808},
        {24, 16, 1024, 354823168},
        {36, 20, 1280, 774030080},
        {48, 25, 1600, 1557611200},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct gpt_config config = {
            .layers = cases[i].layers, .heads = cases[i].heads, .width = cases[i].width,
            .context = 1024, .vocabulary = 50257,
        };
        struct gpt gpt;
        EXPECT_OK(gpt_open(&gpt, &config, 0));
        assert_int_equal(param_table_count(&gpt.table), cases[i].parameters);
        assert_int_equal(gpt.table.length, 4 + 12 * cases[i].layers);
        assert_int_equal(gpt.table.params[0].padded_rows, 50304);
        gpt_close(&gpt);
    }
}

static void test_names(void **state) {
    (void)state;
    struct gpt gpt;
    const struct gpt_config config = {
        .layers = 12, .heads = 1, .width = 2, .context = 3, .vocabulary = 4};
    EXPECT_OK(gpt_open(&gpt, &config, 0));
    for (size_t i = 0; i < gpt.table.length; i++) {
        for (size_t j = 0; j < i; j++) {
            assert_string_not_equal(gpt.table.params[i].name, gpt.table.params[j].name);
            assert_string_not_equal(gpt.table.params[i].hf_name, gpt.table.params[j].hf_name);
        }
    }
    assert_non_null(param_table_find(&gpt.table, "block.11.mlp.projection.bias"));
    gpt_close(&gpt);
}

/* Everything of a row, in the order of the flat buffers. */
static void test_hugging_face_names(void **state) {
    (void)state;
    enum { C = WIDTH };
    static const struct {
        const char *hf_name;
        enum param_role role;
        int layer;
        size_t rows, columns;
        bool transposed; /* Conv1D keeps [in, out] */
    } expected[] = {
        {"transformer.wte.weight", ROLE_EMBEDDING, -1, VOCABULARY, C, false},
        {"transformer.wpe.weight", ROLE_POSITION, -1, CONTEXT, C, false},
        {"transformer.h.0.ln_1.weight", ROLE_NORM, 0, 1, C, false},
        {"transformer.h.0.ln_1.bias", ROLE_NORM, 0, 1, C, false},
        {"transformer.h.0.attn.c_attn.weight", ROLE_LINEAR, 0, 3 * C, C, true},
        {"transformer.h.0.attn.c_attn.bias", ROLE_BIAS, 0, 1, 3 * C, false},
        {"transformer.h.0.attn.c_proj.weight", ROLE_LINEAR, 0, C, C, true},
        {"transformer.h.0.attn.c_proj.bias", ROLE_BIAS, 0, 1, C, false},
        {"transformer.h.0.ln_2.weight", ROLE_NORM, 0, 1, C, false},
        {"transformer.h.0.ln_2.bias", ROLE_NORM, 0, 1, C, false},
        {"transformer.h.0.mlp.c_fc.weight", ROLE_LINEAR, 0, 4 * C, C, true},
        {"transformer.h.0.mlp.c_fc.bias", ROLE_BIAS, 0, 1, 4 * C, false},
        {"transformer.h.0.mlp.c_proj.weight", ROLE_LINEAR, 0, C, 4 * C, true},
        {"transformer.h.0.mlp.c_proj.bias", ROLE_BIAS, 0, 1, C, false},
        {"transformer.ln_f.weight", ROLE_NORM, -1, 1, C, false},
        {"transformer.ln_f.bias", ROLE_NORM, -1, 1, C, false},
    };
    struct gpt_config config = small_config;
    struct gpt gpt;
    config.layers = 1;
    EXPECT_OK(gpt_open(&gpt, &config, 0));
    assert_int_equal(gpt.table.length, sizeof expected / sizeof expected[0]);
    for (size_t i = 0; i < gpt.table.length; i++) {
        const struct param *param = &gpt.table.params[i];
        assert_string_equal(param->hf_name, expected[i].hf_name);
        assert_int_equal(param->role, expected[i].role);
        assert_int_equal(param->layer, expected[i].layer);
        assert_int_equal(param->rows, expected[i].rows);
        assert_int_equal(param->columns, expected[i].columns);
        assert_int_equal(param->hf_transposed, expected[i].transposed);
        assert_int_equal(param->padded_rows, i == 0 ? 128 : expected[i].rows);
    }
    gpt_close(&gpt);
}

static void test_decay_roles(void **state) {
    (void)state;
    for (unsigned roles = 0; roles < 1u << ROLE_COUNT; roles++) {
        struct gpt gpt;
        EXPECT_OK(gpt_open(&gpt, &small_config, roles));
        for (size_t i = 0; i < gpt.table.length; i++) {
            const struct param *param = &gpt.table.params[i];
            assert_int_equal(param->decay, roles >> param->role & 1u);
        }
        gpt_close(&gpt);
    }
}

/* GPT-2's: 0.02 for every matrix, 1 / sqrt(2 layers) of it where a branch joins the residual
 * stream. */
static void test_initial_values(void **state) {
    (void)state;
    struct gpt gpt;
    EXPECT_OK(gpt_open(&gpt, &small_config, 0));
    for (size_t i = 0; i < gpt.table.length; i++) {
        const struct param *param = &gpt.table.params[i];
        const bool matrix = param->role <= ROLE_LINEAR;
        const bool scale = param->role == ROLE_NORM && strstr(param->name, "weight") != NULL;
        const bool joins = matrix && strstr(param->name, "projection") != NULL;
        assert_int_equal(param->init, matrix ? INIT_NORMAL : scale ? INIT_ONE : INIT_ZERO);
        if (!matrix) continue;
        const double expected = joins ? 0.02 / sqrt(2.0 * LAYERS) : 0.02;
        assert_true(fabs((double)param->init_std - expected) < expected * 0x1p-22);
    }
    gpt_close(&gpt);
}

static void test_refused_shapes(void **state) {
    (void)state;
    static const struct {
        struct gpt_config config;
        const char *words;
    } cases[] = {
        {{0, 3, 24, 9, 37, 0}, "found 0 layers, 3 heads, width 24, context 9, vocabulary 37"},
        {{2, 0, 24, 9, 37, 0}, "0 heads"},
        {{2, 3, 0, 9, 37, 0}, "width 0"},
        {{2, 3, 24, 0, 37, 0}, "context 0"},
        {{2, 3, 24, 9, 0, 0}, "vocabulary 0"},
        {{4097, 3, 24, 9, 37, 0}, "1 to 4096 layers"},
        {{2, 1, ((size_t)1 << 22) + 1, 9, 37, 0}, "width 1 to 4194304"},
        {{2, 3, 24, ((size_t)1 << 24) + 1, 37, 0}, "context and vocabulary 1 to 16777216"},
        {{2, 3, 24, 9, ((size_t)1 << 24) + 1, 0}, "vocabulary 16777217"},
        {{2, 5, 24, 9, 37, 0}, "model.width to be a multiple of model.heads, found 24 and 5"},
        {{2, 25, 24, 9, 37, 0}, "multiple of model.heads"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct gpt gpt;
        expect_status(STATUS_CONFIG, gpt_open(&gpt, &cases[i].config, 0));
        if (strstr(status_message(), cases[i].words) == NULL) {
            fail_msg("expected \"%s\" in \"%s\"", cases[i].words, status_message());
        }
        assert_null(gpt.table.params);
        assert_null(gpt.blocks);
    }
}

/* Padding must stay zero, or it would take part in nothing but grow: an optimizer step with
 * weight decay on everything, after a backward pass. */
static void test_padding_stays_zero(void **state) {
    (void)state;
    struct model model;
    model_open(&model, &small_shape);
    const size_t elements = model.gpt.table.elements;
    struct tensor moments1 = filled_tensor(DTYPE_F32, 1, elements, 0.0);
    struct tensor moments2 = filled_tensor(DTYPE_F32, 1, elements, 0.0);
    memset(model.gradients, 0, elements * sizeof(float)); /* gaps are zero, as in an arena */
    for (int step = 1; step <= 3; step++) {
        const struct step_state control = {.learning_rate = 0.1f, .gradient_multiplier = 1.0f,
                                           .updates = step};
        const struct adamw_range range = {.count = elements, .weight_decay = 0.1f};
        const struct adamw op = {
            .masters = model.weights.data, .moments1 = moments1.data, .moments2 = moments2.data,
            .gradients = model.gradients, .ranges = &range, .range_count = 1, .beta1 = 0.9f,
            .beta2 = 0.95f, .epsilon = 1e-8f, .state = &control,
        };
        model_run(&model, 1.0f, false);
        EXPECT_OK(model.device.ops->adamw(&model.device, &op));
    }
    for (size_t i = 0; i < model.gpt.table.length; i++) {
        const struct param *param = &model.gpt.table.params[i];
        const size_t end = i + 1 < model.gpt.table.length ? param[1].offset : elements;
        size_t moved = 0;
        for (size_t at = param->offset; at < end; at++) {
            const bool real = at < param->offset + param_count(param);
            if (!real) assert_true(value_at(model.weights, at) == 0.0);
            moved += real && (float)value_at(model.weights, at) != model.masters[at];
        }
        assert_true(moved > 0);
    }
    FREE_TENSORS(&moments1, &moments2);
    model_close(&model);
}

/* Every layer's views lie where the table says, each number of it once. */
static void test_binding(void **state) {
    (void)state;
    struct gpt gpt;
    EXPECT_OK(gpt_open(&gpt, &small_config, 0));
    struct tensor weights = filled_tensor(DTYPE_BF16, 1, gpt.table.elements, 0.0);
    float *gradients = test_memory(gpt.table.elements * sizeof(float));
    gpt_bind(&gpt, weights, gradients);
    const struct gpt_block *block = &gpt.blocks[1];
    const struct {
        const char *name;
        struct tensor weight;
        const float *gradient;
    } views[] = {
        {"token_embedding", gpt.embedding.token_weight, gpt.embedding.token_gradient},
        {"token_embedding", gpt.head.weight, gpt.head.weight_gradient},
        {"position_embedding", gpt.embedding.position_weight, gpt.embedding.position_gradient},
        {"block.1.norm1.weight", block->norm1.weight, block->norm1.weight_gradient},
        {"block.1.norm1.bias", block->norm1.bias, block->norm1.bias_gradient},
        {"block.1.attention.qkv.weight", block->attention.qkv.weight,
         block->attention.qkv.weight_gradient},
        {"block.1.attention.qkv.bias", block->attention.qkv.bias,
         block->attention.qkv.bias_gradient},
        {"block.1.attention.projection.weight", block->attention.projection.weight,
         block->attention.projection.weight_gradient},
        {"block.1.attention.projection.bias", block->attention_bias,
         block->attention_bias_gradient},
        {"block.1.norm2.weight", block->norm2.weight, block->norm2.weight_gradient},
        {"block.1.norm2.bias", block->norm2.bias, block->norm2.bias_gradient},
        {"block.1.mlp.fc.weight", block->mlp.fc.weight, block->mlp.fc.weight_gradient},
        {"block.1.mlp.fc.bias", block->mlp.fc_bias, block->mlp.fc_bias_gradient},
        {"block.1.mlp.projection.weight", block->mlp.projection.weight,
         block->mlp.projection.weight_gradient},
        {"block.1.mlp.projection.bias", block->mlp_bias, block->mlp_bias_gradient},
        {"final_norm.weight", gpt.final_norm.weight, gpt.final_norm.weight_gradient},
        {"final_norm.bias", gpt.final_norm.bias, gpt.final_norm.bias_gradient},
    };
    for (size_t i = 0; i < sizeof views / sizeof views[0]; i++) {
        const struct param *param = param_table_find(&gpt.table, views[i].name);
        assert_non_null(param);
        assert_ptr_equal(views[i].weight.data, (uint16_t *)weights.data + param->offset);
        assert_ptr_equal(views[i].gradient, gradients + param->offset);
        assert_int_equal(views[i].weight.rows, param->padded_rows);
        assert_int_equal(views[i].weight.columns, param->columns);
        assert_int_equal(views[i].weight.dtype, DTYPE_BF16);
    }
    assert_null(gpt.head.bias.data);
    gpt_bind(&gpt, weights, NULL); /* forward only */
    assert_null(gpt.embedding.token_gradient);
    assert_null(gpt.blocks[0].mlp_bias_gradient);
    free(gradients);
    free(weights.data);
    gpt_close(&gpt);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_counts), cmocka_unit_test(test_names),
        cmocka_unit_test(test_hugging_face_names), cmocka_unit_test(test_decay_roles),
        cmocka_unit_test(test_initial_values), cmocka_unit_test(test_refused_shapes),
        cmocka_unit_test(test_padding_stays_zero), cmocka_unit_test(test_binding),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

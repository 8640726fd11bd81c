/* The model behind fixture.h. */
#include "tests/layers/fixture.h"

enum { THREADS = 2 };

/* Norm scales around 1; embeddings large enough that positions and tokens differ clearly; the
 * rest such that a sum of 24 products of normed numbers is of order 1. */
static void fill_param(const struct param *param, size_t row, float *values) {
    const bool scale = param->role == ROLE_NORM && strstr(param->name, ".weight") != NULL;
    const bool embedding = param->role == ROLE_EMBEDDING || param->role == ROLE_POSITION;
    for (size_t i = 0; i < param_count(param); i++) {
        const float normal = random_normal(row + 1, RANDOM_TEST, i);
        values[i] = (scale ? 1.0f : 0.0f) + (embedding ? 0.4f : 0.2f) * normal;
    }
}

static void fill_weights(struct model *model, enum dtype dtype) {
    const struct param_table *table = &model->gpt.table;
    model->masters = calloc(table->elements, sizeof(float));
    assert_non_null(model->masters);
    for (size_t i = 0; i < table->length; i++) {
        fill_param(&table->params[i], i, model->masters + table->params[i].offset);
    }
    model->weights = filled_tensor(dtype, 1, table->elements, 0.0);
    for (size_t i = 0; i < table->elements; i++) {
        value_set(model->weights, i, (double)model->masters[i]);
    }
}

void model_open(struct model *model, const struct gpt_training_shape *shape) {
    *model = (struct model){.tokens = shape->batch * shape->sequence_length};
    EXPECT_OK(gpt_open(&model->gpt, &small_config, 0));
    fill_weights(model, shape->dtype);
    model->gradients = filled_tensor(DTYPE_F32, 1, model->gpt.table.elements, NAN).data;

    const struct op_limits limits = gpt_training_limits(&model->gpt, shape);
    model->device = test_device_open(THREADS, &limits);
    gpt_bind(&model->gpt, model->weights, model->gradients);
    struct arena measured = arena_measure("activations");
    EXPECT_OK(gpt_training_open(&model->training, &model->gpt, &model->device, shape, &measured,
                                &measured));
    gpt_training_close(&model->training);
    EXPECT_OK(arena_open(&model->arena, "activations", &model->device, measured.used_bytes));
    EXPECT_OK(gpt_training_open(&model->training, &model->gpt, &model->device, shape, &model->arena,
                                &model->arena));
    model_upload(model, 0);
}

void model_close(struct model *model) {
    gpt_training_close(&model->training);
    arena_close(&model->arena);
    test_device_close(&model->device);
    gpt_close(&model->gpt);
    free(model->masters);
    free(model->weights.data);
    free(model->gradients);
}

int32_t stream_token(size_t n) {
    /* 5 and 37 have no common factor: all of them */
    if (n < VOCABULARY) return (int32_t)(n * 5 % VOCABULARY);
    return (int32_t)(random_uniform(99, RANDOM_TEST, n) * VOCABULARY);
}

void stream_sequence(size_t s, int32_t *inputs, int32_t *targets) {
    for (size_t t = 0; t < LENGTH; t++) {
        inputs[t] = stream_token(s * LENGTH + t);
        targets[t] = stream_token(s * LENGTH + t + 1);
    }
}

void model_upload(struct model *model, size_t first) {
    for (size_t row = 0; row < model->training.shape.batch; row++) {
        stream_sequence(first + row, model->training.inputs + row * LENGTH,
                        model->training.targets + row * LENGTH);
    }
}

void model_run(struct model *model, float scale, bool accumulate) {
    const struct gpt_gradient_request request = {
        .gradient_scale = 1.0f / (float)model->tokens,
        .loss_scale = &scale,
        .accumulate = accumulate,
    };
    EXPECT_OK(gpt_forward_backward(&model->training, &request));
}

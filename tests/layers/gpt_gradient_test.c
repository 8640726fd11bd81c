/*
 * Losses, logits and every gradient of a GPT of two blocks in FP32.
 * Oracle: the FP64 forward pass of reference.c on the same numbers, and its central differences.
 *
 * Tolerance. A sum of K products errs by about 2^-24 sqrt(K / 3) of the size of its partial sums
 * when roundings are independent (each is uniform, so its variance is a third of the largest
 * squared), and s such results one behind the other by sqrt(s) times that. Four standard deviations
 * of it are 4 / sqrt(12) sqrt(s K) = 1.2 sqrt(s K) units of 2^-23. As `size` of a tensor's partial
 * sums its largest number is taken. Forward, a logit has s = 2 blocks * 8 results + 3 behind it, a
 * gradient of the first block twice as many; K is at most 4 C = 96 in a dot product. A directional
 * derivative along d sums errors that are independent: their root of squares.
 */
#include "tests/layers/fixture.h"
#include "tests/layers/reference.h"

enum { SAMPLES = 24, FORWARD_RESULTS = 2 * 8 + 3, BACKWARD_RESULTS = 2 * FORWARD_RESULTS };

static double tolerance(size_t results, double size) {
    return 1.2 * sqrt((double)results * 4.0 * WIDTH) * 0x1p-23 * size;
}

/* The mean loss over the micro-batch as a function of the flat parameters. */
struct problem {
    struct model *model;
    double *flat, *losses, *logits;
    struct reference_batch batch;
    double *direction; /* flat, NULL unless moving along it */
    double *moved;
    double along;
};

static void problem_open(struct problem *problem, struct model *model) {
    const struct param_table *table = &model->gpt.table;
    *problem = (struct problem){
        .model = model,
        .flat = doubles_of(tensor_make(model->masters, DTYPE_F32, 1, table->elements)),
        .losses = test_memory(model->tokens * sizeof(double)),
        .logits = test_memory(model->tokens * VOCABULARY * sizeof(double)),
        .batch = {BATCH, LENGTH, model->training.inputs, model->training.targets},
        .moved = test_memory(table->elements * sizeof(double)),
        .direction = test_memory(table->elements * sizeof(double)),
    };
    memset(problem->direction, 0, table->elements * sizeof(double));
}

static void problem_close(struct problem *problem) {
    free(problem->flat);
    free(problem->losses);
    free(problem->logits);
    free(problem->moved);
    free(problem->direction);
}

static double mean_loss_at(const struct problem *p, const double *flat) {
    double sum = 0.0;
    reference_gpt(&p->model->gpt, flat, &p->batch, p->losses, p->logits);
    for (size_t n = 0; n < p->model->tokens; n++) sum += p->losses[n];
    return sum / (double)p->model->tokens;
}

static double mean_loss(const void *context) {
    const struct problem *p = context;
    return mean_loss_at(p, p->flat);
}

static double mean_loss_along(const void *context) {
    const struct problem *p = context;
    const size_t elements = p->model->gpt.table.elements;
    for (size_t i = 0; i < elements; i++) p->moved[i] = p->flat[i] + p->along * p->direction[i];
    return mean_loss_at(p, p->moved);
}

static double largest(const float *values, size_t count) {
    double most = 0.0;
    for (size_t i = 0; i < count; i++) most = fmax(most, fabs((double)values[i]));
    return most;
}

static void test_losses(void **state) {
    (void)state;
    struct model model;
    struct problem problem;
    model_open(&model, &small_shape);
    problem_open(&problem, &model);
    const size_t columns = model.training.loss.logits.columns;
    EXPECT_OK(gpt_evaluate(&model.training)); /* leaves the logits where they are */
    mean_loss(&problem);

    double size = 0.0;
    for (size_t i = 0; i < model.tokens * VOCABULARY; i++) {
        size = fmax(size, fabs(problem.logits[i]));
    }
    struct comparison logits = {.what = "logit"}, losses = {.what = "loss"};
    for (size_t n = 0; n < model.tokens; n++) {
        for (size_t v = 0; v < VOCABULARY; v++) {
            compare(&logits, n * VOCABULARY + v,
                    value_at(model.training.loss.logits, n * columns + v),
                    problem.logits[n * VOCABULARY + v], tolerance(FORWARD_RESULTS, size));
        }
        /* log-sum-exp and the target's logit move by as much as the logits at most */
        compare(&losses, n, (double)model.training.losses[n], problem.losses[n],
                2.0 * tolerance(FORWARD_RESULTS, size));
    }
    compare_end(&logits);
    compare_end(&losses);
    problem_close(&problem);
    model_close(&model);
}

/* Sampled elements of every tensor, the first and the last among them. */
static void test_gradient_elements(void **state) {
    (void)state;
    struct model model;
    struct problem problem;
    model_open(&model, &small_shape);
    problem_open(&problem, &model);
    model_run(&model, 1.0f, false);
    const double slope_error = reference_slope_error(mean_loss(&problem));
    for (size_t row = 0; row < model.gpt.table.length; row++) {
        const struct param *param = &model.gpt.table.params[row];
        const float *gradient = model.gradients + param->offset;
        const size_t count = param_count(param);
        const double absolute = tolerance(BACKWARD_RESULTS, largest(gradient, count)) + slope_error;
        struct comparison c = {.what = param->name};
        assert_true(absolute < 1e-3 * largest(gradient, count)); /* or nothing would be compared */
        for (size_t i = 0; i < SAMPLES; i++) {
            const size_t at = i == 0 ? 0 : i == 1 ? count - 1
                              : (size_t)(random_uniform(row, RANDOM_TEST, i) * (float)count);
            const double slope =
                reference_slope(&problem.flat[param->offset + at], mean_loss, &problem);
            compare(&c, at, (double)gradient[at], slope, absolute);
        }
        compare_end(&c);
    }
    problem_close(&problem);
    model_close(&model);
}

/* All parameters at once: along a random direction, and along the gradient. */
static void test_directional_derivative(void **state) {
    (void)state;
    struct model model;
    struct problem problem;
    model_open(&model, &small_shape);
    problem_open(&problem, &model);
    model_run(&model, 1.0f, false);
    const struct param_table *table = &model.gpt.table;
    for (int kind = 0; kind < 2; kind++) {
        double derivative = 0.0, error_squared = 0.0, length_squared = 0.0;
        for (size_t row = 0; row < table->length; row++) {
            const struct param *param = &table->params[row];
            const float *gradient = model.gradients + param->offset;
            const double absolute =
                tolerance(BACKWARD_RESULTS, largest(gradient, param_count(param)));
            for (size_t i = 0; i < param_count(param); i++) {
                const double d = kind == 0 ? (double)random_normal(50 + row, RANDOM_TEST, i) * 0.01
                                           : (double)gradient[i];
                problem.direction[param->offset + i] = d;
                derivative += d * (double)gradient[i];
                error_squared += d * d * absolute * absolute;
                length_squared += d * d;
            }
        }
        problem.along = 0.0;
        const double slope = reference_slope(&problem.along, mean_loss_along, &problem);
        struct comparison c = {.what = kind == 0 ? "random direction" : "along the gradient"};
        compare(&c, 0, derivative, slope,
                sqrt(error_squared) + reference_slope_error(mean_loss(&problem)) *
                                          fmax(1.0, pow(length_squared, 1.5)));
        compare_end(&c);
    }
    problem_close(&problem);
    model_close(&model);
}

/* Ignored targets: no loss, and the gradient of the others alone. */
static void test_ignored_targets(void **state) {
    (void)state;
    struct model model;
    struct problem problem;
    model_open(&model, &small_shape);
    for (size_t n = 0; n < model.tokens; n += 3) model.training.targets[n] = -1;
    problem_open(&problem, &model);
    model_run(&model, 1.0f, false);
    for (size_t n = 0; n < model.tokens; n += 3) assert_true(model.training.losses[n] == 0.0f);
    const struct param *param = param_table_find(&model.gpt.table, "block.0.mlp.fc.weight");
    const float *gradient = model.gradients + param->offset;
    const double absolute = tolerance(BACKWARD_RESULTS, largest(gradient, param->count)) +
                            reference_slope_error(mean_loss(&problem));
    struct comparison c = {.what = param->name};
    for (size_t i = 0; i < param->count; i += 97) {
        const double slope = reference_slope(&problem.flat[param->offset + i], mean_loss, &problem);
        compare(&c, i, (double)gradient[i], slope, absolute);
    }
    compare_end(&c);
    problem_close(&problem);
    model_close(&model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_losses),
        cmocka_unit_test(test_gradient_elements),
        cmocka_unit_test(test_directional_derivative),
        cmocka_unit_test(test_ignored_targets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* Fixture and engine behind tests/parity/parity_run.h. */
#include "tests/parity/parity_run.h"

#include <stdio.h>

#include "checkpoints/safetensors.h"

static const char fixture_path[] = "tests/parity/gpt2_fixture.safetensors";

static struct safetensors fixture;

int fixture_open(void **state) {
    (void)state;
    if (safetensors_open(&fixture, fixture_path) == STATUS_OK) return 0;
    fprintf(stderr, "%s\n", status_message());
    return -1;
}

int fixture_close(void **state) {
    (void)state;
    safetensors_close(&fixture);
    return 0;
}

struct numbers fixture_numbers(const char *group, const char *name) {
    char full[SAFETENSORS_NAME_BYTES];
    snprintf(full, sizeof full, "%s:%s", group, name);
    const struct safetensors_entry *entry = safetensors_find(&fixture, full);
    if (entry == NULL) fail_msg("the fixture has no %s", full);
    const void *data = fixture.data + entry->offset;
    return (struct numbers){data, entry->bytes / sizeof(float)};
}

double fixture_number(const char *group, const char *name, size_t index) {
    const struct numbers numbers = fixture_numbers(group, name);
    assert_true(index < numbers.count);
    return (double)numbers.values[index];
}

size_t fixture_shape(enum shape_index index) {
    return (size_t)fixture_number("run", "shape", index);
}

float *fixture_flat(const struct param_table *table, const char *group) {
    float *flat = test_memory(table->elements * sizeof *flat);
    memset(flat, 0, table->elements * sizeof *flat);
    for (size_t i = 0; i < table->length; i++) {
        const struct param *param = &table->params[i];
        const struct numbers hf = fixture_numbers(group, param->hf_name);
        assert_int_equal(hf.count, param_count(param));
        for (size_t r = 0; r < param->rows; r++) {
            for (size_t c = 0; c < param->columns; c++) {
                const size_t here = r * param->columns + c, there = c * param->rows + r;
                flat[param->offset + here] = hf.values[param->hf_transposed ? there : here];
            }
        }
    }
    return flat;
}

enum config_device test_device(void) {
    const char *device = getenv("DEEPWELL_TEST_DEVICE");
    return device != NULL && strcmp(device, "cuda") == 0 ? CONFIG_DEVICE_CUDA : CONFIG_DEVICE_CPU;
}

static void configure(struct config *config, const struct variant *variant) {
    config_defaults(config);
    config->device = (int)test_device();
    config->model.vocabulary = (int64_t)fixture_number("run", "model", 0);
    config->model.context = (int64_t)fixture_number("run", "model", 1);
    config->model.layers = (int64_t)fixture_number("run", "model", 2);
    config->model.heads = (int64_t)fixture_number("run", "model", 3);
    config->model.width = (int64_t)fixture_number("run", "model", 4);
    config->optimizer.beta1 = fixture_number("run", "optimizer", 0);
    config->optimizer.beta2 = fixture_number("run", "optimizer", 1);
    config->optimizer.epsilon = fixture_number("run", "optimizer", 2);
    config->optimizer.weight_decay = fixture_number("run", "optimizer", 3);
    config->optimizer.clip_norm = fixture_number("run", "optimizer", 4);
    config->optimizer.decay_roles = 1 << ROLE_EMBEDDING | 1 << ROLE_POSITION | 1 << ROLE_LINEAR;
    config->train.batch = variant->batch;
    config->train.micro_batch = variant->micro_batch;
    config->train.sequence_length = (int64_t)fixture_shape(TOKENS);
    config->train.logits_chunk = variant->logits_chunk;
    config->train.recompute = (int)variant->recompute;
    config->precision.recipe = (int)variant->recipe;
    EXPECT_OK(config_check(config));
}

void run_open(struct run *run, const struct variant *variant) {
    struct engine *engine = &run->engine;
    configure(&run->config, variant);
    EXPECT_OK(engine_open(engine, &run->config, ENGINE_TRAIN | ENGINE_EVALUATE, ENGINE_REAL));
    EXPECT_OK(engine_initialise(engine, &run->config));

    const struct param_table *table = &engine->gpt.table;
    float *weights = fixture_flat(table, "weights");
    EXPECT_OK(device_upload(&engine->device, engine->masters, weights,
                            table->elements * sizeof *weights));
    free(weights);
    if (engine->weights.data != engine->masters) {
        const struct tensor masters = tensor_make(engine->masters, DTYPE_F32, 1, table->elements);
        EXPECT_OK(engine->device.ops->convert(&engine->device, engine->weights, masters));
    }
}

void run_close(struct run *run) { engine_close(&run->engine); }

float *download(struct run *run, const void *memory, size_t count) {
    float *host = test_memory(count * sizeof *host);
    EXPECT_OK(device_download(&run->engine.device, host, memory, count * sizeof *host));
    return host;
}

float *gradients_of(struct run *run) {
    return download(run, run->engine.gradients, run->engine.gpt.table.elements);
}

struct step_state state_of(struct run *run) {
    struct step_state state;
    EXPECT_OK(device_download(&run->engine.device, &state, run->engine.state, sizeof state));
    return state;
}

void upload_sequences(struct run *run, struct gpt_training *training, size_t first) {
    const struct numbers stream = fixture_numbers("run", "tokens");
    const size_t length = training->shape.sequence_length, rows = training->shape.batch;
    const size_t bytes = rows * length * sizeof(int32_t);
    int32_t *inputs = test_memory(bytes), *targets = test_memory(bytes);
    for (size_t i = 0; i < rows * length; i++) {
        const size_t at = (first * length + i) % (stream.count - 1);
        inputs[i] = (int32_t)stream.values[at];
        targets[i] = (int32_t)stream.values[at + 1];
    }
    EXPECT_OK(device_upload(&run->engine.device, training->inputs, inputs, bytes));
    EXPECT_OK(device_upload(&run->engine.device, training->targets, targets, bytes));
    free(inputs);
    free(targets);
}

void run_gradients(struct run *run, const struct step_policy *policy, size_t first) {
    const size_t batch = (size_t)run->config.train.batch;
    const size_t rows = run->engine.training.shape.batch;
    EXPECT_OK(step_begin(&run->engine, policy));
    for (size_t row = 0; row < batch; row += rows) {
        upload_sequences(run, &run->engine.training, first + row);
        EXPECT_OK(step_micro_batch(&run->engine, policy, row == 0));
    }
}

double run_first_batch(struct run *run) {
    const struct step_policy policy = step_policy(&run->config, 0);
    run_gradients(run, &policy, 0);
    return state_of(run).loss_sum / (double)policy.tokens;
}

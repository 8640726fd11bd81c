/* The run behind small_run.h. */
#include "tests/train/small_run.h"

#include "base/file.h"
#include "base/random.h"
#include "data/shard.h"

void small_tokens(int32_t *tokens, size_t count, uint64_t key) {
    for (size_t i = 0; i < count; i++) {
        tokens[i] = (int32_t)(random_uniform(key, RANDOM_TEST, i) * VOCABULARY);
    }
}

void small_shard(char folder[PATH_BYTES], char shard[PATH_BYTES], const int32_t *tokens,
                 size_t count) {
    const char *base = getenv("TEST_TMPDIR");
    struct shard_writer *writer = NULL;
    EXPECT_OK(path_join(folder, base == NULL ? "/tmp" : base, "small_XXXXXX"));
    assert_non_null(mkdtemp(folder));
    EXPECT_OK(path_join(shard, folder, "tokens.bin"));
    EXPECT_OK(shard_writer_open(&writer, shard, 2));
    EXPECT_OK(shard_writer_append(writer, tokens, count));
    EXPECT_OK(shard_writer_finish(writer));
}

void small_config(struct config *config, enum config_recipe recipe) {
    config_defaults(config);
    config->device = CONFIG_DEVICE_CPU; /* tests look into the memory of the device */
    config->threads = 2;
    config->model = (struct config_model){
        .layers = 2, .heads = 3, .width = 24, .context = 9, .vocabulary = VOCABULARY};
    config->train.sequence_length = LENGTH;
    config->train.batch = BATCH;
    config->train.micro_batch = MICRO_BATCH;
    config->train.steps = 1000;
    config->optimizer.warmup_steps = 0;
    config->optimizer.learning_rate = 0.01;
    config->precision.recipe = (int)recipe;
}

void small_run_open(struct small_run *run, unsigned parts) {
    EXPECT_OK(config_check(&run->config));
    EXPECT_OK(engine_open(&run->engine, &run->config, parts, ENGINE_REAL));
    EXPECT_OK(engine_initialise(&run->engine, &run->config));
}

void small_run_close(struct small_run *run) { engine_close(&run->engine); }

static int32_t token_at(size_t n) {
    return (int32_t)(random_uniform(5, RANDOM_TEST, n) * VOCABULARY);
}

void small_run_gradients(struct small_run *run, const struct step_policy *policy) {
    struct gpt_training *training = &run->engine.training;
    const size_t rows = training->shape.batch;
    EXPECT_OK(step_begin(&run->engine, policy));
    for (size_t first = 0; first < BATCH; first += rows) {
        for (size_t i = 0; i < rows * LENGTH; i++) {
            training->inputs[i] = token_at(first * LENGTH + i);
            training->targets[i] = token_at(first * LENGTH + i + 1);
        }
        EXPECT_OK(step_micro_batch(&run->engine, policy, first == 0));
    }
}

struct step_state small_run_step(struct small_run *run, const struct step_policy *policy) {
    small_run_gradients(run, policy);
    EXPECT_OK(step_update(&run->engine, &run->config));
    return *run->engine.state;
}

struct snapshot snapshot_of(const struct small_run *run) {
    const struct engine *engine = &run->engine;
    const size_t bytes = engine->gpt.table.elements * sizeof(float);
    const struct { const void *from; size_t bytes; } parts[] = {
        {engine->masters, bytes}, {engine->moments1, bytes}, {engine->moments2, bytes},
        {engine->weights.data, tensor_bytes(engine->weights)},
    };
    struct snapshot snapshot = {.memory = test_memory(4 * bytes)};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        memcpy((char *)snapshot.memory + snapshot.bytes, parts[i].from, parts[i].bytes);
        snapshot.bytes += parts[i].bytes;
    }
    return snapshot;
}

bool snapshot_equal(struct snapshot a, struct snapshot b) {
    return a.bytes == b.bytes && memcmp(a.memory, b.memory, a.bytes) == 0;
}

void assert_weights_follow_masters(const struct engine *engine) {
    for (size_t i = 0; i < engine->gpt.table.elements; i++) {
        const float rounded = dtype_round(engine->dtype, engine->masters[i]);
        assert_true(value_at(engine->weights, i) == (double)rounded);
    }
}

/*
 * Memory, weights and optimizer ranges of the engine. Oracles: the plan against what is opened, bit
 * equality of weights with rounded masters and of what went through a checkpoint, the tensor table,
 * the operands of a recorded step.
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/text.h"
#include "tests/train/small_run.h"
#include "train/step_trace.h"

static const enum config_recipe recipes[] = {CONFIG_RECIPE_FP32, CONFIG_RECIPE_BF16,
                                             CONFIG_RECIPE_FP16};
enum { RECIPES = 3 };

/* Behind what the operations around them work in, and inside the arena. */
static void assert_logits_in_scratch(const struct engine *engine,
                                     const struct engine_memory_plan *plan) {
    const struct tensor *logits = &engine->training.loss.logits;
    const char *const base = engine->arenas[4].base, *const data = logits->data;
    const size_t bytes = logits->rows * logits->columns * dtype_bytes(logits->dtype);
    assert_true(data >= base + plan->logits_offset);
    assert_true(data + bytes <= base + plan->bytes[4]);
}

static void the_plan_is_what_is_opened(void **state) {
    (void)state;
    for (unsigned parts = 0; parts < 8; parts++) {
        for (size_t r = 0; r < RECIPES; r++) {
            struct small_run run;
            struct engine_memory_plan plan;
            size_t sum = 0;
            small_config(&run.config, recipes[r]);
            run.config.train.recompute = (int)(parts % 3);
            run.config.validation.micro_batch = 5;
            small_run_open(&run, parts);
            EXPECT_OK(engine_plan(&run.config, parts, &run.engine.device, &plan));
            for (size_t i = 0; i < ENGINE_ARENAS; i++) {
                const struct arena *arena = &run.engine.arenas[i];
                assert_int_equal(arena->capacity_bytes, plan.bytes[i]);
                if (i < 4) assert_int_equal(arena->used_bytes, plan.bytes[i]);
                if (plan.bytes[i] > 0) assert_string_equal(arena->name, plan.names[i]);
                sum += plan.bytes[i];
            }
            assert_int_equal(plan.total_bytes, sum);
            assert_int_equal(run.engine.device.attention_scratch_bytes, plan.scratch_bytes);
            assert_int_equal(run.engine.device.scratch_bytes, plan.logits_offset);
            assert_true(plan.scratch_bytes <= plan.bytes[4]);
            if (parts & ENGINE_TRAIN) assert_logits_in_scratch(&run.engine, &plan);
            const size_t elements = run.engine.gpt.table.elements;
            const bool trains = (parts & ENGINE_TRAIN) != 0;
            assert_true(plan.bytes[0] >= elements * (r == 0 ? 4 : 6));
            assert_int_equal(plan.bytes[1], trains ? elements * 4 : 0);
            assert_true(trains ? plan.bytes[2] >= elements * 8 : plan.bytes[2] == 0);
            assert_int_equal(plan.bytes[3] > 0, parts > 0);
            small_run_close(&run);
        }
    }
}

/* Training, validation and generation take turns in the same memory: as much as the largest
 * needs. */
static void activations_take_turns(void **state) {
    (void)state;
    struct device device;
    struct config config;
    size_t bytes[8] = {0};
    small_config(&config, CONFIG_RECIPE_BF16);
    EXPECT_OK(engine_open_device(&device, &config));
    for (unsigned parts = 1; parts < 8; parts++) {
        struct engine_memory_plan plan;
        EXPECT_OK(engine_plan(&config, parts, &device, &plan));
        bytes[parts] = plan.bytes[3];
    }
    assert_int_equal(bytes[7], size_max(bytes[1], size_max(bytes[2], bytes[4])));
    assert_int_equal(bytes[3], size_max(bytes[1], bytes[2]));
    device_close(&device);
}

/* What a device that expands the operands of emulated products would plan for them. */
static struct op_limits asked;
static size_t emulated_scratch_bytes(const struct device *device, const struct op_limits *limits) {
    (void)device;
    asked = *limits;
    return 2 * (limits->quantised_a + limits->quantised_b);
}

static void expect_operands(const struct config *config, struct device *device) {
    struct engine_memory_plan plan;
    struct step_work work;
    size_t a = 0, b = 0;
    unsigned modes = 0;
    EXPECT_OK(step_work_open(&work, config));
    for (size_t i = 0; i < work.calls.count; i++) {
        const struct quantised_gemm *op = &work.calls.calls[i].args.quantised_gemm;
        if (work.calls.calls[i].kind != OP_QUANTISED_GEMM) continue;
        a = size_max(a, op->a.rows * op->a.columns);
        b = size_max(b, op->b.rows * op->b.columns);
        modes |= 1u << op->a.mode | 1u << op->b.mode;
    }
    EXPECT_OK(engine_plan(config, ENGINE_TRAIN, device, &plan));
    assert_int_equal(asked.quantised_a, a);
    assert_int_equal(asked.quantised_b, b);
    assert_int_equal(asked.scale_modes, modes);
    assert_int_equal(plan.scratch_bytes, 2 * (a + b));
    assert_int_equal(plan.logits_offset, 2 * (a + b)); /* the head multiplies while logits live */
    assert_true(plan.bytes[4] >= plan.logits_offset);
    step_work_close(&work);
}

/* The plan holds room for the largest operands that a step multiplies: those of its recorded
 * products, with the head's narrow or not, many tokens or few, and of each recipe. */
static void operands_of_emulated_products_are_planned(void **state) {
    static const enum config_recipe narrow[] = {CONFIG_RECIPE_BF16, CONFIG_RECIPE_FP8,
                                                CONFIG_RECIPE_FP8_BLOCK, CONFIG_RECIPE_MXFP8,
                                                CONFIG_RECIPE_NVFP4};
    static const int64_t micro_batches[] = {1, 16};
    (void)state;
    for (size_t i = 0; i < 5 * 2 * 5; i++) {
        struct device device;
        struct config config;
        small_config(&config, narrow[i % 5]);
        config.precision.lm_head = (int)narrow[i / 10];
        config.model.width = 96;
        config.model.context = config.train.sequence_length = 32;
        config.train.batch = config.train.micro_batch = micro_batches[i / 5 % 2];
        EXPECT_OK(config_check(&config));
        EXPECT_OK(engine_open_device(&device, &config));
        struct ops ops = *device.ops;
        ops.scratch_bytes = emulated_scratch_bytes;
        device.ops = &ops;
        expect_operands(&config, &device);
        device_close(&device);
    }
}

/* A model of 3e12 parameters: no machine has the 44 TiB. Nothing is allocated, and every number
 * that the decision rests on is in the message. Reserving address space is no allocation, and
 * goes. */
static void too_little_memory_is_refused_with_the_numbers(void **state) {
    (void)state;
    struct config config;
    struct engine engine;
    struct device device;
    struct engine_memory_plan plan;
    char text[TEXT_BYTES];
    small_config(&config, CONFIG_RECIPE_FP32);
    config.model = (struct config_model){.layers = 1000, .heads = 1, .width = 16000, .context = 9,
                                         .vocabulary = VOCABULARY};
    expect_status(STATUS_MEMORY, engine_open(&engine, &config, ENGINE_TRAIN, ENGINE_REAL));
    EXPECT_OK(engine_open_device(&device, &config));
    EXPECT_OK(engine_plan(&config, ENGINE_TRAIN, &device, &plan));
    assert_true(plan.total_bytes > (size_t)40 << 40);
    for (size_t i = 0; i < ENGINE_ARENAS; i++) {
        char part[TEXT_BYTES + 32];
        snprintf(part, sizeof part, "%s %s", plan.names[i], text_bytes(text, plan.bytes[i]));
        assert_non_null(strstr(status_message(), part));
    }
    assert_non_null(strstr(status_message(), text_bytes(text, plan.total_bytes)));
    assert_non_null(strstr(status_message(), device.name));
    assert_null(engine.gpt.table.params); /* closed */
    EXPECT_OK(engine_open(&engine, &config, ENGINE_TRAIN, ENGINE_RESERVED));
    assert_int_equal(engine.arenas[0].capacity_bytes, plan.bytes[0]);
    engine_close(&engine);
    device_close(&device);
}

static void other_refusals(void **state) {
    (void)state;
    struct config config;
    struct engine engine;
    small_config(&config, CONFIG_RECIPE_FP32);
    setenv("CUDA_VISIBLE_DEVICES", "", 1); /* none here, on any machine */
    config.device = CONFIG_DEVICE_CUDA;
    expect_status(STATUS_DEVICE, engine_open(&engine, &config, ENGINE_TRAIN, ENGINE_REAL));
    small_config(&config, CONFIG_RECIPE_FP32);
    config.model.heads = 5;
    expect_status(STATUS_CONFIG, engine_open(&engine, &config, ENGINE_TRAIN, ENGINE_REAL));
    small_config(&config, CONFIG_RECIPE_FP32);
    config.train.sequence_length = 10;
    expect_status(STATUS_CONFIG, engine_open(&engine, &config, ENGINE_TRAIN, ENGINE_REAL));
    assert_null(engine.arenas[0].base);
}

static void weights_follow_masters(void **state) {
    (void)state;
    for (size_t r = 0; r < RECIPES; r++) {
        struct small_run run;
        small_config(&run.config, recipes[r]);
        small_run_open(&run, ENGINE_TRAIN);
        assert_int_equal(run.engine.weights.dtype, engine_dtype(&run.config));
        assert_weights_follow_masters(&run.engine);
        const struct step_policy policy = step_policy(&run.config, 0);
        const float first = run.engine.masters[0];
        for (int step = 0; step < 5; step++) {
            const struct step_state s = small_run_step(&run, &policy);
            assert_int_equal(s.skip, SKIP_NONE);
            assert_weights_follow_masters(&run.engine);
        }
        assert_true(run.engine.masters[0] != first);
        small_run_close(&run);
    }
}

/* The seed alone decides; moments and counters start at zero, the scale where the recipe wants
 * it. */
static void a_new_run(void **state) {
    (void)state;
    struct small_run a, b;
    small_config(&a.config, CONFIG_RECIPE_FP16);
    b.config = a.config;
    small_run_open(&a, ENGINE_TRAIN);
    small_run_open(&b, ENGINE_TRAIN);
    struct snapshot first = snapshot_of(&a), second = snapshot_of(&b);
    assert_true(snapshot_equal(first, second));
    free(second.memory);
    small_run_close(&b);
    b.config.train.seed = 2;
    small_run_open(&b, ENGINE_TRAIN);
    second = snapshot_of(&b);
    assert_false(snapshot_equal(first, second));
    for (size_t i = 0; i < a.engine.gpt.table.elements; i++) {
        assert_true(a.engine.moments1[i] == 0.0f && a.engine.moments2[i] == 0.0f);
    }
    const struct step_state *s = a.engine.state;
    assert_true(s->loss_scale == 65536.0f && s->updates == 0 && s->losses.seen == 0);
    free(first.memory);
    free(second.memory);
    small_run_close(&b);
    small_run_close(&a);
}

/* ---- checkpoints ---- */

static void save(const struct small_run *run, const char *folder, char path[PATH_BYTES]) {
    const struct checkpoint_retention retention = {.keep = 1};
    bool found = false;
    cJSON *json = cJSON_CreateObject();
    assert_non_null(cJSON_AddNumberToObject(json, "step", 3));
    const struct checkpoint_content content = {
        .step = 3, .params = &run->engine.gpt.table, .masters = run->engine.masters,
        .moments1 = run->engine.moments1, .moments2 = run->engine.moments2,
        .model = engine_hf_config(&run->config), .state = json,
    };
    EXPECT_OK(checkpoint_save(folder, &content, &retention));
    EXPECT_OK(checkpoint_newest(folder, path, &found, NULL));
    assert_true(found);
    cJSON_Delete(json);
}

/* What is loaded is what was saved, bit for bit, and the weights are rounded from it: in each
 * recipe. */
static void loading(void **state) {
    (void)state;
    const char *base = getenv("TEST_TMPDIR");
    char folder[PATH_BYTES], path[PATH_BYTES];
    EXPECT_OK(path_join(folder, base == NULL ? "/tmp" : base, "engine_XXXXXX"));
    assert_non_null(mkdtemp(folder));
    struct small_run saved;
    small_config(&saved.config, CONFIG_RECIPE_FP32);
    small_run_open(&saved, ENGINE_TRAIN);
    const struct step_policy policy = step_policy(&saved.config, 0);
    for (int step = 0; step < 3; step++) small_run_step(&saved, &policy);
    save(&saved, folder, path);
    const size_t bytes = saved.engine.gpt.table.elements * sizeof(float);
    for (size_t r = 0; r < RECIPES; r++) {
        for (unsigned parts = ENGINE_TRAIN; parts <= ENGINE_GENERATE; parts *= 2) {
            struct small_run loaded;
            struct checkpoint checkpoint;
            small_config(&loaded.config, recipes[r]);
            loaded.config.train.seed = 77;
            EXPECT_OK(checkpoint_open(&checkpoint, path));
            engine_model_from_checkpoint(&loaded.config, &checkpoint.model);
            small_run_open(&loaded, parts);
            EXPECT_OK(engine_load(&loaded.engine, &checkpoint));
            assert_memory_equal(loaded.engine.masters, saved.engine.masters, bytes);
            assert_weights_follow_masters(&loaded.engine);
            if (parts == ENGINE_TRAIN) {
                assert_memory_equal(loaded.engine.moments1, saved.engine.moments1, bytes);
                assert_memory_equal(loaded.engine.moments2, saved.engine.moments2, bytes);
            }
            small_run_close(&loaded);
            checkpoint_close(&checkpoint);
        }
    }
    struct small_run other;
    struct checkpoint checkpoint;
    small_config(&other.config, CONFIG_RECIPE_FP32);
    other.config.model.width = 48;
    EXPECT_OK(checkpoint_open(&checkpoint, path));
    small_run_open(&other, ENGINE_EVALUATE);
    expect_status(STATUS_CHECKPOINT, engine_load(&other.engine, &checkpoint));
    small_run_close(&other);
    checkpoint_close(&checkpoint);
    small_run_close(&saved);
    EXPECT_OK(folder_remove(folder));
}

/* ---- the optimizer's ranges ---- */

static void ranges_follow_decay_roles(void **state) {
    (void)state;
    static const char *const roles[] = {"none", "linear", "embedding,linear", "norm,bias",
                                        "embedding,position,linear,bias,norm"};
    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++) {
        struct small_run run;
        small_config(&run.config, CONFIG_RECIPE_FP32);
        EXPECT_OK(config_set(&run.config, "optimizer.decay_roles", roles[i]));
        run.config.optimizer.weight_decay = 0.25;
        small_run_open(&run, ENGINE_TRAIN);
        const struct engine *engine = &run.engine;
        size_t end = 0;
        for (size_t r = 0; r < engine->range_count; r++) { /* side by side, nothing left out */
            assert_int_equal(engine->ranges[r].offset, end);
            assert_true(engine->ranges[r].count > 0);
            end += engine->ranges[r].count;
        }
        assert_int_equal(end, engine->gpt.table.elements);
        for (size_t p = 0; p < engine->gpt.table.length; p++) {
            const struct param *param = &engine->gpt.table.params[p];
            const struct adamw_range *range = engine->ranges;
            while (range->offset + range->count <= param->offset) range++;
            assert_true(param->offset + param->count <= range->offset + range->count);
            const bool decays = strstr(roles[i], param_role_name(param->role)) != NULL;
            assert_true(range->weight_decay == (decays ? 0.25f : 0.0f));
        }
        if (i == 0 || i == 4) assert_int_equal(engine->range_count, 1); /* neighbours are joined */
        small_run_close(&run);
    }
}

/* Which products are narrow, by hand: one of two blocks (the first stays wide), and the head or
 * not; on the H200's row each at its own peak. And never without `mixed`, which makes it no MFU. */
static void narrow_work_has_its_own_peak(void **state) {
    (void)state;
    for (int head = 0; head < 2; head++) {
        struct config config;
        struct engine engine;
        struct flops flops;
        small_config(&config, CONFIG_RECIPE_FP8);
        config.model.width = 48;
        config.model.context = config.train.sequence_length = 16;
        config.precision.first_layers = 1;
        config.precision.lm_head = head ? CONFIG_RECIPE_FP8 : CONFIG_RECIPE_BF16;
        EXPECT_OK(config_check(&config));
        EXPECT_OK(engine_open(&engine, &config, ENGINE_TRAIN, ENGINE_RESERVED));
        EXPECT_OK(flops_count(&engine.gpt.table, 2, 48, 16, &flops));
        struct speed_limit limit = engine_speed_limit(&engine, &config, &flops);
        assert_true(limit.mixed && limit.emulated && limit.tflops == 0.0); /* a CPU */
        const struct device own = engine.device;
        engine.device.kind = DEVICE_CUDA;
        snprintf(engine.device.name, sizeof engine.device.name, "NVIDIA H200");
        limit = engine_speed_limit(&engine, &config, &flops);
        engine.device = own;
        const double narrow = 0.5 * (double)flops.linear + (head ? (double)flops.head : 0.0);
        const double wide = (double)flops.total - narrow;
        const double expected = (double)flops.total / (narrow / 1979.0 + wide / 989.5);
        assert_true(limit.mixed && limit.types == (1u << PEAK_FP8 | 1u << PEAK_BF16));
        assert_true(fabs(limit.tflops - expected) < 1e-9 * expected); /* sums of five terms */
        config.mfu.peak = 1500.0;
        assert_true(engine_speed_limit(&engine, &config, &flops).tflops == 1500.0);
        engine_close(&engine);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(narrow_work_has_its_own_peak),
        cmocka_unit_test(the_plan_is_what_is_opened),
        cmocka_unit_test(activations_take_turns),
        cmocka_unit_test(operands_of_emulated_products_are_planned),
        cmocka_unit_test(too_little_memory_is_refused_with_the_numbers),
        cmocka_unit_test(other_refusals),
        cmocka_unit_test(weights_follow_masters),
        cmocka_unit_test(a_new_run),
        cmocka_unit_test(loading),
        cmocka_unit_test(ranges_follow_decay_roles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

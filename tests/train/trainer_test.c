/*
 * The trainer on a device whose answers come late, as an accelerator's do.
 *
 * Oracle: bit equality. The CPU's own calls answer at once; here they are wrapped so that a step's
 * outcome is there only when it is waited for. Losses, weights, skipped steps and what is saved
 * must be the same; so must be what a run that cannot go on says, and where it stops, although a
 * step more had been asked for.
 *
 * For the time of a step, a clock that only marks advance: a quarter of a second each, so that
 * every step took 250 ms, whenever and together with which others the host saw it.
 */
#include <math.h>
#include <stdio.h>

#include "tests/train/small_run.h"
#include "train/trainer.h"

enum { SAMPLES = 64, STEPS = 12 };

static char folder[PATH_BYTES], shard[PATH_BYTES];

static int make_shard(void **state) {
    (void)state;
    enum { TOKENS = SAMPLES * LENGTH + 1 };
    int32_t tokens[TOKENS];
    small_tokens(tokens, TOKENS, 7);
    small_shard(folder, shard, tokens, TOKENS);
    return 0;
}

static int remove_shard(void **state) {
    (void)state;
    return folder_remove(folder) == STATUS_OK ? 0 : -1;
}

/* The late device: what was read lies aside until read_end. */
static struct late_read {
    unsigned char bytes[DEVICE_READ_BYTES];
    void *to_host;
    size_t count;
} late_reads[DEVICE_READS];
static int64_t reads_under_way, most_under_way;

static enum status late_read_begin(struct device *device, size_t slot, void *to_host,
                                   const void *from, size_t bytes) {
    (void)device;
    assert_true(slot < DEVICE_READS && late_reads[slot].to_host == NULL);
    memcpy(late_reads[slot].bytes, from, bytes);
    late_reads[slot].to_host = to_host;
    late_reads[slot].count = bytes;
    if (++reads_under_way > most_under_way) most_under_way = reads_under_way;
    return STATUS_OK;
}

static bool late_read_ready(struct device *device, size_t slot) {
    (void)device;
    (void)slot;
    return false;
}

static enum status late_read_end(struct device *device, size_t slot) {
    (void)device;
    assert_non_null(late_reads[slot].to_host);
    memcpy(late_reads[slot].to_host, late_reads[slot].bytes, late_reads[slot].count);
    late_reads[slot].to_host = NULL;
    reads_under_way--;
    return STATUS_OK;
}

/* A clock of the device that stands still but for marks. */
static const double mark_seconds = 0.25;
static double marks[DEVICE_MARKS], marked_seconds;
static int64_t answers;

static enum status counted_mark(struct device *device, size_t index) {
    (void)device;
    marks[index] = marked_seconds += mark_seconds;
    return STATUS_OK;
}

static enum status counted_seconds(struct device *device, size_t first, size_t second,
                                   double *seconds) {
    (void)device;
    *seconds = marks[second] - marks[first];
    return STATUS_OK;
}

/* Ready two times out of three: now none, now one and now two steps are seen in one call. */
static bool sometimes_ready(struct device *device, size_t slot) {
    (void)device;
    (void)slot;
    return ++answers % 3 != 0;
}

/* What a run leaves behind. */
struct outcome {
    enum status status;
    char message[2048];
    struct run_state state;
    float *masters; /* released by the test */
    size_t elements;
    char *metrics;
};

/* The records of steps, without what the clock put into them. */
static char *read_steps(const char *path) {
    char *text = NULL, *kept = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&kept, &bytes);
    EXPECT_OK(file_read(path, 1 << 20, &text, &bytes));
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        cJSON *record = cJSON_Parse(line);
        static const char *const timed[] = {"step_ms", "data_wait_ms", "tokens_per_s", "tflops",
                                            "time", "mfu", "ms", "stall_ms"};
        for (size_t i = 0; i < sizeof timed / sizeof timed[0]; i++) {
            cJSON_DeleteItemFromObject(record, timed[i]);
        }
        char *plain = cJSON_PrintUnformatted(record);
        if (strstr(plain, "\"configuration\"") == NULL) fprintf(out, "%s\n", plain);
        free(plain);
        cJSON_Delete(record);
    }
    fclose(out);
    free(text);
    return kept;
}

static void set_text(char *to, size_t room, const char *text) {
    assert_true(strlen(text) < room);
    memcpy(to, text, strlen(text) + 1);
}

/* Opens a run in `folder`; its device's own calls. */
static const struct device_calls *open_trainer(struct trainer *trainer, struct config *config) {
    char out[PATH_BYTES];
    EXPECT_OK(path_join(out, folder, "run"));
    set_text(config->train.out, sizeof config->train.out, out);
    set_text(config->data.train, sizeof config->data.train, shard);
    config->data.validation[0] = '\0';
    EXPECT_OK(config_check(config));
    EXPECT_OK(trainer_open(trainer, config));
    return trainer->engine.device.calls;
}

/* The same calls, but that what is read comes late. */
static struct device_calls late_calls(const struct device_calls *own) {
    struct device_calls wrapped = *own;
    wrapped.read_begin = late_read_begin;
    wrapped.read_ready = late_read_ready;
    wrapped.read_end = late_read_end;
    return wrapped;
}

static struct outcome run(struct config config, bool late) {
    struct trainer trainer;
    struct outcome outcome = {0};
    char metrics[PATH_BYTES];
    const struct device_calls *const own = open_trainer(&trainer, &config);
    struct device_calls wrapped = late_calls(own);
    EXPECT_OK(path_join(metrics, config.train.out, "metrics.jsonl"));
    if (late) trainer.engine.device.calls = &wrapped;
    outcome.status = trainer_run(&trainer);
    snprintf(outcome.message, sizeof outcome.message, "%s", status_message());
    trainer.engine.device.calls = own;
    memset(late_reads, 0, sizeof late_reads);
    reads_under_way = 0;
    outcome.state = trainer.state;
    outcome.elements = trainer.engine.gpt.table.elements;
    outcome.masters = test_memory(outcome.elements * sizeof(float));
    memcpy(outcome.masters, trainer.engine.masters, outcome.elements * sizeof(float));
    EXPECT_OK(trainer_close(&trainer));
    outcome.metrics = read_steps(metrics);
    EXPECT_OK(folder_remove(config.train.out));
    return outcome;
}

/* Runs at once and late; the late outcome, which is the same. */
static struct outcome run_both(const struct config *config) {
    most_under_way = 0;
    struct outcome at_once = run(*config, false);
    assert_int_equal(most_under_way, 0);
    struct outcome late = run(*config, true);
    assert_int_equal(most_under_way, DEVICE_READS);
    assert_int_equal(at_once.status, late.status);
    if (late.status != STATUS_OK) assert_string_equal(at_once.message, late.message);
    assert_int_equal(at_once.state.step, late.state.step);
    assert_int_equal(at_once.state.control.updates, late.state.control.updates);
    assert_memory_equal(at_once.masters, late.masters, late.elements * sizeof(float));
    assert_string_equal(at_once.metrics, late.metrics);
    free(at_once.masters);
    free(at_once.metrics);
    return late;
}

static void release(struct outcome *outcome) {
    free(outcome->masters);
    free(outcome->metrics);
}

static struct config base_config(enum config_recipe recipe) {
    struct config config;
    small_config(&config, recipe);
    config.device = CONFIG_DEVICE_CPU;
    config.train.steps = STEPS;
    config.train.log_every = 1000;
    config.checkpoint.every = 5;
    config.checkpoint.background = CONFIG_BACKGROUND_OFF; /* its lines come when they come */
    return config;
}

static void late_answers_change_nothing(void **state) {
    (void)state;
    const struct config config = base_config(CONFIG_RECIPE_BF16);
    struct outcome outcome = run_both(&config);
    assert_int_equal(outcome.status, STATUS_OK);
    assert_int_equal(outcome.state.step, STEPS);
    release(&outcome);
}

/* The scale falls from far beyond FP16's range: the first steps are skipped, unseen by the host
 * when it asks for the next. */
static void overflows_are_skipped(void **state) {
    (void)state;
    struct config config = base_config(CONFIG_RECIPE_FP16);
    config.precision.loss_scale = 0x1p30;
    config.train.steps = 24;
    struct outcome outcome = run_both(&config);
    assert_int_equal(outcome.status, STATUS_OK);
    assert_in_range(outcome.state.control.skipped_nonfinite, 2, 20);
    assert_int_equal(outcome.state.control.updates,
                     24 - outcome.state.control.skipped_nonfinite);
    release(&outcome);
}

/* Weight decay beyond what weights survive. */
static void a_run_that_cannot_go_on_stops_where_it_is(void **state) {
    (void)state;
    for (int skip = 0; skip < 2; skip++) {
        struct config config = base_config(CONFIG_RECIPE_BF16);
        config.optimizer.learning_rate = 10.0;
        config.optimizer.weight_decay = 10.0;
        config.optimizer.clip_norm = 0.0;
        config.train.steps = 100;
        config.checkpoint.every = 0;
        config.train.nonfinite = skip ? CONFIG_NONFINITE_SKIP : CONFIG_NONFINITE_STOP;
        config.train.nonfinite_max = 3;
        struct outcome outcome = run_both(&config);
        assert_int_equal(outcome.status, STATUS_NUMERICS);
        assert_in_range(outcome.state.step, 2, 60);
        for (size_t i = 0; i < outcome.elements; i++) assert_true(isfinite(outcome.masters[i]));
        release(&outcome);
    }
}

static void a_steps_time_is_the_devices(void **state) {
    (void)state;
    struct config config = base_config(CONFIG_RECIPE_FP32);
    struct trainer trainer;
    char path[PATH_BYTES], *text = NULL;
    size_t bytes = 0, steps = 0;
    const struct device_calls *const own = open_trainer(&trainer, &config);
    struct device_calls wrapped = late_calls(own);
    wrapped.read_ready = sometimes_ready;
    wrapped.mark = counted_mark;
    wrapped.seconds_between = counted_seconds;
    trainer.engine.device.calls = &wrapped;
    EXPECT_OK(trainer_run(&trainer));
    trainer.engine.device.calls = own;
    EXPECT_OK(trainer_close(&trainer));
    EXPECT_OK(path_join(path, config.train.out, "metrics.jsonl"));
    EXPECT_OK(file_read(path, 1 << 20, &text, &bytes));
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        cJSON *record = cJSON_Parse(line);
        const cJSON *ms = cJSON_GetObjectItem(record, "step_ms");
        if (ms != NULL) assert_true(ms->valuedouble == 250.0);
        steps += ms != NULL;
        cJSON_Delete(record);
    }
    assert_int_equal(steps, STEPS);
    free(text);
    EXPECT_OK(folder_remove(config.train.out));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_steps_time_is_the_devices),
        cmocka_unit_test(late_answers_change_nothing),
        cmocka_unit_test(overflows_are_skipped),
        cmocka_unit_test(a_run_that_cannot_go_on_stops_where_it_is),
    };
    return cmocka_run_group_tests(tests, make_shard, remove_shard);
}

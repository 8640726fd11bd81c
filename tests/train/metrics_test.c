/*
 * metrics.jsonl. Oracle: every line parses as one JSON object that holds the values written, bit
 * for bit; what stays of an earlier run's file is compared byte by byte; faults are injected
 * (/dev/full, torn lines).
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "train/metrics.h"

struct place {
    char folder[64], path[PATH_BYTES];
};

static int make_folder(void **state) {
    struct place *place = calloc(1, sizeof *place);
    if (place == NULL) return -1;
    snprintf(place->folder, sizeof place->folder, "/tmp/metrics_test_XXXXXX");
    if (mkdtemp(place->folder) == NULL) return -1;
    *state = place;
    return path_join(place->path, place->folder, "metrics.jsonl") == STATUS_OK ? 0 : -1;
}

static int remove_folder(void **state) {
    struct place *place = *state;
    const enum status status = folder_remove(place->folder);
    free(place);
    return status == STATUS_OK ? 0 : -1;
}

static char *contents(const struct place *place) {
    char *text = NULL;
    size_t bytes = 0;
    assert_int_equal(file_read(place->path, 1 << 20, &text, &bytes), STATUS_OK);
    return text;
}

static void write_file(const struct place *place, const char *text) {
    assert_int_equal(file_write_durable(place->path, text, strlen(text)), STATUS_OK);
}

/* Opens, closes, and compares what is left. */
static void check_kept(const struct place *place, int64_t steps_done, const char *expected) {
    struct metrics *metrics = NULL;
    char **names = NULL;
    size_t count = 0;
    assert_int_equal(metrics_open(&metrics, place->path, steps_done), STATUS_OK);
    assert_int_equal(metrics_close(metrics), STATUS_OK);
    char *text = contents(place);
    assert_string_equal(text, expected);
    free(text);
    assert_int_equal(folder_list(place->folder, &names, &count), STATUS_OK);
    assert_int_equal(count, 1); /* no temporary file is left behind */
    names_free(names, count);
}

static struct step_record make_step(int64_t step) {
    return (struct step_record){
        .step = step, .loss = 1.0 / 3.0, .learning_rate = 0.1 + 0.2, .gradient_norm = 1e-300,
        .loss_scale = 65536, .loss_z = -0.5, .norm_z = 2.5, .skip = SKIP_NONE, .tokens = 524288,
        .step_ms = 123.456, .data_wait_ms = 0.25, .tokens_per_s = 4246759.4, .tflops = 3388.1,
        .mfu = {.state = MFU_KNOWN, .share = 0.428},
    };
}

static const cJSON *member(const cJSON *object, const char *name) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    if (item == NULL) fail_msg("no \"%s\"", name);
    return item;
}

static void assert_number(const cJSON *object, const char *name, double expected) {
    assert_true(cJSON_IsNumber(member(object, name)));
    assert_true(member(object, name)->valuedouble == expected);
}

static void assert_text(const cJSON *object, const char *name, const char *expected) {
    assert_true(cJSON_IsString(member(object, name)));
    assert_string_equal(member(object, name)->valuestring, expected);
}

static void assert_null_member(const cJSON *object, const char *name) {
    assert_true(cJSON_IsNull(member(object, name)));
}

/* The only line of the file as an object; the file is emptied. */
static cJSON *take_line(const struct place *place) {
    char *text = contents(place);
    assert_int_equal(strcspn(text, "\n") + 1, strlen(text));
    cJSON *object = cJSON_Parse(text);
    assert_non_null(object);
    free(text);
    assert_int_equal(truncate(place->path, 0), 0);
    return object;
}

static void a_step_reads_back_to_the_same_bits(void **state) {
    const struct place *place = *state;
    struct metrics *metrics = NULL;
    const struct step_record step = make_step(9007199254740991);
    assert_int_equal(metrics_open(&metrics, place->path, 0), STATUS_OK);
    assert_int_equal(metrics_step(metrics, &step), STATUS_OK);
    cJSON *object = take_line(place); /* the line is there before the file is closed */
    assert_text(object, "record", "step");
    assert_number(object, "step", 9007199254740991.0);
    assert_number(object, "loss", step.loss);
    assert_number(object, "learning_rate", step.learning_rate);
    assert_number(object, "gradient_norm", step.gradient_norm);
    assert_number(object, "loss_scale", step.loss_scale);
    assert_number(object, "loss_z", step.loss_z);
    assert_number(object, "norm_z", step.norm_z);
    assert_text(object, "skip", "none");
    assert_number(object, "tokens", 524288);
    assert_number(object, "step_ms", step.step_ms);
    assert_number(object, "data_wait_ms", step.data_wait_ms);
    assert_number(object, "tokens_per_s", step.tokens_per_s);
    assert_number(object, "tflops", step.tflops);
    assert_number(object, "mfu", step.mfu.share);
    assert_int_equal(cJSON_GetArraySize(object), 15);
    cJSON_Delete(object);
    struct step_record on_gpu = step; /* power and clock only where they are known */
    on_gpu.gpu_power_w = 688.0;
    on_gpu.gpu_clock_mhz = 1440.0;
    assert_int_equal(metrics_step(metrics, &on_gpu), STATUS_OK);
    object = take_line(place);
    assert_number(object, "gpu_power_w", 688.0);
    assert_number(object, "gpu_clock_mhz", 1440.0);
    assert_int_equal(cJSON_GetArraySize(object), 17);
    cJSON_Delete(object);
    struct step_record of_two = step; /* communication only where there is any */
    of_two.ranks = 2;
    of_two.comm_exposed_ms = 0.125;
    assert_int_equal(metrics_step(metrics, &of_two), STATUS_OK);
    object = take_line(place);
    assert_number(object, "comm_exposed_ms", 0.125);
    assert_int_equal(cJSON_GetArraySize(object), 16);
    cJSON_Delete(object);
    const struct run_energy energy = {.joules = 1260.0, .seconds = 2.0, .tokens = 100000};
    assert_int_equal(metrics_energy(metrics, 7, &energy), STATUS_OK);
    object = take_line(place);
    assert_text(object, "record", "energy");
    assert_number(object, "step", 7);
    assert_number(object, "joules", 1260.0);
    assert_number(object, "mean_w", 630.0);
    assert_number(object, "kj_per_million_tokens", 1260.0 / 100000.0 * 1e3);
    cJSON_Delete(object);
    assert_int_equal(metrics_close(metrics), STATUS_OK);
}

static void what_is_not_finite_is_null_and_said(void **state) {
    const struct place *place = *state;
    struct metrics *metrics = NULL;
    struct step_record step = make_step(3);
    step.loss = (double)NAN;
    step.gradient_norm = (double)INFINITY;
    step.loss_z = -(double)INFINITY;
    step.skip = SKIP_NONFINITE;
    step.mfu = (struct mfu){.state = MFU_UNKNOWN};
    assert_int_equal(metrics_open(&metrics, place->path, 0), STATUS_OK);
    assert_int_equal(metrics_step(metrics, &step), STATUS_OK);
    cJSON *object = take_line(place);
    assert_null_member(object, "loss");
    assert_text(object, "loss_text", "nan");
    assert_null_member(object, "gradient_norm");
    assert_text(object, "gradient_norm_text", "inf");
    assert_text(object, "loss_z_text", "-inf");
    assert_text(object, "skip", "nonfinite");
    assert_null_member(object, "mfu");
    assert_null(cJSON_GetObjectItemCaseSensitive(object, "mfu_text"));
    cJSON_Delete(object);

    const struct speed_limit bf16_peak = {.tflops = 989.5, .types = 1u << PEAK_BF16};
    step.mfu = mfu_against(1200.0, &bf16_peak);
    assert_int_equal(metrics_step(metrics, &step), STATUS_OK);
    object = take_line(place);
    assert_null_member(object, "mfu");
    assert_non_null(strstr(member(object, "mfu_text")->valuestring, "measurement error"));
    cJSON_Delete(object);
    assert_int_equal(metrics_close(metrics), STATUS_OK);
}

/* Of a mixture the share of its speed of light stands under that name, and what is emulated has
 * no share at all. */
static void a_mixture_has_no_mfu(void **state) {
    const struct place *place = *state;
    struct metrics *metrics = NULL;
    struct step_record step = make_step(3);
    struct speed_limit limit = {.tflops = 1600.0, .mixed = true};
    assert_int_equal(metrics_open(&metrics, place->path, 0), STATUS_OK);
    step.mfu = mfu_against(800.0, &limit);
    assert_int_equal(metrics_step(metrics, &step), STATUS_OK);
    cJSON *object = take_line(place);
    assert_null_member(object, "mfu");
    assert_number(object, "speed_of_light", 0.5);
    assert_null(cJSON_GetObjectItemCaseSensitive(object, "emulated"));
    cJSON_Delete(object);
    limit.emulated = true;
    step.mfu = mfu_against(800.0, &limit);
    assert_int_equal(metrics_step(metrics, &step), STATUS_OK);
    object = take_line(place);
    assert_null_member(object, "mfu");
    assert_null_member(object, "speed_of_light");
    assert_true(cJSON_IsTrue(member(object, "emulated")));
    cJSON_Delete(object);
    assert_int_equal(metrics_close(metrics), STATUS_OK);
}

static void the_other_records(void **state) {
    const struct place *place = *state;
    struct metrics *metrics = NULL;
    cJSON *details = cJSON_Parse("{\"device\": \"CPU\", \"configuration\": {\"a\": \"5\"}}");
    assert_int_equal(metrics_open(&metrics, place->path, 0), STATUS_OK);

    assert_int_equal(metrics_run(metrics, 7, details), STATUS_OK);
    cJSON_Delete(details);
    cJSON *object = take_line(place);
    assert_text(object, "record", "run");
    assert_number(object, "step", 7);
    assert_text(member(object, "details"), "device", "CPU");
    cJSON_Delete(object);

    assert_int_equal(metrics_validation(metrics, 8, 2.0, (double)NAN, 1000), STATUS_OK);
    object = take_line(place);
    assert_text(object, "record", "validation");
    assert_number(object, "loss", 2.0);
    assert_null_member(object, "bits_per_byte");
    assert_number(object, "perplexity", exp(2.0));
    assert_number(object, "tokens", 1000);
    cJSON_Delete(object);

    assert_int_equal(metrics_validation(metrics, 8, 1e4, 1.5, 1000), STATUS_OK);
    object = take_line(place);
    assert_number(object, "bits_per_byte", 1.5);
    assert_null_member(object, "perplexity"); /* e^10000 */
    assert_text(object, "perplexity_text", "inf");
    cJSON_Delete(object);

    assert_int_equal(metrics_sample(metrics, 9, "a\"b\n", "\xFF\x01\xC3\xA9"), STATUS_OK);
    object = take_line(place);
    assert_text(object, "record", "sample");
    assert_text(object, "prompt", "a\"b\n");
    assert_text(object, "text", "\xEF\xBF\xBD\x01\xC3\xA9");
    cJSON_Delete(object);

    assert_int_equal(metrics_checkpoint(metrics, 10, "runs/x/step_00000010", 12.5, 0.25),
                     STATUS_OK);
    object = take_line(place);
    assert_text(object, "record", "checkpoint");
    assert_text(object, "path", "runs/x/step_00000010");
    assert_number(object, "ms", 12.5);
    assert_number(object, "stall_ms", 0.25);
    cJSON_Delete(object);

    assert_int_equal(metrics_event(metrics, 11, "interrupted"), STATUS_OK);
    object = take_line(place);
    assert_text(object, "record", "event");
    assert_text(object, "what", "interrupted");
    cJSON_Delete(object);
    assert_int_equal(metrics_close(metrics), STATUS_OK);
}

#define RUN0 "{\"record\":\"run\",\"step\":0}\n"
#define VALIDATION0 "{\"record\":\"validation\",\"step\":0}\n"
#define STEP1 "{\"record\":\"step\",\"step\":1}\n"
#define STEP2 "{\"record\":\"step\",\"step\":2}\n"
#define CHECKPOINT2 "{\"record\":\"checkpoint\",\"step\":2}\n"
#define RUN2 "{\"record\":\"run\",\"step\":2}\n"
#define STEP3 "{\"record\":\"step\",\"step\":3}\n"

static void a_continued_run_drops_the_steps_it_does_again(void **state) {
    const struct place *place = *state;
    const char *all = RUN0 VALIDATION0 STEP1 STEP2 CHECKPOINT2 RUN2 STEP3;
    write_file(place, all);
    check_kept(place, 3, all);
    check_kept(place, 2, RUN0 VALIDATION0 STEP1 STEP2 CHECKPOINT2 RUN2);
    check_kept(place, 1, RUN0 VALIDATION0 STEP1);
    check_kept(place, 0, RUN0); /* the validation before the first step comes again */
}

static void new_lines_follow_those_kept(void **state) {
    const struct place *place = *state;
    struct metrics *metrics = NULL;
    write_file(place, RUN0 STEP1 STEP2);
    assert_int_equal(metrics_open(&metrics, place->path, 1), STATUS_OK);
    assert_int_equal(metrics_event(metrics, 1, "x"), STATUS_OK);
    assert_int_equal(metrics_close(metrics), STATUS_OK);
    char *text = contents(place);
    assert_string_equal(text, RUN0 STEP1 "{\"record\":\"event\",\"step\":1,\"what\":\"x\"}\n");
    free(text);
}

static void a_torn_last_line_is_dropped(void **state) {
    const struct place *place = *state;
    static const char line[] = STEP2;
    for (size_t cut = 1; cut < sizeof line - 2; cut++) { /* wherever the crash came */
        char text[256];
        snprintf(text, sizeof text, "%s%.*s", RUN0 STEP1, (int)cut, line);
        write_file(place, text);
        check_kept(place, 5, RUN0 STEP1);
    }
    write_file(place, RUN0 STEP1 "{\"record\":\"step\",\"step\":2}"); /* only the newline is gone */
    check_kept(place, 5, RUN0 STEP1 STEP2);
    write_file(place, RUN0 STEP1 "{\"record\":\"st\n");
    check_kept(place, 5, RUN0 STEP1);
    write_file(place, "{");
    check_kept(place, 5, "");
    write_file(place, "");
    check_kept(place, 5, "");
}

static void a_broken_line_elsewhere_is_refused_and_nothing_lost(void **state) {
    const struct place *place = *state;
    static const char *const broken[] = {"{\n", "\n", "[]\n", "{\"step\":1}\n",
                                         "{\"record\":\"step\"}\n",
                                         "{\"record\":\"step\",\"step\":1}x\n",
                                         "{\"record\":1,\"step\":\"1\"}\n"};
    for (size_t i = 0; i < sizeof broken / sizeof broken[0]; i++) {
        struct metrics *metrics = NULL;
        char text[256];
        snprintf(text, sizeof text, "%s%s%s", RUN0, broken[i], STEP3);
        write_file(place, text);
        assert_int_equal(metrics_open(&metrics, place->path, 1), STATUS_DATA);
        assert_null(metrics);
        assert_non_null(strstr(status_message(), "metrics.jsonl:2: expected a JSON object"));
        char *after = contents(place);
        assert_string_equal(after, text);
        free(after);
    }
}

static void a_full_disk_is_an_error(void **state) {
    const struct place *place = *state;
    struct metrics *metrics = NULL;
    assert_int_equal(metrics_open(&metrics, "/dev/full", 0), STATUS_OK);
    assert_int_equal(metrics_event(metrics, 1, "x"), STATUS_IO);
    assert_non_null(strstr(status_message(), "cannot write /dev/full: No space left on device"));
    (void)metrics_close(metrics);
    assert_int_equal(metrics_open(&metrics, place->folder, 0), STATUS_IO);
    assert_null(metrics);
    assert_int_equal(metrics_close(NULL), STATUS_OK);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_step_reads_back_to_the_same_bits, make_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(a_mixture_has_no_mfu, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(what_is_not_finite_is_null_and_said, make_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(the_other_records, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(a_continued_run_drops_the_steps_it_does_again, make_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(new_lines_follow_those_kept, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(a_torn_last_line_is_dropped, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(a_broken_line_elsewhere_is_refused_and_nothing_lost,
                                        make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(a_full_disk_is_an_error, make_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/*
 * Which device `device = auto` is, when the GPU does not open.
 *
 * Oracle: the rule, state by state: a machine without a GPU trains on the CPU and says why; a GPU
 * that is there and fails is refused, with the GPU's own message and the way out. The GPU and its
 * inventory are this test's own, and stand in for those of kernels/cuda.
 */
#include <stdio.h>

#include "kernels/cuda/inventory.h"
#include "tests/train/small_run.h"

static enum status gpu_status;
static enum cuda_state gpu_state;

enum status device_open_cuda(struct device *device, const struct device_options *options) {
    (void)options;
    *device = (struct device){.kind = DEVICE_CUDA};
    return status_set(gpu_status, "the GPU's own message");
}

void cuda_inventory_read(struct cuda_inventory *inventory) {
    *inventory = (struct cuda_inventory){.state = gpu_state};
    status_set(STATUS_OK, "what else was said meanwhile");
}

static void open_device(int choice, enum status status, struct device *device,
                        enum status expected) {
    struct config config;
    small_config(&config, CONFIG_RECIPE_FP32);
    config.device = choice;
    gpu_status = status;
    assert_int_equal(engine_open_device(device, &config), expected);
}

static void no_gpu_is_the_cpu(void **state) {
    (void)state;
    static const enum cuda_state absent[] = {CUDA_NOT_BUILT, CUDA_NO_DRIVER, CUDA_NO_DEVICE};
    for (size_t i = 0; i < sizeof absent / sizeof absent[0]; i++) {
        struct device device;
        gpu_state = absent[i];
        status_set(STATUS_OK, "the message before");
        open_device(CONFIG_DEVICE_AUTO, STATUS_DEVICE, &device, STATUS_OK);
        assert_int_equal(device.kind, DEVICE_CPU);
        assert_string_equal(device.note, "the GPU's own message");
        assert_string_equal(status_message(), "the message before");
        device_close(&device);
    }
}

static void a_gpu_that_fails_is_an_error(void **state) {
    (void)state;
    static const enum cuda_state there[] = {CUDA_READY, CUDA_DRIVER_TOO_OLD, CUDA_BROKEN};
    static const enum status failures[] = {STATUS_DEVICE, STATUS_MEMORY, STATUS_IO};
    for (size_t i = 0; i < 3; i++) {
        for (size_t j = 0; j < 3; j++) {
            struct device device;
            gpu_state = there[i];
            open_device(CONFIG_DEVICE_AUTO, failures[j], &device, failures[j]);
            assert_non_null(strstr(status_message(), "device = auto (--device cpu"));
            assert_non_null(strstr(status_message(), "the GPU's own message"));
        }
    }
}

static void a_choice_is_a_choice(void **state) {
    (void)state;
    struct device device;
    gpu_state = CUDA_NO_DEVICE;
    open_device(CONFIG_DEVICE_CUDA, STATUS_DEVICE, &device, STATUS_DEVICE);
    assert_non_null(strstr(status_message(), "device = cuda (--device cpu"));
    gpu_state = CUDA_READY;
    open_device(CONFIG_DEVICE_CPU, STATUS_DEVICE, &device, STATUS_OK);
    assert_int_equal(device.kind, DEVICE_CPU);
    assert_string_equal(device.note, "");
    device_close(&device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_gpu_is_the_cpu),
        cmocka_unit_test(a_gpu_that_fails_is_an_error),
        cmocka_unit_test(a_choice_is_a_choice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

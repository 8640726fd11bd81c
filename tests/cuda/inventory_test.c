/*
 * kernels/cuda/inventory.h, on machines with and without a GPU and in builds with and without CUDA.
 * Oracles from outside the CUDA runtime: the versions that the build read from the headers, whether
 * the driver's library can be loaded, and the kernel's own list of PCI devices.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <local_cuda/build_info.h>

#include "kernels/cuda/inventory.h"

static const bool built_with_cuda = sizeof DEEPWELL_CUDA_VERSION > 1;

static bool driver_library_loads(void) {
    void *library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (library == NULL) return false;
    dlclose(library);
    return true;
}

static void test_state_follows_the_build_and_the_driver(void **state) {
    (void)state;
    static struct cuda_inventory inventory;
    cuda_inventory_read(&inventory);
    if (!built_with_cuda) {
        assert_int_equal(inventory.state, CUDA_NOT_BUILT);
    } else if (!driver_library_loads()) {
        assert_int_equal(inventory.state, CUDA_NO_DRIVER);
    } else {
        assert_int_not_equal(inventory.state, CUDA_NOT_BUILT);
    }
    assert_int_equal(inventory.state == CUDA_READY, inventory.count > 0);
    assert_int_equal(inventory.state == CUDA_READY, inventory.message[0] == '\0');
}

static void test_runtime_is_the_one_of_the_build(void **state) {
    (void)state;
    static struct cuda_inventory inventory;
    cuda_inventory_read(&inventory);
    char version[32] = "";
    if (inventory.runtime_version != 0) {
        snprintf(version, sizeof version, "%d.%d", inventory.runtime_version / 1000,
                 inventory.runtime_version % 1000 / 10);
    }
    assert_string_equal(version, DEEPWELL_CUDA_VERSION);
}

static void test_devices_are_those_of_the_pci_bus(void **state) {
    (void)state;
    static struct cuda_inventory inventory;
    cuda_inventory_read(&inventory);
    if (inventory.count == 0) skip();
    for (int i = 0; i < inventory.count; i++) {
        const struct cuda_device_info *device = &inventory.devices[i];
        char path[64], vendor[16] = "";
        snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/vendor", device->pci_id);
        for (char *c = path; *c != '\0'; c++) *c = *c >= 'A' && *c <= 'F' ? (char)(*c + 32) : *c;
        FILE *file = fopen(path, "r");
        assert_non_null(file);
        assert_non_null(fgets(vendor, sizeof vendor, file));
        fclose(file);
        assert_string_equal(vendor, "0x10de\n"); /* NVIDIA */
        assert_true(device->name[0] != '\0');
        assert_true(device->capability_major >= 7 && device->multiprocessors > 0);
    }
}

/* The runtime reads CUDA_VISIBLE_DEVICES once, so the question is put in a process of its own. */
static void test_hidden_devices_are_no_device(void **state) {
    (void)state;
    if (!built_with_cuda || !driver_library_loads()) skip();
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        setenv("CUDA_VISIBLE_DEVICES", "", 1);
        static struct cuda_inventory inventory;
        cuda_inventory_read(&inventory);
        _exit(inventory.state == CUDA_NO_DEVICE && inventory.count == 0 ? 0 : 1);
    }
    int end = 0;
    assert_int_equal(waitpid(child, &end, 0), child);
    assert_true(WIFEXITED(end) && WEXITSTATUS(end) == 0);
}

int main(void) {
    /* First the test that forks: a child of a process with a CUDA context has no CUDA. */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hidden_devices_are_no_device),
        cmocka_unit_test(test_state_follows_the_build_and_the_driver),
        cmocka_unit_test(test_runtime_is_the_one_of_the_build),
        cmocka_unit_test(test_devices_are_those_of_the_pci_bus),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

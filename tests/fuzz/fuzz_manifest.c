/*
 * Fuzz entry for checkpoints/manifest.h. A manifest that is accepted must be the text that it
 * makes, byte for byte, and name files in its own folder only.
 */
#include "checkpoints/manifest.h"

#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct fuzz_file input;
    struct manifest manifest;
    fuzz_file_open(&input, data, size);
    if (manifest_read(input.path, &manifest) == STATUS_OK) {
        char *text = manifest_text(&manifest);
        if (text == NULL || strlen(text) != size || memcmp(text, data, size) != 0) abort();
        for (size_t i = 0; i < manifest.count; i++) {
            const char *name = manifest.files[i].name;
            if (strchr(name, '/') != NULL || strcmp(name, "..") == 0) abort();
        }
        free(text);
        manifest_free(&manifest);
    }
    fuzz_file_close(&input);
    return 0;
}

size_t fuzz_seeds(size_t index, uint8_t *seed, size_t capacity) {
    struct manifest_file files[] = {
        {"config.json", {590, "00112233445566778899aabbccddeeff"}},
        {"model.safetensors", {5000000000, "ffeeddccbbaa99887766554433221100"}},
    };
    const struct manifest manifests[] = {{.step = 1, .files = files, .count = 1},
                                         {.step = 999999999999999, .files = files, .count = 2}};
    if (index >= sizeof manifests / sizeof manifests[0]) return 0;
    char *text = manifest_text(&manifests[index]);
    if (text == NULL || strlen(text) > capacity) abort();
    const size_t size = strlen(text);
    memcpy(seed, text, size);
    free(text);
    return size;
}

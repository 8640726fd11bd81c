/*
 * Fuzz entry for hf_index_read() of checkpoints/hf_weights.h. An index that is accepted names each
 * tensor once, and files in its own folder only.
 */
#include "checkpoints/hf_weights.h"

#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct fuzz_file input;
    struct hf_index index;
    fuzz_file_open(&input, data, size);
    if (hf_index_read(&index, input.path) == STATUS_OK) {
        if (index.count == 0) abort();
        for (size_t i = 0; i < index.count; i++) {
            if (index.entries[i].file >= index.file_count) abort();
            if (i > 0 && strcmp(index.entries[i - 1].tensor, index.entries[i].tensor) >= 0) abort();
        }
        for (size_t i = 0; i < index.file_count; i++) {
            const char *name = index.files[i];
            if (name[0] == '\0' || name[0] == '.' || strchr(name, '/') != NULL) abort();
        }
        hf_index_free(&index);
    }
    fuzz_file_close(&input);
    return 0;
}

size_t fuzz_seeds(size_t index, uint8_t *seed, size_t capacity) {
    static const char *const texts[] = {
        "{\"metadata\":{\"total_size\":403584},\"weight_map\":{\"transformer.wte.weight\":"
        "\"model-00001-of-00002.safetensors\",\"transformer.wpe.weight\":"
        "\"model-00002-of-00002.safetensors\"}}",
        "{\"weight_map\":{\"a\":\"x\",\"b\":\"x\",\"c\":\"y\"}}",
    };
    if (index >= sizeof texts / sizeof texts[0]) return 0;
    const size_t bytes = strlen(texts[index]);
    if (bytes > capacity) abort();
    memcpy(seed, texts[index], bytes);
    return bytes;
}

/*
 * Fuzz entry for checkpoints/safetensors.h. Of an input that is accepted, the entries must lie one
 * behind the other in the data, which every byte of them is read to prove.
 */
#include <stdlib.h>
#include <string.h>

#include "checkpoints/safetensors.h"
#include "tests/fuzz/fuzz.h"

static void read_all(const struct safetensors *file) {
    volatile unsigned char sum = 0;
    size_t end = 0;
    for (size_t i = 0; i < file->count; i++) {
        const struct safetensors_entry *entry = &file->entries[i];
        if (entry->offset != end || safetensors_find(file, entry->name) == NULL) abort();
        for (size_t b = 0; b < entry->bytes; b++) {
            sum = (unsigned char)(sum + file->data[entry->offset + b]);
        }
        end += entry->bytes;
    }
    if (file->data + end != file->map.data + file->map.bytes) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct fuzz_file input;
    struct safetensors file;
    fuzz_file_open(&input, data, size);
    if (safetensors_open(&file, input.path) == STATUS_OK) {
        read_all(&file);
        safetensors_close(&file);
    }
    fuzz_file_close(&input);
    return 0;
}

size_t fuzz_seeds(size_t index, uint8_t *seed, size_t capacity) {
    static const struct {
        const char *header;
        size_t data_bytes;
    } seeds[] = {
        {"{}", 0},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}", 24},
        {"{\"__metadata__\":{\"format\":\"pt\"},"
         "\"wte.weight\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[4,8]},"
         "\"scalar\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
         "\"h.0.bias\":{\"dtype\":\"F16\",\"shape\":[1,2,1,2],\"data_offsets\":[8,16]}}      ",
         16},
    };
    if (index >= sizeof seeds / sizeof seeds[0]) return 0;
    const uint64_t header_bytes = strlen(seeds[index].header);
    const size_t size = sizeof header_bytes + (size_t)header_bytes + seeds[index].data_bytes;
    if (size > capacity) abort();
    memset(seed, 1, size);
    memcpy(seed, &header_bytes, sizeof header_bytes);
    memcpy(seed + sizeof header_bytes, seeds[index].header, (size_t)header_bytes);
    return size;
}

/*
 * Fuzz entry for train/metrics.h: metrics.jsonl as a run finds it when it continues. A file of
 * which every line is kept is opened as it is, and nothing in it changes; where lines are to be
 * dropped, the parser decides so and the rewriting beside the file fails, since this one lies in
 * memory alone (tests/train/metrics_test.c has the rewriting).
 */
#include "train/metrics.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "tests/fuzz/fuzz.h"

enum { STEPS_DONE = 2 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct fuzz_file input;
    struct metrics *metrics = NULL;
    fuzz_file_open(&input, data, size);
    if (metrics_open(&metrics, input.path, STEPS_DONE) == STATUS_OK) {
        char *text = NULL;
        size_t bytes = 0;
        if (metrics_close(metrics) != STATUS_OK) abort();
        if (file_read(input.path, size + 1, &text, &bytes) != STATUS_OK) abort();
        if (bytes != size || memcmp(text, data, size) != 0) abort();
        free(text);
    }
    fuzz_file_close(&input);
    return 0;
}

/* The second has a torn last line, the third nothing to drop. */
size_t fuzz_seeds(size_t index, uint8_t *seed, size_t capacity) {
    static const char text[] =
        "{\"record\":\"run\",\"step\":0,\"device\":\"CPU\"}\n"
        "{\"record\":\"step\",\"step\":1,\"loss\":4.5,\"skip\":\"none\"}\n"
        "{\"record\":\"step\",\"step\":2,\"loss\":null,\"loss_text\":\"nan\"}\n"
        "{\"record\":\"checkpoint\",\"step\":2,\"path\":\"run/step_00000002\",\"ms\":12.5}\n"
        "{\"record\":\"step\",\"step\":3,\"loss\":4.25}\n";
    const char *last = strstr(text, "{\"record\":\"step\",\"step\":3");
    const size_t sizes[] = {sizeof text - 1, sizeof text - 21, (size_t)(last - text)};
    if (index >= sizeof sizes / sizeof sizes[0]) return 0;
    const size_t bytes = sizes[index];
    if (bytes > capacity) abort();
    memcpy(seed, text, bytes);
    return bytes;
}

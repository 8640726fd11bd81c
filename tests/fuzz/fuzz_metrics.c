/*
 * Fuzz entry for train/metrics.h: metrics.jsonl as a run finds it when it continues. What is kept
 * must be accepted again, unchanged.
 */
#include "train/metrics.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "tests/fuzz/fuzz.h"

enum { STEPS_DONE = 2 };

/* The file is rewritten beside itself, so it lies in a folder and not in memory alone. */
static const char *input_path(void) {
    static char folder[PATH_BYTES], path[PATH_BYTES];
    const char *base = getenv("TEST_TMPDIR");
    if (path[0] != '\0') return path;
    if (path_join(folder, base == NULL ? "/tmp" : base, "metrics_XXXXXX") != STATUS_OK ||
        mkdtemp(folder) == NULL || path_join(path, folder, "metrics.jsonl") != STATUS_OK) {
        abort();
    }
    return path;
}

static void remove_folder(void) {
    char folder[PATH_BYTES];
    snprintf(folder, sizeof folder, "%s", input_path());
    *strrchr(folder, '/') = '\0';
    (void)folder_remove(folder);
}

static char *reopen(const char *path, size_t *bytes) {
    struct metrics *metrics = NULL;
    char *text = NULL;
    if (metrics_open(&metrics, path, STEPS_DONE) != STATUS_OK) return NULL;
    if (metrics_close(metrics) != STATUS_OK) abort();
    if (file_read(path, FUZZ_SEED_BYTES_MAX * 4, &text, bytes) != STATUS_OK) abort();
    return text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int registered;
    const char *path = input_path();
    size_t kept_bytes = 0, again_bytes = 0;
    if (!registered) registered = atexit(remove_folder) == 0;
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(data, 1, size, file) != size || fclose(file) != 0) abort();
    char *kept = reopen(path, &kept_bytes);
    if (kept == NULL) return 0;
    char *again = reopen(path, &again_bytes);
    if (again == NULL || again_bytes != kept_bytes || memcmp(again, kept, kept_bytes) != 0) abort();
    free(again);
    free(kept);
    return 0;
}

size_t fuzz_seeds(size_t index, uint8_t *seed, size_t capacity) {
    static const char text[] =
        "{\"record\":\"run\",\"step\":0,\"device\":\"CPU\"}\n"
        "{\"record\":\"step\",\"step\":1,\"loss\":4.5,\"skip\":\"none\"}\n"
        "{\"record\":\"step\",\"step\":2,\"loss\":null,\"loss_text\":\"nan\"}\n"
        "{\"record\":\"step\",\"step\":3,\"loss\":4.25}\n"
        "{\"record\":\"checkpoint\",\"step\":2,\"path\":\"run/step_00000002\",\"ms\":12.5}\n";
    if (index > 1) return 0;
    const size_t bytes = sizeof text - 1 - 20 * index; /* the second with a torn last line */
    if (bytes > capacity) abort();
    memcpy(seed, text, bytes);
    return bytes;
}

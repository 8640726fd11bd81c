/*
 * Configuration files and options from anywhere. Beyond the driver's oracle: what was accepted can
 * be printed and read back, and prints the same again.
 */
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/config.h"

static char *print(const struct config *config) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (out == NULL) abort();
    config_print(config, out);
    if (fclose(out) != 0) abort();
    return text;
}

static void check_round_trip(const struct config *config) {
    struct config again;
    char *text = print(config);
    config_defaults(&again);
    if (config_load_text(&again, "printed", text, strlen(text)) != STATUS_OK) abort();
    char *second = print(&again);
    if (strcmp(text, second) != 0) abort();
    free(second);
    free(text);
}

static void try_file(const uint8_t *data, size_t size) {
    struct config config;
    config_defaults(&config);
    if (config_load_text(&config, "input", (const char *)data, size) != STATUS_OK) return;
    (void)config_check(&config);
    check_round_trip(&config);
}

/* The input up to a zero byte as "--key=value", and behind it as the next argument. */
static void try_option(const uint8_t *data, size_t size) {
    char *text = malloc(size + 2);
    if (text == NULL) abort();
    memcpy(text, data, size);
    text[size] = text[size + 1] = '\0';
    char *arguments[] = {text, text + strlen(text) + (strlen(text) <= size ? 1 : 0), NULL};
    struct config config;
    int index = 0;
    config_defaults(&config);
    if (config_option(&config, 2, arguments, &index) == STATUS_OK) check_round_trip(&config);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    try_file(data, size);
    try_option(data, size);
    return 0;
}

size_t fuzz_seeds(size_t index, uint8_t *seed, size_t capacity) {
    static const char *const seeds[] = {
        "device = cpu\n[train]\nsteps = 5\nout = runs/x\n# comment\n[sample]\n"
        "prompt = \" \\\"quoted\\\"\\n\\t\\\\\"\ntop_p = 0.9\n[optimizer]\n"
        "decay_roles = linear, norm\nlearning_rate = 1e-3\n",
        "--optimizer.decay_roles=embedding,position,linear",
        "--sample.prompt=x",
    };
    enum { SEEDS = sizeof seeds / sizeof seeds[0] };
    if (index < SEEDS) {
        const size_t length = strlen(seeds[index]);
        memcpy(seed, seeds[index], length);
        return length;
    }
    if (index > SEEDS) return 0;
    struct config config;
    config_defaults(&config);
    char *text = print(&config);
    const size_t length = strlen(text);
    if (length > capacity) abort();
    memcpy(seed, text, length);
    free(text);
    return length;
}

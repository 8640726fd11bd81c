/*
 * Any bytes as Slurm's list of hosts, and as every number of a launcher. Oracle: what is accepted
 * is a host name that the list begins with up to its first bracket, and a number in its bounds that
 * says the same when printed, but for zeros in front.
 */
#include "train/rank_environment.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char name_characters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_";
    char host[HOST_BYTES], printed[32], *text = malloc(size + 1);
    int number = -1;
    if (text == NULL) abort();
    memcpy(text, data, size);
    text[size] = '\0';
    if (hostlist_first(text, host) == STATUS_OK) {
        const size_t length = strlen(host), before = strcspn(text, "[,");
        if (length == 0 || strspn(host, name_characters) != length || host[0] == '-') abort();
        if (before > length || memcmp(host, text, before) != 0) abort();
    }
    if (rank_number("RANK", text, 1, WORLD_MAX, &number) == STATUS_OK) {
        const char *digits = text + strspn(text, "0");
        snprintf(printed, sizeof printed, "%d", number);
        if (number < 1 || number > WORLD_MAX || strcmp(printed, digits) != 0) abort();
    }
    free(text);
    return 0;
}

size_t fuzz_seeds(size_t index, uint8_t *seed, size_t capacity) {
    static const char *const texts[] = {"node[01-04,7],login", "rack[1-2]n[003]-ib", "0065536"};
    if (index >= sizeof texts / sizeof texts[0] || strlen(texts[index]) > capacity) return 0;
    memcpy(seed, texts[index], strlen(texts[index]));
    return strlen(texts[index]);
}

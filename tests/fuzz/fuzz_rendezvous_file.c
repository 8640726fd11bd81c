/*
 * Any bytes as the file through which ranks meet, and as one address. Oracle: no crash and no
 * report; what is accepted has at least one address, each with a host and a port in its bounds.
 */
#include "train/rendezvous_file.h"

#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/fuzz.h"

static void check(const struct wire_address *address) {
    if (address->port < 1 || address->port > 65535 || address->host[0] == '\0') abort();
    if (memchr(address->host, '\0', sizeof address->host) == NULL) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct rendezvous_file file;
    struct wire_address address;
    char *text = malloc(size + 1);
    if (text == NULL) abort();
    memcpy(text, data, size);
    text[size] = '\0';
    if (rendezvous_file_parse("fuzz", (const char *)data, size, &file) == STATUS_OK) {
        if (file.count < 1 || file.count > RENDEZVOUS_ADDRESSES_MAX) abort();
        for (size_t i = 0; i < file.count; i++) check(&file.addresses[i]);
    }
    if (wire_address_parse(text, &address) == STATUS_OK) check(&address);
    free(text);
    return 0;
}

size_t fuzz_seeds(size_t index, uint8_t *seed, size_t capacity) {
    static const char *const texts[] = {
        "deepwell rendezvous 1\nrun 00ff00ff00ff00ff\n10.0.0.1:29500\n127.0.0.1:29500\n",
        "[fe80::1]:29500",
    };
    if (index >= sizeof texts / sizeof texts[0] || strlen(texts[index]) > capacity) return 0;
    memcpy(seed, texts[index], strlen(texts[index]));
    return strlen(texts[index]);
}

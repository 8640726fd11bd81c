/*
 * The file of chosen algorithms: one for each GPU and cuBLASLt, a header and then a line a GEMM:
 *   m n k transpose_a transpose_b accumulate a b result bias fast scaled alignment us
 *   w0 ... w7
 * on one line, the w in hexadecimal, cuBLASLt's opaque words. What it says is checked again when it
 * is first used.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/gemm.h"

enum { LINE_BYTES = 512, FILE_BYTES_MAX = 1 << 20, WORDS = 8 };

_Static_assert(sizeof(cublasLtMatmulAlgo_t) == WORDS * sizeof(uint64_t),
               "an algorithm is eight words");

static void write_line(char line[LINE_BYTES], const struct gemm_entry *entry) {
    const struct gemm_key *k = &entry->key;
    const uint64_t *w = entry->algorithm.data;
    snprintf(line, LINE_BYTES,
             "%zu %zu %zu %d %d %d %d %d %d %d %d %d %d %.3f %" PRIx64 " %" PRIx64 " %" PRIx64
             " %" PRIx64 " %" PRIx64 " %" PRIx64 " %" PRIx64 " %" PRIx64,
             k->m, k->n, k->k, k->transpose_a, k->transpose_b, k->accumulate, k->a, k->b, k->result,
             k->bias, k->fast, k->scaled, k->alignment, (double)entry->us, w[0], w[1], w[2], w[3],
             w[4], w[5], w[6], w[7]);
}

static bool is_kind(int kind) {
    if (!gemm_kind_narrow(kind)) return kind >= DTYPE_F32 && kind <= DTYPE_F16;
    return kind < GEMM_NARROW + GEMM_MODES * (FORMAT_E2M1 + 1) && gemm_kind_mode(kind) <= SCALE_NV;
}

/* Whether the line is one that write_line() writes. */
static bool read_line(const char *line, struct gemm_entry *entry) {
    struct gemm_key *k = &entry->key;
    uint64_t *w = entry->algorithm.data;
    char again[LINE_BYTES];
    const int got = sscanf(line,
                           "%zu %zu %zu %d %d %d %d %d %d %d %d %d %d %f %" SCNx64 " %" SCNx64
                           " %" SCNx64 " %" SCNx64 " %" SCNx64 " %" SCNx64 " %" SCNx64 " %" SCNx64,
                           &k->m, &k->n, &k->k, &k->transpose_a, &k->transpose_b, &k->accumulate,
                           &k->a, &k->b, &k->result, &k->bias, &k->fast, &k->scaled, &k->alignment,
                           &entry->us, &w[0], &w[1], &w[2], &w[3], &w[4], &w[5], &w[6], &w[7]);
    if (got != 14 + WORDS || !is_kind(k->a) || !is_kind(k->b) ||
        gemm_kind_narrow(k->a) != gemm_kind_narrow(k->b) || k->result < DTYPE_F32 ||
        k->result > DTYPE_F16 || k->bias < -1 || k->bias > DTYPE_F16) {
        return false;
    }
    write_line(again, entry);
    return strcmp(line, again) == 0;
}

static enum status read_entries(struct gemm_service *service, char *text) {
    char *rest = NULL;
    size_t number = 0;
    for (char *line = strtok_r(text, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest)) {
        struct gemm_entry read = {0}, *entry = NULL;
        number++;
        const bool right = number == 1 ? strcmp(line, service->cache_header) == 0
                                       : read_line(line, &read);
        if (!right) {
            return status_set(STATUS_DEVICE,
                              "%s, line %zu: expected %s, found \"%.60s\": remove the file, "
                              "and the GEMMs are searched again",
                              service->cache_path, number,
                              number == 1 ? service->cache_header : "a GEMM and its algorithm",
                              line);
        }
        if (number == 1) continue;
        TRY(gemm_entry_get(service, &read.key, &entry));
        entry->algorithm = read.algorithm;
        entry->us = read.us;
        entry->chosen = true;
    }
    return STATUS_OK;
}

enum status gemm_cache_read(struct gemm_service *service) {
    char *text = NULL;
    size_t bytes = 0;
    if (service->cache_path[0] == '\0' || !path_is_file(service->cache_path)) return STATUS_OK;
    TRY(file_read(service->cache_path, FILE_BYTES_MAX, &text, &bytes));
    enum status status = STATUS_OK;
    if (strlen(text) != bytes || bytes == 0 || text[bytes - 1] != '\n') {
        status = status_set(STATUS_DEVICE,
                            "%s: expected lines of text, found %zu bytes that are cut off "
                            "or none: remove the file, and the GEMMs are searched again",
                            service->cache_path, bytes);
    }
    if (status == STATUS_OK) status = read_entries(service, text);
    free(text);
    return status;
}

void gemm_cache_write(const struct gemm_service *service) {
    char folder[PATH_BYTES];
    const size_t room = (GEMM_ENTRIES + 1) * LINE_BYTES;
    if (service->cache_path[0] == '\0') return;
    snprintf(folder, sizeof folder, "%s", service->cache_path);
    *strrchr(folder, '/') = '\0';
    char *text = malloc(room);
    if (text == NULL) return;
    size_t used = (size_t)snprintf(text, LINE_BYTES, "%s\n", service->cache_header);
    for (size_t i = 0; i < service->count; i++) {
        if (!service->entries[i].chosen) continue;
        write_line(text + used, &service->entries[i]);
        used += strlen(text + used);
        text[used++] = '\n';
    }
    if (folder_create(folder) == STATUS_OK) {
        const enum status ignored = file_write_durable(service->cache_path, text, used);
        (void)ignored;
    }
    free(text);
}

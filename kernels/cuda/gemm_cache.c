/*
 * The file of chosen algorithms: one for each GPU and cuBLASLt, a header and then a line a GEMM:
 *   m n k transpose_a transpose_b accumulate a b result bias fast scaled alignment us
 *   w0 ... w7
 * on one line, the w in hexadecimal, cuBLASLt's opaque words. What it says is checked again when it
 * is first used.
 *
 * Processes that search at the same time write one after the other, under a lock on PATH.lock: each
 * reads what is there, adds its line, and renames the whole into place.
 */
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/cuda/gemm.h"

enum { LINE_BYTES = 512, FILE_BYTES_MAX = 1 << 24, WORDS = 8 }; /* some 80,000 GEMMs */

static const double lock_seconds = 10.0;

_Static_assert(sizeof(cublasLtMatmulAlgo_t) == WORDS * sizeof(uint64_t),
               "an algorithm is eight words");

static void write_line(char line[LINE_BYTES], const struct gemm_kept *entry) {
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

static bool is_flag(int flag) { return flag == 0 || flag == 1; }

static bool is_size(size_t size) { return size >= 1 && size <= INT_MAX; }

/* Whether gemm.c could ask for it. */
static bool is_key(const struct gemm_key *k) {
    return is_size(k->m) && is_size(k->n) && is_size(k->k) && is_flag(k->transpose_a) &&
           is_flag(k->transpose_b) && is_flag(k->accumulate) && is_flag(k->fast) &&
           is_flag(k->scaled) && is_kind(k->a) && is_kind(k->b) &&
           gemm_kind_narrow(k->a) == gemm_kind_narrow(k->b) && k->result >= DTYPE_F32 &&
           k->result <= DTYPE_F16 && k->bias >= -1 && k->bias <= DTYPE_F16 && k->alignment >= 1 &&
           k->alignment <= 256 && (k->alignment & (k->alignment - 1)) == 0;
}

/* Whether the line is one that write_line() writes. */
static bool read_line(const char *line, struct gemm_kept *entry) {
    struct gemm_key *k = &entry->key;
    uint64_t *w = entry->algorithm.data;
    char again[LINE_BYTES];
    const int got = sscanf(line,
                           "%zu %zu %zu %d %d %d %d %d %d %d %d %d %d %f %" SCNx64 " %" SCNx64
                           " %" SCNx64 " %" SCNx64 " %" SCNx64 " %" SCNx64 " %" SCNx64 " %" SCNx64,
                           &k->m, &k->n, &k->k, &k->transpose_a, &k->transpose_b, &k->accumulate,
                           &k->a, &k->b, &k->result, &k->bias, &k->fast, &k->scaled, &k->alignment,
                           &entry->us, &w[0], &w[1], &w[2], &w[3], &w[4], &w[5], &w[6], &w[7]);
    if (got != 14 + WORDS || !is_key(k) || !isfinite(entry->us) || entry->us < 0.0f) return false;
    write_line(again, entry);
    return strcmp(line, again) == 0;
}

const struct gemm_kept *gemm_cache_find(const struct gemm_cache *cache,
                                        const struct gemm_key *key) {
    for (size_t i = 0; i < cache->count; i++) {
        if (gemm_key_same(&cache->kept[i].key, key)) return &cache->kept[i];
    }
    return NULL;
}

static enum status append(struct gemm_cache *cache, const struct gemm_kept *kept) {
    if (cache->count == cache->capacity) {
        const size_t capacity = cache->capacity == 0 ? 256 : 2 * cache->capacity;
        struct gemm_kept *grown = realloc(cache->kept, capacity * sizeof *grown);
        if (grown == NULL) {
            return status_set(STATUS_MEMORY, "out of host memory for the GEMMs of %s", cache->path);
        }
        cache->kept = grown;
        cache->capacity = capacity;
    }
    cache->kept[cache->count++] = *kept;
    return STATUS_OK;
}

static enum status read_lines(struct gemm_cache *cache, char *text) {
    size_t number = 0;
    for (char *line = text, *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        struct gemm_kept read = {0};
        *end = '\0';
        number++;
        const bool right = number == 1 ? strcmp(line, cache->header) == 0 : read_line(line, &read);
        if (!right) {
            return status_set(STATUS_DEVICE,
                              "%s, line %zu: expected %s, found \"%.60s\": remove the file, "
                              "and the GEMMs are searched again",
                              cache->path, number,
                              number == 1 ? cache->header : "a GEMM and its algorithm", line);
        }
        if (number > 1) TRY(append(cache, &read));
    }
    return STATUS_OK;
}

enum status gemm_cache_read(struct gemm_cache *cache) {
    char *text = NULL;
    size_t bytes = 0;
    cache->count = 0;
    if (cache->path[0] == '\0' || access(cache->path, F_OK) != 0) return STATUS_OK;
    TRY(file_read(cache->path, FILE_BYTES_MAX, &text, &bytes));
    enum status status = STATUS_OK;
    if (strlen(text) != bytes || bytes == 0 || text[bytes - 1] != '\n') {
        status = status_set(STATUS_DEVICE,
                            "%s: expected lines of text, found %zu bytes that are cut off "
                            "or none: remove the file, and the GEMMs are searched again",
                            cache->path, bytes);
    }
    if (status == STATUS_OK) status = read_lines(cache, text);
    free(text);
    return status;
}

static enum status write_all(const struct gemm_cache *cache) {
    char *text = malloc((cache->count + 1) * LINE_BYTES);
    if (text == NULL) {
        return status_set(STATUS_MEMORY, "out of host memory for the GEMMs of %s", cache->path);
    }
    size_t used = (size_t)snprintf(text, LINE_BYTES, "%s\n", cache->header);
    for (size_t i = 0; i < cache->count; i++) {
        write_line(text + used, &cache->kept[i]);
        used += strlen(text + used);
        text[used++] = '\n';
    }
    const enum status status = used <= FILE_BYTES_MAX
                                   ? file_write_durable(cache->path, text, used)
                                   : status_set(STATUS_DEVICE, "%s is full (%d MB): remove it",
                                                cache->path, FILE_BYTES_MAX >> 20);
    free(text);
    return status;
}

static enum status lock_cache(const struct gemm_cache *cache, int *lock) {
    char folder[PATH_BYTES], path[PATH_BYTES + 8];
    snprintf(folder, sizeof folder, "%s", cache->path);
    *strrchr(folder, '/') = '\0';
    snprintf(path, sizeof path, "%s.lock", cache->path);
    TRY(folder_create(folder));
    return file_lock(path, lock_seconds, lock);
}

enum status gemm_cache_writable(const struct gemm_cache *cache) {
    int lock = -1;
    if (cache->path[0] == '\0') {
        return status_set(STATUS_CONFIG, "neither XDG_CACHE_HOME nor HOME is an absolute path");
    }
    TRY(lock_cache(cache, &lock));
    file_unlock(lock);
    return STATUS_OK;
}

enum status gemm_cache_add(struct gemm_cache *cache, const struct gemm_kept *kept) {
    int lock = -1;
    if (cache->path[0] == '\0') return STATUS_OK;
    TRY(lock_cache(cache, &lock));
    enum status status = gemm_cache_read(cache);
    if (status == STATUS_OK && gemm_cache_find(cache, &kept->key) == NULL) {
        status = append(cache, kept);
        if (status == STATUS_OK) status = write_all(cache);
    }
    file_unlock(lock);
    return status;
}

void gemm_cache_close(struct gemm_cache *cache) {
    free(cache->kept);
    *cache = (struct gemm_cache){0};
}

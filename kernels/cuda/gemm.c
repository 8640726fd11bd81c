/* GEMMs through cuBLASLt: the table of descriptions, and the call itself. Behind
 * kernels/cuda/gemm.h. */
#include "kernels/cuda/gemm.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *kind_format_name(int kind) {
    return gemm_kind_narrow(kind) ? format_name(gemm_kind_format(kind))
                                  : dtype_name((enum dtype)kind);
}

static const char *kind_mode_name(int kind) {
    return gemm_kind_narrow(kind) ? scale_mode_name(gemm_kind_mode(kind)) : "";
}

const char *gemm_text(char text[GEMM_TEXT_BYTES], const struct gemm_key *key) {
    snprintf(text, GEMM_TEXT_BYTES, "%zu x %zu x %zu %s%s %s%s%s by %s%s%s -> %s%s%s%s", key->m,
             key->n, key->k, key->transpose_a ? "T" : "N", key->transpose_b ? "T" : "N",
             kind_format_name(key->a), gemm_kind_narrow(key->a) ? " " : "", kind_mode_name(key->a),
             kind_format_name(key->b), gemm_kind_narrow(key->b) ? " " : "", kind_mode_name(key->b),
             dtype_name((enum dtype)key->result), key->bias >= 0 ? " with bias" : "",
             key->accumulate ? " accumulating" : "", key->fast ? ", fast" : "");
    return text;
}

enum status gemm_lt_check(cublasStatus_t status, const char *what, const struct gemm_key *key) {
    char text[GEMM_TEXT_BYTES] = "";
    if (status == CUBLAS_STATUS_SUCCESS) return STATUS_OK;
    if (key != NULL) gemm_text(text, key);
    return status_set(STATUS_DEVICE, "cuBLASLt: %s failed with %s%s%s", what,
                      cublasLtGetStatusName(status), key != NULL ? " for a GEMM of " : "", text);
}
#define LT_TRY(call, key) TRY(gemm_lt_check((call), #call, (key)))

static cudaDataType_t lt_type(int kind) {
    if (gemm_kind_narrow(kind)) {
        const enum number_format format = gemm_kind_format(kind);
        return format == FORMAT_E4M3   ? CUDA_R_8F_E4M3
               : format == FORMAT_E5M2 ? CUDA_R_8F_E5M2
                                       : CUDA_R_4F_E2M1;
    }
    switch ((enum dtype)kind) {
    case DTYPE_F32:
        return CUDA_R_32F;
    case DTYPE_BF16:
        return CUDA_R_16BF;
    case DTYPE_F16:
        return CUDA_R_16F;
    }
    return CUDA_R_32F;
}

/* One file for each effort that is worth keeping: what a burst chose must not pass for more. */
static void choose_cache(struct gemm_service *service, const struct device *device) {
    const enum gemm_effort effort = backend_of(device)->options.gemm_effort;
    const char *const kind = effort == GEMM_EFFORT_FAST ? "_fast" : "";
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char gpu[128];
    const size_t version = cublasLtGetVersion();
    if (effort == GEMM_EFFORT_OFF) return;
    snprintf(gpu, sizeof gpu, "%.100s", device->name);
    for (char *c = gpu; *c != '\0'; c++) *c = *c == ' ' || *c == '/' ? '_' : *c;
    snprintf(service->cache.header, sizeof service->cache.header,
             "deepwell gemm 2 %s cublasLt %zu%s", gpu, version, kind);
    if (cache != NULL && cache[0] == '/') {
        snprintf(service->cache.path, PATH_BYTES, "%.3000s/deepwell/gemm_%s_%zu%s.txt", cache, gpu,
                 version, kind);
    } else if (home != NULL && home[0] == '/') {
        snprintf(service->cache.path, PATH_BYTES, "%.3000s/.cache/deepwell/gemm_%s_%zu%s.txt", home,
                 gpu, version, kind);
    }
}

void gemm_note_unkept(struct device *device, const char *why) {
    struct gemm_service *service = backend_of(device)->gemm;
    if (service->unkept) return;
    service->unkept = true;
    cuda_note(device,
              "the choice of GEMMs is not kept (%.200s): each start searches again, and runs "
              "repeat bit for bit only with a kept file or gemm.search = off",
              why);
}

enum status gemm_service_open(struct device *device) {
    struct gemm_service *service = calloc(1, sizeof *service);
    if (service == NULL) {
        return status_set(STATUS_MEMORY, "out of host memory for the GEMM service");
    }
    backend_of(device)->gemm = service;
    LT_TRY(cublasLtCreate(&service->handle), NULL);
    choose_cache(service, device);
    if (backend_of(device)->options.gemm_effort == GEMM_EFFORT_OFF) return STATUS_OK;
    if (gemm_cache_writable(&service->cache) != STATUS_OK) {
        gemm_note_unkept(device, status_message());
    }
    return gemm_cache_read(&service->cache);
}

static void close_entry(struct gemm_entry *entry) {
    if (entry->operation != NULL) cublasLtMatmulDescDestroy(entry->operation);
    if (entry->a != NULL) cublasLtMatrixLayoutDestroy(entry->a);
    if (entry->b != NULL) cublasLtMatrixLayoutDestroy(entry->b);
    if (entry->c != NULL) cublasLtMatrixLayoutDestroy(entry->c);
}

void gemm_service_close(struct gemm_service *service) {
    if (service == NULL) return;
    for (size_t i = 0; i < service->count; i++) close_entry(&service->entries[i]);
    free(service->entries);
    gemm_cache_close(&service->cache);
    if (service->handle != NULL) cublasLtDestroy(service->handle);
    free(service);
}

static enum status set_attribute(struct gemm_entry *entry, cublasLtMatmulDescAttributes_t attribute,
                                 const void *value, size_t bytes) {
    LT_TRY(cublasLtMatmulDescSetAttribute(entry->operation, attribute, value, bytes), &entry->key);
    return STATUS_OK;
}

/* Rows and columns of ours, swapped into cuBLASLt's columns. */
static enum status make_layout(struct gemm_entry *entry, cublasLtMatrixLayout_t *layout, int type,
                               size_t rows, size_t columns) {
    LT_TRY(cublasLtMatrixLayoutCreate(layout, lt_type(type), columns, rows, (int64_t)columns),
           &entry->key);
    return STATUS_OK;
}

static int32_t lt_scale_mode(int kind) {
    switch (gemm_kind_mode(kind)) {
    case SCALE_TENSOR:
        return CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
    case SCALE_1X128:
        return CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
    case SCALE_128X128:
        return CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F;
    case SCALE_MX:
        return CUBLASLT_MATMUL_MATRIX_SCALE_VEC32_UE8M0;
    case SCALE_NV:
        return CUBLASLT_MATMUL_MATRIX_SCALE_VEC16_UE4M3;
    }
    return CUBLASLT_MATMUL_MATRIX_SCALE_SCALAR_32F;
}

static enum status describe_narrow(struct gemm_entry *entry) {
    const struct gemm_key *k = &entry->key;
    const int8_t fast = (int8_t)k->fast;
    const int32_t a = lt_scale_mode(k->b), b = lt_scale_mode(k->a);
    TRY(set_attribute(entry, CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast, sizeof fast));
    TRY(set_attribute(entry, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &a, sizeof a));
    return set_attribute(entry, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &b, sizeof b);
}

static enum status make_entry(struct gemm_entry *entry) {
    const struct gemm_key *k = &entry->key;
    const cublasOperation_t a = k->transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t b = k->transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    const cudaDataType_t bias = lt_type(k->bias);
    LT_TRY(cublasLtMatmulDescCreate(&entry->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), k);
    TRY(set_attribute(entry, CUBLASLT_MATMUL_DESC_TRANSA, &a, sizeof a));
    TRY(set_attribute(entry, CUBLASLT_MATMUL_DESC_TRANSB, &b, sizeof b));
    if (k->bias >= 0) {
        TRY(set_attribute(entry, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
        TRY(set_attribute(entry, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias, sizeof bias));
    }
    if (k->scaled) {
        const int32_t pointers = CUBLASLT_POINTER_MODE_DEVICE;
        TRY(set_attribute(entry, CUBLASLT_MATMUL_DESC_POINTER_MODE, &pointers, sizeof pointers));
    }
    if (gemm_kind_narrow(k->a)) TRY(describe_narrow(entry));
    TRY(make_layout(entry, &entry->a, k->b, k->transpose_b ? k->n : k->k,
                    k->transpose_b ? k->k : k->n));
    TRY(make_layout(entry, &entry->b, k->a, k->transpose_a ? k->k : k->m,
                    k->transpose_a ? k->m : k->k));
    return make_layout(entry, &entry->c, k->result, k->m, k->n);
}

bool gemm_key_same(const struct gemm_key *a, const struct gemm_key *b) {
    return a->m == b->m && a->n == b->n && a->k == b->k && a->transpose_a == b->transpose_a &&
           a->transpose_b == b->transpose_b && a->accumulate == b->accumulate && a->a == b->a &&
           a->b == b->b && a->result == b->result && a->bias == b->bias && a->fast == b->fast &&
           a->scaled == b->scaled && a->alignment == b->alignment;
}

static enum status grow_entries(struct gemm_service *service) {
    const size_t capacity = service->capacity == 0 ? 64 : 2 * service->capacity;
    struct gemm_entry *grown = realloc(service->entries, capacity * sizeof *grown);
    if (grown == NULL) return status_set(STATUS_MEMORY, "out of host memory for kinds of GEMM");
    service->entries = grown;
    service->capacity = capacity;
    return STATUS_OK;
}

enum status gemm_entry_get(struct gemm_service *service, const struct gemm_key *key,
                           struct gemm_entry **out) {
    for (size_t i = 0; i < service->count; i++) {
        *out = &service->entries[i];
        if (gemm_key_same(&(*out)->key, key)) return STATUS_OK;
    }
    if (service->count == service->capacity) TRY(grow_entries(service));
    const struct gemm_kept *kept = gemm_cache_find(&service->cache, key);
    *out = &service->entries[service->count];
    **out = (struct gemm_entry){.key = *key, .chosen = kept != NULL};
    if (kept != NULL) {
        (*out)->algorithm = kept->algorithm;
        (*out)->us = kept->us;
    }
    const enum status status = make_entry(*out);
    if (status == STATUS_OK)
        service->count++;
    else
        close_entry(*out);
    return status;
}

/* What differs from call to call, and what the heuristic wants to see too. */
static enum status set_pointers(const struct gemm_call *op, struct gemm_entry *entry) {
    if (op->bias != NULL) {
        TRY(set_attribute(entry, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &op->bias->data,
                          sizeof op->bias->data));
    }
    if (!gemm_kind_narrow(op->a.kind)) return STATUS_OK;
    TRY(set_attribute(entry, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &op->b.scales,
                      sizeof op->b.scales));
    return set_attribute(entry, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &op->a.scales,
                         sizeof op->a.scales);
}

enum status gemm_run(struct device *device, const struct gemm_call *op, struct gemm_entry *entry,
                     const cublasLtMatmulAlgo_t *algorithm) {
    const float one = 1.0f, host_beta = op->accumulate ? 1.0f : 0.0f;
    const float *alpha = op->alpha_beta != NULL ? op->alpha_beta : &one;
    const float *beta = op->alpha_beta != NULL ? op->alpha_beta + 1 : &host_beta;
    TRY(set_pointers(op, entry));
    LT_TRY(cublasLtMatmul(backend_of(device)->gemm->handle, entry->operation, alpha, op->b.data,
                          entry->a, op->a.data, entry->b, beta, op->c.data, entry->c, op->c.data,
                          entry->c, algorithm, device->scratch, cuda_gemm_workspace_bytes,
                          backend_of(device)->stream),
           &entry->key);
    return STATUS_OK;
}

static int alignment_of(const void *data) {
    const uintptr_t address = (uintptr_t)data | 256;
    return (int)(address & (~address + 1));
}

static int least(int a, int b) { return a < b ? a : b; }

static struct gemm_key key_of(const struct gemm_call *op) {
    const int alignment = least(least(alignment_of(op->a.data), alignment_of(op->b.data)),
                                least(alignment_of(op->c.data),
                                      op->bias == NULL ? 256 : alignment_of(op->bias->data)));
    return (struct gemm_key){
        .m = op->c.rows,
        .n = op->c.columns,
        .k = op->transpose_a ? op->a.rows : op->a.columns,
        .transpose_a = op->transpose_a,
        .transpose_b = op->transpose_b,
        .accumulate = op->accumulate,
        .a = op->a.kind,
        .b = op->b.kind,
        .result = (int)op->c.dtype,
        .bias = op->bias == NULL ? -1 : (int)op->bias->dtype,
        .fast = op->fast,
        .scaled = op->alpha_beta != NULL,
        .alignment = alignment,
    };
}

enum status gemm_call_run(struct device *device, const struct gemm_call *op) {
    const struct gemm_key key = key_of(op);
    struct gemm_entry *entry = NULL;
    TRY(cuda_scratch(device, "gemm", cuda_gemm_scratch_bytes()));
    TRY(gemm_entry_get(backend_of(device)->gemm, &key, &entry));
    if (entry->verified) return gemm_run(device, op, entry, &entry->algorithm);
    if (backend_of(device)->recording) {
        char text[GEMM_TEXT_BYTES];
        return status_set(STATUS_INTERNAL, "a GEMM of %s is recorded before it ran once",
                          gemm_text(text, &key));
    }
    TRY(set_pointers(op, entry));
    return gemm_search(device, op, entry);
}

static enum status check_gemm(const struct gemm *op) {
    const size_t m = op->c.rows, n = op->c.columns;
    const size_t k = op->transpose_a ? op->a.rows : op->a.columns;
    const size_t a_rows = op->transpose_a ? k : m, a_columns = op->transpose_a ? m : k;
    const size_t b_rows = op->transpose_b ? n : k, b_columns = op->transpose_b ? k : n;
    TRY(cuda_shape("gemm", "a", op->a, op->b.dtype, a_rows, a_columns));
    TRY(cuda_shape("gemm", "b", op->b, op->a.dtype, b_rows, b_columns));
    const bool fits = op->c.dtype == DTYPE_F32 || op->c.dtype == op->a.dtype;
    if (fits && m <= INT_MAX && n <= INT_MAX && k <= INT_MAX &&
        (op->bias == NULL || (tensor_count(*op->bias) == n && op->bias->dtype == op->c.dtype))) {
        return STATUS_OK;
    }
    return status_set(STATUS_INTERNAL, "gemm: %zu x %zu x %zu in %s to %s, bias %s of %zu", m, n, k,
                      dtype_name(op->a.dtype), dtype_name(op->c.dtype),
                      op->bias == NULL ? "none" : dtype_name(op->bias->dtype),
                      op->bias == NULL ? 0 : tensor_count(*op->bias));
}

enum status cuda_gemm(struct device *device, const struct gemm *op) {
    TRY(check_gemm(op));
    const struct gemm_call call = gemm_call_of(op);
    return gemm_call_run(device, &call);
}

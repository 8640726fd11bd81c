/*
 * Choosing a GEMM's algorithm. The heuristic's candidates are timed in a short burst, and the
 * fastest of them again for a tenth of a second each: under the power limit that acts in
 * training a burst misleads (28 % there was 1 % of a step). The operands are those of the call,
 * so they are as large and as random as what the step will multiply. Results go where the call
 * would put them; an accumulating call's c is kept aside and put back.
 */
#include "kernels/cuda/gemm.h"

#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

enum { BURST_CALLS = 5, FINALISTS = 4 };

static const float hot_us = 1e5f;    /* of each finalist, after half as long to warm up */
static const float worth_us = 20.0f; /* a faster GEMM is not worth a long search */

struct candidate {
    cublasLtMatmulAlgo_t algorithm;
    float us; /* a call; negative: refused when run */
};

struct search {
    struct candidate candidates[GEMM_CANDIDATES];
    size_t count;
    cudaEvent_t begin, end;
    void *c_before; /* of an accumulating call */
};

static enum status ask_heuristic(struct device *device, struct gemm_entry *entry,
                                 struct search *search) {
    const size_t workspace_bytes = cuda_gemm_scratch_bytes();
    const uint32_t alignment = (uint32_t)entry->key.alignment;
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
    };
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t results[GEMM_CANDIDATES];
    int found = 0;
    cublasStatus_t status = cublasLtMatmulPreferenceCreate(&preference);
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = cublasLtMatmulPreferenceSetAttribute(preference,
                                                      CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                      &workspace_bytes, sizeof workspace_bytes);
    }
    for (size_t i = 0; i < 4 && status == CUBLAS_STATUS_SUCCESS; i++) {
        status = cublasLtMatmulPreferenceSetAttribute(preference, alignments[i], &alignment,
                                                      sizeof alignment);
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = cublasLtMatmulAlgoGetHeuristic(backend_of(device)->gemm->handle, entry->operation,
                                                entry->a, entry->b, entry->c, entry->c, preference,
                                                GEMM_CANDIDATES, results, &found);
    }
    if (preference != NULL) cublasLtMatmulPreferenceDestroy(preference);
    TRY(gemm_lt_check(status, "the search for algorithms", &entry->key));
    for (int i = 0; i < found; i++) {
        search->candidates[search->count++] = (struct candidate){.algorithm = results[i].algo};
    }
    return STATUS_OK;
}

/* Microseconds a call, over `calls`; a candidate that is refused when run gets a negative time. */
static enum status time_calls(struct device *device, const struct gemm *op,
                              struct gemm_entry *entry, const struct search *search,
                              struct candidate *candidate, size_t calls) {
    cudaStream_t stream = backend_of(device)->stream;
    float ms = 0.0f;
    candidate->us = -1.0f;
    CUDA_TRY(cudaEventRecord(search->begin, stream));
    for (size_t i = 0; i < calls; i++) {
        if (gemm_run(device, op, entry, &candidate->algorithm) != STATUS_OK) return STATUS_OK;
    }
    CUDA_TRY(cudaEventRecord(search->end, stream));
    TRY(cuda_check(cudaEventSynchronize(search->end), "timing a GEMM"));
    CUDA_TRY(cudaEventElapsedTime(&ms, search->begin, search->end));
    candidate->us = ms * 1e3f / (float)calls;
    return STATUS_OK;
}

/* Fastest first, the refused ones last. */
static int by_time(const void *a, const void *b) {
    const float x = ((const struct candidate *)a)->us, y = ((const struct candidate *)b)->us;
    if ((x < 0.0f) != (y < 0.0f)) return x < 0.0f ? 1 : -1;
    return (x > y) - (x < y);
}

static enum status time_all(struct device *device, const struct gemm *op, struct gemm_entry *entry,
                            struct search *search) {
    const char *mode = getenv("DEEPWELL_GEMM_SEARCH");
    for (size_t i = 0; i < search->count; i++) {
        TRY(time_calls(device, op, entry, search, &search->candidates[i], 1));
        if (search->candidates[i].us < 0.0f) continue;
        TRY(time_calls(device, op, entry, search, &search->candidates[i], BURST_CALLS));
    }
    qsort(search->candidates, search->count, sizeof search->candidates[0], by_time);
    const size_t finalists = size_min(FINALISTS, search->count);
    if (search->count == 0 || search->candidates[0].us < worth_us ||
        (mode != NULL && strcmp(mode, "fast") == 0)) {
        return STATUS_OK;
    }
    for (size_t i = 0; i < finalists && search->candidates[i].us >= 0.0f; i++) {
        struct candidate *candidate = &search->candidates[i];
        const size_t calls = (size_t)(hot_us / candidate->us) + 1;
        TRY(time_calls(device, op, entry, search, candidate, calls / 2 + 1));
        TRY(time_calls(device, op, entry, search, candidate, calls));
    }
    qsort(search->candidates, finalists, sizeof search->candidates[0], by_time);
    return STATUS_OK;
}

static enum status put_back(struct device *device, const struct gemm *op,
                            const struct search *search) {
    if (search->c_before == NULL) return STATUS_OK;
    CUDA_TRY(cudaMemcpyAsync(op->c.data, search->c_before, tensor_bytes(op->c),
                             cudaMemcpyDeviceToDevice, backend_of(device)->stream));
    return STATUS_OK;
}

/* Runs the algorithm once, and whether it computed the right thing; *share: its largest error in
 * units of what is allowed. */
static enum status verify(struct device *device, const struct gemm *op, struct gemm_entry *entry,
                          const struct search *search, const cublasLtMatmulAlgo_t *algorithm,
                          bool *right, double *share) {
    double worst = 1e30;
    *right = false;
    TRY(put_back(device, op, search));
    if (gemm_run(device, op, entry, algorithm) != STATUS_OK) return STATUS_OK;
    TRY(gemm_verify(device, op, search->c_before, &worst));
    *right = worst <= 1.0;
    *share = worst;
    return put_back(device, op, search);
}

static enum status choose(struct device *device, const struct gemm *op, struct gemm_entry *entry,
                          struct search *search) {
    char text[GEMM_TEXT_BYTES];
    double share = 0.0;
    TRY(ask_heuristic(device, entry, search));
    TRY(time_all(device, op, entry, search));
    for (size_t i = 0; i < search->count && search->candidates[i].us >= 0.0f; i++) {
        bool right = false;
        TRY(verify(device, op, entry, search, &search->candidates[i].algorithm, &right, &share));
        if (!right) continue;
        entry->algorithm = search->candidates[i].algorithm;
        entry->us = search->candidates[i].us;
        entry->chosen = entry->verified = true;
        gemm_cache_write(backend_of(device)->gemm);
        return STATUS_OK;
    }
    return status_set(STATUS_DEVICE,
                      "cuBLASLt has no algorithm that computes a GEMM of %s rightly on %s "
                      "(%zu tried, the last was off by %.3g times what is allowed): choose other "
                      "dimensions, multiples of 8",
                      gemm_text(text, &entry->key), device->name, search->count, share);
}

static enum status check_kept(struct device *device, const struct gemm *op,
                              struct gemm_entry *entry, const struct search *search) {
    double share = 0.0;
    TRY(verify(device, op, entry, search, &entry->algorithm, &entry->verified, &share));
    if (entry->verified) return STATUS_OK;
    char text[GEMM_TEXT_BYTES];
    return status_set(STATUS_DEVICE,
                      "%s: the algorithm kept for a GEMM of %s does not compute it (off by "
                      "%.3g times what is allowed): remove the file, and the search will run again",
                      backend_of(device)->gemm->cache_path, gemm_text(text, &entry->key), share);
}

enum status gemm_search(struct device *device, const struct gemm *op, struct gemm_entry *entry) {
    struct search search = {0};
    enum status status = STATUS_OK;
    const size_t bytes = tensor_bytes(op->c);
    TRY_GOTO(cuda_check(cudaEventCreate(&search.begin), "cudaEventCreate"), cleanup);
    TRY_GOTO(cuda_check(cudaEventCreate(&search.end), "cudaEventCreate"), cleanup);
    if (op->accumulate) {
        TRY_GOTO(cuda_check(cudaMalloc(&search.c_before, bytes), "memory for a search of GEMMs"),
                 cleanup);
        TRY_GOTO(cuda_check(cudaMemcpyAsync(search.c_before, op->c.data, bytes,
                                            cudaMemcpyDeviceToDevice, backend_of(device)->stream),
                            "a copy"),
                 cleanup);
    }
    status = entry->chosen ? check_kept(device, op, entry, &search)
                           : choose(device, op, entry, &search);
cleanup:
    if (search.begin != NULL) cudaEventDestroy(search.begin);
    if (search.end != NULL) cudaEventDestroy(search.end);
    if (search.c_before != NULL) {
        cudaStreamSynchronize(backend_of(device)->stream);
        cudaFree(search.c_before);
    }
    return status;
}

/*
 * Choosing a GEMM's algorithm. The heuristic's candidates are timed in a short burst, and the
 * fastest of them again for a tenth of a second each: under the power limit that acts in
 * training a burst misleads (28 % there was 1 % of a step).
 *
 * They are timed on normal random operands: those of the call may be zeros or nearly constant in
 * the first step, which draw less power and run faster. Small ones lie there several times over, so
 * that none is found in the L2 cache. Their memory is taken for the length of a search from what
 * device.memory_bytes leaves free for it, and from what else is free. What does not fit is timed as
 * the call's own, which is larger than L2 then; an accumulating call's own c must not be touched,
 * so without room for c the first answer is taken. The winner is checked on the random operands
 * where they fit, and always on the call's, whose result stands.
 */
#include "kernels/cuda/gemm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/checked.h"

enum { BURST_CALLS = 5, FINALISTS = 4, SETS_MAX = 64, SET_ALIGNMENT = 256 };

static const float hot_us = 1e5f;    /* of each finalist, after half as long to warm up */
static const float worth_us = 20.0f; /* a faster GEMM is not worth a long search */

struct candidate {
    cublasLtMatmulAlgo_t algorithm;
    float us; /* a call; negative: refused when run */
};

enum { REASON_BYTES = 512 };

struct search {
    struct candidate candidates[GEMM_CANDIDATES];
    size_t count;
    cudaEvent_t begin, end;
    char *memory;             /* sets x set_bytes; NULL: nothing fitted */
    size_t sets, set_bytes;   /* copies of the operands that fitted */
    ptrdiff_t a, b, c;        /* where in a set; negative: the call's own */
    char wrong[REASON_BYTES]; /* of the last candidate that failed: how */
};

static enum status ask_heuristic(struct device *device, struct gemm_entry *entry,
                                 struct search *search) {
    const size_t workspace_bytes = cuda_gemm_workspace_bytes; /* what gemm_run() passes */
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

/* Adds an operand to the set if `room` allows; -1 if not. */
static ptrdiff_t add_operand(struct search *search, struct gemm_operand o, size_t room) {
    const size_t at = search->set_bytes, bytes = align_up(gemm_operand_bytes(&o), SET_ALIGNMENT);
    if (bytes > room - at) return -1;
    search->set_bytes += bytes;
    return (ptrdiff_t)at;
}

static enum status fill_sets(struct device *device, const struct gemm_call *op,
                             struct search *search) {
    for (size_t i = 0; i < search->sets; i++) {
        const ptrdiff_t at[] = {search->a, search->b, search->c};
        struct gemm_operand operands[] = {op->a, op->b, gemm_plain_operand(op->c)};
        for (size_t k = 0; k < 3; k++) {
            if (at[k] < 0) continue;
            operands[k].data = search->memory + i * search->set_bytes + at[k];
            TRY(gemm_fill(device, &operands[k], 3 * i + k));
        }
    }
    return STATUS_OK;
}

/* Memory for the operands, c first where it must be spared, and random numbers in them. None to be
 * had is no error. */
static enum status place_operands(struct device *device, const struct gemm_call *op,
                                  struct search *search) {
    size_t free_bytes = 0, total_bytes = 0;
    CUDA_TRY(cudaMemGetInfo(&free_bytes, &total_bytes));
    const size_t room = free_bytes - size_min(free_bytes, cuda_reserved_bytes);
    search->c = op->accumulate ? add_operand(search, gemm_plain_operand(op->c), room) : -1;
    search->a = add_operand(search, op->a, room);
    search->b = add_operand(search, op->b, room);
    if (!op->accumulate) search->c = add_operand(search, gemm_plain_operand(op->c), room);
    if (search->set_bytes == 0) return STATUS_OK;
    const size_t wanted = 2 * backend_of(device)->l2_bytes / search->set_bytes + 1;
    search->sets = size_min(size_min(wanted, SETS_MAX), room / search->set_bytes);
    if (cudaMalloc((void **)&search->memory, search->sets * search->set_bytes) != cudaSuccess) {
        cudaGetLastError(); /* somebody else took it */
        search->a = search->b = search->c = -1;
        search->memory = NULL;
        return STATUS_OK;
    }
    return fill_sets(device, op, search);
}

/* The call on the i-th set of operands. */
static struct gemm_call trial_of(const struct gemm_call *op, const struct search *search,
                                 size_t i) {
    struct gemm_call trial = *op;
    char *set = search->memory + (search->sets == 0 ? 0 : i % search->sets * search->set_bytes);
    if (search->a >= 0) trial.a.data = set + search->a;
    if (search->b >= 0) trial.b.data = set + search->b;
    if (search->c >= 0) trial.c.data = set + search->c;
    return trial;
}

/* Whether a trial leaves an accumulating call's c alone. */
static bool may_try(const struct gemm_call *op, const struct search *search) {
    return !op->accumulate || search->c >= 0;
}

static void describe_refusal(char wrong[REASON_BYTES]) {
    snprintf(wrong, REASON_BYTES, "refused: %.480s", status_message());
}

/* Microseconds a call, over `calls`; a candidate that is refused when run gets a negative time. */
static enum status time_calls(struct device *device, const struct gemm_call *op,
                              struct gemm_entry *entry, struct search *search,
                              struct candidate *candidate, size_t calls) {
    cudaStream_t stream = backend_of(device)->stream;
    float ms = 0.0f;
    candidate->us = -1.0f;
    CUDA_TRY(cudaEventRecord(search->begin, stream));
    for (size_t i = 0; i < calls; i++) {
        const struct gemm_call trial = trial_of(op, search, i);
        if (gemm_run(device, &trial, entry, &candidate->algorithm) != STATUS_OK) {
            describe_refusal(search->wrong);
            return STATUS_OK;
        }
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

static enum status time_all(struct device *device, const struct gemm_call *op,
                            struct gemm_entry *entry, struct search *search) {
    for (size_t i = 0; i < search->count; i++) {
        TRY(time_calls(device, op, entry, search, &search->candidates[i], 1));
        if (search->candidates[i].us < 0.0f) continue;
        TRY(time_calls(device, op, entry, search, &search->candidates[i], BURST_CALLS));
    }
    qsort(search->candidates, search->count, sizeof search->candidates[0], by_time);
    const size_t finalists = size_min(FINALISTS, search->count);
    if (search->count == 0 || search->candidates[0].us < worth_us ||
        backend_of(device)->options.gemm_effort == GEMM_EFFORT_FAST) {
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

/* Runs the algorithm once on op's operands; `wrong` receives "", or how it was refused or that it
 * computed something else. */
static enum status verify(struct device *device, const struct gemm_call *op,
                          struct gemm_entry *entry, const cublasLtMatmulAlgo_t *algorithm,
                          char wrong[REASON_BYTES]) {
    double share = 0.0;
    wrong[0] = '\0';
    TRY(gemm_verify_begin(device, op));
    if (gemm_run(device, op, entry, algorithm) != STATUS_OK) {
        describe_refusal(wrong);
        return STATUS_OK;
    }
    TRY(gemm_verify(device, op, &share));
    if (share > 1.0) {
        snprintf(wrong, REASON_BYTES, "off by %.3g times what is allowed", share);
    }
    return STATUS_OK;
}

static enum status refuse(const struct device *device, const struct gemm_entry *entry,
                          const struct search *search) {
    char text[GEMM_TEXT_BYTES];
    return status_set(STATUS_DEVICE,
                      "cuBLASLt has no algorithm that computes a GEMM of %s rightly on %s "
                      "(%zu tried%s%s): choose other dimensions, multiples of 8",
                      gemm_text(text, &entry->key), device->name, search->count,
                      search->wrong[0] == '\0' ? "" : ", the last ", search->wrong);
}

/* Keeps the choice in the file; that it cannot be written is no error, and the user is told. */
static void keep(struct device *device, const struct gemm_entry *entry) {
    const struct gemm_kept kept = {entry->key, entry->algorithm, entry->us};
    struct gemm_service *service = backend_of(device)->gemm;
    if (service->unkept || gemm_cache_add(&service->cache, &kept) == STATUS_OK) return;
    gemm_note_unkept(device, status_message());
}

static enum status choose(struct device *device, const struct gemm_call *op,
                          struct gemm_entry *entry, struct search *search) {
    const bool trials = may_try(op, search);
    TRY(ask_heuristic(device, entry, search));
    if (trials && backend_of(device)->options.gemm_effort != GEMM_EFFORT_OFF) {
        TRY(time_all(device, op, entry, search));
    }
    for (size_t i = 0; i < search->count && search->candidates[i].us >= 0.0f; i++) {
        const struct candidate *candidate = &search->candidates[i];
        if (trials) {
            const struct gemm_call trial = trial_of(op, search, 0);
            TRY(verify(device, &trial, entry, &candidate->algorithm, search->wrong));
            if (search->wrong[0] != '\0') continue;
        }
        TRY(verify(device, op, entry, &candidate->algorithm, search->wrong));
        if (search->wrong[0] != '\0' && op->accumulate) break; /* what c held is lost */
        if (search->wrong[0] != '\0') continue;
        entry->algorithm = candidate->algorithm;
        entry->us = candidate->us;
        entry->chosen = entry->verified = true;
        keep(device, entry);
        return STATUS_OK;
    }
    return refuse(device, entry, search);
}

static enum status check_kept(struct device *device, const struct gemm_call *op,
                              struct gemm_entry *entry) {
    char text[GEMM_TEXT_BYTES], wrong[REASON_BYTES];
    TRY(verify(device, op, entry, &entry->algorithm, wrong));
    entry->verified = wrong[0] == '\0';
    if (entry->verified) return STATUS_OK;
    return status_set(
        STATUS_DEVICE,
        "%s: the algorithm kept for a GEMM of %s does not compute it (%s): remove the "
        "file, and the search will run again",
        backend_of(device)->gemm->cache.path, gemm_text(text, &entry->key), wrong);
}

enum status gemm_search(struct device *device, const struct gemm_call *op,
                        struct gemm_entry *entry) {
    struct search search = {0};
    enum status status = STATUS_OK;
    if (entry->chosen) return check_kept(device, op, entry);
    TRY_GOTO(cuda_check(cudaEventCreate(&search.begin), "cudaEventCreate"), cleanup);
    TRY_GOTO(cuda_check(cudaEventCreate(&search.end), "cudaEventCreate"), cleanup);
    TRY_GOTO(place_operands(device, op, &search), cleanup);
    status = choose(device, op, entry, &search);
cleanup:
    if (search.begin != NULL) cudaEventDestroy(search.begin);
    if (search.end != NULL) cudaEventDestroy(search.end);
    if (search.memory != NULL) {
        cudaStreamSynchronize(backend_of(device)->stream);
        cudaFree(search.memory);
    }
    return status;
}

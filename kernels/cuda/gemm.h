/*
 * What gemm.c (running), gemm_search.c (choosing) and gemm_cache.c (remembering) share. A GEMM
 * is described once by struct gemm_key; the fastest algorithm for it is searched when it is
 * first asked for, checked against sums made one product at a time, and kept in memory and in a
 * file.
 *
 * Tensors are row-major, cuBLASLt's matrices column-major: c (M, N) in rows is c^T (N, M) in
 * columns, so cuBLASLt computes c^T = op(b)^T op(a)^T, its A being our b. BF16 goes in its
 * natural layouts: forward TN, dgrad NN, wgrad NT in cuBLASLt's terms.
 */
#ifndef DEEPWELL_KERNELS_CUDA_GEMM_H_
#define DEEPWELL_KERNELS_CUDA_GEMM_H_

#include <cublasLt.h>

#include "base/file.h"
#include "kernels/cuda/cuda.h"

enum { GEMM_ENTRIES = 1024, GEMM_CANDIDATES = 16 };

struct gemm_key {
    size_t m, n, k; /* of c (m, n), row-major */
    int transpose_a, transpose_b, accumulate;
    int operand, result; /* enum dtype of a and b, and of c */
    int bias;            /* enum dtype, or -1: none */
    int alignment;       /* of the least aligned operand, in bytes, at most 256 */
};

struct gemm_entry {
    struct gemm_key key;
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, c; /* cuBLASLt's A and B: our b and a */
    cublasLtMatmulAlgo_t algorithm;
    float us;      /* measured when it was chosen */
    bool chosen;   /* algorithm is set: from the file, or searched */
    bool verified; /* in this process */
};

struct gemm_service {
    cublasLtHandle_t handle;
    struct gemm_entry entries[GEMM_ENTRIES];
    size_t count;
    char cache_path[PATH_BYTES]; /* "": nowhere to keep it */
    char cache_header[256];      /* the file's first line: format, GPU, library */
};

enum status gemm_lt_check(cublasStatus_t status, const char *what, const struct gemm_key *key);

/* "m x n x k NT bf16 -> fp32 accumulating" */
enum { GEMM_TEXT_BYTES = 128 };
const char *gemm_text(char text[GEMM_TEXT_BYTES], const struct gemm_key *key);

/* The entry of this key, made (descriptors, no algorithm) if it is new. */
enum status gemm_entry_get(struct gemm_service *service, const struct gemm_key *key,
                           struct gemm_entry **out);

/* c = op(a) op(b) with this algorithm. */
enum status gemm_run(struct device *device, const struct gemm *op, struct gemm_entry *entry,
                     const cublasLtMatmulAlgo_t *algorithm);

/* Does the call, the first of its kind: times the candidates on random operands, sets
 * entry->algorithm to the fastest that computes the right thing, and runs it. An algorithm from
 * the file is only checked. */
enum status gemm_search(struct device *device, const struct gemm *op, struct gemm_entry *entry);

/* Reads entries from the file, if there is one. STATUS_DEVICE, naming the line, if it is not as
 * written. */
enum status gemm_cache_read(struct gemm_service *service);
/* Writes all entries. That a file cannot be written is no error: it is searched again. */
void gemm_cache_write(const struct gemm_service *service);

#endif

/*
 * What gemm.c (running), quantised_gemm.c (the same of quantised operands), gemm_search.c
 * (choosing), gemm_check.cu (checking) and gemm_cache.c (remembering) share. A GEMM is described
 * once by struct gemm_key; the fastest algorithm for it is searched when it is first asked for,
 * checked against sums made one product at a time, and kept in memory and in a file.
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
#include "kernels/cuda/gemm_call.h"

enum { GEMM_CANDIDATES = 16 };

struct gemm_key {
    size_t m, n, k; /* of c (m, n), row-major */
    int transpose_a, transpose_b, accumulate;
    int a, b;      /* gemm_operand.kind */
    int result;    /* enum dtype of c */
    int bias;      /* enum dtype, or -1: none */
    int fast;      /* gemm_call.fast */
    int scaled;    /* alpha and beta lie in device memory */
    int alignment; /* of the least aligned operand, in bytes, at most 256 */
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

/* A line of the file of chosen algorithms. */
struct gemm_kept {
    struct gemm_key key;
    cublasLtMatmulAlgo_t algorithm;
    float us;
};

/* The file as it was last read or written (gemm_cache.c): every shape of every model that ran here,
 * of which a process asks for a few. */
struct gemm_cache {
    char path[PATH_BYTES]; /* "": nowhere to keep it */
    char header[256];      /* the file's first line: format, GPU, library */
    struct gemm_kept *kept;
    size_t count, capacity;
};

struct gemm_service {
    cublasLtHandle_t handle;
    struct gemm_entry *entries; /* of the shapes that this process asked for */
    size_t count, capacity;
    struct gemm_cache cache;
    bool unkept; /* device.note says that the file cannot be written */
};

enum status gemm_lt_check(cublasStatus_t status, const char *what, const struct gemm_key *key);

/* "m x n x k NT bf16 by bf16 -> fp32 accumulating" */
enum { GEMM_TEXT_BYTES = 192 };
const char *gemm_text(char text[GEMM_TEXT_BYTES], const struct gemm_key *key);

/* Says once in device.note that choices are not kept, and what follows. */
void gemm_note_unkept(struct device *device, const char *why);

bool gemm_key_same(const struct gemm_key *a, const struct gemm_key *b);

/* The entry of this key, made (descriptors, and the algorithm that the file has) if it is new.
 * Valid until the next is asked for. */
enum status gemm_entry_get(struct gemm_service *service, const struct gemm_key *key,
                           struct gemm_entry **out);

/* Chosen and checked if it is new, then run. */
enum status gemm_call_run(struct device *device, const struct gemm_call *op);

/* c = op(a) op(b) with this algorithm. */
enum status gemm_run(struct device *device, const struct gemm_call *op, struct gemm_entry *entry,
                     const cublasLtMatmulAlgo_t *algorithm);

/* Does the call, the first of its kind: times the candidates on random operands, sets
 * entry->algorithm to the fastest that computes the right thing, and runs it. An algorithm from
 * the file is only checked. */
enum status gemm_search(struct device *device, const struct gemm_call *op,
                        struct gemm_entry *entry);

/* Reads what the file holds, if there is one. STATUS_DEVICE, naming the line, if it is not as
 * written. */
enum status gemm_cache_read(struct gemm_cache *cache);
const struct gemm_kept *gemm_cache_find(const struct gemm_cache *cache, const struct gemm_key *key);
/* STATUS_IO or STATUS_CONFIG if there is nowhere to write it. */
enum status gemm_cache_writable(const struct gemm_cache *cache);
/* Adds a choice to what the file holds by now: other processes write to it too, and their lines
 * stay, also one of the same GEMM. A path of "" is STATUS_OK and changes nothing. */
enum status gemm_cache_add(struct gemm_cache *cache, const struct gemm_kept *kept);
void gemm_cache_close(struct gemm_cache *cache);

#endif

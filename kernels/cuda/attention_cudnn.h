/*
 * Attention through cuDNN and its C++ frontend, behind C: attention_cudnn.cpp is the one C++
 * file of the project, and takes more than a minute to compile; attention_cudnn_absent.c serves
 * builds without the frontend. libcudnn is opened at run time, so that the program starts where
 * there is none. Called by kernels/cuda/attention.c, which owns the handle and
 * refuses the two-byte formats where this has none.
 */
#ifndef DEEPWELL_KERNELS_CUDA_ATTENTION_CUDNN_H_
#define DEEPWELL_KERNELS_CUDA_ATTENTION_CUDNN_H_

#include <stdbool.h>
#include <stddef.h>

#include <cuda_runtime_api.h>

#include "base/status.h"
#include "kernels/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

struct cudnn_attention;

/* What a plan is built for, once; queries, keys and values lie in rows of 3 * heads * width. */
struct cudnn_attention_shape {
    size_t batch, sequence_length, heads, head_width;
    enum dtype dtype; /* BF16 or FP16 */
    bool backward;
    bool deterministic; /* of backward; if not, some 1 % of a step faster, sums in any order */
};

struct cudnn_attention_data {
    void *qkv, *out;
    float *log_sum_exp;                /* (B, H, T), natural logarithm */
    void *out_gradient, *qkv_gradient; /* backward */
    void *workspace;
    size_t workspace_bytes;
};

/* *out NULL, with the reason in `why`, where cuDNN is not to be had; that is no error. */
enum { CUDNN_WHY_BYTES = 256 };
enum status cudnn_attention_open(struct cudnn_attention **out, cudaStream_t stream,
                                 char why[CUDNN_WHY_BYTES]);
void cudnn_attention_close(struct cudnn_attention *attention);

/* Builds the plan, unless it is there, and says how much working memory it needs. STATUS_DEVICE
 * with cuDNN's reason and the shape where it refuses. */
enum status cudnn_attention_plan(struct cudnn_attention *attention,
                                 const struct cudnn_attention_shape *shape,
                                 size_t *workspace_bytes);

/* Working memory of the plan of this shape; 0 if none was built. */
size_t cudnn_attention_workspace_bytes(const struct cudnn_attention *attention,
                                       const struct cudnn_attention_shape *shape);

enum status cudnn_attention_run(struct cudnn_attention *attention,
                                const struct cudnn_attention_shape *shape,
                                const struct cudnn_attention_data *data);

#ifdef __cplusplus
}
#endif
#endif

/*
 * What the files of kernels/cuda share: the backend behind struct device, checks, scratch
 * memory, and the operations, which ops.c gathers into a table. C and CUDA include it; nobody
 * outside kernels/cuda does.
 *
 * Every operation runs on backend.stream and returns without waiting. Working memory is
 * device.scratch: operations follow each other on one stream, so each may use all scratch_bytes of
 * it, and attention the attention_scratch_bytes, behind whose first part a model's logits lie.
 */
#ifndef DEEPWELL_KERNELS_CUDA_CUDA_H_
#define DEEPWELL_KERNELS_CUDA_CUDA_H_

#include <stddef.h>

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "base/status.h"
#include "kernels/device.h"
#include "kernels/ops.h"

struct gemm_service;      /* gemm.c */
struct attention_service; /* attention.c */

/* Uploads pass through a ring of pinned pages and device buffers, so that neither host nor
 * stream waits: host -> pinned -> (copy stream) device slot -> (stream) where it belongs. */
enum { UPLOAD_SLOTS = 4, UPLOAD_BYTES = 4 << 20 };
struct upload_slot {
    void *pinned, *device;
    cudaEvent_t copied, free; /* the slot reached the device; its content was taken from there */
};

/* A download under way (device_read_begin). */
struct read_slot {
    void *pinned; /* DEVICE_READ_BYTES */
    cudaEvent_t done;
    void *to_host;
    size_t bytes;
};

/* What the system takes of the shared memory of each block. */
enum { BLOCK_SYSTEM_BYTES = 1024 };

struct cuda_backend {
    cudaStream_t stream, copy_stream;
    int multiprocessors;
    int capability;      /* compute capability times 10 */
    size_t shared_bytes; /* the most shared memory of one block */
    struct upload_slot slots[UPLOAD_SLOTS];
    size_t next_slot;
    struct read_slot reads[DEVICE_READS];
    struct device_options options;
    size_t l2_bytes;
    bool recording;
    cudaEvent_t *marks; /* (DEVICE_MARKS), made as they are used */
    struct gemm_service *gemm;
    struct attention_service *attention;
};

static inline struct cuda_backend *backend_of(const struct device *device) {
    return (struct cuda_backend *)device->backend;
}

/* STATUS_OK, or STATUS_DEVICE (STATUS_MEMORY when out of it) saying what failed and how. */
enum status cuda_check(cudaError_t error, const char *what);
#define CUDA_TRY(call) TRY(cuda_check((call), #call))

/* Adds a line to device.note; one that has no room is cut off. */
void cuda_note(struct device *device, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* After a launch: what the launch itself was refused for. */
enum status cuda_launched(const char *operation);

/* Whether this build has code for the device: loads one kernel. */
cudaError_t cuda_code_probe(void);

/* STATUS_INTERNAL unless `bytes` of scratch memory are there. */
enum status cuda_scratch(const struct device *device, const char *operation, size_t bytes);
enum status cuda_attention_scratch(const struct device *device, const char *operation,
                                   size_t bytes);

/* STATUS_INTERNAL with the shape unless t is (rows, columns) of this dtype. */
enum status cuda_shape(const char *operation, const char *what, struct tensor t, enum dtype dtype,
                       size_t rows, size_t columns);

/* Column sums are made in two passes: blocks of rows into partials (parts, out_count, columns)
 * in scratch memory, then the partials in their order into outs[i][0..columns); outs[i] NULL:
 * not wanted. */
enum { COLUMN_PARTS_MAX = 1024 };
size_t cuda_column_scratch_bytes(const struct device *device, const struct op_limits *limits);
enum status cuda_column_sums(struct device *device, float *const *outs, size_t out_count,
                             const float *partials, size_t parts, size_t columns, bool accumulate);

/* The first bytes of scratch memory are cuBLASLt's workspace; gemm_check.cu has the others. */
static const size_t cuda_gemm_workspace_bytes = (size_t)64 << 20;
size_t cuda_gemm_scratch_bytes(void);
/* With room for the operands of emulated products, where the device emulates one. */
size_t cuda_quantised_gemm_scratch_bytes(const struct device *device,
                                         const struct op_limits *limits);
size_t cuda_norm_scratch_bytes(const struct op_limits *limits);
size_t cuda_embedding_scratch_bytes(const struct op_limits *limits);
size_t cuda_reduce_scratch_bytes(void);
size_t cuda_cross_entropy_scratch_bytes(const struct op_limits *limits);
/* cuDNN's part of it is that of the passes that cuda_attention_check() was asked about. */
size_t cuda_attention_scratch_bytes(const struct device *device, const struct op_limits *limits);

/* Left to the driver, the libraries' modules and what they load later. */
static const size_t cuda_reserved_bytes = (size_t)1 << 30;
/* And to the search of GEMMs, for operands of its own: this share of the GPU's memory. */
enum { CUDA_SEARCH_SHARE = 64 };

/* See ops.check. */
enum status cuda_attention_check(const struct device *device, const struct op_limits *limits,
                                 bool backward);
enum status cuda_norm_check(const struct device *device, size_t width, bool tensor_scales);

enum status gemm_service_open(struct device *device);
void gemm_service_close(struct gemm_service *service);
enum status attention_service_open(struct device *device);
void attention_service_close(struct attention_service *service);

/* attention_simple.cu: own kernels, any dtype and any head width up to ATTENTION_WIDTH_MAX. */
enum { ATTENTION_WIDTH_MAX = 256, ATTENTION_HEADS_MAX = 65535 /* of all sequences */ };
/* The most shared memory that a block needs, forward or backward. */
size_t simple_attention_shared_bytes(size_t head_width, bool backward);
enum status simple_attention_forward(struct device *device, const struct attention_forward *op);
enum status simple_attention_backward(struct device *device, const struct attention_backward *op);

extern const struct ops cuda_ops;

/* Each takes what ops.h says. */
enum status cuda_gemm(struct device *device, const struct gemm *op);
enum support cuda_scale_support(const struct device *device, enum scale_mode mode);
enum status cuda_quantised_gemm(struct device *device, const struct quantised_gemm *op);
enum status cuda_quantise(struct device *device, const struct quantise *ops, size_t count);
enum status cuda_scales_begin(struct device *device, struct scale_state *states, size_t count,
                              bool clear_amax);
enum status cuda_scales_update(struct device *device, struct step_state *state,
                               struct scale_state *states, size_t count, bool enter);
enum status cuda_embedding_forward(struct device *device, const struct embedding_forward *op);
enum status cuda_embedding_backward(struct device *device, const struct embedding_backward *op);
enum status cuda_norm_forward(struct device *device, const struct norm_forward *op);
enum status cuda_norm_backward(struct device *device, const struct norm_backward *op);
enum status cuda_attention_forward(struct device *device, const struct attention_forward *op);
enum status cuda_attention_backward(struct device *device, const struct attention_backward *op);
enum status cuda_attention_cached(struct device *device, const struct attention_cached *op);
enum status cuda_gelu_forward(struct device *device, const struct gelu_forward *op);
enum status cuda_gelu_backward(struct device *device, const struct gelu_backward *op);
enum status cuda_bias_backward(struct device *device, const struct bias_backward *op);
enum status cuda_cross_entropy(struct device *device, const struct cross_entropy *op);
enum status cuda_convert(struct device *device, struct tensor out, struct tensor in);
enum status cuda_loss_sum(struct device *device, struct step_state *state, const float *losses,
                          size_t count);
enum status cuda_gradient_sumsq(struct device *device, struct step_state *state,
                                const float *gradients, size_t count);
enum status cuda_sum_parts(struct device *device, float *out, struct tensor parts, bool accumulate);
enum status cuda_block_sumsq(struct device *device, double *out, const float *x, size_t count);
enum status cuda_total_sumsq(struct device *device, struct step_state *state, const double *sums,
                             size_t count);
enum status cuda_step_begin(struct device *device, struct step_state *state,
                             const struct step_policy *policy);
enum status cuda_step_decide(struct device *device, struct step_state *state);
enum status cuda_adamw(struct device *device, const struct adamw *op);
enum status cuda_stream(struct device *device, const struct stream *op);
enum status cuda_find_nonfinite(struct device *device, struct tensor in, size_t *index);

#ifdef __cplusplus
}
#endif
#endif

/* kernels/cuda/attention_cudnn.h for a build without the cuDNN frontend: never a handle. */
#include "kernels/cuda/attention_cudnn.h"

#include <stdio.h>

enum status cudnn_attention_open(struct cudnn_attention **out, cudaStream_t stream,
                                 char why[CUDNN_WHY_BYTES]) {
    (void)stream;
    *out = NULL;
    snprintf(why, CUDNN_WHY_BYTES,
             "built without the cuDNN frontend: install the Python wheel nvidia-cudnn-frontend "
             "(./deepwell setup does) or set CUDNN_FRONTEND_PATH, and build again");
    return STATUS_OK;
}

void cudnn_attention_close(struct cudnn_attention *attention) { (void)attention; }

enum status cudnn_attention_plan(struct cudnn_attention *attention,
                                 const struct cudnn_attention_shape *shape,
                                 size_t *workspace_bytes) {
    (void)attention;
    (void)shape;
    *workspace_bytes = 0;
    return status_set(STATUS_INTERNAL, "no cuDNN frontend in this build");
}

size_t cudnn_attention_workspace_bytes(const struct cudnn_attention *attention,
                                       const struct cudnn_attention_shape *shape) {
    (void)attention;
    (void)shape;
    return 0;
}

enum status cudnn_attention_run(struct cudnn_attention *attention,
                                const struct cudnn_attention_shape *shape,
                                const struct cudnn_attention_data *data) {
    (void)attention;
    (void)shape;
    (void)data;
    return status_set(STATUS_INTERNAL, "no cuDNN frontend in this build");
}

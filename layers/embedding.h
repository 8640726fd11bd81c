/* Token and position embedding. Called by gpt_train.c and gpt_generate.c. */
#ifndef DEEPWELL_LAYERS_EMBEDDING_H_
#define DEEPWELL_LAYERS_EMBEDDING_H_

#include "kernels/ops.h"

struct embedding {
    struct tensor token_weight;     /* (padded V, C) */
    struct tensor position_weight;  /* (context, C) */
    float *token_gradient, *position_gradient; /* FP32, same shapes */
};

/* out (N, C) from tokens (N); token n stands at first_position + n % sequence_length. */
enum status embedding_layer_forward(struct device *device, const struct embedding *layer,
                                    struct tensor out, const int32_t *tokens,
                                    size_t sequence_length, size_t first_position);

/* Parameter gradients from out_gradient (N, C). The token gradient is always added to: the tied
 * head has written it before. */
enum status embedding_layer_backward(struct device *device, const struct embedding *layer,
                                     struct tensor out_gradient, const int32_t *tokens,
                                     size_t sequence_length, bool accumulate);

#endif

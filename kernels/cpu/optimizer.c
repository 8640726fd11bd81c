/* AdamW (Loshchilov and Hutter, 2019) over the flat buffers. */
#include <math.h>

#include "base/checked.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vector.h"

struct adamw_numbers {
    float gradient_multiplier, learning_rate, beta1, beta2, epsilon, weight_decay;
    float correction1, correction2; /* 1 / (1 - beta^t) */
};

VECTOR_CLONES
static void adamw_row(float *p, float *m, float *v, const float *gradient, size_t count,
                      struct adamw_numbers s) {
#pragma omp simd
    for (size_t i = 0; i < count; i++) {
        const float g = gradient[i] * s.gradient_multiplier;
        const float m_new = s.beta1 * m[i] + (1.0f - s.beta1) * g;
        const float v_new = s.beta2 * v[i] + (1.0f - s.beta2) * (g * g);
        const float update = m_new * s.correction1 / (sqrtf(v_new * s.correction2) + s.epsilon);
        m[i] = m_new;
        v[i] = v_new;
        p[i] -= s.learning_rate * (update + s.weight_decay * p[i]);
    }
}

static float bias_correction(float beta, int64_t t) {
    return (float)(1.0 / (1.0 - pow((double)beta, (double)t)));
}

enum status cpu_adamw(struct device *device, const struct adamw *op) {
    const struct step_state *state = op->state;
    if (state->skip != SKIP_NONE) return STATUS_OK;
    struct adamw_numbers numbers = {
        .gradient_multiplier = state->gradient_multiplier,
        .learning_rate = state->learning_rate,
        .beta1 = op->beta1,
        .beta2 = op->beta2,
        .epsilon = op->epsilon,
        .correction1 = bias_correction(op->beta1, state->updates),
        .correction2 = bias_correction(op->beta2, state->updates),
    };
    for (size_t range = 0; range < op->range_count; range++) {
        const size_t end = op->ranges[range].offset + op->ranges[range].count;
        numbers.weight_decay = op->ranges[range].weight_decay;
#pragma omp parallel for schedule(static) num_threads(device->threads)
        for (size_t first = op->ranges[range].offset; first < end; first += ROW_TILE) {
            const size_t count = size_min(ROW_TILE, end - first);
            adamw_row(op->masters + first, op->moments1 + first, op->moments2 + first,
                      op->gradients + first, count, numbers);
            if (op->weights.data == NULL) continue;
            row_store(&op->weights, first, count, op->masters + first);
        }
    }
    return STATUS_OK;
}

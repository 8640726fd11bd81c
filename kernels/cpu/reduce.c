/* Sums over a whole step in double and in fixed order, and the decision made from them. */
#include "base/checked.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/vector.h"

VECTOR_CLONES
static double sum_of_squares(const float *x, size_t count) {
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < count; i++) sum += (double)x[i] * (double)x[i];
    return sum;
}

enum status cpu_loss_sum(struct device *device, struct step_state *state, const float *losses,
                         size_t count) {
    (void)device;
    for (size_t i = 0; i < count; i++) state->loss_sum += (double)losses[i];
    return STATUS_OK;
}

/* Always the same parts, whatever the number of threads. */
enum status cpu_gradient_sumsq(struct device *device, struct step_state *state,
                               const float *gradients, size_t count) {
    enum { PARTS = 1024 };
    double sums[PARTS];
    const size_t part_count = ceil_div(count, PARTS);
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (size_t part = 0; part < PARTS; part++) {
        const size_t first = size_min(count, part * part_count);
        sums[part] = sum_of_squares(gradients + first, size_min(part_count, count - first));
    }
    state->gradient_sumsq = 0.0;
    for (size_t part = 0; part < PARTS; part++) state->gradient_sumsq += sums[part];
    return STATUS_OK;
}

enum status cpu_sum_parts(struct device *device, float *out, struct tensor parts, bool accumulate) {
    const size_t elements = parts.columns;
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (size_t first = 0; first < elements; first += ROW_TILE) {
        float buffer[ROW_TILE];
        const size_t count = size_min(ROW_TILE, elements - first);
        for (size_t part = 0; part < parts.rows; part++) {
            const float *x = row_read(&parts, part * elements + first, count, buffer);
            if (part > 0 || accumulate) row_add(out + first, x, count);
            else for (size_t i = 0; i < count; i++) out[first + i] = x[i];
        }
    }
    return STATUS_OK;
}

enum status cpu_block_sumsq(struct device *device, double *out, const float *x, size_t count) {
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (size_t block = 0; block < count / SUMSQ_BLOCK; block++) {
        out[block] = sum_of_squares(x + block * SUMSQ_BLOCK, SUMSQ_BLOCK);
    }
    return STATUS_OK;
}

enum status cpu_total_sumsq(struct device *device, struct step_state *state, const double *sums,
                            size_t count) {
    (void)device;
    state->gradient_sumsq = 0.0;
    for (size_t i = 0; i < count; i++) state->gradient_sumsq += sums[i];
    return STATUS_OK;
}

enum status cpu_step_begin(struct device *device, struct step_state *state,
                           const struct step_policy *policy) {
    (void)device;
    state->policy = *policy;
    state->loss_sum = 0.0;
    state->gradient_sumsq = 0.0;
    state->leaving = (double)policy->leave;
    return STATUS_OK;
}

enum status cpu_step_decide(struct device *device, struct step_state *state) {
    (void)device;
    step_control_decide(state);
    return STATUS_OK;
}

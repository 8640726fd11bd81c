/*
 * What quantisation does to the tensors of a step: a `quantise` operation in front of the device's,
 * which afterwards reads the numbers and the row copy back and sums their difference, tensor by
 * tensor. For `bench numerics` only: it waits for the device after every operation.
 */
#ifndef DEEPWELL_TRAIN_QUANTISE_PROBE_H_
#define DEEPWELL_TRAIN_QUANTISE_PROBE_H_

#include "train/engine.h"

struct quantise_error {
    double difference, size; /* sums of squares */
    uint64_t numbers, saturated, zeroed; /* at the format's largest; non-zero numbers made zero */
};

struct quantise_probe {
    struct ops ops; /* the device's, with `quantise` replaced */
    const struct ops *own;
    struct quantise_error *tensors; /* by the tensor's number in the model */
    size_t count;
};

/* The probe must stay where it is until it is detached, which keeps the sums; close frees them. */
enum status quantise_probe_attach(struct quantise_probe *probe, struct engine *engine);
void quantise_probe_detach(struct quantise_probe *probe, struct engine *engine);
void quantise_probe_close(struct quantise_probe *probe);

void quantise_error_add(struct quantise_error *to, const struct quantise_error *error);

/* |dequantised - x| / |x|. */
double quantise_error_relative(const struct quantise_error *error);

#endif

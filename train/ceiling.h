/*
 * What a device can do at most, measured: the rate of a matrix product and of a copy, under
 * sustained load. `bench` gives shares of them, `probe --measure` prints them.
 */
#ifndef DEEPWELL_TRAIN_CEILING_H_
#define DEEPWELL_TRAIN_CEILING_H_

#include "kernels/tensor.h"
#include "train/sustained.h"

/* Bytes a second, read and written: buffers far larger than the caches, one copied into the
 * other. */
enum status ceiling_copy(struct device *device, double seconds, struct gpu_power *power,
                         double *bytes_per_s);

/* TFLOPS of square GEMMs of random normal numbers in this type, *side to a side; on a GPU after
 * `seconds` of warm-up. */
enum status ceiling_gemm(struct device *device, enum dtype dtype, double seconds,
                         struct gpu_power *power, double *tflops, size_t *side);

#endif

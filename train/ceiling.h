/*
 * What a device can do at most: measured, the rate of a matrix product and of a copy under
 * sustained load; and by its vendor's data sheet, for the operands that a product has. `bench`
 * gives shares of them, `probe --measure` prints them.
 */
#ifndef DEEPWELL_TRAIN_CEILING_H_
#define DEEPWELL_TRAIN_CEILING_H_

#include "layers/recipe.h"
#include "train/config.h"
#include "train/op_list.h"
#include "train/peak.h"
#include "train/sustained.h"

/* Bytes a second, read and written: buffers far larger than the caches, one copied into the
 * other. */
enum status ceiling_copy(struct device *device, double seconds, struct gpu_power *power,
                         double *bytes_per_s);

/* The product (M, N) of an input (M, K) and a weight (N, K) in the formats of a narrow recipe. The
 * operands have no memory: floor_open gives it. */
struct op_call ceiling_recipe_gemm(const struct recipe *recipe, size_t m, size_t n, size_t k);

/* Bytes of scratch memory that the device needs for such a call. */
size_t ceiling_scratch_bytes(const struct device *device, const struct op_call *gemm);

/* TFLOPS of square GEMMs of random normal numbers in the formats of this recipe; on a GPU after
 * `seconds` of warm-up. *call: what was multiplied. */
enum status ceiling_gemm(struct device *device, const struct recipe *recipe, double seconds,
                         struct gpu_power *power, double *tflops, struct op_call *call);

/* The vendor's peak for this GEMM: that of its operands' type, `emulated` where the device
 * multiplies another. mfu.peak, where it is set, stands for it, but not in a narrow recipe. */
struct speed_limit ceiling_of_gemm(const struct device *device, const struct config *config,
                                   const struct op_call *gemm);

/* The same for all GEMMs of a list, one after the other. */
struct speed_limit ceiling_of_gemms(const struct device *device, const struct config *config,
                                    const struct op_list *list);

#endif

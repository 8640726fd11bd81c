/* Marks small inline functions that both the C compiler and nvcc compile, for the CPU and for a
 * kernel alike: one text, so one result. */
#ifndef DEEPWELL_KERNELS_HOST_DEVICE_H_
#define DEEPWELL_KERNELS_HOST_DEVICE_H_

#ifdef __CUDACC__
#define DEEPWELL_HOST_DEVICE __host__ __device__
#else
#define DEEPWELL_HOST_DEVICE
#endif

#endif

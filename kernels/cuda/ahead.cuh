/*
 * Copies to shared memory that run while a thread does something else (cp.async, PTX ISA 9.7.9.25),
 * for kernels that stream a matrix: norms and what writes FP8 copies. A thread reads only what it
 * asked for itself, and asks anew for a place only once it has what lay there in registers: no
 * barrier is needed.
 */
#ifndef DEEPWELL_KERNELS_CUDA_AHEAD_CUH_
#define DEEPWELL_KERNELS_CUDA_AHEAD_CUH_

#include <stdint.h>

/* Asks for 16 bytes; whoever asked may read them behind copies_wait(). */
__device__ inline void copy_16(uint4 *to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                     (uint32_t)__cvta_generic_to_shared(to)),
                 "l"(from)
                 : "memory");
}

/* Ends a group of copies. */
__device__ inline void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

enum { AHEAD_MAX = 3 };

/* Until the oldest of `ahead` groups is there, 1 to AHEAD_MAX. */
__device__ inline void copies_wait(int ahead) {
    if (ahead == 3)
        asm volatile("cp.async.wait_group 2;" ::: "memory");
    else if (ahead == 2)
        asm volatile("cp.async.wait_group 1;" ::: "memory");
    else
        asm volatile("cp.async.wait_group 0;" ::: "memory");
}

#endif

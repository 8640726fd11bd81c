/*
 * Numbers in CUDA kernels: W of them at a time, widened to FP32 when loaded and rounded to
 * nearest even when stored; sums over a warp and over a block in fixed order; the choice of a
 * kernel by dtype.
 */
#ifndef DEEPWELL_KERNELS_CUDA_NUMBERS_CUH_
#define DEEPWELL_KERNELS_CUDA_NUMBERS_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

enum { WARP = 32 };

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float widen(__half x) { return __half2float(x); }

template <typename T> __device__ inline T narrow(float x);
template <> __device__ inline float narrow<float>(float x) { return x; }
template <> __device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}
template <> __device__ inline __half narrow<__half>(float x) { return __float2half_rn(x); }

/* The two numbers of a word, the lower first; the last argument only tells the type. */
__device__ inline void widen_pair(float &a, float &b, uint32_t pair, __nv_bfloat16) {
    a = __uint_as_float(pair << 16);
    b = __uint_as_float(pair & 0xFFFF0000u);
}
__device__ inline void widen_pair(float &a, float &b, uint32_t pair, __half) {
    const __half2 halves = *reinterpret_cast<const __half2 *>(&pair);
    a = __low2float(halves);
    b = __high2float(halves);
}

template <typename T> __device__ inline uint32_t narrow_pair(float a, float b);
template <> __device__ inline uint32_t narrow_pair<__nv_bfloat16>(float a, float b) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<const uint32_t *>(&pair);
}
template <> __device__ inline uint32_t narrow_pair<__half>(float a, float b) {
    const __half2 pair = __floats2half2_rn(a, b);
    return *reinterpret_cast<const uint32_t *>(&pair);
}

/* W numbers as they lie in memory: 16-byte accesses where W is 8, single numbers where W is 1. */
template <typename T, int W> struct alignas(sizeof(T) * W < 16 ? sizeof(T) * W : 16) Numbers {
    T at[W];
};

template <typename T, int W> __device__ inline Numbers<T, W> load(const T *from) {
    return *reinterpret_cast<const Numbers<T, W> *>(from);
}

/* Reads what nobody reads again soon: it need not stay in the caches. */
template <typename T, int W> __device__ inline Numbers<T, W> load_once(const T *from) {
    Numbers<T, W> n;
    if constexpr (sizeof n >= 16) {
#pragma unroll
        for (size_t i = 0; i < sizeof n / 16; i++) {
            reinterpret_cast<uint4 *>(&n)[i] = __ldcs(reinterpret_cast<const uint4 *>(from) + i);
        }
    } else {
        n = load<T, W>(from);
    }
    return n;
}

/* Reads what no thread writes while the kernel runs: such a load may come before earlier stores. */
template <typename T, int W> __device__ inline Numbers<T, W> load_constant(const T *from) {
    Numbers<T, W> n;
    if constexpr (sizeof n >= 16) {
#pragma unroll
        for (size_t i = 0; i < sizeof n / 16; i++) {
            reinterpret_cast<uint4 *>(&n)[i] = __ldg(reinterpret_cast<const uint4 *>(from) + i);
        }
    } else {
        n = load<T, W>(from);
    }
    return n;
}

template <typename T, int W> __device__ inline void store(T *to, const Numbers<T, W> &n) {
    *reinterpret_cast<Numbers<T, W> *>(to) = n;
}

/* Two-byte numbers are converted in pairs, one instruction each: memory-bound kernels are that
 * close to being bound by instructions. A BF16 is the upper half of an FP32. */
template <typename T, int W>
__device__ inline void unpack(float (&out)[W], const Numbers<T, W> &n) {
    if constexpr (W == 8 && sizeof(T) == 2) {
#pragma unroll
        for (int i = 0; i < W / 2; i++) {
            const uint32_t pair = reinterpret_cast<const uint32_t *>(&n)[i];
            widen_pair(out[2 * i], out[2 * i + 1], pair, n.at[0]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < W; i++) out[i] = widen(n.at[i]);
    }
}

template <typename T, int W> __device__ inline Numbers<T, W> pack(const float (&in)[W]) {
    Numbers<T, W> n;
    if constexpr (W == 8 && sizeof(T) == 2) {
#pragma unroll
        for (int i = 0; i < W / 2; i++) {
            reinterpret_cast<uint32_t *>(&n)[i] = narrow_pair<T>(in[2 * i], in[2 * i + 1]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < W; i++) n.at[i] = narrow<T>(in[i]);
    }
    return n;
}

/* 2^x and 1 / x in one instruction, to 2 units in the last place; subnormal numbers are zeros. */
__device__ inline float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ inline float fast_reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

template <typename T> __device__ inline T warp_sum(T x) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
    return x;
}

template <typename T> __device__ inline T warp_max(T x) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) x = fmax(x, __shfl_xor_sync(~0u, x, step));
    return x;
}

/* v[k] becomes its sum over the block, in every thread. `shared` holds K numbers a warp; two
 * calls that follow each other must use different ones: one barrier a call is then enough. */
template <int K> __device__ inline void block_sums(float (&v)[K], float *shared) {
    const int warp = (int)threadIdx.x / WARP, warps = (int)blockDim.x / WARP;
#pragma unroll
    for (int k = 0; k < K; k++) v[k] = warp_sum(v[k]);
    if (threadIdx.x % WARP == 0) {
#pragma unroll
        for (int k = 0; k < K; k++) shared[warp * K + k] = v[k];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < K; k++) v[k] = 0.0f;
    for (int w = 0; w < warps; w++) {
#pragma unroll
        for (int k = 0; k < K; k++) v[k] += shared[w * K + k];
    }
}

/* Runs the statement with T the type of `dtype`. */
#define FOR_DTYPE(dtype, ...)    \
    switch (dtype) {             \
    case DTYPE_F32: {            \
        using T = float;         \
        __VA_ARGS__;             \
        break;                   \
    }                            \
    case DTYPE_BF16: {           \
        using T = __nv_bfloat16; \
        __VA_ARGS__;             \
        break;                   \
    }                            \
    case DTYPE_F16: {            \
        using T = __half;        \
        __VA_ARGS__;             \
        break;                   \
    }                            \
    }

/* Runs the statement with W = 8 numbers a thread where rows of `columns` allow it, else 1. */
#define FOR_WIDTH(columns, ...) \
    if ((columns) % 8 == 0) {   \
        constexpr int W = 8;    \
        __VA_ARGS__;            \
    } else {                    \
        constexpr int W = 1;    \
        __VA_ARGS__;            \
    }

static inline unsigned blocks_for(size_t work, size_t per_block) {
    return (unsigned)((work + per_block - 1) / per_block);
}

#endif

/*
 * The slow reference of GEMMs: elements of c at pseudo-random places, a warp each, one product
 * at a time in double; and the random operands that algorithms are timed on. Called by
 * gemm_search.c.
 *
 * Allowed: a rounding to c's format of each term and of the sum, and FP32 accumulation. Of the
 * sum of absolute products, K roundings in any order cost some sqrt(K) 2^-24, where 2^-20 leaves
 * a factor of 16; tensor cores truncate instead, once for 16 products, which adds up: K / 16
 * times 2^-22. A wrong element is off by about that sum over sqrt(K): three times what is allowed
 * at K = 65536, more below.
 *
 * FP8 products are exact, but Hopper's tensor cores add 32 of them to a sum, each cut towards zero
 * 13 bits below the exponent of the largest, and the new sum 13 bits below its own: a model of that
 * gives cuBLASLt's results to the last bit (an H200, K up to 8192). So what each step may lose is
 * added up: of each product, and of the sum so far, at most itself or 2^-13 of the largest, and
 * 2^-13 of the new sum. `fast`: one sum over all of K; otherwise it ends after 128 products in one
 * of FP32. That holds for any operands: where the products have one sign, the losses have too, and
 * up to 0.4 of what is allowed is lost; of normal random ones, which cancel, 0.03. There a wrong
 * element is off by some 1.4 times the root of the sum of squared products, and found in 7 cases of
 * 10 at K = 8192 if fast, in 1 of 10 at K = 49152, and in 9 of 10 if not.
 */
#include <cstring>

#include "base/checked.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/gemm_call.h"
#include "kernels/cuda/numbers.cuh"

namespace {

enum { SAMPLES = 4096, THREADS = 256, PART = 128 };

__device__ inline double value(const void *data, enum dtype dtype, size_t at) {
    if (dtype == DTYPE_BF16) return (double)widen(((const __nv_bfloat16 *)data)[at]);
    if (dtype == DTYPE_F16) return (double)widen(((const __half *)data)[at]);
    return (double)((const float *)data)[at];
}

/* A number of an operand, its blocks' scale counted. */
__device__ inline double operand_value(const gemm_operand &o, size_t row, size_t column) {
    const size_t at = row * o.columns + column;
    if (!gemm_kind_narrow(o.kind)) return value(o.data, (enum dtype)o.kind, at);
    const enum number_format format = gemm_kind_format(o.kind);
    const enum scale_mode mode = gemm_kind_mode(o.kind);
    const size_t scale = scale_index(mode, o.rows, o.columns, row, column);
    const uint8_t *codes = (const uint8_t *)o.data;
    const uint8_t code = format == FORMAT_E2M1 ? (uint8_t)(codes[at / 2] >> at % 2 * 4 & 0xF)
                                               : codes[at];
    const double x = (double)format_decode(format, code);
    if (mode == SCALE_MX) return x * (double)float_from_ue8m0(((const uint8_t *)o.scales)[scale]);
    if (mode == SCALE_NV) return x * (double)float_from_e4m3(((const uint8_t *)o.scales)[scale]);
    return x * (double)((const float *)o.scales)[scale];
}

struct args {
    struct tensor c, bias;
    gemm_operand a, b;
    const double *before; /* (samples) what c held, or NULL */
    const float *alpha;   /* or NULL */
    bool transpose_a, transpose_b, fast;
    size_t k, samples;
};

__device__ inline size_t hash(size_t x) { /* splitmix64 */
    x += 0x9E3779B97F4A7C15ull;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

/* Where in c a sample lies. */
__device__ inline size_t place_of(size_t sample, size_t elements) {
    return elements <= SAMPLES ? sample : hash(sample) % elements;
}

__global__ void before_kernel(const struct tensor c, size_t samples, double *before) {
    const size_t sample = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (sample >= samples) return;
    before[sample] = value(c.data, c.dtype, place_of(sample, c.rows * c.columns));
}

/* Two uniform numbers to a normal one (Box and Muller, 1958). */
__device__ inline float normal_number(size_t bits) {
    const float u = ((float)(uint32_t)(bits >> 32) + 1.0f) * 0x1p-32f;
    const float v = (float)(uint32_t)bits * 0x1p-32f;
    return sqrtf(-2.0f * logf(u)) * cospif(2.0f * v);
}

template <typename T> __global__ void fill_kernel(T *out, size_t count, size_t key) {
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < count;
         i += (size_t)gridDim.x * THREADS) {
        out[i] = narrow<T>(normal_number(hash(hash(key) + i)));
    }
}

/* Codes as of a normal tensor whose largest number, some five deviations out, has the largest code;
 * E2M1: any two of them. */
__global__ void fill_codes_kernel(uint8_t *out, size_t bytes, enum number_format format,
                                  size_t key) {
    const float deviation = format_max(format) * 0.2f;
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < bytes;
         i += (size_t)gridDim.x * THREADS) {
        const size_t bits = hash(hash(key) + i);
        out[i] = format == FORMAT_E2M1 ? (uint8_t)bits
                                       : format_encode(format, normal_number(bits) * deviation);
    }
}

/* Adds each lane's product to *sum, a narrow one; what the step may lose. */
__device__ inline double step_loss(double product, double *sum) {
    const double before = fabs(*sum);
    const double unit = 0x1p-13 * fmax(before, warp_max(fabs(product)));
    *sum += warp_sum(product);
    return warp_sum(fmin(fabs(product), unit)) + fmin(before, unit) + 0x1p-13 * fabs(*sum);
}

__global__ void check_kernel(const args g, unsigned *worst) {
    const size_t sample = ((size_t)blockIdx.x * THREADS + threadIdx.x) / WARP,
                 lane = threadIdx.x % WARP;
    if (sample >= g.samples) return;
    const size_t at = place_of(sample, g.c.rows * g.c.columns);
    const size_t i = at / g.c.columns, j = at % g.c.columns;
    const bool narrow = gemm_kind_narrow(g.a.kind);
    double sum = 0.0, absolute = 0.0, part = 0.0, lost = 0.0;
    for (size_t first = 0; first < g.k; first += WARP) { /* a step of the tensor cores */
        const size_t k = first + lane;
        double product = 0.0;
        if (k < g.k) {
            product = operand_value(g.a, g.transpose_a ? k : i, g.transpose_a ? i : k) *
                      operand_value(g.b, g.transpose_b ? j : k, g.transpose_b ? k : j);
        }
        sum += product;
        absolute += fabs(product);
        if (!narrow) continue;
        if (!g.fast && first % PART == 0) part = 0.0;
        lost += step_loss(product, &part);
    }
    const double alpha = g.alpha != nullptr ? (double)*g.alpha : 1.0;
    sum = warp_sum(sum) * alpha;
    absolute = warp_sum(absolute) * fabs(alpha);
    lost *= fabs(alpha);
    if (lane != 0) return;
    const double bias = g.bias.data != nullptr ? value(g.bias.data, g.bias.dtype, j) : 0.0;
    const double before = g.before != nullptr ? g.before[sample] : 0.0;
    const double size = fabs(sum) + fabs(bias) + fabs(before) + fabs(sum + bias + before);
    sum += bias + before;
    const double rounding = g.c.dtype == DTYPE_F32    ? 0x1p-22
                            : g.c.dtype == DTYPE_BF16 ? 0x1p-8
                                                      : 0x1p-10;
    const double least = g.c.dtype == DTYPE_F16 ? 0x1p-24 : 1e-30; /* FP16's smallest number */
    const double products = 0x1p-20 * sqrt((double)g.k) + 0x1p-26 * (double)g.k;
    const double allowed = rounding * size + products * absolute + lost + least;
    const double error = fabs(value(g.c.data, g.c.dtype, at) - sum) / allowed;
    const bool finite = isfinite(sum) && !(g.c.dtype == DTYPE_F16 && fabs(sum) > 65504.0);
    /* Operands that are not finite say nothing of the algorithm; a result that is not, says it
     * is wrong. */
    const float share = !finite ? 0.0f : error <= 1e30 ? (float)error : 1e30f;
    atomicMax(worst, __float_as_uint(share)); /* positive floats are ordered as their bits */
}

/* Behind cuBLASLt's workspace in scratch memory, which the GEMM between begin and verify uses. */
struct check_scratch {
    double before[SAMPLES];
    unsigned worst;
};

struct check_scratch *check_scratch(const struct device *device) {
    return (struct check_scratch *)((char *)device->scratch + cuda_gemm_workspace_bytes);
}

size_t samples_of(const struct gemm_call *op) { return size_min(SAMPLES, tensor_count(op->c)); }

} /* namespace */

extern "C" size_t cuda_gemm_scratch_bytes(void) {
    return cuda_gemm_workspace_bytes + sizeof(struct check_scratch);
}

extern "C" enum status gemm_fill(struct device *device, const struct gemm_operand *o, size_t key) {
    const size_t count = o->rows * o->columns, bytes = gemm_operand_bytes(o);
    const size_t most = (size_t)backend_of(device)->multiprocessors * 32;
    const unsigned blocks = (unsigned)size_min(most, size_max(1, count / THREADS));
    cudaStream_t stream = backend_of(device)->stream;
    if (gemm_kind_narrow(o->kind)) {
        fill_codes_kernel<<<blocks, THREADS, 0, stream>>>((uint8_t *)o->data, bytes,
                                                          gemm_kind_format(o->kind), key);
    } else {
        FOR_DTYPE((enum dtype)o->kind,
                  { fill_kernel<<<blocks, THREADS, 0, stream>>>((T *)o->data, count, key); })
    }
    return cuda_launched("gemm fill");
}

extern "C" enum status gemm_verify_begin(struct device *device, const struct gemm_call *op) {
    const size_t samples = samples_of(op);
    TRY(cuda_scratch(device, "gemm check", cuda_gemm_scratch_bytes()));
    if (!op->accumulate) return STATUS_OK;
    before_kernel<<<blocks_for(samples, THREADS), THREADS, 0, backend_of(device)->stream>>>(
        op->c, samples, check_scratch(device)->before);
    return cuda_launched("gemm check");
}

extern "C" enum status gemm_verify(struct device *device, const struct gemm_call *op,
                                   double *worst) {
    struct check_scratch *scratch = check_scratch(device);
    unsigned bits = 0;
    args g = {};
    g.c = op->c;
    g.a = op->a;
    g.b = op->b;
    if (op->bias != NULL) g.bias = *op->bias;
    g.before = op->accumulate ? scratch->before : NULL;
    g.alpha = op->alpha_beta;
    g.transpose_a = op->transpose_a;
    g.transpose_b = op->transpose_b;
    g.fast = op->fast;
    g.k = op->transpose_a ? op->a.rows : op->a.columns;
    g.samples = samples_of(op);
    CUDA_TRY(cudaMemsetAsync(&scratch->worst, 0, sizeof bits, backend_of(device)->stream));
    check_kernel<<<blocks_for(g.samples * WARP, THREADS), THREADS, 0, backend_of(device)->stream>>>(
        g, &scratch->worst);
    TRY(cuda_launched("gemm check"));
    TRY(device->calls->download(device, &bits, &scratch->worst, sizeof bits));
    float share = 0.0f;
    memcpy(&share, &bits, sizeof share);
    *worst = (double)share;
    return STATUS_OK;
}

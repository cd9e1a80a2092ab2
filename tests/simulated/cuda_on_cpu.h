/* What a .cu file finds when g++ compiles it for the simulated device: the language that nvcc adds to C++, as far as the
 * kernels use it. What runs the threads is in blocks_on_cpu.h. Few headers, so that a kernel compiles in a moment.
 */
#ifndef CUDA_ON_CPU_H
#define CUDA_ON_CPU_H

#include <stddef.h>
#include <stdint.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __constant__ static
/* In a section of its own, so that it can be filled with NaN before each block. */
#define __shared__ static __attribute__((section("zn_shared")))
#define ZN_SHARED(type, name) type *const name = (type *)zn_dynamic_shared

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define FLT_MAX __FLT_MAX__
#define FLT_MIN __FLT_MIN__
#define INT_MAX __INT_MAX__

#define ZN_VECTORS(type, name, align2, align4)                                                                         \
    struct alignas(align2) name##2 { type x, y; };                                                                     \
    struct name##3 { type x, y, z; };                                                                                  \
    struct alignas(align4) name##4 { type x, y, z, w; };                                                               \
    static inline name##2 make_##name##2(type x, type y) { return {x, y}; }                                            \
    static inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }                                 \
    static inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
ZN_VECTORS(int, int, 8, 16)
ZN_VECTORS(unsigned, uint, 8, 16)
ZN_VECTORS(float, float, 8, 16)
ZN_VECTORS(double, double, 16, 16)
ZN_VECTORS(long long, longlong, 16, 16)
#undef ZN_VECTORS

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
static constexpr int warpSize = 32;
static unsigned char *zn_dynamic_shared;

static void zn_barrier(int line);
#define __syncthreads() zn_barrier(__LINE__)

extern "C" {
float expf(float) noexcept;
float exp2f(float) noexcept;
float expm1f(float) noexcept;
float logf(float) noexcept;
float log1pf(float) noexcept;
float powf(float, float) noexcept;
float tanhf(float) noexcept;
float sinf(float) noexcept;
float cosf(float) noexcept;
double exp(double) noexcept;
double log(double) noexcept;
double sin(double) noexcept;
double cos(double) noexcept;
double tanh(double) noexcept;
}
#define ZN_BUILTIN1(type, name) static inline type name(type a) { return __builtin_##name(a); }
ZN_BUILTIN1(float, sqrtf)
ZN_BUILTIN1(float, fabsf)
ZN_BUILTIN1(float, floorf)
ZN_BUILTIN1(float, ceilf)
ZN_BUILTIN1(float, rintf)
ZN_BUILTIN1(float, truncf)
ZN_BUILTIN1(double, sqrt)
ZN_BUILTIN1(double, fabs)
ZN_BUILTIN1(int, abs)
#undef ZN_BUILTIN1
static inline float fmaf(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline float copysignf(float a, float b) { return __builtin_copysignf(a, b); }
static inline float rsqrtf(float a) { return 1.0f / __builtin_sqrtf(a); }
/* As CUDA has them: of a number and a NaN, the number. */
static inline float fmaxf(float a, float b) { return a > b || b != b ? a : b; }
static inline float fminf(float a, float b) { return a < b || b != b ? a : b; }
static inline double fmax(double a, double b) { return a > b || b != b ? a : b; }
static inline double fmin(double a, double b) { return a < b || b != b ? a : b; }
static inline bool isnan(float a) { return a != a; }
static inline bool isinf(float a) { return __builtin_isinf(a); }
static inline void sincosf(float a, float *s, float *c) { *s = sinf(a), *c = cosf(a); }
static inline float sinpif(float a) { return (float)sin(3.14159265358979323846 * (double)a); }
static inline float cospif(float a) { return (float)cos(3.14159265358979323846 * (double)a); }
static inline void sincospif(float a, float *s, float *c) { *s = sinpif(a), *c = cospif(a); }

#define ZN_MIN_MAX(type)                                                                                               \
    static inline type min(type a, type b) { return a < b ? a : b; }                                                   \
    static inline type max(type a, type b) { return a > b ? a : b; }
ZN_MIN_MAX(int)
ZN_MIN_MAX(unsigned)
ZN_MIN_MAX(long)
ZN_MIN_MAX(unsigned long)
ZN_MIN_MAX(long long)
ZN_MIN_MAX(unsigned long long)
#undef ZN_MIN_MAX
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }

static inline float __expf(float a) { return expf(a); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float a) { return 1.0f / a; }
static inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmul_rn(float a, float b) { volatile float product = a * b; return product; }
static inline float __saturatef(float a) { return fminf(fmaxf(a, 0.0f), 1.0f); }
static inline int __float_as_int(float a) { int b; __builtin_memcpy(&b, &a, 4); return b; }
static inline float __int_as_float(int a) { float b; __builtin_memcpy(&b, &a, 4); return b; }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a * b) >> 32); }
static inline int __clz(int a) { return a ? __builtin_clz((unsigned)a) : 32; }
static inline int __popc(unsigned a) { return __builtin_popcount(a); }
template <class T> static inline T __ldg(const T *a) { return *a; }

#include "blocks_on_cpu.h"

#endif

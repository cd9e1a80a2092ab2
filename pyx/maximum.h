/* Maxima of rows of floats. A NaN anywhere in a window makes the result NaN, as in PyTorch. */
#ifndef ZNNI_MAXIMUM_H
#define ZNNI_MAXIMUM_H
#include "simd.h"
#ifdef __SSE__
#include <immintrin.h>
#endif

/* GCC does not find the max instruction in a comparison and a select of vector types. Where a or b is NaN it gives b. */
static inline zn_vec zn_hardware_max(zn_vec a, zn_vec b) {
#if defined(__AVX512F__)
    return (zn_vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
    return (zn_vec)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE__)
    return (zn_vec)_mm_max_ps((__m128)a, (__m128)b);
#else
    return zn_max(a, b);
#endif
}

/* All ones, which is a NaN, where a is NaN; else the greater. */
static inline zn_vec zn_maximum(zn_vec a, zn_vec b) {
    return (zn_vec)((zn_ivec)zn_hardware_max(a, b) | (a != a));
}
static inline float zn_maximum1(float a, float b) { return a != a ? a : (a > b ? a : b); }

static inline __attribute__((always_inline)) zn_vec
zn_tap_vector(const float *src, long nj, long sj, long nk, long sk) {
    zn_vec m = zn_load(src);
    for (long k = 1; k < nk; k++) m = zn_maximum(m, zn_load(src + k * sk));
    for (long j = 1; j < nj; j++)
        for (long k = 0; k < nk; k++) m = zn_maximum(m, zn_load(src + j * sj + k * sk));
    return m;
}

static inline __attribute__((always_inline)) void
zn_max_taps_inline(float *dst, const float *src, long n, long nj, long sj, long nk, long sk) {
    long i = 0;
    for (; i + ZN_LANES <= n; i += ZN_LANES) zn_store(dst + i, zn_tap_vector(src + i, nj, sj, nk, sk));
    if (i == n) return;
    if (n >= ZN_LANES) { /* the last vector overlaps the one before */
        i = n - ZN_LANES;
        zn_store(dst + i, zn_tap_vector(src + i, nj, sj, nk, sk));
        return;
    }
    for (; i < n; i++) {
        float m = src[i];
        for (long j = 0; j < nj; j++)
            for (long k = 0; k < nk; k++) m = zn_maximum1(m, src[i + j * sj + k * sk]);
        dst[i] = m;
    }
}

/* dst[i] = max over j < nj, k < nk of src[i + j sj + k sk], for i < n; dst and src do not overlap. */
static void zn_max_taps(float *dst, const float *src, long n, long nj, long sj, long nk, long sk) {
    if (nj == 1 && nk == 1) memcpy(dst, src, n * sizeof(float));
    else if (nj == 2 && nk == 2) zn_max_taps_inline(dst, src, n, 2, sj, 2, sk);
    else if (nj == 1 && nk == 2) zn_max_taps_inline(dst, src, n, 1, 0, 2, sk);
    else if (nj == 2 && nk == 1) zn_max_taps_inline(dst, src, n, 1, 0, 2, sj);
    else if (nj == 1 && nk == 3) zn_max_taps_inline(dst, src, n, 1, 0, 3, sk);
    else if (nj == 3 && nk == 1) zn_max_taps_inline(dst, src, n, 1, 0, 3, sj);
    else zn_max_taps_inline(dst, src, n, nj, sj, nk, sk);
}
#endif

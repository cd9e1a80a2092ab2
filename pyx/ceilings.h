/* Loops that run at a core's arithmetic ceiling, and at the memory's. */
#ifndef ZNNI_CEILINGS_H
#define ZNNI_CEILINGS_H
#include "seconds.h"
#include "simd.h"

/* Independent chains of multiply-adds: two a cycle with a latency of four or five need ten; with the constant, twelve still fit
 * into the 16 registers of AVX. */
#define ZN_CHAINS 12

/* 2 * ZN_CHAINS * ZN_LANES operations a round. The result depends on every one of them, so that none is optimised away;
 * x -> x * 0.5 + 0.5 converges to 1, far from denormals; no chain starts there, or the compiler would know it already. */
static inline float zn_multiply_adds(long rounds) {
    const zn_vec half = zn_splat(0.5f);
    zn_vec acc[ZN_CHAINS], sum = zn_splat(0.0f);
    for (int i = 0; i < ZN_CHAINS; i++) acc[i] = zn_splat(2.0f + i);
    for (long r = 0; r < rounds; r++)
#pragma GCC unroll 12
        for (int i = 0; i < ZN_CHAINS; i++) acc[i] = acc[i] * half + half;
    for (int i = 0; i < ZN_CHAINS; i++) sum += acc[i];
    float total = 0.0f;
    for (int i = 0; i < ZN_LANES; i++) total += sum[i];
    return total;
}

/* STREAM's triad (McCalpin, 1995): 12 bytes moved an element. */
static inline void zn_triad(float *a, const float *b, const float *c, float s, long n) {
    long i = 0;
    for (; i + ZN_LANES <= n; i += ZN_LANES) zn_store(a + i, zn_load(b + i) + zn_load(c + i) * s);
    for (; i < n; i++) a[i] = b[i] + c[i] * s;
}
#endif

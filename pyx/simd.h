/* One SIMD vector of floats, as wide as the CPU built for has it, through GCC vector extensions. */
#ifndef ZNNI_SIMD_H
#define ZNNI_SIMD_H
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define ZN_LANES 16
#elif defined(__AVX__)
#define ZN_LANES 8
#else
#define ZN_LANES 4
#endif

typedef float zn_vec __attribute__((vector_size(4 * ZN_LANES)));
typedef int32_t zn_ivec __attribute__((vector_size(4 * ZN_LANES)));

/* memcpy compiles to one unaligned load or store, and is free of aliasing trouble. */
static inline zn_vec zn_load(const float *p) { zn_vec v; memcpy(&v, p, sizeof v); return v; }
static inline void zn_store(float *p, zn_vec v) { memcpy(p, &v, sizeof v); }
static inline zn_vec zn_splat(float s) { return s - (zn_vec){0}; } /* s + 0 would be an addition: -0 + 0 is +0 */

/* m ? a : b, lane by lane; m is all ones or all zeros. */
static inline zn_vec zn_select(zn_ivec m, zn_vec a, zn_vec b) {
    return (zn_vec)(((zn_ivec)a & m) | ((zn_ivec)b & ~m));
}
static inline zn_vec zn_max(zn_vec a, zn_vec b) { return zn_select(a > b, a, b); }

/* Keeps the compiler from loading a vector anew for each of its uses: as many loads as there are products. */
#ifdef __x86_64__
#define ZN_IN_REGISTER(V) __asm__("" : "+v"(V))
#else
#define ZN_IN_REGISTER(V)
#endif
#endif

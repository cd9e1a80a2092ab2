/* What the register-blocked kernels of the direct convolutions share. */
#ifndef ZNNI_DIRECT_KEEP_H
#define ZNNI_DIRECT_KEEP_H
#include "simd.h"
#define ZN_INLINE static inline __attribute__((always_inline))
#define ZN_UNROLL _Pragma("GCC unroll 32")

/* Keeps a vector with several uses in its register: gcc would rather load it again for every use. */
ZN_INLINE void zn_direct_keep(zn_vec *v) {
#if defined(__AVX512F__)
    __asm__("" : "+v"(*v));
#elif defined(__SSE__)
    __asm__("" : "+x"(*v));
#endif
}
#endif

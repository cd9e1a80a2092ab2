/* Stores past the caches: a cache line that is written as a whole is not fetched first. */
#ifndef ZNNI_STREAMING_H
#define ZNNI_STREAMING_H
#include "simd.h"
#ifdef __SSE__
#include <immintrin.h>
#endif

#define ZN_INLINE static inline __attribute__((always_inline))
enum {
    ZN_LINE = 16,              /* floats of a cache line */
    ZN_STREAM_BYTES = 1 << 24, /* results this large are streamed: they would not stay in the caches for the next layer */
};

/* `p` is aligned to a vector. */
ZN_INLINE void zn_stream(float *p, zn_vec v) {
#if defined(__AVX512F__)
    _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX__)
    _mm256_stream_ps(p, (__m256)v);
#elif defined(__SSE__)
    _mm_stream_ps(p, (__m128)v);
#else
    zn_store(p, v);
#endif
}

/* After a thread's last streamed store, so that other threads see them. */
static inline void zn_stream_end(void) {
#ifdef __SSE__
    _mm_sfence();
#endif
}

/* Floats from `p` to where the next line starts. */
static inline long zn_to_line(const float *p) { return -((uintptr_t)p / sizeof(float)) % ZN_LINE; }

/* `n` floats: whole lines past the caches, the ends, whose lines others share, through them. */
static inline void zn_stream_row(float *to, const float *from, long n) {
    long i = zn_to_line(to);
    if (i + ZN_LINE > n) {
        memcpy(to, from, n * sizeof(float));
        return;
    }
    memcpy(to, from, i * sizeof(float));
    for (; i + ZN_LINE <= n; i += ZN_LINE)
        for (int j = 0; j < ZN_LINE; j += ZN_LANES) zn_stream(to + i + j, zn_load(from + i + j));
    memcpy(to + i, from + i, (n - i) * sizeof(float));
}
#endif

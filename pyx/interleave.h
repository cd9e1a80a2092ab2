/* De-interleaving a row of maxima into fragments, and interleaving fragments into a row. */
#ifndef ZNNI_INTERLEAVE_H
#define ZNNI_INTERLEAVE_H
#include "maximum.h"

/* Eight floats: the unit of shuffling on any CPU. */
typedef float zn_f8 __attribute__((vector_size(32)));
typedef int32_t zn_i8 __attribute__((vector_size(32)));

static inline zn_f8 zn_load8(const float *p) { zn_f8 v; memcpy(&v, p, sizeof v); return v; }
static inline void zn_store8(float *p, zn_f8 v) { memcpy(p, &v, sizeof v); }
static inline zn_f8 zn_shuffle8(zn_f8 a, zn_f8 b, zn_i8 m) { return __builtin_shuffle(a, b, m); }

#define ZN_EVEN8 ((zn_i8){0, 2, 4, 6, 8, 10, 12, 14})
#define ZN_ODD8 ((zn_i8){1, 3, 5, 7, 9, 11, 13, 15})

/* Row i of the result is dst + i * pitch; eight rows of eight. */
static inline void zn_transpose8(float *dst, long pitch, const float *const *src, long at) {
    const zn_i8 lo = {0, 8, 1, 9, 4, 12, 5, 13}, hi = {2, 10, 3, 11, 6, 14, 7, 15};
    const zn_i8 pair_lo = {0, 1, 8, 9, 4, 5, 12, 13}, pair_hi = {2, 3, 10, 11, 6, 7, 14, 15};
    const zn_i8 half_lo = {0, 1, 2, 3, 8, 9, 10, 11}, half_hi = {4, 5, 6, 7, 12, 13, 14, 15};
    zn_f8 r[8], t[8];
    for (int i = 0; i < 8; i++) r[i] = zn_load8(src[i] + at);
    for (int i = 0; i < 4; i++) {
        t[2 * i] = zn_shuffle8(r[2 * i], r[2 * i + 1], lo);
        t[2 * i + 1] = zn_shuffle8(r[2 * i], r[2 * i + 1], hi);
    }
    for (int i = 0; i < 2; i++) {
        r[4 * i] = zn_shuffle8(t[4 * i], t[4 * i + 2], pair_lo);
        r[4 * i + 1] = zn_shuffle8(t[4 * i], t[4 * i + 2], pair_hi);
        r[4 * i + 2] = zn_shuffle8(t[4 * i + 1], t[4 * i + 3], pair_lo);
        r[4 * i + 3] = zn_shuffle8(t[4 * i + 1], t[4 * i + 3], pair_hi);
    }
    for (int i = 0; i < 4; i++) {
        zn_store8(dst + i * pitch, zn_shuffle8(r[i], r[i + 4], half_lo));
        zn_store8(dst + (i + 4) * pitch, zn_shuffle8(r[i], r[i + 4], half_hi));
    }
}

/* dst[4 q + i] = src[i][q] for eight q. */
static inline void zn_interleave4(float *dst, const float *const *src, long at) {
    const zn_i8 lo = {0, 8, 1, 9, 4, 12, 5, 13}, hi = {2, 10, 3, 11, 6, 14, 7, 15};
    const zn_i8 pair_lo = {0, 1, 8, 9, 4, 5, 12, 13}, pair_hi = {2, 3, 10, 11, 6, 7, 14, 15};
    const zn_i8 half_lo = {0, 1, 2, 3, 8, 9, 10, 11}, half_hi = {4, 5, 6, 7, 12, 13, 14, 15};
    zn_f8 a = zn_load8(src[0] + at), b = zn_load8(src[1] + at), c = zn_load8(src[2] + at), d = zn_load8(src[3] + at);
    zn_f8 ab_lo = zn_shuffle8(a, b, lo), ab_hi = zn_shuffle8(a, b, hi); /* a0 b0 a1 b1 a4 b4 a5 b5; .. */
    zn_f8 cd_lo = zn_shuffle8(c, d, lo), cd_hi = zn_shuffle8(c, d, hi);
    zn_f8 q04 = zn_shuffle8(ab_lo, cd_lo, pair_lo), q15 = zn_shuffle8(ab_lo, cd_lo, pair_hi);
    zn_f8 q26 = zn_shuffle8(ab_hi, cd_hi, pair_lo), q37 = zn_shuffle8(ab_hi, cd_hi, pair_hi);
    zn_store8(dst, zn_shuffle8(q04, q15, half_lo));
    zn_store8(dst + 8, zn_shuffle8(q26, q37, half_lo));
    zn_store8(dst + 16, zn_shuffle8(q04, q15, half_hi));
    zn_store8(dst + 24, zn_shuffle8(q26, q37, half_hi));
}

/* dst[2 q + i] = src[i][q] for eight q. */
static inline void zn_interleave2(float *dst, const float *const *src, long at) {
    zn_f8 a = zn_load8(src[0] + at), b = zn_load8(src[1] + at);
    zn_store8(dst, zn_shuffle8(a, b, (zn_i8){0, 8, 1, 9, 2, 10, 3, 11}));
    zn_store8(dst + 8, zn_shuffle8(a, b, (zn_i8){4, 12, 5, 13, 6, 14, 7, 15}));
}

/* dst[step q + i] = src[i][q] for i < count, q < n. count = step = 2 or 4, or count = 8, goes eight q at a time. */
static void zn_interleave(float *dst, const float *const *src, long n, long count, long step) {
    long q = 0;
    if (step == 1) {
        memcpy(dst, src[0], n * sizeof(float));
        return;
    }
    const int fast = count == 8 || (count == step && (count == 2 || count == 4));
    if (fast) {
        while (n >= 8) {
            if (count == 8) zn_transpose8(dst + q * step, step, src, q);
            else if (count == 4) zn_interleave4(dst + q * 4, src, q);
            else zn_interleave2(dst + q * 2, src, q);
            q += 8;
            if (q >= n) return;
            if (q + 8 > n) q = n - 8; /* the last group overlaps the one before */
        }
    }
    for (; q < n; q++)
        for (long i = 0; i < count; i++) dst[q * step + i] = src[i][q];
}

static inline __attribute__((always_inline)) zn_f8 zn_taps8(const float *src, long taps) {
    zn_f8 m = zn_load8(src);
    for (long k = 1; k < taps; k++) {
        zn_f8 b = zn_load8(src + k);
#ifdef __AVX__
        m = (zn_f8)((zn_i8)_mm256_max_ps((__m256)m, (__m256)b) | (m != m));
#else
        m = (zn_f8)(((zn_i8)m & (m > b)) | ((zn_i8)b & ~(m > b)) | (m != m));
#endif
    }
    return m;
}

/* even[i] = max of src[2 i .. 2 i + taps), and, unless odd is NULL, odd[i] = max of src[2 i + 1 .. 2 i + 1 + taps), for
 * i < n. May read, but makes no use of, one float past the last window of even. */
static inline __attribute__((always_inline)) void
zn_pick2_inline(float *even, float *odd, const float *src, long n, long taps) {
    long i = 0;
    while (n >= 8) {
        zn_f8 a = zn_taps8(src + 2 * i, taps), b = zn_taps8(src + 2 * i + 8, taps);
        zn_store8(even + i, zn_shuffle8(a, b, ZN_EVEN8));
        if (odd) zn_store8(odd + i, zn_shuffle8(a, b, ZN_ODD8));
        i += 8;
        if (i >= n) return;
        if (i + 8 > n) i = n - 8; /* the last group overlaps the one before */
    }
    for (; i < n; i++) {
        float e = src[2 * i], o = src[2 * i + 1];
        for (long k = 1; k < taps; k++) {
            e = zn_maximum1(e, src[2 * i + k]);
            o = zn_maximum1(o, src[2 * i + k + 1]);
        }
        even[i] = e;
        if (odd) odd[i] = o;
    }
}
static void zn_pick2(float *even, float *odd, const float *src, long n, long taps) {
    if (taps == 2) zn_pick2_inline(even, odd, src, n, 2);
    else if (taps == 1) zn_pick2_inline(even, odd, src, n, 1);
    else zn_pick2_inline(even, odd, src, n, taps);
}

/* dst[i] = src[i step] for i < n. */
static void zn_pick(float *dst, const float *src, long n, long step) {
    for (long i = 0; i < n; i++) dst[i] = src[i * step];
}
#endif

/* One-dimensional FFTs, one transform per SIMD lane: every butterfly is vertical, nothing is shuffled.
 *
 * A *point* is a vector of real parts and a vector of imaginary parts: ZN_LANES independent transforms side by side. A
 * `zn_lines` says where the points of several lines are, in floats: point i of line l has its real parts at
 * re + l * next + i * step and its imaginary parts at the same place from im. Only points i < count exist: those
 * beyond are read as zeros (padding that is neither stored nor read), and dropped on writing (unwanted outputs).
 *
 *   zn_fft_good(n)               whether n >= 1 is a product of 2, 3, 5 and 7
 *   zn_fft_table_floats(n)       floats of the twiddle table of n points
 *   zn_fft_init(&plan, n, table) factors n and notes the table, filled already or filled by
 *   zn_fft_table(n, table)       which works in float64 (call it once, when preparing)
 *   zn_fft_scratch_floats(n)     floats of scratch that a transform wants, per thread; 64-byte aligned is fastest
 *   zn_fft_lines(&plan, &source, &target, lines, scratch)
 *                                target[k] = sum_j source[j] exp(-2 pi i j k / n), unnormalised. In place is fine:
 *                                a line is read whole before any of it is written.
 * The inverse (also unnormalised) is the same call with re and im exchanged in source and target alike.
 *
 * Two real lines a, b of equal length n, any n, make one complex line z = a + i b (re = a, im = b). Of its transform Z
 *   zn_fft_split(n, Z, A, B)     makes *twice* the spectra of a and b, points 0 .. n / 2 each: fold 1/2 into a scale
 *   zn_fft_merge(n, A, B, Z)     is its inverse: Z = A + i B from points 0 .. n / 2, no factor; an inverse transform
 *                                of Z then has a in its real, b in its imaginary parts.
 *
 * Method: Stockham's self-sorting algorithm, decimation in time, radices 2 .. 8 (Van Loan, Computational frameworks for
 * the fast Fourier transform, 1992). The first pass has no twiddles, reads where the source is and skips its zeros; the
 * last writes where the target is; passes between go through scratch. */
#ifndef ZNNI_FFT_LANES_H
#define ZNNI_FFT_LANES_H
#include <math.h>
#include "fft_butterflies.h"

#define ZN_FFT_MAX_PASSES 16
#define ZN_POINT (2 * ZN_LANES) /* floats of a point in scratch: real parts, then imaginary parts */

typedef struct {
    int n, passes, radix[ZN_FFT_MAX_PASSES];
    const float *table; /* of every pass but the first: for k = 1 .. L-1, j = 1 .. R-1: cos, sin of -2 pi j k / (L R) */
} zn_fft;

typedef struct {
    float *re, *im;
    long step, next; /* floats from point to point and from line to line */
    int count;       /* points that exist */
} zn_lines;

/* Lines whose points lie as in scratch, imaginary after real parts; exchanged for the inverse transform. */
static inline zn_lines zn_lines_of(const float *points, int inverse, long step, long next, int count) {
    float *re = (float *)points + (inverse ? ZN_LANES : 0), *im = (float *)points + (inverse ? 0 : ZN_LANES);
    zn_lines lines = {re, im, step, next, count};
    return lines;
}
static inline zn_lines zn_lines_at(const float *re, const float *im, long step, long next, int count) {
    zn_lines lines = {(float *)re, (float *)im, step, next, count};
    return lines;
}
static inline zn_lines zn_lines_swap(zn_lines a) { /* the same lines, for the inverse transform */
    return zn_lines_at(a.im, a.re, a.step, a.next, a.count);
}

/* Sizes with code of their own: n and the radices of its passes (1: none). Against `zn_fft_general` the constants save
 * a third to a half of the time (4 x 4: 84 against 170 cycles); the orders are the fastest of those timed. */
#define ZN_EACH_CODELET(X) \
    X(2, 2, 1, 1) X(3, 3, 1, 1) X(4, 4, 1, 1) X(5, 5, 1, 1) X(6, 6, 1, 1) X(7, 7, 1, 1) X(8, 8, 1, 1) X(9, 3, 3, 1) \
    X(10, 2, 5, 1) X(12, 2, 6, 1) X(14, 7, 2, 1) X(15, 5, 3, 1) X(16, 4, 4, 1) X(18, 6, 3, 1) X(20, 5, 4, 1) \
    X(21, 7, 3, 1) X(24, 6, 4, 1) X(25, 5, 5, 1) X(27, 3, 3, 3) X(28, 7, 4, 1) X(30, 5, 6, 1) X(32, 8, 4, 1) \
    X(36, 6, 6, 1) X(40, 5, 4, 2) X(42, 7, 6, 1) X(45, 5, 3, 3) X(48, 4, 3, 4) X(50, 5, 2, 5) X(54, 6, 3, 3) \
    X(56, 8, 7, 1) X(60, 5, 3, 4) X(63, 7, 3, 3) X(64, 4, 4, 4)

/* Fills `radix`, in the order of the passes; 0 where a prime factor exceeds 7. */
static inline int zn_fft_factor(int n, int *radix) {
    int passes = 0, powers[8] = {0};
    switch (n) {
#define X(N, A, B, C) case N: radix[0] = A, radix[1] = B, radix[2] = C; return 1 + (B > 1) + (C > 1);
        ZN_EACH_CODELET(X)
#undef X
    }
    for (int prime = 2; prime < 8; prime++)
        for (; n > 1 && n % prime == 0; n /= prime) powers[prime]++;
    if (n != 1) return 0;
    for (; powers[7]; powers[7]--) radix[passes++] = 7;
    for (; powers[5]; powers[5]--) radix[passes++] = 5;
    /* 2s go in fours; where one would be left over it joins a 3 (six) or a four (eight) */
    const int six = powers[2] % 2 && powers[3];
    for (; powers[3] > six; powers[3]--) radix[passes++] = 3;
    if (six) radix[passes++] = 6, powers[2]--;
    if (powers[2] % 2 && powers[2] >= 3) radix[passes++] = 8, powers[2] -= 3;
    for (; powers[2] >= 2; powers[2] -= 2) radix[passes++] = 4;
    if (powers[2]) radix[passes++] = 2;
    return passes;
}
static inline int zn_fft_good(int n) {
    int radix[ZN_FFT_MAX_PASSES];
    return n == 1 || (n > 1 && zn_fft_factor(n, radix) > 0);
}
static inline long zn_fft_table_floats(int n) { return 2L * n; }
static inline long zn_fft_scratch_floats(int n) { return 2L * n * ZN_POINT; }

/* Returns 0 where n has a prime factor above 7. */
static inline int zn_fft_init(zn_fft *plan, int n, const float *table) {
    plan->n = n;
    plan->passes = zn_fft_factor(n, plan->radix);
    plan->table = table;
    return zn_fft_good(n);
}
static inline void zn_fft_table(int n, float *table) {
    int radix[ZN_FFT_MAX_PASSES], passes = zn_fft_factor(n, radix);
    for (int p = 1, L = passes ? radix[0] : 1; p < passes; L *= radix[p++])
        for (int k = 1; k < L; k++)
            for (int j = 1; j < radix[p]; j++) {
                const double angle = -6.283185307179586476925 * (j * k) / (L * radix[p]);
                *table++ = (float)cos(angle), *table++ = (float)sin(angle);
            }
}

/* First pass: point q + s j of the source, s = n / R, to the same point of `to`. */
ZN_INLINE void zn_fft_first(const int R, int n, const zn_lines *from, long line, float *restrict to_re,
                            float *restrict to_im, long to_step, int to_count) {
    const int s = n / R;
    const long at = line * from->next;
    for (int q = 0; q < s; q++) {
        zn_vec re[ZN_MAX_RADIX], im[ZN_MAX_RADIX];
        const float *p = from->re + at + q * from->step, *o = from->im + at + q * from->step;
        const long jump = s * from->step;
        if (q + s * (R - 1) < from->count) {
#pragma GCC unroll 8
            for (int j = 0; j < R; j++) re[j] = zn_load(p + j * jump), im[j] = zn_load(o + j * jump);
            zn_dft(R, re, im);
        } else if (q + s >= from->count) { /* one point or none is not zero: all outputs equal it */
            const int some = q < from->count;
            re[0] = some ? zn_load(p) : zn_splat(0.0f), im[0] = some ? zn_load(o) : zn_splat(0.0f);
#pragma GCC unroll 8
            for (int j = 1; j < R; j++) re[j] = re[0], im[j] = im[0];
        } else {
#pragma GCC unroll 8
            for (int j = 0; j < R; j++)
                if (q + s * j < from->count) re[j] = zn_load(p + j * jump), im[j] = zn_load(o + j * jump);
                else re[j] = zn_splat(0.0f), im[j] = zn_splat(0.0f);
            zn_dft(R, re, im);
        }
#pragma GCC unroll 8
        for (int j = 0; j < R; j++)
            if (q + s * j < to_count)
                zn_store(to_re + (q + s * j) * to_step, re[j]), zn_store(to_im + (q + s * j) * to_step, im[j]);
    }
}

/* A later pass, after which transforms have L R points: points q + s (j + R k) to q + s (k + L j), s = n / (L R). */
ZN_INLINE const float *zn_fft_later(const int R, int L, int s, const float *w, const float *restrict from,
                                    float *restrict to_re, float *restrict to_im, long to_step, int to_count) {
    const int whole = L * R * s <= to_count;
    for (int k = 0; k < L; k++) {
        for (int q = 0; q < s; q++) {
            zn_vec re[ZN_MAX_RADIX], im[ZN_MAX_RADIX];
            const float *p = from + (q + (long)s * R * k) * ZN_POINT;
            re[0] = zn_load(p), im[0] = zn_load(p + ZN_LANES);
#pragma GCC unroll 8
            for (int j = 1; j < R; j++) {
                zn_vec a = zn_load(p + j * s * ZN_POINT), b = zn_load(p + j * s * ZN_POINT + ZN_LANES);
                if (k) {
                    const zn_vec c = zn_splat(w[2 * j - 2]), d = zn_splat(w[2 * j - 1]);
                    re[j] = a * c - b * d, im[j] = a * d + b * c;
                } else re[j] = a, im[j] = b;
            }
            zn_dft(R, re, im);
            float *tr = to_re + (q + s * k) * to_step, *ti = to_im + (q + s * k) * to_step;
            const long jump = (long)s * L * to_step;
            if (whole) {
#pragma GCC unroll 8
                for (int j = 0; j < R; j++) zn_store(tr + j * jump, re[j]), zn_store(ti + j * jump, im[j]);
            } else {
#pragma GCC unroll 8
                for (int j = 0; j < R; j++)
                    if (q + s * (k + L * j) < to_count) zn_store(tr + j * jump, re[j]), zn_store(ti + j * jump, im[j]);
            }
        }
        if (k) w += 2 * (R - 1);
    }
    return w;
}

#define ZN_EACH_RADIX(X) X(2) X(3) X(4) X(5) X(6) X(7) X(8)

static __attribute__((noinline)) void zn_fft_general(const zn_fft *plan, const zn_lines *source, const zn_lines *target,
                                                     long lines, float *scratch) {
    const int n = plan->n;
    float *half[2] = {scratch, scratch + (long)n * ZN_POINT};
    for (long l = 0; l < lines; l++) {
        float *re = target->re + l * target->next, *im = target->im + l * target->next;
        const float *w = plan->table;
        int only = plan->passes == 1, L = plan->radix[0];
        float *to_re = only ? re : half[0], *to_im = only ? im : half[0] + ZN_LANES;
        long step = only ? target->step : ZN_POINT;
        switch (L) {
#define X(R) case R: zn_fft_first(R, n, source, l, to_re, to_im, step, only ? target->count : n); break;
            ZN_EACH_RADIX(X)
#undef X
        }
        for (int p = 1; p < plan->passes; L *= plan->radix[p++]) {
            const float *from = half[(p - 1) & 1];
            const int last = p == plan->passes - 1, s = n / (L * plan->radix[p]);
            to_re = last ? re : half[p & 1], to_im = last ? im : half[p & 1] + ZN_LANES;
            step = last ? target->step : ZN_POINT;
            switch (plan->radix[p]) {
#define X(R) case R: w = zn_fft_later(R, L, s, w, from, to_re, to_im, step, last ? target->count : n); break;
                ZN_EACH_RADIX(X)
#undef X
            }
        }
    }
}

ZN_INLINE void zn_fft_codelet(const int n, const int A, const int B, const int C, const float *table,
                              const zn_lines *source, const zn_lines *target, long lines, float *scratch) {
    /* field by field: a copy of the whole struct would wait for the stores that just made it */
    const zn_lines from = {source->re, source->im, source->step, source->next, source->count};
    const long step = target->step, next = target->next;
    const int count = target->count;
    float *half = scratch + n * ZN_POINT, *re = target->re, *im = target->im;
    for (long l = 0; l < lines; l++, re += next, im += next) {
        if (B == 1) {
            zn_fft_first(A, n, &from, l, re, im, step, count);
            continue;
        }
        zn_fft_first(A, n, &from, l, scratch, scratch + ZN_LANES, ZN_POINT, n);
        if (C == 1) zn_fft_later(B, A, 1, table, scratch, re, im, step, count);
        else {
            const float *w = zn_fft_later(B, A, C, table, scratch, half, half + ZN_LANES, ZN_POINT, n);
            zn_fft_later(C, A * B, 1, w, half, re, im, step, count);
        }
    }
}
#define X(N, A, B, C)                                                                                                \
    static __attribute__((noinline)) void zn_fft_##N(const float *table, const zn_lines *source,                     \
                                                     const zn_lines *target, long lines, float *scratch) {           \
        zn_fft_codelet(N, A, B, C, table, source, target, lines, scratch);                                           \
    }
ZN_EACH_CODELET(X)
#undef X

static inline void zn_fft_lines(const zn_fft *plan, const zn_lines *source, const zn_lines *target, long lines,
                                float *scratch) {
    switch (plan->n) {
    case 1:
        for (long l = 0; l < lines; l++) {
            zn_vec re = zn_splat(0.0f), im = re;
            if (source->count) re = zn_load(source->re + l * source->next), im = zn_load(source->im + l * source->next);
            zn_store(target->re + l * target->next, re), zn_store(target->im + l * target->next, im);
        }
        break;
#define X(N, A, B, C) case N: zn_fft_##N(plan->table, source, target, lines, scratch); break;
        ZN_EACH_CODELET(X)
#undef X
    default: zn_fft_general(plan, source, target, lines, scratch);
    }
}

/* Z (n points) -> twice the spectra A, B of its real and imaginary parts, points 0 .. n / 2. */
static inline void zn_fft_split(int n, const zn_lines *z, const zn_lines *a, const zn_lines *b) {
    for (int k = 0; k <= n / 2; k++) {
        const long p = k * z->step, m = (k ? n - k : 0) * z->step;
        const zn_vec pr = zn_load(z->re + p), pi = zn_load(z->im + p), mr = zn_load(z->re + m), mi = zn_load(z->im + m);
        zn_store(a->re + k * a->step, pr + mr), zn_store(a->im + k * a->step, pi - mi);
        zn_store(b->re + k * b->step, pi + mi), zn_store(b->im + k * b->step, mr - pr);
    }
}

/* Spectra A, B (points 0 .. n / 2) of two real lines -> the n points of A + i B. */
static inline void zn_fft_merge(int n, const zn_lines *a, const zn_lines *b, const zn_lines *z) {
    for (int k = 0; k <= n / 2; k++) {
        const zn_vec ar = zn_load(a->re + k * a->step), ai = zn_load(a->im + k * a->step);
        const zn_vec br = zn_load(b->re + k * b->step), bi = zn_load(b->im + k * b->step);
        zn_store(z->re + k * z->step, ar - bi), zn_store(z->im + k * z->step, ai + br);
        if (k && 2 * k != n) zn_store(z->re + (n - k) * z->step, ar + bi), zn_store(z->im + (n - k) * z->step, br - ai);
    }
}
#endif

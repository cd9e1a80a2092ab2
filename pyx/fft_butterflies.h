/* Discrete Fourier transforms of 2 .. 8 points held in registers: x[k] = re[k] + i im[k] becomes
 * sum_j x[j] exp(-2 pi i j k / R), in place and in natural order. Every lane is a transform of its own, so there is no
 * shuffle. R is a constant where these are inlined: loops unroll and arrays become registers. */
#ifndef ZNNI_FFT_BUTTERFLIES_H
#define ZNNI_FFT_BUTTERFLIES_H
#include "simd.h"

#define ZN_INLINE static inline __attribute__((always_inline))
#define ZN_MAX_RADIX 8

ZN_INLINE void zn_dft2(zn_vec *re, zn_vec *im) {
    zn_vec r = re[0], i = im[0];
    re[0] = r + re[1], im[0] = i + im[1];
    re[1] = r - re[1], im[1] = i - im[1];
}

ZN_INLINE void zn_dft4(zn_vec *re, zn_vec *im) {
    zn_vec ar = re[0] + re[2], ai = im[0] + im[2], br = re[0] - re[2], bi = im[0] - im[2];
    zn_vec cr = re[1] + re[3], ci = im[1] + im[3], dr = re[1] - re[3], di = im[1] - im[3];
    re[0] = ar + cr, im[0] = ai + ci;
    re[1] = br + di, im[1] = bi - dr;
    re[2] = ar - cr, im[2] = ai - ci;
    re[3] = br - di, im[3] = bi + dr;
}

ZN_INLINE void zn_dft8(zn_vec *re, zn_vec *im) {
    const zn_vec half = zn_splat(0.70710678118654752f);
    zn_vec er[4] = {re[0], re[2], re[4], re[6]}, ei[4] = {im[0], im[2], im[4], im[6]};
    zn_vec or[4] = {re[1], re[3], re[5], re[7]}, oi[4] = {im[1], im[3], im[5], im[7]};
    zn_dft4(er, ei);
    zn_dft4(or, oi);
    zn_vec pr = or[1] + oi[1], pi = oi[1] - or[1], qr = oi[3] - or[3], qi = or[3] + oi[3];
    re[0] = er[0] + or[0], im[0] = ei[0] + oi[0];
    re[4] = er[0] - or[0], im[4] = ei[0] - oi[0];
    re[1] = er[1] + half * pr, im[1] = ei[1] + half * pi;
    re[5] = er[1] - half * pr, im[5] = ei[1] - half * pi;
    re[2] = er[2] + oi[2], im[2] = ei[2] - or[2];
    re[6] = er[2] - oi[2], im[6] = ei[2] + or[2];
    re[3] = er[3] + half * qr, im[3] = ei[3] - half * qi;
    re[7] = er[3] - half * qr, im[7] = ei[3] + half * qi;
}

/* cos and sin of 2 pi j / R for j = 0 .. (R - 1) / 2. */
static const float zn_cos3[] = {1.0f, -0.5f}, zn_sin3[] = {0.0f, 0.86602540378443865f};
static const float zn_cos5[] = {1.0f, 0.30901699437494742f, -0.80901699437494742f};
static const float zn_sin5[] = {0.0f, 0.95105651629515357f, 0.58778525229247313f};
static const float zn_cos7[] = {1.0f, 0.62348980185873353f, -0.22252093395631440f, -0.90096886790241913f};
static const float zn_sin7[] = {0.0f, 0.78183148246802981f, 0.97492791218182361f, 0.43388373911755812f};

/* Odd R: x[j] + x[R - j] meets cosines only, x[j] - x[R - j] sines only. */
ZN_INLINE void zn_dft_odd(const int R, const float *cosine, const float *sine, zn_vec *re, zn_vec *im) {
    const int h = R / 2;
    zn_vec sr[4], si[4], dr[4], di[4];
    zn_vec r0 = re[0], i0 = im[0];
#pragma GCC unroll 4
    for (int j = 1; j <= h; j++) {
        sr[j] = re[j] + re[R - j], si[j] = im[j] + im[R - j];
        dr[j] = re[j] - re[R - j], di[j] = im[j] - im[R - j];
        re[0] += sr[j], im[0] += si[j];
    }
#pragma GCC unroll 4
    for (int k = 1; k <= h; k++) {
        zn_vec cr = r0, ci = i0, tr = zn_splat(0.0f), ti = tr;
#pragma GCC unroll 4
        for (int j = 1; j <= h; j++) {
            const int m = j * k % R, fold = m > h ? R - m : m;
            const float c = cosine[fold], s = m > h ? -sine[fold] : sine[fold];
            cr += c * sr[j], ci += c * si[j];
            if (j == 1) tr = s * di[j], ti = s * dr[j];
            else tr += s * di[j], ti += s * dr[j];
        }
        re[k] = cr + tr, im[k] = ci - ti;
        re[R - k] = cr - tr, im[R - k] = ci + ti;
    }
}
ZN_INLINE void zn_dft3(zn_vec *re, zn_vec *im) { zn_dft_odd(3, zn_cos3, zn_sin3, re, im); }
ZN_INLINE void zn_dft5(zn_vec *re, zn_vec *im) { zn_dft_odd(5, zn_cos5, zn_sin5, re, im); }
ZN_INLINE void zn_dft7(zn_vec *re, zn_vec *im) { zn_dft_odd(7, zn_cos7, zn_sin7, re, im); }

/* Good and Thomas: 6 = 2 x 3 without twiddles; x[(3 a + 2 b) mod 6] -> X[k], k = (c mod 2, d mod 3). */
ZN_INLINE void zn_dft6(zn_vec *re, zn_vec *im) {
    zn_vec ar[3] = {re[0], re[2], re[4]}, ai[3] = {im[0], im[2], im[4]};
    zn_vec br[3] = {re[3], re[5], re[1]}, bi[3] = {im[3], im[5], im[1]};
    zn_dft3(ar, ai);
    zn_dft3(br, bi);
    re[0] = ar[0] + br[0], im[0] = ai[0] + bi[0];
    re[3] = ar[0] - br[0], im[3] = ai[0] - bi[0];
    re[4] = ar[1] + br[1], im[4] = ai[1] + bi[1];
    re[1] = ar[1] - br[1], im[1] = ai[1] - bi[1];
    re[2] = ar[2] + br[2], im[2] = ai[2] + bi[2];
    re[5] = ar[2] - br[2], im[5] = ai[2] - bi[2];
}

ZN_INLINE void zn_dft(const int R, zn_vec *re, zn_vec *im) {
    switch (R) {
    case 2: zn_dft2(re, im); break;
    case 3: zn_dft3(re, im); break;
    case 4: zn_dft4(re, im); break;
    case 5: zn_dft5(re, im); break;
    case 6: zn_dft6(re, im); break;
    case 7: zn_dft7(re, im); break;
    case 8: zn_dft8(re, im); break;
    }
}
#endif

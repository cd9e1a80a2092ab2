/* Inverse transforms of lines of few points, kernels', summed up term by term: for the points k and n - k together,
 * P = sum of z[j] cos(2 pi j k / n) and Q = sum of z[j] sin(2 pi j k / n); Z[k] = P + i Q and Z[n - k] = P - i Q.
 * Unlike an FFT it makes only the points that are wanted, and puts them where they are. */
#ifndef ZNNI_SHORT_LINES_H
#define ZNNI_SHORT_LINES_H
#include "complex_gemm.h"
#include "fft_lanes.h"

#define ZN_FEW_TAPS 8 /* up to which panels of kernels are made so: at 9 of 24 points an FFT is as fast */

/* cos and sin of 2 pi j / n for j = 0 .. n - 1. */
static inline void zn_circle(int n, float *circle) {
    for (int j = 0; j < n; j++) {
        *circle++ = (float)cos(6.283185307179586476925 * j / n);
        *circle++ = (float)sin(6.283185307179586476925 * j / n);
    }
}

/* Z[k] to up, Z[n - k] to down: real, then imaginary parts. */
ZN_INLINE void zn_short_pair(int n, int k, const float *circle, const float *points, int count, zn_vec *up,
                             zn_vec *down) {
    zn_vec pr = zn_load(points), pi = zn_load(points + ZN_LANES), qr = zn_splat(0.0f), qi = qr;
#pragma GCC unroll 8
    for (int j = 1, at = k; j < count; j++) {
        const zn_vec re = zn_load(points + j * ZN_POINT), im = zn_load(points + j * ZN_POINT + ZN_LANES);
        const zn_vec c = zn_splat(circle[2 * at]), s = zn_splat(circle[2 * at + 1]);
        pr += c * re, pi += c * im, qr += s * re, qi += s * im;
        at = at + k < n ? at + k : at + k - n;
    }
    up[0] = pr - qi, up[1] = pi + qr;
    down[0] = pr + qi, down[1] = pi - qr;
}

/* Points first <= k < last <= n / 2 + 1, and n - k, of one line; point k goes to z + k width. */
static inline void zn_short_line(int n, int first, int last, const float *circle, const float *points, int count,
                                 float *z, long width) {
    for (int k = first; k < last; k++) {
        zn_vec up[2], down[2];
        zn_short_pair(n, k, circle, points, count, up, down);
        if (k) zn_store(z + (n - k) * width, down[0]), zn_store(z + (n - k) * width + ZN_LANES, down[1]);
        zn_store(z + k * width, up[0]), zn_store(z + k * width + ZN_LANES, up[1]);
    }
}

ZN_INLINE void zn_short_rows(int gauss, int V, int n, int k, const float *circle, const float *points,
                             const int count, long apart, long depth, float *up, float *down) {
    for (long j = 0; j < depth; j++, points += count * ZN_POINT)
        for (int part = zn_cgemm_parts(gauss), v = 0; v < V; v++) {
            zn_vec a[2], b[2];
            zn_short_pair(n, k, circle, points + v * apart, count, a, b);
            float *const to = up + (j * part * V + v) * ZN_LANES, *const mirror = down + (to - up);
            zn_store(to, a[0]), zn_store(to + V * ZN_LANES, a[1]);
            zn_store(mirror, b[0]), zn_store(mirror + V * ZN_LANES, b[1]);
            if (gauss) zn_store(to + 2 * V * ZN_LANES, a[0] + a[1]), zn_store(mirror + 2 * V * ZN_LANES, b[0] + b[1]);
        }
}

/* Panels of B (`complex_gemm.h`) of frequencies k and n - k from `depth` lines of `count` points (at most ZN_FEW_TAPS)
 * for each of V vectors, which are `apart` floats from each other. */
static inline void zn_short_panels(int gauss, int V, int n, int k, const float *circle, const float *points, int count,
                                   long apart, long depth, float *up, float *down) {
    switch (count) {
#define X(K) case K: zn_short_rows(gauss, V, n, k, circle, points, K, apart, depth, up, down); break;
        X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8)
#undef X
    }
}
#endif

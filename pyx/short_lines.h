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

#define ZN_ALIKE 4 /* frequencies that share their products */

/* The frequencies that go with k, and k: k, n - k and, where n is even, n / 2 - k and n / 2 + k, whose cosines and sines are
 * those of k but for the signs at odd, or at even, points. -1 in place of one that is not there, or there already. Those of
 * 0 <= k <= zn_short_last(n) are all of them. */
static inline void zn_short_alike(int n, int k, int *alike) {
    const int four = n % 2 == 0 && 4 * k != n;
    alike[0] = k, alike[1] = k ? n - k : -1;
    alike[2] = four ? n / 2 - k : -1, alike[3] = four && k ? n / 2 + k : -1;
}
static inline int zn_short_last(int n) { return n % 2 ? n / 2 : n / 4; }

/* P + i Q and P - i Q, as rows of two panels. */
ZN_INLINE void zn_short_store(int V, zn_vec pr, zn_vec pi, zn_vec qr, zn_vec qi, float *up, float *down) {
    const zn_vec ar = pr - qi, ai = pi + qr, br = pr + qi, bi = pi - qr;
    zn_store(up, ar), zn_store(up + V * ZN_LANES, ai);
    if (down) zn_store(down, br), zn_store(down + V * ZN_LANES, bi);
}

ZN_INLINE void zn_short_rows(int V, int n, int k, const float *circle, const float *points,
                             const int count, long apart, long depth, float *panels, long step) {
    zn_vec c[ZN_FEW_TAPS], s[ZN_FEW_TAPS];
    int alike[ZN_ALIKE];
    zn_short_alike(n, k, alike);
#pragma GCC unroll 8
    for (int j = 1, at = k; j < count; j++) {
        c[j] = zn_splat(circle[2 * at]), s[j] = zn_splat(circle[2 * at + 1]);
        at = at + k < n ? at + k : at + k - n;
    }
    for (long j = 0; j < depth; j++, points += count * ZN_POINT, panels += 2 * V * ZN_LANES)
        for (int v = 0; v < V; v++) {
            const float *const p = points + v * apart;
            float *const to = panels + v * ZN_LANES, *const other = to + 2 * step;
            /* of even points, and of odd ones */
            zn_vec pr[2] = {zn_load(p), zn_splat(0.0f)}, pi[2] = {zn_load(p + ZN_LANES), zn_splat(0.0f)};
            zn_vec qr[2] = {zn_splat(0.0f), zn_splat(0.0f)}, qi[2] = {zn_splat(0.0f), zn_splat(0.0f)};
#pragma GCC unroll 8
            for (int i = 1; i < count; i++) {
                const zn_vec re = zn_load(p + i * ZN_POINT), im = zn_load(p + i * ZN_POINT + ZN_LANES);
                pr[i % 2] += c[i] * re, pi[i % 2] += c[i] * im, qr[i % 2] += s[i] * re, qi[i % 2] += s[i] * im;
            }
            zn_short_store(V, pr[0] + pr[1], pi[0] + pi[1], qr[1] + qr[0], qi[1] + qi[0], to,
                           alike[1] < 0 ? NULL : to + step);
            if (alike[2] >= 0)
                zn_short_store(V, pr[0] - pr[1], pi[0] - pi[1], qr[1] - qr[0], qi[1] - qi[0], other,
                               alike[3] < 0 ? NULL : other + step);
        }
}

/* Panels of B (`complex_gemm.h`), `step` floats apart, of the frequencies alike to k, from `depth` lines of `count` points
 * (at most ZN_FEW_TAPS) for each of V vectors, which are `apart` floats from each other. */
static inline void zn_short_panels(int V, int n, int k, const float *circle, const float *points, int count,
                                   long apart, long depth, float *panels, long step) {
    switch (count) {
#define X(K) case K: zn_short_rows(V, n, k, circle, points, K, apart, depth, panels, step); break;
        X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8)
#undef X
    }
}
#endif

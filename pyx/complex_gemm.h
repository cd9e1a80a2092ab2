/* Complex matrix product, rows (tiles) x in by in x out (channels), in one of two forms: `gauss`, three real products,
 *
 *   a b = k1 - k3 + i (k1 + k2),   k1 = Re a (Re b + Im b),  k2 = (Im a - Re a) Re b,  k3 = (Re a + Im a) Im b
 *
 * or plainly four. A has planes of floats, `plane` floats apart, with a row every `row` floats: Re, Im - Re and Re + Im
 * in Gauss's form, Re and Im plainly. B is a panel of V vectors of output channels: for each of `depth` input channels V
 * vectors of real, then V of imaginary parts; their sums are made where they are used: there adders idle, while larger
 * panels would be slower to write and to read. C gets, for each row, V vectors of real and V of imaginary parts. The
 * micro-kernels accumulate in registers, and broadcast an element of A for each row: in Gauss's form rows x V vectors,
 * in three passes over the depth, of which k1 serves two; plainly rows complex ones in one. */
#ifndef ZNNI_COMPLEX_GEMM_H
#define ZNNI_COMPLEX_GEMM_H
#include "simd.h"

#if ZN_LANES == 16
#define ZN_CGEMM_SUMS 24 /* of 32 registers; a row and a panel take the rest */
#define ZN_EACH_ROWS(X, V)                                                                                            \
    X(1, V) X(2, V) X(3, V) X(4, V) X(5, V) X(6, V) X(7, V) X(8, V) X(9, V) X(10, V) X(11, V) X(12, V) X(13, V)       \
    X(14, V) X(15, V) X(16, V) X(17, V) X(18, V) X(19, V) X(20, V) X(21, V) X(22, V) X(23, V) X(24, V)
#else
#define ZN_CGEMM_SUMS 12 /* of 16 registers */
#define ZN_EACH_ROWS(X, V) \
    X(1, V) X(2, V) X(3, V) X(4, V) X(5, V) X(6, V) X(7, V) X(8, V) X(9, V) X(10, V) X(11, V) X(12, V)
#endif
#define ZN_CGEMM_WIDTH 2 /* vectors of output channels in the widest panel */

/* Vectors of output channels in a whole panel; what is left over goes in a narrower one. */
static inline int zn_cgemm_width(int gauss) { return gauss ? ZN_CGEMM_WIDTH : 1; }
/* Planes of A. */
static inline int zn_cgemm_parts(int gauss) { return gauss ? 3 : 2; }

/* One frequency of `lines` transformed lines, `next` floats apart (real, then imaginary parts), into planes of A. */
static inline void zn_cgemm_rows(int gauss, const float *points, long next, long lines, float *a, long plane) {
    for (long l = 0; l < lines; l++, points += next, a += ZN_LANES) {
        const zn_vec r = zn_load(points), m = zn_load(points + ZN_LANES);
        zn_store(a, r);
        zn_store(a + plane, gauss ? m - r : m);
        if (gauss) zn_store(a + 2 * plane, m + r);
    }
}

/* One frequency of `depth` rows of kernels, V lines each, into a panel of B; line v of a row is `apart` floats after
 * line 0. */
static inline void zn_cgemm_panel(int V, const float *points, long next, long apart, long depth,
                                  float *restrict panel) {
    for (long j = 0; j < depth; j++, panel += 2 * V * ZN_LANES)
        for (int v = 0; v < V; v++) {
            const float *p = points + j * next + v * apart;
            const zn_vec r = zn_load(p), m = zn_load(p + ZN_LANES);
            zn_store(panel + v * ZN_LANES, r);
            zn_store(panel + (V + v) * ZN_LANES, m);
        }
}

static inline __attribute__((always_inline)) void zn_gauss_micro(const int rows, const int V, long depth,
                                                                 const float *a, long row, long plane, const float *b,
                                                                 float *c) {
    zn_vec k1[ZN_CGEMM_SUMS], k[ZN_CGEMM_SUMS];
    const long step = 2 * V * ZN_LANES, c_row = 2 * V * ZN_LANES;
#pragma GCC unroll 24
    for (int i = 0; i < rows * V; i++) k[i] = zn_splat(0.0f);
#define ZN_PRODUCT(A, FACTOR, OP)                                                                     \
    for (long j = 0; j < depth; j++) {                                                                \
        zn_vec w[ZN_CGEMM_WIDTH];                                                                     \
        _Pragma("GCC unroll 2") for (int v = 0; v < V; v++) {                                         \
            const float *const re = b + j * step + v * ZN_LANES, *const im = re + V * ZN_LANES;       \
            w[v] = FACTOR;                                                                            \
            ZN_IN_REGISTER(w[v]);                                                                     \
        }                                                                                             \
        _Pragma("GCC unroll 24") for (int i = 0; i < rows; i++) {                                     \
            const zn_vec s = zn_splat(a[A * plane + i * row + j]);                                    \
            _Pragma("GCC unroll 2") for (int v = 0; v < V; v++) k[i * V + v] OP s * w[v];             \
        }                                                                                             \
    }
    ZN_PRODUCT(0, zn_load(re) + zn_load(im), +=)
#pragma GCC unroll 24
    for (int i = 0; i < rows * V; i++) k1[i] = k[i];
    ZN_PRODUCT(1, zn_load(re), +=)
#pragma GCC unroll 24
    for (int i = 0; i < rows * V; i++) zn_store(c + i / V * c_row + (V + i % V) * ZN_LANES, k[i]), k[i] = k1[i];
    ZN_PRODUCT(2, zn_load(im), -=)
#pragma GCC unroll 24
    for (int i = 0; i < rows * V; i++) zn_store(c + i / V * c_row + i % V * ZN_LANES, k[i]);
#undef ZN_PRODUCT
}

static inline __attribute__((always_inline)) void zn_plain_micro(const int rows, long depth, const float *a, long row,
                                                                 long plane, const float *b, float *c) {
    zn_vec re[ZN_CGEMM_SUMS / 2], im[ZN_CGEMM_SUMS / 2];
#pragma GCC unroll 24
    for (int i = 0; i < rows; i++) re[i] = im[i] = zn_splat(0.0f);
    for (long j = 0; j < depth; j++, a++, b += 2 * ZN_LANES) {
        const zn_vec r = zn_load(b), m = zn_load(b + ZN_LANES);
#pragma GCC unroll 24
        for (int i = 0; i < rows; i++) {
            const zn_vec s = zn_splat(a[i * row]);
            re[i] += s * r, im[i] += s * m;
        }
#pragma GCC unroll 24
        for (int i = 0; i < rows; i++) {
            const zn_vec s = zn_splat(a[plane + i * row]);
            re[i] -= s * m, im[i] += s * r;
        }
    }
#pragma GCC unroll 24
    for (int i = 0; i < rows; i++)
        zn_store(c + i * 2 * ZN_LANES, re[i]), zn_store(c + (i * 2 + 1) * ZN_LANES, im[i]);
}

#define ZN_GAUSS_CASE(R, V)                                                              \
    case R:                                                                              \
        if (R * V <= ZN_CGEMM_SUMS) zn_gauss_micro(R, V, depth, a, row, plane, b, c);    \
        break;
#define ZN_PLAIN_CASE(R, V)                                                              \
    case R:                                                                              \
        if (2 * R <= ZN_CGEMM_SUMS) zn_plain_micro(R, depth, a, row, plane, b, c);       \
        break;
#define ZN_CGEMM(NAME, MOST, V, CASE)                                                                         \
    static __attribute__((noinline)) void zn_##NAME##_##V(long rows, long depth, const float *a, long row,    \
                                                          long plane, const float *b, float *c) {             \
        for (long left = (rows + MOST - 1) / (MOST); left > 0; left--) {                                      \
            const long now = (rows + left - 1) / left; /* spread evenly: 7 rows go as 4 and 3 */              \
            switch (now) { ZN_EACH_ROWS(CASE, V) }                                                            \
            a += now * row, c += now * 2 * V * ZN_LANES, rows -= now;                                         \
        }                                                                                                     \
    }
ZN_CGEMM(gauss, ZN_CGEMM_SUMS, 1, ZN_GAUSS_CASE)
ZN_CGEMM(gauss, ZN_CGEMM_SUMS / 2, 2, ZN_GAUSS_CASE)
ZN_CGEMM(plain, ZN_CGEMM_SUMS / 2, 1, ZN_PLAIN_CASE)

/* One panel of `width` vectors, at most zn_cgemm_width(gauss). */
static inline void zn_cgemm(int gauss, int width, long rows, long depth, const float *a, long row, long plane,
                            const float *b, float *c) {
    if (!gauss) zn_plain_1(rows, depth, a, row, plane, b, c);
    else if (width == 1) zn_gauss_1(rows, depth, a, row, plane, b, c);
    else zn_gauss_2(rows, depth, a, row, plane, b, c);
}
#endif

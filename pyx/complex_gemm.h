/* Complex matrix product, rows (tiles) x in by in x out (channels), in Gauss's form of three real products for four:
 *
 *   a b = k1 - k3 + i (k1 + k2),   k1 = Re a (Re b + Im b),  k2 = (Im a - Re a) Re b,  k3 = (Re a + Im a) Im b
 *
 * A has three planes of floats, Re, Im - Re and Re + Im, each row-major with `depth` columns. B is a panel of V vectors
 * of output channels: for each of `depth` input channels the planes Re, Im and Re + Im of V vectors. C gets, for each
 * row, V vectors of real and V of imaginary parts. The micro-kernel accumulates rows x V vectors in registers and
 * broadcasts each element of A for V multiplications; k1 is summed once, and both parts go on from it. */
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
#define ZN_CGEMM_WIDTH 2 /* vectors of output channels in a whole panel; an odd one is left over */

/* One frequency of `lines` transformed lines, `next` floats apart (real, then imaginary parts), into planes of A. */
static inline void zn_gauss_rows(const float *points, long next, long lines, float *restrict re,
                                 float *restrict difference, float *restrict sum) {
    for (long l = 0; l < lines; l++) {
        const zn_vec r = zn_load(points + l * next), m = zn_load(points + l * next + ZN_LANES);
        zn_store(re + l * ZN_LANES, r);
        zn_store(difference + l * ZN_LANES, m - r);
        zn_store(sum + l * ZN_LANES, m + r);
    }
}

/* One frequency of `depth` rows of kernels, V lines each, into a panel of B; line v of a row is `apart` floats after
 * line 0. */
static inline void zn_gauss_panel(int V, const float *points, long next, long apart, long depth,
                                  float *restrict panel) {
    for (long j = 0; j < depth; j++, panel += 3 * V * ZN_LANES)
        for (int v = 0; v < V; v++) {
            const float *p = points + j * next + v * apart;
            const zn_vec r = zn_load(p), m = zn_load(p + ZN_LANES);
            zn_store(panel + v * ZN_LANES, r);
            zn_store(panel + (V + v) * ZN_LANES, m);
            zn_store(panel + (2 * V + v) * ZN_LANES, r + m);
        }
}

static inline __attribute__((always_inline)) void zn_cgemm_micro(const int rows, const int V, long depth,
                                                                 const float *re, const float *difference,
                                                                 const float *sum, const float *b, float *c) {
    zn_vec k1[ZN_CGEMM_SUMS], k[ZN_CGEMM_SUMS];
    const long step = 3 * V * ZN_LANES, row = 2 * V * ZN_LANES;
#pragma GCC unroll 24
    for (int i = 0; i < rows * V; i++) k[i] = zn_splat(0.0f);
#define ZN_PRODUCT(A, PLANE, OP)                                                                      \
    for (long j = 0; j < depth; j++) {                                                                \
        zn_vec w[ZN_CGEMM_WIDTH];                                                                \
        _Pragma("GCC unroll 2") for (int v = 0; v < V; v++)                                           \
            w[v] = zn_load(b + j * step + (PLANE * V + v) * ZN_LANES);                                \
        _Pragma("GCC unroll 24") for (int i = 0; i < rows; i++) {                                     \
            const zn_vec s = zn_splat(A[i * depth + j]);                                              \
            _Pragma("GCC unroll 2") for (int v = 0; v < V; v++) k[i * V + v] OP s * w[v];             \
        }                                                                                             \
    }
    ZN_PRODUCT(re, 2, +=)
#pragma GCC unroll 24
    for (int i = 0; i < rows * V; i++) k1[i] = k[i];
    ZN_PRODUCT(difference, 0, +=)
#pragma GCC unroll 24
    for (int i = 0; i < rows * V; i++) zn_store(c + i / V * row + (V + i % V) * ZN_LANES, k[i]), k[i] = k1[i];
    ZN_PRODUCT(sum, 1, -=)
#pragma GCC unroll 24
    for (int i = 0; i < rows * V; i++) zn_store(c + i / V * row + i % V * ZN_LANES, k[i]);
#undef ZN_PRODUCT
}

#define ZN_ROWS_CASE(R, V)                                                                               \
    case R:                                                                                              \
        if (R * V <= ZN_CGEMM_SUMS) zn_cgemm_micro(R, V, depth, re, difference, sum, b, c);              \
        break;
#define ZN_CGEMM(V)                                                                                      \
    static __attribute__((noinline)) void zn_cgemm_panel_##V(long rows, long depth, const float *re,     \
                                                             const float *difference, const float *sum,  \
                                                             const float *b, float *c) {                 \
        const long most = ZN_CGEMM_SUMS / V;                                                             \
        for (long left = (rows + most - 1) / most; left > 0; left--) {                                   \
            const long now = (rows + left - 1) / left; /* spread evenly: 7 rows go as 4 and 3 */         \
            switch (now) { ZN_EACH_ROWS(ZN_ROWS_CASE, V) }                                               \
            re += now * depth, difference += now * depth, sum += now * depth;                            \
            c += now * 2 * V * ZN_LANES, rows -= now;                                                    \
        }                                                                                                \
    }
ZN_CGEMM(1)
ZN_CGEMM(2)

/* One panel of `width` (1 or 2) vectors. */
static inline void zn_cgemm_panel(int width, long rows, long depth, const float *re, const float *difference,
                                  const float *sum, const float *b, float *c) {
    if (width == 1) zn_cgemm_panel_1(rows, depth, re, difference, sum, b, c);
    else zn_cgemm_panel_2(rows, depth, re, difference, sum, b, c);
}
#endif

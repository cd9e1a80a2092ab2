/* Real matrix product, rows (tiles) x in by in x out (channels). A and C are row-major, with their own row steps; B is
 * panels of V vectors of output channels, V vectors for each of `depth` input channels. The micro-kernel accumulates
 * rows x V vectors in registers and broadcasts each element of A for V multiplications. */
#ifndef ZNNI_REAL_GEMM_H
#define ZNNI_REAL_GEMM_H
#include "simd.h"

#if ZN_LANES == 16
#define ZN_GEMM_SUMS 28 /* of 32 registers; a row of the panel and a broadcast take the rest */
#define ZN_GEMM_EACH_ROWS(X, V)                                                                                     \
    X(1, V) X(2, V) X(3, V) X(4, V) X(5, V) X(6, V) X(7, V) X(8, V) X(9, V) X(10, V) X(11, V) X(12, V) X(13, V)      \
    X(14, V) X(15, V) X(16, V) X(17, V) X(18, V) X(19, V) X(20, V) X(21, V) X(22, V) X(23, V) X(24, V) X(25, V)      \
    X(26, V) X(27, V) X(28, V)
#else
#define ZN_GEMM_SUMS 12 /* of 16 registers */
#define ZN_GEMM_EACH_ROWS(X, V) \
    X(1, V) X(2, V) X(3, V) X(4, V) X(5, V) X(6, V) X(7, V) X(8, V) X(9, V) X(10, V) X(11, V) X(12, V)
#endif

/* Input channels that are summed up in registers before they are added to those before: the error of a sum in one go
 * grows with the root of its length. */
#define ZN_GEMM_RUN 20

/* Vectors in the next panel, of `left` that there still are: pairs, but three rather than a lone one. */
static inline int zn_gemm_width(long left) { return left == 1 ? 1 : left % 2 ? 3 : 2; }

/* Rows to a call of the micro-kernel, at most, for panels of pairs. */
static inline int zn_gemm_rows(void) { return ZN_GEMM_SUMS / 2; }

static inline __attribute__((always_inline)) void zn_gemm_micro(const int rows, const int V, long depth, const float *a,
                                                                long a_row, const float *b, float *c, long c_row) {
    const long runs = (depth + ZN_GEMM_RUN - 1) / ZN_GEMM_RUN;
    for (long run = 0, j = 0; run < runs; run++) {
        const long end = depth * (run + 1) / runs;
        zn_vec sum[ZN_GEMM_SUMS];
#pragma GCC unroll 28
        for (int i = 0; i < rows * V; i++) sum[i] = zn_splat(0.0f);
        for (; j < end; j++) {
            zn_vec w[3];
#pragma GCC unroll 3
            for (int v = 0; v < V; v++) {
                w[v] = zn_load(b + (j * V + v) * ZN_LANES);
                ZN_IN_REGISTER(w[v]);
            }
#pragma GCC unroll 3
            for (int line = 0; line < V * ZN_LANES; line += 16)
                __builtin_prefetch(b + (depth + j) * V * ZN_LANES + line); /* what comes after this panel */
#pragma GCC unroll 28
            for (int i = 0; i < rows; i++) {
                const zn_vec s = zn_splat(a[i * a_row + j]);
#pragma GCC unroll 3
                for (int v = 0; v < V; v++) sum[i * V + v] += s * w[v];
            }
        }
        if (run)
#pragma GCC unroll 28
            for (int i = 0; i < rows * V; i++) sum[i] += zn_load(c + i / V * c_row + i % V * ZN_LANES);
#pragma GCC unroll 28
        for (int i = 0; i < rows * V; i++) zn_store(c + i / V * c_row + i % V * ZN_LANES, sum[i]);
    }
}

#define ZN_GEMM_ROWS_CASE(R, V)                                                                    \
    case R:                                                                                        \
        if (R * V <= ZN_GEMM_SUMS) zn_gemm_micro(R, V, depth, a, a_row, b, c, c_row);              \
        break;
#define ZN_GEMM(V)                                                                                                    \
    static __attribute__((noinline)) void zn_gemm_panel_##V(long rows, long depth, const float *a, long a_row,        \
                                                            const float *b, float *c, long c_row) {                   \
        const long most = ZN_GEMM_SUMS / V;                                                                           \
        for (long left = (rows + most - 1) / most; left > 0; left--) {                                                \
            const long now = (rows + left - 1) / left; /* spread evenly: 7 rows go as 4 and 3 */                      \
            switch (now) { ZN_GEMM_EACH_ROWS(ZN_GEMM_ROWS_CASE, V) }                                                  \
            a += now * a_row, c += now * c_row, rows -= now;                                                          \
        }                                                                                                             \
    }
ZN_GEMM(1)
ZN_GEMM(2)
ZN_GEMM(3)

/* C = A B for `vectors` vectors of output channels; `b` holds their panels one after another. */
static inline void zn_gemm(long rows, long depth, long vectors, const float *a, long a_row, const float *b, float *c,
                           long c_row) {
    while (vectors > 0) {
        const int width = zn_gemm_width(vectors);
        if (width == 2) zn_gemm_panel_2(rows, depth, a, a_row, b, c, c_row);
        else if (width == 3) zn_gemm_panel_3(rows, depth, a, a_row, b, c, c_row);
        else zn_gemm_panel_1(rows, depth, a, a_row, b, c, c_row);
        vectors -= width, b += width * depth * ZN_LANES, c += width * ZN_LANES;
    }
}
#endif

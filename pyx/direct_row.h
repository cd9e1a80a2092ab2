/* One row of a direct convolution whose lanes are output channels: points at even steps along x.
 *
 * A *term* is one (input channel, kernel voxel) pair; `term[t]` is where it lies from the point that is computed, in
 * floats. Points lie `step` floats apart: 1 in the plain layout, ZN_LANES in the blocked one. Two vectors of channels
 * times ZN_ROW_POINTS points fill the register file, less what the operands of one term need. */
#ifndef ZNNI_DIRECT_ROW_H
#define ZNNI_DIRECT_ROW_H
#include <stddef.h>
#include "direct_keep.h"

#if defined(__AVX512F__) /* 32 vector registers, else 16 */
#define ZN_ROW_POINTS 12
#else
#define ZN_ROW_POINTS 6
#endif
#define ZN_ROW_VECTORS 2 /* the most vectors of channels */

/* V vectors of channels of P points. `weight` is [term][V * ZN_LANES], `sum` [point][V * ZN_LANES]; sums start from
 * `bias`, or where that is NULL are added to what `sum` holds. */
ZN_INLINE void zn_direct_row_block(const int V, const int P, const long step, const float *x, const ptrdiff_t *term,
                                   long terms, const float *weight, const float *bias, float *sum) {
    zn_vec s[2 * ZN_ROW_POINTS];
    ZN_UNROLL for (int p = 0; p < P; p++)
        ZN_UNROLL for (int v = 0; v < V; v++) s[p * V + v] = bias ? zn_load(bias + v * ZN_LANES) : zn_splat(0.0f);
    do {
        const float *at = x + *term++;
        zn_vec w[ZN_ROW_VECTORS];
        ZN_UNROLL for (int v = 0; v < V; v++) {
            w[v] = zn_load(weight + v * ZN_LANES);
            zn_direct_keep(&w[v]);
        }
        ZN_UNROLL for (int p = 0; p < P; p++) {
            const zn_vec b = zn_splat(at[p * step]);
            ZN_UNROLL for (int v = 0; v < V; v++) s[p * V + v] += w[v] * b;
        }
        weight += V * ZN_LANES;
    } while (--terms);
    ZN_UNROLL for (int i = 0; i < P * V; i++)
        zn_store(sum + i * ZN_LANES, bias ? s[i] : s[i] + zn_load(sum + i * ZN_LANES));
}

/* Where a vector is alone, twice as many points fill as many registers, up to 12. */
ZN_INLINE void zn_direct_row_of(const int V, const long step, const float *x, long points, const ptrdiff_t *term,
                                long terms, const float *weight, const float *bias, float *sum) {
    enum { MOST = 12 };
    const int P = V == 1 ? MOST : ZN_ROW_POINTS;
    for (; points >= P; points -= P, x += P * step, sum += P * V * ZN_LANES)
        zn_direct_row_block(V, P, step, x, term, terms, weight, bias, sum);
#define ZN_CASE(N)                                                                           \
    case N:                                                                                  \
        if (N < P) zn_direct_row_block(V, N, step, x, term, terms, weight, bias, sum); \
        break;
    switch (points) {
        ZN_CASE(1) ZN_CASE(2) ZN_CASE(3) ZN_CASE(4) ZN_CASE(5) ZN_CASE(6)
        ZN_CASE(7) ZN_CASE(8) ZN_CASE(9) ZN_CASE(10) ZN_CASE(11)
    }
#undef ZN_CASE
}

/* All `points` of a row with 1 or 2 `vectors` of channels; `step` is 1 or ZN_LANES. */
static void zn_direct_row(int vectors, long step, const float *x, long points, const ptrdiff_t *term, long terms,
                          const float *weight, const float *bias, float *sum) {
    if (step == 1) {
        if (vectors == 1) zn_direct_row_of(1, 1, x, points, term, terms, weight, bias, sum);
        else zn_direct_row_of(2, 1, x, points, term, terms, weight, bias, sum);
    } else {
        if (vectors == 1) zn_direct_row_of(1, ZN_LANES, x, points, term, terms, weight, bias, sum);
        else zn_direct_row_of(2, ZN_LANES, x, points, term, terms, weight, bias, sum);
    }
}
#endif

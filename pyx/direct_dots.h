/* A direct convolution whose lanes are input channels: every sum is a vector of partial sums until its end.
 *
 * A *term* is one (block of input channels, kernel voxel) pair; `term[t]` is where its vector lies from that of the
 * point that is computed, in floats. Points lie side by side along x in the blocked layout. C output channels times as
 * many points as leave room for the operands of one term fill the register file. */
#ifndef ZNNI_DIRECT_DOTS_H
#define ZNNI_DIRECT_DOTS_H
#include <stddef.h>
#include "direct_keep.h"
#include "lane_rows.h"
#include "streaming.h"

#if defined(__AVX512F__) /* 32 vector registers, else 16 */
#define ZN_DOTS_SUMS 24
#else
#define ZN_DOTS_SUMS 12
#endif
#define ZN_DOTS_CHANNELS 4 /* the most output channels of a block */
#define ZN_DOTS_POINTS 8   /* and the most points */

/* `weight` is [term][C][lane], `sum` [point][C][lane]; sums start from nothing, or where they `add` from `sum`. */
ZN_INLINE void zn_dots_block(const int C, const int P, const float *x, const ptrdiff_t *term, long terms,
                             const float *weight, int add, float *sum) {
    zn_vec s[ZN_DOTS_SUMS];
    ZN_UNROLL for (int i = 0; i < P * C; i++) s[i] = zn_splat(0.0f);
    do {
        const float *at = x + *term++;
        zn_vec w[ZN_DOTS_CHANNELS];
        ZN_UNROLL for (int c = 0; c < C; c++) {
            w[c] = zn_load(weight + c * ZN_LANES);
            if (P > 1) zn_direct_keep(&w[c]);
        }
        ZN_UNROLL for (int p = 0; p < P; p++) {
            zn_vec v = zn_load(at + p * ZN_LANES);
            if (C > 1) zn_direct_keep(&v);
            ZN_UNROLL for (int c = 0; c < C; c++) s[p * C + c] += v * w[c];
        }
        weight += C * ZN_LANES;
    } while (--terms);
    ZN_UNROLL for (int i = 0; i < P * C; i++)
        zn_store(sum + i * ZN_LANES, add ? s[i] + zn_load(sum + i * ZN_LANES) : s[i]);
}

ZN_INLINE void zn_dots_of(const int C, const float *x, long points, const ptrdiff_t *term, long terms,
                          const float *weight, int add, float *sum) {
    const int P = ZN_DOTS_SUMS / C < ZN_DOTS_POINTS ? ZN_DOTS_SUMS / C : ZN_DOTS_POINTS;
    for (; points >= P; points -= P, x += P * ZN_LANES, sum += P * C * ZN_LANES)
        zn_dots_block(C, P, x, term, terms, weight, add, sum);
#define ZN_CASE(N)                                                           \
    case N:                                                                  \
        if (N < P) zn_dots_block(C, N, x, term, terms, weight, add, sum); \
        break;
    switch (points) { ZN_CASE(1) ZN_CASE(2) ZN_CASE(3) ZN_CASE(4) ZN_CASE(5) ZN_CASE(6) ZN_CASE(7) }
#undef ZN_CASE
}

/* All `points` of a row with 1 to 4 output `channels`. */
static void zn_dots(int channels, const float *x, long points, const ptrdiff_t *term, long terms, const float *weight,
                    int add, float *sum) {
    switch (channels) {
    case 1: zn_dots_of(1, x, points, term, terms, weight, add, sum); break;
    case 2: zn_dots_of(2, x, points, term, terms, weight, add, sum); break;
    case 3: zn_dots_of(3, x, points, term, terms, weight, add, sum); break;
    case 4: zn_dots_of(4, x, points, term, terms, weight, add, sum); break;
    }
}

/* out[p] = activation(bias + all lanes of sum[p]), vectors of sums `width` floats apart; `sum` goes on for a vector of
 * points beyond the last. */
static void zn_dots_store(const float *sum, long width, long points, float bias, float *out, int code, float a,
                          float b) {
    for (long p = 0; p < points; p += ZN_LANES) {
        zn_vec v[ZN_LANES];
        ZN_UNROLL for (int i = 0; i < ZN_LANES; i++) v[i] = zn_load(sum + (p + i) * width);
        zn_transpose(v);
        ZN_UNROLL for (int gap = 1; gap < ZN_LANES; gap *= 2)
            ZN_UNROLL for (int i = 0; i < ZN_LANES; i += 2 * gap) v[i] += v[i + gap];
        v[0] = zn_activate(v[0] + bias, code, a, b);
        if (points - p >= ZN_LANES) zn_store(out + p, v[0]);
        else memcpy(out + p, &v[0], (points - p) * sizeof(float));
    }
}
#endif

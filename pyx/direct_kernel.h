/* Micro-kernels of the direct convolution: a small matrix product whose right side is addressed through offsets.
 *
 * A *term* is one (input channel, kernel voxel) pair; `term[t]` is where it lies from the voxel that is computed. A
 * *point* is one output voxel (form "channels": the lanes are output channels) or ZN_LANES consecutive ones (form
 * "voxels": the lanes are voxels); `point[p]` is where it lies in the input. Offsets count floats. Sums over a span of
 * terms start from `bias`, or where that is NULL are added to what `sum` holds. A block's sums fill the register file,
 * less what the operands of one term need, and it has no more points than there are registers to point at them. */
#ifndef ZNNI_DIRECT_KERNEL_H
#define ZNNI_DIRECT_KERNEL_H
#include <stddef.h>
#include "activation.h"
#include "direct_keep.h"
#include "streaming.h"

#if defined(__AVX512F__) /* 32 vector registers, else 16 */
#define ZN_DIRECT_SUMS 24
#define ZN_DIRECT_POINTS 10
#else
#define ZN_DIRECT_SUMS 12
#define ZN_DIRECT_POINTS 8
#endif
#define ZN_DIRECT_VECTORS 2  /* the most vectors of channels of a block of form "channels" */
#define ZN_DIRECT_CHANNELS 4 /* the most output channels of a block of form "voxels" */

/* Points in a block whose other side (vectors of channels, or channels) is `side`. */
ZN_INLINE int zn_direct_points(int side) {
    return ZN_DIRECT_SUMS / side < ZN_DIRECT_POINTS ? ZN_DIRECT_SUMS / side : ZN_DIRECT_POINTS;
}

/* Lanes are output channels, V vectors of them: `weight` is [term][V * ZN_LANES], `sum` [point][V * ZN_LANES]. */
ZN_INLINE void zn_direct_channels_block(const int V, const float *x, const ptrdiff_t *point, const ptrdiff_t *term,
                                        long terms, const float *weight, const float *bias, float *sum) {
    const int P = zn_direct_points(V);
    zn_vec s[ZN_DIRECT_SUMS];
    const float *at[ZN_DIRECT_POINTS];
    ZN_UNROLL for (int p = 0; p < P; p++) {
        at[p] = x + point[p];
        ZN_UNROLL for (int v = 0; v < V; v++) s[p * V + v] = bias ? zn_load(bias + v * ZN_LANES) : zn_splat(0.0f);
    }
    do {
        const ptrdiff_t offset = *term++;
        zn_vec w[ZN_DIRECT_VECTORS];
        ZN_UNROLL for (int v = 0; v < V; v++) w[v] = zn_load(weight + v * ZN_LANES);
        ZN_UNROLL for (int p = 0; p < P; p++) {
            const zn_vec b = zn_splat(at[p][offset]);
            ZN_UNROLL for (int v = 0; v < V; v++) s[p * V + v] += w[v] * b;
        }
        weight += V * ZN_LANES;
    } while (--terms);
    ZN_UNROLL for (int i = 0; i < P * V; i++)
        zn_store(sum + i * ZN_LANES, bias ? s[i] : s[i] + zn_load(sum + i * ZN_LANES));
}

/* All `points` of a chunk with 1 or 2 `vectors` of channels; the tables and `sum` go on for one block beyond them. */
static void zn_direct_channels(int vectors, const float *x, const ptrdiff_t *point, long points, const ptrdiff_t *term,
                               long terms, const float *weight, const float *bias, float *sum) {
#define ZN_CASE(V)                                                                                        \
    case V:                                                                                               \
        for (long p = 0; p < points; p += zn_direct_points(V))                                            \
            zn_direct_channels_block(V, x, point + p, term, terms, weight, bias, sum + p * V * ZN_LANES); \
        break;
    switch (vectors) { ZN_CASE(1) ZN_CASE(2) }
#undef ZN_CASE
}

/* Lanes are voxels, C output channels: `weight` is [term][C], `sum` C rows of `row` floats, point p at `place[p]`. */
ZN_INLINE void zn_direct_voxels_block(const int C, const float *x, const ptrdiff_t *point, const ptrdiff_t *place,
                                      const ptrdiff_t *term, long terms, const float *weight, const float *bias,
                                      float *sum, long row) {
    const int P = zn_direct_points(C);
    zn_vec s[ZN_DIRECT_SUMS];
    const float *at[ZN_DIRECT_POINTS];
    ZN_UNROLL for (int p = 0; p < P; p++) {
        at[p] = x + point[p];
        ZN_UNROLL for (int c = 0; c < C; c++)
            s[p * C + c] = zn_splat(bias ? bias[c] : 0.0f);
    }
    do {
        const ptrdiff_t offset = *term++;
        zn_vec held[ZN_DIRECT_CHANNELS]; /* the shorter side stays in registers, the longer passes through one */
        if (C < P) {
            ZN_UNROLL for (int c = 0; c < C; c++) held[c] = zn_splat(weight[c]);
            ZN_UNROLL for (int p = 0; p < P; p++) {
                zn_vec b = zn_load(at[p] + offset);
                if (C > 1) zn_direct_keep(&b);
                ZN_UNROLL for (int c = 0; c < C; c++) s[p * C + c] += held[c] * b;
            }
        } else {
            ZN_UNROLL for (int p = 0; p < P; p++) held[p] = zn_load(at[p] + offset);
            ZN_UNROLL for (int c = 0; c < C; c++) {
                const zn_vec w = zn_splat(weight[c]);
                ZN_UNROLL for (int p = 0; p < P; p++) s[p * C + c] += held[p] * w;
            }
        }
        weight += C;
    } while (--terms);
    if (!bias) /* all of them before any is stored, since points may repeat */
        ZN_UNROLL for (int p = 0; p < P; p++)
            ZN_UNROLL for (int c = 0; c < C; c++) s[p * C + c] += zn_load(sum + c * row + place[p]);
    ZN_UNROLL for (int p = 0; p < P; p++)
        ZN_UNROLL for (int c = 0; c < C; c++) zn_store(sum + c * row + place[p], s[p * C + c]);
}

/* All `points` of a chunk with 1 to 4 `channels`; the tables go on for one block beyond them, repeating the last. */
static void zn_direct_voxels(int channels, const float *x, const ptrdiff_t *point, const ptrdiff_t *place, long points,
                             const ptrdiff_t *term, long terms, const float *weight, const float *bias, float *sum,
                             long row) {
#define ZN_CASE(C)                                                                                   \
    case C:                                                                                          \
        for (long p = 0; p < points; p += zn_direct_points(C))                                       \
            zn_direct_voxels_block(C, x, point + p, place + p, term, terms, weight, bias, sum, row); \
        break;
    switch (channels) { ZN_CASE(1) ZN_CASE(2) ZN_CASE(3) ZN_CASE(4) }
#undef ZN_CASE
}

/* Swaps lane bit `bit` with index bit `bit` of `r`; done for every bit, that transposes ZN_LANES x ZN_LANES. */
ZN_INLINE void zn_direct_swap(zn_vec *r, const int bit) {
    zn_ivec lower, upper;
    ZN_UNROLL for (int l = 0; l < ZN_LANES; l++) {
        lower[l] = l & bit ? ZN_LANES + l - bit : l;
        upper[l] = l & bit ? ZN_LANES + l : l + bit;
    }
    ZN_UNROLL for (int i = 0; i < ZN_LANES; i++) {
        if (i & bit) continue;
        const zn_vec a = r[i], b = r[i + bit];
        r[i] = __builtin_shuffle(a, b, lower);
        r[i + bit] = __builtin_shuffle(a, b, upper);
    }
}

/* out[c * out_channel + p] = activation(sum[p * width + c]) for the first `channels` <= ZN_LANES channels. */
static void zn_direct_store_channels(const float *sum, long width, long points, int channels, float *out,
                                     long out_channel, int code, float a, float b) {
    long p = 0;
    for (; p + ZN_LANES <= points; p += ZN_LANES) {
        zn_vec r[ZN_LANES];
        ZN_UNROLL for (int i = 0; i < ZN_LANES; i++) r[i] = zn_load(sum + (p + i) * width);
        if (code != ZN_LINEAR) for (int i = 0; i < ZN_LANES; i++) r[i] = zn_activate(r[i], code, a, b);
        ZN_UNROLL for (int bit = 1; bit < ZN_LANES; bit *= 2) zn_direct_swap(r, bit);
        for (int c = 0; c < channels; c++) zn_store(out + c * out_channel + p, r[c]);
    }
    for (; p < points; p++) {
        float lane[ZN_LANES];
        zn_store(lane, zn_activate(zn_load(sum + p * width), code, a, b));
        for (int c = 0; c < channels; c++) out[c * out_channel + p] = lane[c];
    }
}

/* out[p * ZN_LANES + l] = activation(sum[p * width + l]), zero in lanes beyond `channels`; where it is to `stream`,
 * `out` is aligned to a vector. */
ZN_INLINE void zn_direct_store_lanes_of(const float *sum, long width, long points, int channels, float *out,
                                        const int stream, const int code, float a, float b) {
    zn_ivec lanes;
    for (int l = 0; l < ZN_LANES; l++) lanes[l] = -(l < channels);
    for (long p = 0; p < points; p++) {
        const zn_vec v = (zn_vec)((zn_ivec)zn_activate(zn_load(sum + p * width), code, a, b) & lanes);
        if (stream) zn_stream(out + p * ZN_LANES, v);
        else zn_store(out + p * ZN_LANES, v);
    }
}
static void zn_direct_store_lanes(const float *sum, long width, long points, int channels, float *out, int stream,
                                  int code, float a, float b) {
    if (code == ZN_RELU && stream) zn_direct_store_lanes_of(sum, width, points, channels, out, 1, ZN_RELU, a, b);
    else if (code == ZN_RELU) zn_direct_store_lanes_of(sum, width, points, channels, out, 0, ZN_RELU, a, b);
    else if (stream) zn_direct_store_lanes_of(sum, width, points, channels, out, 1, code, a, b);
    else zn_direct_store_lanes_of(sum, width, points, channels, out, 0, code, a, b);
}

ZN_INLINE void zn_direct_store_some(const float *sum, float *out, long n, int code, float a, float b) {
    float lane[ZN_LANES] = {0};
    memcpy(lane, sum, n * sizeof(float));
    zn_store(lane, zn_activate(zn_load(lane), code, a, b));
    memcpy(out, lane, n * sizeof(float));
}
ZN_INLINE void zn_direct_store_run(const float *sum, float *out, long n, int stream, int code, float a, float b) {
    long i = 0;
    if (stream) {
        const long past = (uintptr_t)out / sizeof(float) % ZN_LANES;
        i = past ? ZN_LANES - past : 0;
        if (i > n) i = n;
        zn_direct_store_some(sum, out, i, code, a, b);
        for (; i + ZN_LANES <= n; i += ZN_LANES) zn_stream(out + i, zn_activate(zn_load(sum + i), code, a, b));
    } else
        for (; i + ZN_LANES <= n; i += ZN_LANES) zn_store(out + i, zn_activate(zn_load(sum + i), code, a, b));
    if (i < n) zn_direct_store_some(sum + i, out + i, n - i, code, a, b);
}
/* out[i] = activation(sum[i]) for n floats in a row; cheap activations have loops of their own, free of the choice. */
static void zn_direct_store_voxels(const float *sum, float *out, long n, int stream, int code, float a, float b) {
    switch (code) {
    case ZN_LINEAR: zn_direct_store_run(sum, out, n, stream, ZN_LINEAR, a, b); break;
    case ZN_RELU: zn_direct_store_run(sum, out, n, stream, ZN_RELU, a, b); break;
    default: zn_direct_store_run(sum, out, n, stream, code, a, b);
    }
}
#endif

/* Winograd's products and transforms along y where the lanes are consecutive x voxels (`winograd_voxels.pyx`).
 *
 * A block is C output channels times ZN_COLUMN_VECTORS vectors of voxels: its sums fill the register file, less what
 * the operands of one product need, and a row of it is whole cache lines. */
#ifndef ZNNI_WINOGRAD_VOXELS_H
#define ZNNI_WINOGRAD_VOXELS_H
#include <stddef.h>
#include "direct_keep.h"
#include "maximum.h"
#include "streaming.h"
#include "winograd_lanes.h"

#if ZN_LANES == 4
#define ZN_COLUMN_VECTORS 4
#define ZN_COLUMN_CHANNELS 3
#else
#define ZN_COLUMN_VECTORS 2
#define ZN_COLUMN_CHANNELS 6
#endif
#define ZN_COLUMN_WIDTH (ZN_COLUMN_VECTORS * ZN_LANES)
#define ZN_COLUMN_POINT (ZN_COLUMN_CHANNELS * ZN_COLUMN_WIDTH) /* floats of a block's products of one point */

ZN_INLINE void zn_column_input_of(const int n, const int whole, const float *const *row, long first, long size,
                                  float *to, long width) {
    const long last = size - ZN_LANES;
    zn_ivec lane;
    for (int l = 0; l < ZN_LANES; l++) lane[l] = l;
    for (long q = 0; q < width; q += ZN_LANES) {
        const long x = first + q;
        zn_vec d[8], t[8];
        if (x >= 0 && x <= last)
            ZN_UNROLL for (int j = 0; j < n; j++) {
                d[j] = whole || row[j] ? zn_load(row[j] + x) : zn_splat(0.0f);
                zn_direct_keep(&d[j]);
            }
        else if (last >= 0) { /* the nearest vector that is inside, shifted */
            const long inside = x < 0 ? 0 : last;
            const long far = x - inside < -ZN_LANES ? -ZN_LANES : x - inside > ZN_LANES ? ZN_LANES : x - inside;
            const zn_ivec from = lane + (int32_t)far, there = (from >= 0) & (from < ZN_LANES);
            ZN_UNROLL for (int j = 0; j < n; j++) {
                d[j] = whole || row[j] ? zn_load(row[j] + inside) : zn_splat(0.0f);
                d[j] = (zn_vec)((zn_ivec)__builtin_shuffle(d[j], from) & there);
            }
        } else
            for (int j = 0; j < n; j++) {
                d[j] = zn_splat(0.0f);
                for (long l = 0; l < ZN_LANES; l++)
                    if (row[j] && x + l >= 0 && x + l < size) d[j][l] = row[j][x + l];
            }
        zn_wino_input(n, d, t);
        ZN_UNROLL for (int j = 0; j < n; j++) zn_store(to + j * width + q, t[j]);
    }
}
/* n rows of `size` voxels, NULL where there is none, from voxel `first` on, to n rows of points, `width` floats each.
 * What is outside counts as zero. */
static void zn_column_input(int n, const float *const *row, long first, long size, float *to, long width) {
    int whole = 1;
    for (int j = 0; j < n; j++) whole &= row[j] != NULL;
#define ZN_CASE(N)                                                                  \
    case N:                                                                         \
        if (whole) zn_column_input_of(N, 1, row, first, size, to, width);           \
        else zn_column_input_of(N, 0, row, first, size, to, width);                 \
        break;
    switch (n) { ZN_CASE(4) ZN_CASE(6) ZN_CASE(8) }
#undef ZN_CASE
}

/* Asks for the cache lines of n floats. */
static inline void zn_column_prefetch(const float *x, long n) {
    for (long i = 0; i < n; i += ZN_LINE) __builtin_prefetch(x + i);
}

/* Adds to the sums of a block what one kernel row of K columns, `apart` floats from each other, contributes; the `first`
 * one starts them. */
ZN_INLINE const float *zn_column_row(const int C, const int first, const long K, const long apart, const float *x,
                                     const float *weight, zn_vec *s) {
    enum { P = ZN_COLUMN_VECTORS };
    ZN_UNROLL for (long k = 0; k < K; k++) {
        zn_vec held[P];
        ZN_UNROLL for (int p = 0; p < P; p++) {
            held[p] = zn_load(x + k * apart + p * ZN_LANES);
            zn_direct_keep(&held[p]);
        }
        ZN_UNROLL for (int c = 0; c < C; c++) {
            const zn_vec w = zn_splat(weight[k * C + c]);
            ZN_UNROLL for (int p = 0; p < P; p++)
                s[c * P + p] = first && k == 0 ? held[p] * w : s[c * P + p] + held[p] * w;
        }
    }
    return weight + K * C;
}

/* How the points of a tile lie: n of each of `rows` kernel rows (input channels times kernel planes), `point` floats
 * apart, rows `row` floats; and the `columns` of a kernel row, `apart` floats. */
typedef struct {
    int n;
    long rows, point, row, columns, apart;
} zn_column_points;

/* Products of n points. `weight` is [point][kernel row][column][C], `product` [point][ZN_COLUMN_CHANNELS]
 * [ZN_COLUMN_WIDTH], of which the first C are written. Where K is `known` when compiling, the first column starts the
 * sums. */
ZN_INLINE void zn_column_products_of(const int C, const int known, const long K, const long apart,
                                     const zn_column_points *lie, const float *x, const float *weight, float *product) {
    enum { P = ZN_COLUMN_VECTORS };
    for (int n = lie->n; n > 0; n--, x += lie->point, product += ZN_COLUMN_POINT) {
        zn_vec s[ZN_COLUMN_CHANNELS * P];
        if (known) weight = zn_column_row(C, 1, K, apart, x, weight, s);
        else ZN_UNROLL for (int i = 0; i < C * P; i++) s[i] = zn_splat(0.0f);
        for (long r = known; r < lie->rows; r++)
            weight = zn_column_row(C, 0, K, apart, x + r * lie->row, weight, s);
        ZN_UNROLL for (int i = 0; i < C * P; i++) zn_store(product + i * ZN_LANES, s[i]);
    }
}
static void zn_column_products(int channels, const zn_column_points *lie, const float *x, const float *weight,
                               float *product) {
    const long K = lie->columns, near = lie->apart == 1;
#define ZN_CASE(C)                                                                             \
    case C:                                                                                    \
        if (near && K == 3) zn_column_products_of(C, 1, 3, 1, lie, x, weight, product);           \
        else if (near && K == 5) zn_column_products_of(C, 1, 5, 1, lie, x, weight, product);      \
        else zn_column_products_of(C, 0, K, lie->apart, lie, x, weight, product);                 \
        break;
    switch (channels) {
        ZN_CASE(1) ZN_CASE(2) ZN_CASE(3)
#if ZN_COLUMN_CHANNELS > 3
        ZN_CASE(4) ZN_CASE(5) ZN_CASE(6)
#endif
    }
#undef ZN_CASE
}

typedef struct { /* where rows of outputs go, in floats */
    float *to;
    long row, channel;
    int stream; /* past the caches; all three are then multiples of a cache line */
} zn_column_place;

ZN_INLINE void zn_column_output_of(const int n, const int m, const int cheap, const int stream, int channels,
                                   const float *product, const float *bias, zn_column_place place, int code, float a,
                                   float b) {
    const zn_vec least = zn_splat(code == ZN_RELU ? 0.0f : -__builtin_inff());
    float *to = place.to;
    for (int c = 0; c < channels; c++, product += ZN_COLUMN_WIDTH, to += place.channel) {
        const zn_vec more = zn_splat(bias[c]);
        for (int p = 0; p < ZN_COLUMN_WIDTH; p += ZN_LANES) {
            zn_vec t[8], y[6];
            ZN_UNROLL for (int j = 0; j < n; j++) {
                t[j] = zn_load(product + j * ZN_COLUMN_POINT + p);
                zn_direct_keep(&t[j]);
            }
            zn_wino_output(n, m, t, y);
            ZN_UNROLL for (int k = 0; k < m; k++) {
                zn_vec v = y[k] + more;
                v = cheap ? zn_hardware_max(least, v) : zn_activate(v, code, a, b); /* NaN stays */
                if (stream) zn_stream(to + k * place.row + p, v);
                else zn_store(to + k * place.row + p, v);
            }
        }
    }
}
/* Products of a block to outputs of a tile: m rows of ZN_COLUMN_WIDTH voxels of each of `channels` channels. */
static void zn_column_output(int n, int m, int channels, const float *product, const float *bias, zn_column_place place,
                             int code, float a, float b) {
    const int cheap = code == ZN_LINEAR || code == ZN_RELU;
#define ZN_CASE(N, M)                                                                                            \
    case 16 * N + M:                                                                                             \
        if (cheap && place.stream) zn_column_output_of(N, M, 1, 1, channels, product, bias, place, code, a, b);  \
        else if (cheap) zn_column_output_of(N, M, 1, 0, channels, product, bias, place, code, a, b);             \
        else if (place.stream) zn_column_output_of(N, M, 0, 1, channels, product, bias, place, code, a, b);      \
        else zn_column_output_of(N, M, 0, 0, channels, product, bias, place, code, a, b);                        \
        break;
    switch (16 * n + m) {
        ZN_CASE(4, 2) ZN_CASE(6, 2) ZN_CASE(6, 3) ZN_CASE(6, 4)
        ZN_CASE(8, 2) ZN_CASE(8, 3) ZN_CASE(8, 4) ZN_CASE(8, 5) ZN_CASE(8, 6)
    }
#undef ZN_CASE
}

/* n floats, past the caches or through them. */
static inline void zn_column_copy(float *to, const float *from, long n, int stream) {
    if (stream) zn_stream_row(to, from, n);
    else memcpy(to, from, n * sizeof(float));
}
#endif

/* Rows of convolutions within groups of channels, plain and transposed: of plain arrays, and, one channel a group, blocked. */
#ifndef ZNNI_GROUPED_H
#define ZNNI_GROUPED_H
#include "activation.h"

typedef struct {
    long groups, inner, outer;           /* and input and output channels of each */
    long nz, ny, nx, oz, oy, ox;         /* voxels of input and output */
    long kz, ky, kx, sz, sy, sx, dz, dy, dx;
    long pz, py, px;                     /* voxels around the input; transposed: cut off the output */
    int transposed, code;
    float a, b;
} zn_grouped;

enum { ZN_TILE = 8 };                    /* voxels whose sums are held in registers */

/* The input voxel that tap k of output voxel o reads along an axis, or -1. */
static inline long zn_tap(long o, long k, long s, long d, long p, long n, int transposed) {
    long i = transposed ? o + p - k : o * s + k * d - p;
    if (i < 0 || (transposed && i % s)) return -1;
    if (transposed) i /= s;
    return i < n ? i : -1;
}
static inline long zn_up(long a, long b) { return a > 0 ? (a + b - 1) / b : 0; } /* ceil(a / b), at least 0 */
static inline long zn_least(long a, long b) { return a < b ? a : b; }

/* to[i * st] += w from[i * sf] */
static inline void zn_axpy(float *restrict to, long st, const float *restrict from, long sf, float w, long n) {
    if (st == 1 && sf == 1)
        for (long i = 0; i < n; i++) to[i] += w * from[i];
    else
        for (long i = 0; i < n; i++) to[i * st] += w * from[i * sf];
}

/* Output row (z, y) of output channel o of one batch element x, all plain. */
static void zn_grouped_row(const zn_grouped *g, const float *x, const float *weight, const float *bias, float *out, long o,
                           long z, long y) {
    long taps = g->kz * g->ky * g->kx, group = o / g->outer;
    memset(out, 0, g->ox * sizeof(float));
    for (long c = 0; c < g->inner; c++) {
        long in = group * g->inner + c;
        const float *w = weight + (g->transposed ? in * g->outer + o % g->outer : o * g->inner + c) * taps;
        for (long kz = 0; kz < g->kz; kz++) {
            long iz = zn_tap(z, kz, g->sz, g->dz, g->pz, g->nz, g->transposed);
            for (long ky = 0; iz >= 0 && ky < g->ky; ky++) {
                long iy = zn_tap(y, ky, g->sy, g->dy, g->py, g->ny, g->transposed);
                if (iy < 0) continue;
                const float *from = x + ((in * g->nz + iz) * g->ny + iy) * g->nx, *row = w + (kz * g->ky + ky) * g->kx;
                for (long k = 0; k < g->kx; k++) {
                    long at = g->transposed ? k - g->px : k * g->dx - g->px, s = g->sx, first = zn_up(-at, s);
                    if (g->transposed) { /* input i goes to output i s + at */
                        long last = zn_least(g->nx, zn_up(g->ox - at, s));
                        if (first < last) zn_axpy(out + first * s + at, s, from + first, 1, row[k], last - first);
                    } else { /* output i reads input i s + at */
                        long last = zn_least(g->ox, zn_up(g->nx - at, s));
                        if (first < last) zn_axpy(out + first, 1, from + first * s + at, s, row[k], last - first);
                    }
                }
            }
        }
    }
    zn_bias_activate(out, g->ox, bias[o], g->code, g->a, g->b);
}

/* Output row (z, y) of a block of channels, each a group of its own; x is that block of the input, w (taps, lanes). */
static void zn_depthwise_row(const zn_grouped *g, const float *x, const float *weight, zn_vec bias, zn_ivec there, float *out,
                             long z, long y) {
    for (long i = 0; i < g->ox; i += ZN_TILE) {
        long n = zn_least(ZN_TILE, g->ox - i);
        zn_vec sum[ZN_TILE];
        for (int j = 0; j < ZN_TILE; j++) sum[j] = bias;
        for (long kz = 0; kz < g->kz; kz++) {
            long iz = zn_tap(z, kz, g->sz, g->dz, g->pz, g->nz, g->transposed);
            for (long ky = 0; iz >= 0 && ky < g->ky; ky++) {
                long iy = zn_tap(y, ky, g->sy, g->dy, g->py, g->ny, g->transposed);
                if (iy < 0) continue;
                const float *from = x + (iz * g->ny + iy) * g->nx * ZN_LANES;
                const float *row = weight + (kz * g->ky + ky) * g->kx * ZN_LANES;
                for (long k = 0; k < g->kx; k++) {
                    zn_vec w = zn_load(row + k * ZN_LANES);
                    long at = i * g->sx + k * g->dx - g->px;
                    if (!g->transposed && n == ZN_TILE && at >= 0 && at + (ZN_TILE - 1) * g->sx < g->nx) {
                        for (int j = 0; j < ZN_TILE; j++) sum[j] += w * zn_load(from + (at + j * g->sx) * ZN_LANES);
                        continue;
                    }
                    for (int j = 0; j < ZN_TILE; j++) {
                        long ix = j < n ? zn_tap(i + j, k, g->sx, g->dx, g->px, g->nx, g->transposed) : -1;
                        if (ix >= 0) sum[j] += w * zn_load(from + ix * ZN_LANES);
                    }
                }
            }
        }
        for (int j = 0; j < ZN_TILE; j++)
            if (j < n) {
                zn_vec v = zn_activate(sum[j], g->code, g->a, g->b);
                zn_store(out + (i + j) * ZN_LANES, zn_select(there, v, zn_splat(0.0f)));
            }
    }
}

/* The first `channels` lanes. */
static inline zn_ivec zn_lanes_there(long channels) {
    int32_t lanes[ZN_LANES];
    zn_ivec there;
    for (int j = 0; j < ZN_LANES; j++) lanes[j] = j < channels ? -1 : 0;
    memcpy(&there, lanes, sizeof there);
    return there;
}
static void zn_depthwise_block_row(const zn_grouped *g, const float *x, const float *weight, const float *bias, float *out,
                                   long block, long z, long y) {
    zn_depthwise_row(g, x, weight + block * g->kz * g->ky * g->kx * ZN_LANES, zn_load(bias + block * ZN_LANES),
                     zn_lanes_there(g->groups - block * ZN_LANES), out, z, y);
}
#endif

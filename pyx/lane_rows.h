/* Rows of voxels in and out of lanes: ZN_LANES rows, each with its own address, to and from vectors that hold one voxel
 * of every row. Blocks of ZN_LANES x ZN_LANES are transposed in registers. */
#ifndef ZNNI_LANE_ROWS_H
#define ZNNI_LANE_ROWS_H
#include "activation.h"

/* A pattern of shuffling that is the same in each quarter (128 bits) of a vector. */
#if ZN_LANES == 16
#define ZN_BY_QUARTER(A, B, C, D) \
    {A, B, C, D, A + 4, B + 4, C + 4, D + 4, A + 8, B + 8, C + 8, D + 8, A + 12, B + 12, C + 12, D + 12}
#elif ZN_LANES == 8
#define ZN_BY_QUARTER(A, B, C, D) {A, B, C, D, A + 4, B + 4, C + 4, D + 4}
#else
#define ZN_BY_QUARTER(A, B, C, D) {A, B, C, D}
#endif

static inline __attribute__((always_inline)) void zn_transpose(zn_vec *v) {
    enum { B = ZN_LANES }; /* first lane of the second of two vectors */
    const zn_ivec low = ZN_BY_QUARTER(0, B, 1, B + 1), high = ZN_BY_QUARTER(2, B + 2, 3, B + 3);
    const zn_ivec front = ZN_BY_QUARTER(0, 1, B, B + 1), back = ZN_BY_QUARTER(2, 3, B + 2, B + 3);
#pragma GCC unroll 4
    for (int i = 0; i < ZN_LANES; i += 4) { /* 4 x 4 in every quarter; then quarters are exchanged */
        const zn_vec a = __builtin_shuffle(v[i], v[i + 1], low), b = __builtin_shuffle(v[i], v[i + 1], high);
        const zn_vec c = __builtin_shuffle(v[i + 2], v[i + 3], low), d = __builtin_shuffle(v[i + 2], v[i + 3], high);
        v[i] = __builtin_shuffle(a, c, front), v[i + 1] = __builtin_shuffle(a, c, back);
        v[i + 2] = __builtin_shuffle(b, d, front), v[i + 3] = __builtin_shuffle(b, d, back);
    }
#if ZN_LANES == 8
    const zn_ivec lower = {0, 1, 2, 3, 8, 9, 10, 11}, upper = {4, 5, 6, 7, 12, 13, 14, 15};
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const zn_vec a = v[i], b = v[i + 4];
        v[i] = __builtin_shuffle(a, b, lower), v[i + 4] = __builtin_shuffle(a, b, upper);
    }
#elif ZN_LANES == 16
    const zn_ivec even = {0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27};
    const zn_ivec odd = {4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31};
    const zn_ivec lower = {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23};
    const zn_ivec upper = {8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31};
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 8)
#pragma GCC unroll 4
        for (int j = i; j < i + 4; j++) {
            const zn_vec a = v[j], b = v[j + 4];
            v[j] = __builtin_shuffle(a, b, even), v[j + 4] = __builtin_shuffle(a, b, odd);
        }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        const zn_vec a = v[i], b = v[i + 8];
        v[i] = __builtin_shuffle(a, b, lower), v[i + 8] = __builtin_shuffle(a, b, upper);
    }
#endif
}

/* Voxels x = 0 .. count - 1 of every row, `stride` floats apart, to vectors `step` floats apart. Row l starts at
 * row[l] + offset. Whole blocks are read, so up to ZN_LANES - 1 floats past a row; `lowest` and `highest` are the rows
 * that lie so, and what is before `begin`, or at or after `end`, is not touched, and reads as zero. */
static inline void zn_rows_load_within(const float *const *row, const float *lowest, const float *highest, long offset,
                                       const float *begin, const float *end, int count, int stride, float *to,
                                       long step) {
    const long span = (long)(count - 1) * stride + 1;
    const int inside = lowest + offset >= begin && end - (highest + offset) >= span + ZN_LANES - 1;
    for (long x = 0; x < span; x += ZN_LANES) {
        zn_vec v[ZN_LANES];
        if (inside) {
#pragma GCC unroll 16
            for (int l = 0; l < ZN_LANES; l++) v[l] = zn_load(row[l] + offset + x);
        } else
            for (int l = 0; l < ZN_LANES; l++) {
                const float *p = row[l] + offset + x;
                const long skip = p < begin ? begin - p : 0, left = end - p < ZN_LANES ? end - p : ZN_LANES;
                float some[ZN_LANES] = {0};
                if (left > skip) memcpy(some + skip, p + skip, (left - skip) * sizeof(float));
                v[l] = zn_load(some);
            }
        zn_transpose(v);
        if (stride == 1 && count - x >= ZN_LANES) {
#pragma GCC unroll 16
            for (int i = 0; i < ZN_LANES; i++) zn_store(to + (x + i) * step, v[i]);
        } else if (stride == 1) {
#pragma GCC unroll 16
            for (int i = 0; i < ZN_LANES; i++)
                if (x + i < count) zn_store(to + (x + i) * step, v[i]);
        } else
            for (long i = (stride - x % stride) % stride; i < ZN_LANES && x + i < span; i += stride)
                zn_store(to + (x + i) / stride * step, v[i]);
    }
}
/* The same where every row begins within its array. */
static inline void zn_rows_load(const float *const *row, const float *last, long offset, const float *end, int count,
                                int stride, float *to, long step) {
    zn_rows_load_within(row, last, last, offset, NULL, end, count, stride, to, step);
}

/* Asks for the cache lines of `floats` floats of every row. */
static inline void zn_rows_prefetch(const float *const *row, long offset, long floats) {
    for (int l = 0; l < ZN_LANES; l++)
        for (long x = 0; x < floats + 15; x += 16) __builtin_prefetch(row[l] + offset + (x < floats ? x : floats - 1));
}

/* Vectors x = 0 .. count - 1, `step` floats apart, plus bias and through the activation, to rows of voxels `stride`
 * floats apart. Of row l only voxels first[l] <= x < last[l] are written. */
static inline void zn_rows_store(const float *from, long step, int count, zn_vec bias, int code, float a, float b,
                                 float *const *row, long offset, int stride, const int *first, const int *last) {
    for (int x = 0; x < count; x += ZN_LANES) {
        /* the last block overlaps the one before it rather than be ragged */
        const int at = count - x >= ZN_LANES || count < ZN_LANES ? x : count - ZN_LANES;
        zn_vec v[ZN_LANES];
#pragma GCC unroll 16
        for (int i = 0; i < ZN_LANES; i++)
            v[i] = at + i < count ? zn_activate(zn_load(from + (at + i) * step) + bias, code, a, b) : zn_splat(0.0f);
        zn_transpose(v);
#pragma GCC unroll 16
        for (int l = 0; l < ZN_LANES; l++) {
            float *to = row[l] + offset + (long)at * stride;
            if (stride == 1 && first[l] <= at && last[l] >= at + ZN_LANES) zn_store(to, v[l]);
            else {
                float some[ZN_LANES];
                zn_store(some, v[l]);
                for (int i = first[l] > at ? first[l] - at : 0; i < ZN_LANES && at + i < last[l]; i++)
                    to[(long)i * stride] = some[i];
            }
        }
    }
}
#endif

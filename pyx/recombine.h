/* Fragments of a row of the dense result, into that row. */
#ifndef ZNNI_RECOMBINE_H
#define ZNNI_RECOMBINE_H
#include "interleave.h"
#include "lane_rows.h"
#include "streaming.h"

/* dst[step q + at[i]] = rows[i][q] for i < count, q < n; `at` ascends. */
static void zn_recombine_row(float *dst, const float *const *rows, const long *at, long count, long n, long step) {
    for (long i = 0; i < count;) {
        long run = 1; /* neighbours in the result, as many as can be interleaved at once */
        while (i + run < count && run < 8 && at[i + run] == at[i] + run) run++;
        zn_interleave(dst + at[i], rows + i, n, run, step);
        i += run;
    }
}

/* The same for rows of vectors of channels, of which the first `channels` go to rows `pitch` apart: vectors are taken in the
 * order that their voxels have in the result, ZN_LANES at a time. */
static void zn_recombine_lanes(float *dst, long pitch, int channels, const float *const *rows, const long *at, long count,
                               long n, long step) {
    const long all = count * n;
    long i = 0, q = 0;
    for (long k = 0; k < all; k += ZN_LANES) {
        const int there = all - k < ZN_LANES ? (int)(all - k) : ZN_LANES;
        zn_vec v[ZN_LANES];
        long to[ZN_LANES];
        for (int j = 0; j < ZN_LANES; j++) {
            v[j] = zn_splat(0.0f);
            if (j >= there) continue;
            v[j] = zn_load(rows[i] + q * ZN_LANES);
            to[j] = q * step + at[i];
            if (++i == count) i = 0, q++;
        }
        zn_transpose(v);
        if (there == ZN_LANES && to[ZN_LANES - 1] - to[0] == ZN_LANES - 1) {
#pragma GCC unroll 16
            for (int c = 0; c < ZN_LANES; c++)
                if (c < channels) zn_store(dst + c * pitch + to[0], v[c]);
            continue;
        }
        float some[ZN_LANES][ZN_LANES];
#pragma GCC unroll 16
        for (int c = 0; c < ZN_LANES; c++) zn_store(some[c], v[c]);
        for (int c = 0; c < channels; c++)
            for (int j = 0; j < there; j++) dst[c * pitch + to[j]] = some[c][j];
    }
}

enum { ZN_ROW_STAGE = 2048 };

/* Whole rows (count = step) past the caches: `n` voxels of each of `step` fragments, vectors of channels where `lanes` > 1,
 * a stretch at a time by way of a buffer. */
static void zn_recombine_stream(float *dst, long pitch, int channels, int lanes, const float **rows, const long *at,
                                long n, long step) {
    float stage[ZN_ROW_STAGE];
    const long room = ZN_ROW_STAGE / lanes, most = room / step;
    for (long q = 0; q < n; q += most) {
        const long some = n - q < most ? n - q : most;
        if (lanes == 1) zn_recombine_row(stage, rows, at, step, some, step);
        else zn_recombine_lanes(stage, room, channels, rows, at, step, some, step);
        for (int c = 0; c < channels; c++) zn_stream_row(dst + c * pitch + q * step, stage + c * room, some * step);
        for (long i = 0; i < step; i++) rows[i] += some * lanes;
    }
}

/* Asks for the lines of `n` floats of each of `channels` rows, to be written. */
static inline void zn_row_prefetch(const float *dst, long pitch, int channels, long n) {
    for (int c = 0; c < channels; c++)
        for (long i = 0; i < n; i += ZN_LINE) __builtin_prefetch(dst + c * pitch + i, 1);
}
#endif

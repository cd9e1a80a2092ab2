/* From plain to blocked and back, for one block of ZN_LANES channels: squares of ZN_LANES channels and voxels are transposed
 * in registers. */
#ifndef ZNNI_RELAYOUT_H
#define ZNNI_RELAYOUT_H
#include "lane_rows.h"
#include "streaming.h"

/* Voxels `first` to `last`; `channels` of the lanes are there, others become zero. With `stream`, `out` is aligned to a
 * vector. */
ZN_INLINE void zn_to_blocked_inline(const float *x, float *out, long pitch, const int channels, long first, long last,
                                    const int stream) {
    long i = first;
    for (; i + ZN_LANES <= last; i += ZN_LANES) {
        zn_vec v[ZN_LANES];
#pragma GCC unroll 16
        for (int l = 0; l < ZN_LANES; l++) v[l] = l < channels ? zn_load(x + l * pitch + i) : zn_splat(0.0f);
        zn_transpose(v);
#pragma GCC unroll 16
        for (int l = 0; l < ZN_LANES; l++)
            if (stream) zn_stream(out + (i + l) * ZN_LANES, v[l]);
            else zn_store(out + (i + l) * ZN_LANES, v[l]);
    }
    for (; i < last; i++)
        for (int l = 0; l < ZN_LANES; l++) out[i * ZN_LANES + l] = l < channels ? x[l * pitch + i] : 0.0f;
}
static void zn_to_blocked(const float *x, float *out, long pitch, int channels, long first, long last, int stream) {
    if (channels == ZN_LANES && stream) zn_to_blocked_inline(x, out, pitch, ZN_LANES, first, last, 1);
    else if (channels == ZN_LANES) zn_to_blocked_inline(x, out, pitch, ZN_LANES, first, last, 0);
    else zn_to_blocked_inline(x, out, pitch, channels, first, last, stream);
}

/* Voxels `first` to `last` of every channel that is there to rows `pitch` apart; voxel i to to[i - first]. */
static inline void zn_to_plain(const float *x, float *to, long pitch, int channels, long first, long last) {
    long i = first;
    for (; i + ZN_LANES <= last; i += ZN_LANES) {
        zn_vec v[ZN_LANES];
#pragma GCC unroll 16
        for (int l = 0; l < ZN_LANES; l++) v[l] = zn_load(x + (i + l) * ZN_LANES);
        zn_transpose(v);
#pragma GCC unroll 16
        for (int l = 0; l < ZN_LANES; l++)
            if (l < channels) zn_store(to + l * pitch + i - first, v[l]);
    }
    for (; i < last; i++)
        for (int l = 0; l < channels; l++) to[l * pitch + i - first] = x[i * ZN_LANES + l];
}

enum { ZN_STAGE = 128 };

/* The same past the caches. Rows begin anywhere in a line, each elsewhere, so they are gathered in a buffer first, from
 * which each goes on in whole lines; the line it has begun stays until it is full. */
static void zn_to_plain_stream(const float *x, float *out, long pitch, int channels, long first, long last) {
    float stage[ZN_LANES][ZN_LINE + ZN_STAGE];
    long done[ZN_LANES];
    for (int l = 0; l < channels; l++) done[l] = first;
    for (long at = first; at < last; at += ZN_STAGE) {
        const long end = last - at < ZN_STAGE ? last : at + ZN_STAGE;
        zn_to_plain(x, stage[0] + ZN_LINE, ZN_LINE + ZN_STAGE, channels, at, end);
        for (int l = 0; l < channels; l++) {
            float *row = out + l * pitch;
            const long begun = (uintptr_t)(row + end) / sizeof(float) % ZN_LINE;
            const long until = end == last ? end : end - begun;
            if (until > done[l]) {
                zn_stream_row(row + done[l], stage[l] + ZN_LINE + (done[l] - at), until - done[l]);
                done[l] = until;
            }
            memcpy(stage[l], stage[l] + ZN_STAGE, ZN_LINE * sizeof(float));
        }
    }
}
#endif

/* Max-pooling fragments of a convolution's rows while these are in cache; lanes are channels (`direct_mpf.pyx`). */
#ifndef ZNNI_DIRECT_MAXIMA_H
#define ZNNI_DIRECT_MAXIMA_H
#include "activation.h"
#include "direct_row.h"
#include "lane_rows.h"
#include "maximum.h"
#include "streaming.h"

/* What becomes of one vector of channels of one row of windows. Sizes count floats. */
typedef struct {
    const float *conv; /* first voxel of the first window, in the first of `rows` rows of the convolution */
    long rows, pitch;
    long taps, voxel;  /* windows are `taps` voxels wide, `voxel` apart; the next window is `step` further */
    long step, n;
    const float *kept; /* maxima of the same windows in `planes` planes before, `plane` apart */
    long planes, plane;
    float *keep;       /* where the maxima of this plane are to stay; NULL: nowhere. May be one of `kept` */
    float *out;        /* maxima over all planes, activated, one vector a window; NULL: not wanted */
    int stream, careful, code; /* `careful`: there may be NaN, of which a maximum is NaN */
    float a, b;
    zn_ivec lanes;     /* all ones in those that are channels */
} zn_mpf_line;

static inline void zn_mpf_lanes(zn_mpf_line *l, int channels) {
    for (int i = 0; i < ZN_LANES; i++) l->lanes[i] = -(i < channels);
}

/* Whether all of `n` vectors are finite: a product with zero then adds nothing. */
static int zn_mpf_finite(const float *sums, long n) {
    const zn_vec zero = zn_splat(0.0f);
    zn_vec bad[4] = {zero, zero, zero, zero};
    long i = 0;
    for (; i + 4 <= n; i += 4)
        ZN_UNROLL for (int j = 0; j < 4; j++) bad[j] += zn_load(sums + (i + j) * ZN_LANES) * zero;
    for (; i < n; i++) bad[0] += zn_load(sums + i * ZN_LANES) * zero;
    bad[0] += bad[1] + (bad[2] + bad[3]);
    int finite = 1;
    for (int l = 0; l < ZN_LANES; l++) finite &= bad[0][l] == 0.0f;
    return finite;
}

/* Where `careful`, a NaN stays one; else there is none. */
ZN_INLINE zn_vec zn_mpf_greater(zn_vec a, zn_vec b, const int careful) {
    return careful ? zn_maximum(a, b) : zn_hardware_max(a, b);
}

ZN_INLINE void zn_mpf_windows(const zn_mpf_line *l, const long rows, const long taps, const long planes,
                              const int keeps, const int gives, const int stream, const int code, const int careful) {
    const long voxel = l->voxel, pitch = l->pitch, step = l->step, n = l->n, plane = l->plane;
    const float *conv = l->conv, *kept = l->kept;
    float *keep = l->keep, *out = l->out;
    const zn_ivec lanes = l->lanes;
    const float a = l->a, b = l->b;
    for (long q = 0; q < n; q++, conv += step) {
        zn_vec m = zn_load(conv);
        for (long k = 1; k < taps; k++) m = zn_mpf_greater(m, zn_load(conv + k * voxel), careful);
        for (long j = 1; j < rows; j++)
            for (long k = 0; k < taps; k++) m = zn_mpf_greater(m, zn_load(conv + j * pitch + k * voxel), careful);
        if (gives) {
            zn_vec all = m;
            for (long p = 0; p < planes; p++)
                all = zn_mpf_greater(all, zn_load(kept + p * plane + q * ZN_LANES), careful);
            all = (zn_vec)((zn_ivec)zn_activate(all, code, a, b) & lanes);
            if (stream) zn_stream(out + q * ZN_LANES, all);
            else zn_store(out + q * ZN_LANES, all);
        }
        if (keeps) zn_store(keep + q * ZN_LANES, m);
    }
}

ZN_INLINE void zn_mpf_cases(const zn_mpf_line *l, const long rows, const long taps, const long planes, const int code,
                            const int careful) {
    if (!l->out) zn_mpf_windows(l, rows, taps, planes, 1, 0, 0, code, careful);
    else if (l->stream && l->keep) zn_mpf_windows(l, rows, taps, planes, 1, 1, 1, code, careful);
    else if (l->stream) zn_mpf_windows(l, rows, taps, planes, 0, 1, 1, code, careful);
    else if (l->keep) zn_mpf_windows(l, rows, taps, planes, 1, 1, 0, code, careful);
    else zn_mpf_windows(l, rows, taps, planes, 0, 1, 0, code, careful);
}

static void zn_mpf_row(const zn_mpf_line *l) {
    if (l->careful) zn_mpf_cases(l, l->rows, l->taps, l->planes, l->code, 1);
    else if (l->rows == 2 && l->taps == 2 && l->planes == 1 && l->code == ZN_RELU)
        zn_mpf_cases(l, 2, 2, 1, ZN_RELU, 0);
    else if (l->rows == 2 && l->taps == 2 && l->planes == 1) zn_mpf_cases(l, 2, 2, 1, l->code, 0);
    else zn_mpf_cases(l, l->rows, l->taps, l->planes, l->code, 0);
}

/* `n` vectors, one a voxel, to a row of voxels for each of `channels` channels; `spare` holds as many vectors. */
static void zn_mpf_spread(const float *from, long n, int channels, float *out, long channel, int stream,
                          float *spare) {
    long q = 0;
    if (!stream) {
        for (; q + ZN_LANES <= n; q += ZN_LANES) {
            zn_vec v[ZN_LANES];
            ZN_UNROLL for (int i = 0; i < ZN_LANES; i++) v[i] = zn_load(from + (q + i) * ZN_LANES);
            zn_transpose(v);
            ZN_UNROLL for (int l = 0; l < ZN_LANES; l++) if (l < channels) zn_store(out + l * channel + q, v[l]);
        }
        for (; q < n; q++)
            for (int l = 0; l < channels; l++) out[l * channel + q] = from[q * ZN_LANES + l];
        return;
    }
    for (; q + ZN_LANES <= n; q += ZN_LANES) {
        zn_vec v[ZN_LANES];
        ZN_UNROLL for (int i = 0; i < ZN_LANES; i++) v[i] = zn_load(from + (q + i) * ZN_LANES);
        zn_transpose(v);
        ZN_UNROLL for (int l = 0; l < ZN_LANES; l++) zn_store(spare + l * n + q, v[l]);
    }
    for (; q < n; q++)
        for (int l = 0; l < ZN_LANES; l++) spare[l * n + q] = from[q * ZN_LANES + l];
    for (int l = 0; l < channels; l++) zn_stream_row(out + l * channel, spare + l * n, n);
}

/* The activation of `n` vectors in a row. */
static void zn_mpf_activate(float *sums, long n, int code, float a, float b) {
    for (long i = 0; i < n; i++) zn_store(sums + i * ZN_LANES, zn_activate(zn_load(sums + i * ZN_LANES), code, a, b));
}
#endif

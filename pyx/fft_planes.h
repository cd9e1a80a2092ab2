/* Spectra of pairs of real planes: two planes a, b of ny x nx make one complex plane a + i b. Its transform Z lies as
 * in scratch, point (kx, ky) at kx * width + ky * ZN_POINT. The spectra of a and b are kept in *columns* (ky, kx):
 * kx = 0 .. nx / 2, and for each all ky, but only ky <= ny / 2 where kx = 0 or 2 kx = nx, which mirror themselves. A
 * column is `step` floats from the last, and holds the point of b after that of a. */
#ifndef ZNNI_FFT_PLANES_H
#define ZNNI_FFT_PLANES_H
#include "fft_lanes.h"

/* Stores past the caches what is read much later only; whole cache lines need not be read before. `to` is aligned. */
static inline void zn_stream(float *to, zn_vec v) {
#if defined(__AVX512F__)
    __builtin_ia32_movntps512(to, v);
#elif defined(__AVX__)
    __builtin_ia32_movntps256(to, v);
#elif defined(__SSE__)
    __builtin_ia32_movntps(to, v);
#else
    zn_store(to, v);
#endif
}
/* What was streamed is seen by other threads before what follows. */
static inline void zn_stream_fence(void) {
#if defined(__SSE__)
    __builtin_ia32_sfence();
#endif
}

/* Columns that are kept of one kx. */
static inline int zn_plane_columns(int nx, int ny, int kx) { return kx == 0 || 2 * kx == nx ? ny / 2 + 1 : ny; }

/* Columns before those of kx; of kx = nx / 2 + 1: all that there are. */
static inline long zn_columns_before(int nx, int ny, int kx) {
    const long mirrored = (kx > 0) + (nx % 2 == 0 && kx > nx / 2);
    return (kx - mirrored) * (long)ny + mirrored * (ny / 2 + 1);
}

/* Line kx of Z, and line (nx - kx) mod nx, its mirror, both without gaps, to the first `count` columns of kx: *twice* the
 * spectra of a and, unless `alone`, b. Returns where the columns of the next kx are. */
static inline float *zn_columns_split(int ny, int count, const float *line, const float *mirror, int alone,
                                      float *columns, long step) {
    const float *p = line, *m = mirror;
    for (int ky = 0; ky < count; ky++, p += ZN_POINT, columns += step) {
        const zn_vec pr = zn_load(p), pi = zn_load(p + ZN_LANES), mr = zn_load(m), mi = zn_load(m + ZN_LANES);
        zn_stream(columns, pr + mr), zn_stream(columns + ZN_LANES, pi - mi);
        if (!alone) zn_stream(columns + ZN_POINT, pi + mi), zn_stream(columns + ZN_POINT + ZN_LANES, mr - pr);
        m = mirror + (ny - 1 - ky) * ZN_POINT;
    }
    return columns;
}

/* The inverse; b is zero if `alone`. Meanwhile the point that comes next in each column is fetched. Where line and
 * mirror are one line, `count` columns make it whole. */
static inline const float *zn_columns_merge(int ny, int count, const float *columns, long step, int alone, float *line,
                                            float *mirror) {
    const long next = (alone ? 1 : 2) * ZN_POINT;
    float *p = line, *m = mirror;
    for (int ky = 0; ky < count; ky++, p += ZN_POINT, columns += step) {
        const zn_vec ar = zn_load(columns), ai = zn_load(columns + ZN_LANES);
        zn_vec br = zn_splat(0.0f), bi = br;
        if (!alone) br = zn_load(columns + ZN_POINT), bi = zn_load(columns + ZN_POINT + ZN_LANES);
        __builtin_prefetch(columns + next);
        zn_store(m, ar + bi), zn_store(m + ZN_LANES, br - ai);
        zn_store(p, ar - bi), zn_store(p + ZN_LANES, ai + br);
        m = mirror + (ny - 1 - ky) * ZN_POINT;
    }
    return columns;
}

/* Zeros for points `step` floats apart. */
static inline void zn_points_clear(float *points, long step, int count) {
    for (long i = 0; i < count; i++) memset(points + i * step, 0, ZN_POINT * sizeof(float));
}

/* Points that lie as in scratch, times a factor. */
static inline void zn_points_scale(float *points, int count, float factor) {
    for (long i = 0; i < (long)count * ZN_POINT; i += ZN_LANES) zn_store(points + i, zn_load(points + i) * factor);
}

/* Asks for points, `step` floats apart, that are read soon. */
static inline void zn_points_prefetch(const float *points, long step, int count) {
    for (int i = 0; i < count; i++) __builtin_prefetch(points + i * step);
}
#endif

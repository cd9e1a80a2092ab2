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

/* Z to columns of first <= kx < last: *twice* the spectra of a and, unless `alone`, b. */
static inline void zn_planes_split(int nx, int ny, int first, int last, const float *z, long width, int alone,
                                   float *columns, long step) {
    for (int kx = first; kx < last; kx++) {
        const int count = zn_plane_columns(nx, ny, kx);
        const float *p = z + kx * width, *mirror = z + (kx ? nx - kx : 0) * width, *m = mirror;
        for (int ky = 0; ky < count; ky++, p += ZN_POINT, columns += step) {
            const zn_vec pr = zn_load(p), pi = zn_load(p + ZN_LANES), mr = zn_load(m), mi = zn_load(m + ZN_LANES);
            zn_stream(columns, pr + mr), zn_stream(columns + ZN_LANES, pi - mi);
            if (!alone) zn_stream(columns + ZN_POINT, pi + mi), zn_stream(columns + ZN_POINT + ZN_LANES, mr - pr);
            m = mirror + (ny - 1 - ky) * ZN_POINT;
        }
    }
}

/* Columns to Z; b is zero if `alone`. Meanwhile the two points that come next in each column are fetched. */
static inline void zn_planes_merge(int nx, int ny, const float *columns, long step, int alone, float *z, long width) {
    const long next = (alone ? 1 : 2) * ZN_POINT;
    for (int kx = 0; kx <= nx / 2; kx++) {
        const int count = zn_plane_columns(nx, ny, kx);
        float *p = z + kx * width, *mirror = z + (kx ? nx - kx : 0) * width, *m = mirror;
        for (int ky = 0; ky < count; ky++, p += ZN_POINT, columns += step) {
            const zn_vec ar = zn_load(columns), ai = zn_load(columns + ZN_LANES);
            zn_vec br = zn_splat(0.0f), bi = br;
            if (!alone) br = zn_load(columns + ZN_POINT), bi = zn_load(columns + ZN_POINT + ZN_LANES);
            __builtin_prefetch(columns + next), __builtin_prefetch(columns + next + ZN_POINT);
            zn_store(m, ar + bi), zn_store(m + ZN_LANES, br - ai);
            zn_store(p, ar - bi), zn_store(p + ZN_LANES, ai + br);
            m = mirror + (ny - 1 - ky) * ZN_POINT;
        }
    }
}

/* Zeros for points `step` floats apart. */
static inline void zn_points_clear(float *points, long step, int count) {
    for (long i = 0; i < count; i++) memset(points + i * step, 0, ZN_POINT * sizeof(float));
}

/* Points that lie as in scratch, times a factor. */
static inline void zn_points_scale(float *points, int count, float factor) {
    for (long i = 0; i < (long)count * ZN_POINT; i += ZN_LANES) zn_store(points + i, zn_load(points + i) * factor);
}

/* Asks for points that are read soon. */
static inline void zn_points_prefetch(const float *points, int count) {
    for (int i = 0; i < count; i++) __builtin_prefetch(points + (long)i * ZN_POINT);
}
#endif
